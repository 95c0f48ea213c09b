"""Promise 2 under random schedules: a reader gets the right bytes or an error, never others."""

import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from exaifs.cache.data.contents import CacheLimits, ContentStore
from exaifs.errors import Busy, ExaifsError, Unreachable
from exaifs.model import ObjectRef
from tests.cache.bucket import KIB, MIB, Fault, Site, random_bytes

SIZES = [1, 300 * KIB, MIB, MIB + 1, 2 * MIB + 777, 3 * MIB]
DATA = [random_bytes(size, seed) for seed, size in enumerate(SIZES)]
DAY_NS = 24 * 3600 * 10**9


@dataclass
class Plan:
    """One schedule, drawn by Hypothesis, played with one source of chance."""

    seed: int
    memory_bytes: int
    disk_bytes: int
    honours_ranges: bool
    fault_rate: float
    steps: list[str]
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def fault(self) -> Fault:
        """Return what happens to the next download."""
        if self.chance.random() >= self.fault_rate:
            return Fault()
        break_after = self.chance.randrange(2 * MIB)
        return self.chance.choice(
            [
                Fault(on_enter=Unreachable("no answer")),
                Fault(on_enter=Busy("later")),
                Fault(break_after=break_after, error=Unreachable("cut")),
                Fault(break_after=break_after),
                Fault(extra=b"more"),
            ]
        )


plans = st.builds(
    Plan,
    seed=st.integers(0, 2**32),
    memory_bytes=st.sampled_from([0, 100 * KIB, MIB, 100 * MIB]),
    disk_bytes=st.sampled_from([0, MIB, 3 * MIB, 100 * MIB]),
    honours_ranges=st.booleans(),
    fault_rate=st.sampled_from([0.0, 0.1, 0.5]),
    steps=st.lists(
        st.sampled_from(["reads", "reads", "drop", "sweep", "damage", "move", "materialize", "leave"]),
        max_size=8,
    ),
)


class Player:
    """Plays a plan on a site."""

    def __init__(self, plan: Plan, site: Site) -> None:
        self.plan = plan
        self.chance = plan.chance
        self.site = site
        self.refs = [
            site.bucket.put(str(number), data, with_hash=number % 2 == 0)
            for number, data in enumerate(DATA)
        ]

    async def play(self) -> None:
        """Play all steps, closing the store where the plan says so, then read everything in peace."""
        self.site.bucket.decide = self.plan.fault
        steps = iter([*self.plan.steps, "end"])
        step = ""
        while step != "end":
            async with self.site.open() as store:
                for step in steps:
                    if step in {"leave", "end"}:
                        break
                    await getattr(self, step)(store)
                    statistics = store.statistics()
                    assert statistics.memory_bytes <= self.plan.memory_bytes
                    assert statistics.disk_disabled is None
        self.site.bucket.decide = Fault
        for _ in range(2):
            async with self.site.open() as store:
                for ref, data in zip(self.refs, DATA, strict=True):
                    assert await store.read(ref, 0, len(data)) == data
            assert sum(self.site.content_sizes()) <= self.plan.disk_bytes
            assert self.site.partial_files() == []

    async def reads(self, store: ContentStore) -> None:
        """Read from several tasks at once; some give up on the way."""
        async with anyio.create_task_group() as tasks:
            for _ in range(self.chance.randrange(1, 6)):
                tasks.start_soon(self.one_reader, store, self.chance.randrange(len(DATA)))

    async def one_reader(self, store: ContentStore, number: int) -> None:
        """Read here and there, or on and on, in one file."""
        ref, data = self.refs[number], DATA[number]
        pinned = self.chance.random() < 0.7
        offset = self.chance.randrange(len(data))
        if pinned:
            store.pin(ref)
        for _ in range(self.chance.randrange(1, 10)):
            size_bytes = self.chance.choice([1, 4096, 128 * KIB, MIB, 4 * MIB])
            await self.one_read(store, ref, data, offset, size_bytes)
            sequential = self.chance.random() < 0.6
            offset = offset + size_bytes if sequential else self.chance.randrange(len(data))
        if pinned:
            store.unpin(ref)

    async def one_read(
        self, store: ContentStore, ref: ObjectRef, data: bytes, offset: int, size_bytes: int
    ) -> None:
        """Read once, perhaps for a few moments only."""
        patience = self.chance.choice([None, 0, 3, 30])
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                if patience is not None:
                    tasks.start_soon(give_up, scope, patience)
                try:
                    got = await store.read(ref, offset, size_bytes)
                except ExaifsError:
                    assert self.plan.fault_rate > 0
                else:
                    assert got == data[offset : offset + size_bytes]
                tasks.cancel_scope.cancel()

    async def materialize(self, store: ContentStore) -> None:
        """Have a file on disk while it is open."""
        number = self.chance.randrange(len(DATA))
        store.pin(self.refs[number])
        try:
            await store.materialize(self.refs[number])
        except ExaifsError:
            assert self.plan.fault_rate > 0
        else:
            path = store.local_path(self.refs[number])
            assert path is not None
            assert await anyio.Path(path).read_bytes() == DATA[number]
        store.unpin(self.refs[number])

    async def drop(self, store: ContentStore) -> None:
        """Drop the cache."""
        await store.drop_clean()

    async def sweep(self, store: ContentStore) -> None:
        """Let the janitor think that time has passed."""
        await store.sweep(time.time_ns() + self.chance.choice([0, 40]) * DAY_NS)

    async def move(self, store: ContentStore) -> None:
        """Rename an object, and say so."""
        number = self.chance.randrange(len(DATA))
        old = self.refs[number]
        new = self.refs[number] = self.site.bucket.move(old, old.key + "+")
        store.rekey(old, new)

    async def damage(self, store: ContentStore) -> None:
        """Remove a file under the store."""
        del store
        files = self.site.content_files()
        if files:
            self.chance.choice(files).unlink(missing_ok=True)


async def give_up(scope: anyio.CancelScope, patience: int) -> None:
    """Cancel after so many turns of the event loop."""
    for _ in range(patience):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@given(plan=plans)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_reader_gets_the_right_bytes_or_an_error(backend: str, plan: Plan) -> None:
    """Whatever is read, broken, evicted, renamed, cancelled and restarted: never a wrong byte.

    And in the end, with a server that answers: every byte of every file, and the limits kept.
    """

    async def scenario() -> None:
        with tempfile.TemporaryDirectory() as directory, anyio.fail_after(60):
            site = Site(Path(directory), CacheLimits(plan.memory_bytes, plan.disk_bytes))
            site.bucket.honours_ranges = plan.honours_ranges
            await Player(plan, site).play()

    anyio.run(scenario, backend=backend)
