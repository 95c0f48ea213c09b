"""Readers that wait for blocks of one content. Synchronous but for the waiting itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from exaifs.cache.data.blocks import Interval, overlaps


class Waiter:
    """One reader.

    Args:
        blocks: what it needs.
        needs_file: whether only a complete file on disk will do.
    """

    def __init__(self, blocks: Interval, *, needs_file: bool) -> None:
        self.blocks = blocks
        self.needs_file = needs_file
        self.error: Exception | None = None
        self._event = anyio.Event()

    def wake(self) -> None:
        """Let it look again."""
        self._event.set()

    async def wait(self) -> None:
        """Return at the next `wake`, or at once if there was one since the last time."""
        await self._event.wait()
        self._event = anyio.Event()

    def raise_error(self) -> None:
        """Raise what went wrong, if something did: a copy, for a traceback belongs to one task."""
        if self.error is not None:
            raise copy.copy(self.error)


class Waiters:
    """All readers that wait for one content."""

    def __init__(self) -> None:
        self._waiters: list[Waiter] = []

    def __bool__(self) -> bool:
        return bool(self._waiters)

    @contextmanager
    def joined(self, blocks: Interval, *, needs_file: bool = False) -> Iterator[Waiter]:
        """Be one of them meanwhile."""
        waiter = Waiter(blocks, needs_file=needs_file)
        self._waiters.append(waiter)
        try:
            yield waiter
        finally:
            self._waiters.remove(waiter)

    def overlapping(self, blocks: Interval) -> list[Waiter]:
        """Return those who need any of these blocks."""
        return [waiter for waiter in self._waiters if overlaps(waiter.blocks, blocks)]

    def widen(self, blocks: Interval) -> None:
        """Make everybody need these blocks."""
        for waiter in self._waiters:
            waiter.blocks = blocks

    def wake(self) -> None:
        """Let everybody look again."""
        for waiter in self._waiters:
            waiter.wake()

    def fail(self, blocks: Interval, error: Exception, *, only_files: bool = False) -> None:
        """Give the error to those who need any of these blocks."""
        for waiter in self.overlapping(blocks):
            if waiter.needs_file or not only_files:
                waiter.error = error
                waiter.wake()
