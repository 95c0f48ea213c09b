"""kill -9 at every await of random programs, and at every call that changes the disk, in any weather.

`EXAIFS_SIMULATE_S=60 pytest -s tests/simulation/test_every_moment.py` goes on for as long with new seeds;
`EXAIFS_SIMULATE_SEED=7` plays one again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import pytest

from tests.simulation.calls import before_every_call
from tests.simulation.killed import KilledPlay
from tests.simulation.moments import AtEveryStep, Program
from tests.simulation.programs import draw_short
from tests.simulation.replay import SIMULATE_S, run, seeds, simulate

TWICE = 0.02
"""Of how many kills the next run is killed at every step, too."""


JOINED = (
    ("write f", "mkdir d", "offline", "adorn d", "write f", "adorn f", "adorn d", "unlink f"),
    (
        "offline",
        "spin d",
        "mkdir d",
        "adorn d",
        "write d/f",
        "adorn d/f",
        "rename d e",
        "adorn e",
        "adorn e/f",
    ),
    ("lose put after", "mkdir d", "rmdir d", "lose put after", "spin d", "lose commit after", "spin d"),
    (
        "write a",
        "write b",
        "offline",
        "adorn a",
        "rename a b",
        "adorn b",
        "rename b c",
        "adorn c",
        "unlink c",
    ),
    ("write f", "lose patch after", "adorn f", "lose patch before", "adorn f", "adorn f", "adorn f"),
    ("write d", "unlink d", "mkdir d", "offline", "adorn d", "rmdir d", "online", "spin d"),
)
"""Programs whose changes of rows are joined while they wait, before and after what must lie between."""


FAR = {"d/f": b"d/f", "d/s/f": b"d/s/f", "d/s/t/f": b"d/s/t/f", "o/f": b"o/f"}
UNLISTED = (
    ("offline", "rename d e", "mkdir d", "write d/f", "adorn d/f"),
    ("list d", "offline", "rename d e", "write e/f", "unlink e/f", "rename e/s g", "adorn g", "write e/s"),
    ("offline", "rename d t", "rename o d", "rename t o", "wait", "online"),
    (
        "lose move after",
        "rename d e",
        "lose move before",
        "rename e d",
        "lose list_tree after",
        "rename d o2",
    ),
    ("offline", "mkdir b", "rename d b/d", "rename b c", "rename o b", "online", "rename c/d d"),
)
"""Programs that rename directories of which not all names are known."""


WRITTEN_AGAIN = ((4, "offline, write a, online, wait, lose commit before, append a, append a"),)
"""Seeds and programs that send newer bytes of a file while the journal still has older ones."""


def play(
    seed: int, steps: Sequence[str] | None = None, known: Mapping[str, bytes] | None = None
) -> Program:
    """Play one program, and every next run; on failure say which, and what happened until then."""
    given = None if steps is None else [tuple(step.split()) for step in steps]
    return simulate(seed, lambda directory: Program(seed, directory, given, known=known or {}), _play)


def _play(played: Program) -> None:
    _kill_everywhere(played, played.run)
    assert len(played.moments) > 1
    for moment in played.moments:
        following = played.next_run(moment) if played.chance.random() < TWICE else None
        run(lambda: played.check(moment))  # noqa: B023 - called at once
        if following is not None:
            _kill_everywhere(following, following.recover)
            for later in following.moments:
                run(lambda: following.check(later))  # noqa: B023 - as above


def play_two(seed: int) -> KilledPlay:
    """Play a program of two mounts, and what both make of it when they are killed."""
    program = draw_short(seed)
    return simulate(seed, lambda directory: KilledPlay(program, directory), _play_two)


def _play_two(played: KilledPlay) -> None:
    _kill_everywhere(played, played.run)
    assert len(played.moments) > 1
    for moment in played.moments:
        following = played.next_runs(moment)
        try:
            run(following.run)
        except BaseException:
            played.log += [f"killed at {moment.doing}", *following.log]
            raise


def _kill_everywhere(played: Program | KilledPlay, act: Callable[[], Awaitable[None]]) -> None:
    every_step = AtEveryStep(played)
    with before_every_call(played.note_moment):
        run(act, every_step)
    if every_step.failure is not None:
        raise every_step.failure


@pytest.mark.timeout(900)
@pytest.mark.parametrize("steps", JOINED)
def test_a_kill_while_changes_are_joined_loses_none_of_them(steps: Sequence[str]) -> None:
    """Attributes that were acknowledged are there, whichever record had them."""
    play(1, steps)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("steps", UNLISTED)
def test_a_kill_while_what_was_never_listed_is_renamed_loses_nothing(steps: Sequence[str]) -> None:
    """All of it is under the new name, or where the call that was under way had not yet taken it."""
    play(1, steps, FAR)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("seed", "steps"), WRITTEN_AGAIN)
def test_a_kill_while_newer_bytes_are_sent_is_no_conflict(seed: int, steps: str) -> None:
    """The next run knows them as its own, though their close had no answer."""
    play(seed, steps.split(", "))


@pytest.mark.timeout(SIMULATE_S + 900)
def test_a_kill_at_any_moment_loses_nothing_acknowledged() -> None:
    """The next run shows and sends what was acknowledged, once, under its newest name; no conflicts."""
    for seed in seeds(6):
        play(seed)


@pytest.mark.timeout(SIMULATE_S + 900)
def test_a_kill_of_both_mounts_at_any_moment_loses_no_byte() -> None:
    """Whatever they were doing to the same names: next runs agree, and what lost a conflict is kept."""
    for seed in seeds(2):
        play_two(seed)
