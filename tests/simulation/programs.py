"""Random programs for two mounts and an outside writer, and how a failing one is made smaller."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tests.simulation.weather import choose

MOUNTS = ("one", "two")

PATHS = ("a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "f", "f/a")
FEW_PATHS = ("a", "b", "d", "d/a", "d/b", "e")
"""So few that most steps meet what another has just done."""

FILE_VERBS = (
    "create",
    "create",
    "create",
    "overwrite",
    "read",
    "open_read",
    "open_write",
    "open_create",
    "truncate",
)
HANDLE_VERBS = ("poke", "poke", "cut", "read_open", "flush", "close_one")
NAME_VERBS = ("stat", "mkdir", "mkdir", "unlink", "rmdir", "chmod", "set_xattr", "drop_xattr")
MOUNT_VERBS = ("poll", "settle", "settle", "drop_caches", "drop_contents", "restart")
ROUGH_VERBS = ("offline", "offline", "online", "online", "kill", "settle")
OUTSIDE_VERBS = ("put", "put", "remove")


@dataclass(frozen=True)
class Step:
    """One operation: who does what to which path; `number` chooses sizes, offsets, handles."""

    actor: str
    verb: str
    path: str = ""
    other: str = ""
    number: int = 0

    def __str__(self) -> str:
        return " ".join(filter(None, (self.actor, self.verb, self.path, self.other, str(self.number))))


@dataclass(frozen=True)
class World:
    """What a program is played in."""

    seed: int
    """Of what chance decides while it is played."""
    keeps_metadata: bool = True
    ignores_range: bool = False
    drop_rate: float = 0.0
    """Of requests that are lost, and again of answers."""
    settings: dict[str, dict[str, object]] = field(default_factory=dict)
    """Of each mount."""


@dataclass(frozen=True)
class Program:
    """What is played, and in what world."""

    world: World
    steps: Sequence[Step]


def draw(seed: int) -> Program:
    """Return what a seed stands for: every other one is a dense program in a rough world."""
    chance = random.Random(seed)
    if choose(chance, [False, True]):
        steps = [_draw_step(chance, PATHS, rough=False) for _ in range(chance.randrange(40, 81))]
        return Program(World(seed), steps)
    return _draw_rough(seed, chance, choose(chance, [PATHS, FEW_PATHS, FEW_PATHS]), (40, 161))


def draw_short(seed: int) -> Program:
    """Return a short and dense program in a rough world, where some files are known from the start."""
    program = _draw_rough(seed, random.Random(seed), FEW_PATHS, (20, 41))
    known = [Step("outside", "put", path, number=number) for number, path in enumerate(("a", "d/a", "d/b"))]
    heard = [Step(mount, verb) for mount in MOUNTS for verb in ("ls", "settle")]
    return replace(program, steps=[*known, *heard, *program.steps])


def _draw_rough(seed: int, chance: random.Random, paths: Sequence[str], length: tuple[int, int]) -> Program:
    steps = [_draw_step(chance, paths, rough=True) for _ in range(chance.randrange(*length))]
    world = World(
        seed,
        keeps_metadata=choose(chance, [True, True, False]),
        ignores_range=choose(chance, [False, True]),
        drop_rate=choose(chance, [0.0, 0.0, 0.05, 0.2]),
        settings={name: _draw_settings(chance) for name in MOUNTS},
    )
    return Program(world, steps)


def _draw_settings(chance: random.Random) -> dict[str, object]:
    return {
        "write_mode": choose(chance, ["through", "through", "back"]),
        "offline_writes": choose(chance, ["journal", "journal", "refuse"]),
        "conflict": choose(chance, ["last-close", "last-close", "refuse"]),
        "consistency": choose(chance, ["feed", "feed", "open"]),
        "memory_cache_bytes": choose(chance, [100_000_000, 0]),
    }


def _draw_step(chance: random.Random, paths: Sequence[str], *, rough: bool) -> Step:
    actor, path, other = choose(chance, MOUNTS), choose(chance, paths), choose(chance, paths)
    number = chance.randrange(16)
    trees = sorted({path.rpartition("/")[0] for path in paths})
    kinds: list[Callable[[], Step]] = [
        lambda: Step(actor, choose(chance, FILE_VERBS), path, number=number),
        lambda: Step(actor, choose(chance, HANDLE_VERBS), number=number),
        lambda: Step(actor, choose(chance, NAME_VERBS), path, number=number),
        lambda: Step(actor, choose(chance, ("rename", "rename", "symlink")), path, other),
        lambda: Step(actor, "ls", choose(chance, trees)),
        lambda: Step(actor, choose(chance, MOUNT_VERBS)),
        lambda: Step("outside", choose(chance, OUTSIDE_VERBS), path, number=number),
        lambda: Step("outside", choose(chance, ("move", "put_same")), path, other),
        lambda: Step("outside", "remove_marker", choose(chance, trees[1:])),
        lambda: Step("outside", "trim"),
    ]
    if rough:
        kinds += [
            lambda: Step(actor, choose(chance, ROUGH_VERBS)),
            lambda: Step(actor, choose(chance, ("overwrite", "unlink")), path, number=number),
            lambda: Step(actor, choose(chance, ("create", "poke", "close_one")), path, number=number),
            lambda: Step(actor, "rename", path, other),
            lambda: Step(actor, "rename", path, other),
        ]
    return choose(chance, kinds)()


def shrink(program: Program, fails: Callable[[Program], bool], plays: int = 200) -> Program:
    """Return a program that fails, too, with as few steps as are found in so many plays."""
    size = len(program.steps) // 2
    while size:
        start = 0
        while start < len(program.steps):
            steps = [*program.steps[:start], *program.steps[start + size :]]
            plays -= 1
            if plays < 0:
                return program
            if fails(replace(program, steps=steps)):
                program = replace(program, steps=steps)
            else:
                start += size
        size //= 2
    return program
