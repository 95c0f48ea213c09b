"""What the kernel must forget: what another host changed, and bytes that are not the right ones.

`fs` says what, `fuse` tells the kernel, from a task of its own: telling it inside a handler can deadlock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import trio

from exaifs.cache.names.entries import Entry
from exaifs.cache.names.index import Index
from exaifs.cache.names.merge import Difference
from exaifs.model import Ino


@dataclass(frozen=True, slots=True)
class StaleName:
    """A name that is gone or stands for another inode."""

    parent: Ino
    name: str


@dataclass(frozen=True, slots=True)
class StaleAttributes:
    """An inode with other attributes."""

    ino: Ino


@dataclass(frozen=True, slots=True)
class StalePages:
    """An inode whose bytes, as far as the kernel has them, are not the right ones."""

    ino: Ino


Invalidation = StaleName | StaleAttributes | StalePages


class Invalidations:
    """A queue from `fs` to `fuse`; unbounded, as it holds at most what the index changed."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._send, self._receive = trio.open_memory_channel[Invalidation](math.inf)
        self._doubted: Iterator[Invalidation] = iter(())

    def note(self, difference: Difference) -> None:
        """Queue what a merge changed."""
        parents = set()
        for entry in difference.removed:
            self._name(entry)
            parents.add(entry.parent)
        for entry in difference.added:
            parents.add(entry.parent)
        for entry in difference.changed:
            self._put(StaleAttributes(entry.ino))
        for prefix in parents:
            directory = self._index.directory(prefix)
            if directory is not None:
                self._put(StaleAttributes(directory.ino))

    def drop_pages(self, inos: Iterable[Ino]) -> None:
        """Have the kernel read the bytes of some inodes again."""
        for ino in inos:
            self._put(StalePages(ino))

    def distrust(self, inos: Sequence[Ino]) -> None:
        """Have the kernel ask again for inodes whose freshness can no longer be promised.

        There may be very many: they are looked up one by one, as `take` comes to them. Directories keep
        their names, which the kernel never trusts for long: a name that it is told to forget is gone for
        programs that work there (getcwd(2) says ENOENT) until somebody looks it up again.
        """
        self._doubted = self._doubts(inos)
        first = next(self._doubted, None)
        if first is not None:
            self._put(first)

    def _doubts(self, inos: Sequence[Ino]) -> Iterator[Invalidation]:
        for ino in inos:
            entry = self._index.by_ino(ino)
            if entry is None:
                continue
            directory = self._index.directory(entry.parent)
            if directory is not None and not entry.is_dir:
                yield StaleName(directory.ino, entry.name)
            yield StaleAttributes(ino)

    def _name(self, entry: Entry) -> None:
        directory = self._index.directory(entry.parent)
        if directory is not None:
            self._put(StaleName(directory.ino, entry.name))

    def _put(self, invalidation: Invalidation) -> None:
        self._send.send_nowait(invalidation)

    async def take(self) -> Invalidation:
        """Return the oldest, waiting for one."""
        with suppress(trio.WouldBlock):
            return self._receive.receive_nowait()
        for invalidation in self._doubted:
            return invalidation
        return await self._receive.receive()
