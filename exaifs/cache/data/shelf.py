"""What is kept on this host and on whose behalf: tiers, pins, hashes found, and room.

The downloads hand verified contents to the shelf; the content store reads from it. Nothing here asks
the network. Decisions are synchronous and return what is to be unlinked, which happens in a thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import anyio
import structlog

from exaifs.cache.connection import Database
from exaifs.cache.data.aliases import Aliases
from exaifs.cache.data.blocks import MIB
from exaifs.cache.data.damage import Damage
from exaifs.cache.data.disk import DiskTier
from exaifs.cache.data.memory import MemoryTier
from exaifs.cache.data.memoryspool import MemorySpool
from exaifs.cache.data.pins import Pins
from exaifs.cache.data.spool import DiskSpool, Spool
from exaifs.cache.health import DiskHealth
from exaifs.cache.localfile import (
    LocalFile,
    Threads,
    is_out_of_space,
    unlink_quietly,
    write_new,
)
from exaifs.errors import ExaifsError, IntegrityError, NoSpace
from exaifs.limits import descriptor_limit
from exaifs.model import ObjectRef

_log = structlog.get_logger(__name__)

T = TypeVar("T")

_IDLE_PARTIALS = 32
"""Unfinished contents kept though nobody reads them; each has a descriptor open."""

_SHARE = 16
"""No more of them than one in so many descriptors that the process may have."""

_UNLINK_S = 5.0
"""How long the end of the store waits for files that are being evicted."""

_WAY_BYTES = 4 * MIB
"""At least this much is evicted from a full disk at once."""

_END_OF_TIME_NS = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """How much the tiers may keep; 0 turns one off."""

    memory_bytes: int = 100 * MIB
    disk_bytes: int = 1000 * MIB
    max_age_s: float = 30 * 24 * 3600.0
    """Since the last use."""


class Partial(Protocol):
    """A content that is still arriving, as far as room is concerned."""

    @property
    def busy(self) -> bool:
        """Whether somebody waits for it or has it open."""

    @property
    def stored_bytes(self) -> int:
        """What it takes on disk now."""

    @property
    def size_bytes(self) -> int:
        """What it will take when complete; 0 when it is not on disk."""

    def close(self) -> None:
        """Give up what is there."""


class Shelf:
    """The local tiers and the rules of what stays in them.

    Args:
        directory: the cache directory.
        database: the index in it.
        limits: of the tiers.
        partials: what is arriving, by version, the least recently begun first; the owner changes it.
        health: of the disk.
    """

    def __init__(
        self,
        directory: Path,
        database: Database,
        limits: CacheLimits,
        partials: Mapping[str, Partial],
        health: DiskHealth,
    ) -> None:
        self.limits = limits
        self.threads = Threads()
        self.database = database
        self.health = health
        self.damage = Damage()
        self.memory = MemoryTier(limits.memory_bytes)
        self.disk = DiskTier(directory, database, self.threads, self.health)
        self.aliases = Aliases(database, self.health)
        self.pins = Pins()
        self._partials = partials
        self.evictions = 0
        self._idle_limit = min(_IDLE_PARTIALS, descriptor_limit() // _SHARE)
        self._removals = 0
        self._removed = anyio.Event()
        self._refused: dict[tuple[str, str | None], str] = {}

    def sha256_of(self, ref: ObjectRef) -> str | None:
        """Return the hash of a content, from its row or found by reading it."""
        return ref.sha256 if ref.sha256 is not None else self.aliases.get(ref.version)

    def refuse(self, ref: ObjectRef, problem: str) -> IntegrityError:
        """Never serve a version under this hash again, and return the error that says why."""
        _log.warning(
            "the hash in the row is not that of the object; it will not be served",
            key=ref.key,
            version=ref.version,
            problem=problem,
        )
        self._refused[ref.version, ref.sha256] = problem
        return IntegrityError(problem)

    def check(self, ref: ObjectRef) -> None:
        """Raise the error of a version that was refused.

        Raises:
            IntegrityError: see `refuse`.
        """
        problem = self._refused.get((ref.version, ref.sha256))
        if problem is not None:
            raise IntegrityError(problem)

    def may_write(self, size_bytes: int) -> bool:
        """Tell whether a content of this size can be kept on disk."""
        free_bytes = self.limits.disk_bytes - self.disk.total_bytes - self.partial_bytes
        if size_bytes > free_bytes:
            free_bytes = self.limits.disk_bytes - self._protected_bytes()
        return self.health.usable() and size_bytes <= free_bytes

    async def keep_file(
        self, path: Path, sha256: str, size_bytes: int, file: LocalFile | None = None
    ) -> ExaifsError | None:
        """Make a verified file cached content; the caller makes room afterwards.

        Returns:
            The trouble, instead of raising it.
        """
        try:
            # The directory of its name may have to be made, which takes an inode.
            await self.with_room(0, lambda: self.disk.place(path, sha256, size_bytes, file))
        except OSError as exc:
            self.health.failed("keeping cached content", exc)
            return local_error(exc)
        self.health.worked()
        return None

    async def keep_bytes(self, sha256: str, data: bytes) -> ExaifsError | None:
        """Write a verified small content to disk, and make room.

        Returns:
            The trouble, instead of raising it.
        """
        if await self.disk.has_file(sha256):
            return None
        path = self.disk.new_partial()
        try:
            await self.with_room(len(data), lambda: self.threads.run(write_new, path, data))
        except OSError as exc:
            self.health.failed("writing cached content", exc)
            return local_error(exc)
        problem = await self.keep_file(path, sha256, len(data))
        await self.make_room()
        return problem

    def keep_in_memory(self, data: bytes, sha256: str) -> None:
        """Put a verified small content into memory."""
        self.evictions += self.memory.put_range(sha256, 0, data)

    def new_spool(self, ref: ObjectRef, *, on_disk: bool) -> Spool:
        """Return a place to hold the blocks of a content while it arrives."""
        if on_disk:
            return DiskSpool(self.disk.new_partial(), ref.size_bytes, self.threads)
        return MemorySpool(self.memory, f"v-{ref.version}", ref.size_bytes, self.threads)

    def removal(self, path: Path) -> Callable[[], Awaitable[None]]:
        """Return what removes the file of an unfinished content; `with_room` waits for it from now on."""
        self._removals += 1
        return partial(self._remove, self.threads.run, unlink_quietly, path)

    async def _remove(self, remove: Callable[..., Awaitable[None]], *what: object) -> None:
        """Do what gives room, counted before as one of the removals."""
        try:
            await remove(*what)
        finally:
            self._removals -= 1
            self._removed.set()
            self._removed = anyio.Event()

    def over_limit(self) -> bool:
        """Tell whether the disk tier takes more than it may, or too many descriptors."""
        return (
            self.disk.total_bytes + self.partial_bytes > self.limits.disk_bytes
            or sum(1 for _ in self._idle()) > self._idle_limit
        )

    async def make_room(self) -> None:
        """Evict until the disk tier is within its limit: unfinished contents first, then by use."""
        if not self.over_limit():
            return
        for arriving in list(self._idle()):
            if self.over_limit():
                arriving.close()
        keep_bytes = max(0, self.limits.disk_bytes - self.partial_bytes)
        await self._gone(self.disk.evict(self.pinned_contents(), keep_bytes))

    async def with_room(self, size_bytes: int, attempt: Callable[[], Awaitable[T]]) -> T:
        """Do something that needs room; on a disk that is full before our limit, evict for it.

        Args:
            size_bytes: what it needs, as far as that is known.
            attempt: changes nothing when there is no room; it is called again while evicting helps.

        Raises:
            NoSpace, OSError: nothing is left that could be evicted, or as `attempt`.
        """
        while True:
            try:
                return await attempt()
            except (NoSpace, OSError) as exc:
                if isinstance(exc, OSError) and not is_out_of_space(exc):
                    raise
                if not await self._make_way(max(size_bytes, _WAY_BYTES)):
                    raise

    async def _make_way(self, size_bytes: int) -> bool:
        """Evict so much, as far as nobody has it open; tell whether anything went.

        What others are evicting at this moment has left the table and not yet the disk: it is waited
        for, and is room for us as well.
        """
        idle = [arriving for arriving in self._idle() if arriving.stored_bytes]
        for arriving in idle:
            arriving.close()
        if self._removals:
            while self._removals:
                await self._removed.wait()
            return True
        keep_bytes = max(0, self.disk.total_bytes - size_bytes)
        return await self._gone(self.disk.evict(self.pinned_contents(), keep_bytes)) > 0 or bool(idle)

    @property
    def trouble(self) -> str | None:
        """What does not work on the local disk; None while all does."""
        return self.health.reason or self.database.trouble

    async def shrink(self, keep_bytes: int) -> int:
        """Drop the least recently used complete contents until so much is left; returns how many."""
        return await self._gone(self.disk.evict(self.pinned_contents(), keep_bytes))

    async def expire(self, before_ns: int) -> int:
        """Drop what was last used before a time, except what is open; returns how many."""
        return await self._gone(self.disk.expire(self.pinned_contents(), before_ns))

    async def drop_clean(self) -> None:
        """Drop everything that nobody has open."""
        self.memory.clear()
        for arriving in list(self._idle()):
            arriving.close()
        await self.expire(_END_OF_TIME_NS)

    def pinned_contents(self) -> set[str]:
        """Return the hashes of all contents that somebody has open."""
        hashes = (self.sha256_of(ref) for ref in self.pins)
        return {sha256 for sha256 in hashes if sha256 is not None}

    async def _gone(self, victims: list[str]) -> int:
        if not victims:
            return 0
        self.evictions += len(victims)
        self._removals += 1
        # Files whose row is gone would be taken in again by the janitor of the next run.
        with anyio.move_on_after(_UNLINK_S, shield=True):
            await self._remove(self.disk.unlink, victims)
        return len(victims)

    def _idle(self) -> Iterator[Partial]:
        return (arriving for arriving in self._partials.values() if not arriving.busy)

    @property
    def partial_bytes(self) -> int:
        """What unfinished contents take on disk."""
        return sum(arriving.stored_bytes for arriving in self._partials.values())

    def _protected_bytes(self) -> int:
        open_bytes = sum(self.disk.size_of(sha256) or 0 for sha256 in self.pinned_contents())
        return open_bytes + sum(
            arriving.size_bytes for arriving in self._partials.values() if arriving.busy
        )


def local_error(exc: OSError) -> ExaifsError:
    """Return what a caller who needs the local disk is told."""
    if is_out_of_space(exc):
        return NoSpace("no room on the cache disk: free some, or lower MAX_CACHE_SIZE_MB")
    return ExaifsError(f"the cache directory cannot be used: {exc}")


def hash_problem(ref: ObjectRef, found: str) -> str:
    """Describe bytes that are not what the row says."""
    return f"{ref.key}: its bytes have SHA-256 {found}, its row says {ref.sha256}"
