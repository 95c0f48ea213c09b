"""What the scenarios of several modules have in common."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio
import trio.testing

from exaifs.cache.unsent.conflicts import list_conflicts
from exaifs.fs.upstream.invalidation import Invalidation
from tests.simulation.weather import ThreadsInTurn
from tests.support.double import DoubleServer
from tests.support.paths import Paths, follow

_BY_ITSELF = {"take_deletions", "settle_deletions", "trim_log", "touch"}


def in_no_time(scene: Callable[[], Awaitable[None]]) -> None:
    """Play a scene on a clock that moves on only while all wait for it: what is done takes no time."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(scene, clock=clock, instruments=[ThreadsInTurn()])


async def sent(paths: Paths) -> None:
    """Return once Supabase has everything."""
    assert await paths.fs.drain(60) == 0


@asynccontextmanager
async def replaced_meanwhile(server: DoubleServer, paths: Paths) -> AsyncIterator[None]:
    """Have f written here, and by another host before that is answered: what is done now falls between."""
    async with trio.open_nursery() as nursery:
        with server.hold("commit") as gate:
            nursery.start_soon(paths.overwrite, "f", b"ours")
            await gate.wait_arrived()
            server.bucket.put("f", b"theirs")
            yield


async def uploaded(server: DoubleServer, paths: Paths, key: str) -> None:
    """Have all that waits be sent now, and return when the bucket has one of it, whatever is answered."""
    paths.fs.writes.sender.hurry()
    with trio.fail_after(60):
        while key not in server.bucket.objects:  # noqa: ASYNC110 - no event tells
            await trio.sleep(0.01)


async def back(server: DoubleServer, paths: Paths) -> None:
    """Have Supabase answer again, and everything sent."""
    server.online = True
    await sent(paths)
    await follow(paths)


def contents(server: DoubleServer) -> dict[str, bytes]:
    """Return what the bucket holds."""
    return {key: stored.data for key, stored in server.bucket.objects.items()}


def requests(server: DoubleServer) -> int:
    """Return how many came since `counts` was cleared, less what a mount sends by itself every so often."""
    return sum(count for name, count in server.counts.items() if name not in _BY_ITSELF)


def kept_aside(cache: Path) -> list[bytes]:
    """Return the bytes that lost a conflict, oldest first."""
    directory = cache / "conflicts"
    return [(directory / f"{conflict.id}.data").read_bytes() for conflict in list_conflicts(directory)]


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    """Have the kernel refuse to write past a size, after writing what fits; as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def told(paths: Paths) -> set[Invalidation]:
    """Return what the kernel would have been told by now."""
    found: set[Invalidation] = set()

    async def take() -> None:
        while True:
            found.add(await paths.fs.invalidations.take())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        # Blocked: the queue is empty. A time limit may be over before it is.
        await trio.testing.wait_all_tasks_blocked(0.2)
        nursery.cancel_scope.cancel()
    return found
