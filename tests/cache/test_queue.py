"""Downloads that wait for a slot behind others that hang."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing

from exaifs.cache.data.source import Source
from exaifs.errors import Unreachable
from exaifs.model import ObjectRef
from exaifs.remote.interface import Download

REF = ObjectRef("a", "v1", 100)


class HangingBucket:
    """Waits out its whole time for every download, ten seconds."""

    def __init__(self) -> None:
        self.asked = 0

    @asynccontextmanager
    async def get(self, ref: ObjectRef, start: int = 0, stop: int | None = None) -> AsyncIterator[Download]:
        """Fail."""
        assert (ref.key, start, stop) == (REF.key, 0, None)
        self.asked += 1
        await trio.sleep(10)
        error = Unreachable("no answer")
        error.waited_out = True
        raise error
        yield  # type: ignore[unreachable]  # makes it a generator


def test_the_whole_queue_is_told_at_once() -> None:
    """Fifty readers of a server that hangs: nobody waits for the others' time and then for its own."""

    async def main() -> None:
        bucket = HangingBucket()
        source = Source(bucket)

        async def read(ref: ObjectRef) -> None:
            with pytest.raises(Unreachable):
                async with source.get(ref, 0, None):
                    raise AssertionError("it was opened")

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(read, REF)
        assert trio.current_time() == 10
        assert bucket.asked == 12
        await trio.sleep(0.5)
        await read(REF)  # right after it: the kernel's second try
        assert trio.current_time() == 10.5
        await read(replace(REF, version="v2"))  # another one is asked for all the same
        assert trio.current_time() == 20.5
        assert bucket.asked == 13
        await read(REF)
        assert trio.current_time() == 30.5
        assert bucket.asked == 14

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_each_of_several_that_hang_is_told_once() -> None:
    """Two files hang together: the kernel's second try of neither waits as long again."""

    async def main() -> None:
        bucket = HangingBucket()
        source = Source(bucket)

        async def read(version: str) -> None:
            for _ in range(2):  # the read-ahead, and what the kernel asks after it failed
                with pytest.raises(Unreachable):
                    async with source.get(replace(REF, version=version), 0, None):
                        raise AssertionError("it was opened")
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            for version in ("v1", "v2", "v3"):
                nursery.start_soon(read, version)
        assert trio.current_time() == pytest.approx(10.2)
        assert bucket.asked == 3

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_thousand_files_do_not_hang_a_thousand_times() -> None:
    """Where Supabase is known to be away, one download in a while finds out whether it still hangs."""

    async def main() -> None:
        bucket = HangingBucket()
        away = False
        source = Source(bucket, lambda: away)

        async def read(number: int) -> None:
            with pytest.raises(Unreachable):
                async with source.get(replace(REF, version=f"v{number}"), 0, None):
                    raise AssertionError("it was opened")

        await read(0)
        away = True  # the change feed found out meanwhile
        for number in range(1, 1000):
            await trio.sleep(0.02)
            await read(number)
        assert bucket.asked == 4
        assert trio.current_time() == pytest.approx(40 + 999 * 0.02)
        away = False
        await read(1000)
        assert bucket.asked == 5

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_queue_that_moves_goes_on() -> None:
    """As long as bytes came meanwhile, one download that hangs says nothing of the others."""

    async def main() -> None:
        bucket = HangingBucket()
        source = Source(bucket)

        async def read(ref: ObjectRef) -> None:
            with pytest.raises(Unreachable):
                async with source.get(ref, 0, None):
                    raise AssertionError("it was opened")

        async with trio.open_nursery() as nursery:
            for _ in range(13):
                nursery.start_soon(read, REF)
            await trio.sleep(5)
            source.bytes_fetched += 1
        assert bucket.asked == 13

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
