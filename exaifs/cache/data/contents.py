"""The content store: bytes of objects, from memory, then disk, then Supabase.

Contents are immutable and named, so nothing here is ever invalidated, only evicted. Used by `fs/`; works
under asyncio and trio. The store owns one task group, for downloads and the janitor; no call here holds
a lock over the network.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio

from exaifs.cache.connection import Database
from exaifs.cache.data.blocks import MIB, SMALL_BYTES, clip
from exaifs.cache.data.digest import Digest
from exaifs.cache.data.fetch import Transfer
from exaifs.cache.data.janitor import ReconcileReport, SweepReport, reconcile, run as run_janitor, sweep
from exaifs.cache.data.shelf import CacheLimits, Shelf, hash_problem, local_error
from exaifs.cache.data.small import SmallContents
from exaifs.cache.data.source import Downloads, Source
from exaifs.cache.data.statistics import CacheStatistics
from exaifs.cache.health import DiskHealth
from exaifs.cache.localfile import LocalFile, copy_contents, sha256_of_bytes, unlink_quietly
from exaifs.errors import ExaifsError, IntegrityError, NoSpace
from exaifs.model import ObjectRef

__all__ = ["CacheLimits", "CacheStatistics", "ContentStore", "ReconcileReport", "SweepReport"]

T = TypeVar("T")

_COPIES = 2
"""One more copy is made where cached bytes turn out to be damaged."""


class ContentStore:
    """Bytes of objects, as far as possible from this host. Opened by `open`, never constructed."""

    def __init__(
        self, transfers: dict[str, Transfer], shelf: Shelf, source: Source, spawn: Callable[..., Any]
    ) -> None:
        self._shelf = shelf
        self._source = source
        self._spawn = spawn
        self._small = SmallContents(shelf, source, spawn)
        self._transfers = transfers
        self._closed = False
        self.damage = shelf.damage
        """Contents some of which was handed out and turned out to be wrong."""
        self._memory_hits = 0
        self._disk_hits = 0
        self._remote_reads = 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        directory: Path,
        database: Database,
        objects: Downloads,
        limits: CacheLimits,
        health: DiskHealth | None = None,
        *,
        is_away: Callable[[], bool] = lambda: False,
    ) -> AsyncGenerator[ContentStore]:
        """Open the store over a cache directory, and begin to tidy it in the background.

        Args:
            directory: exists; `content/`, `partial/` and `staging/` are made in it. `staging/` is the
                caller's own, on the same file system, for `adopt`.
            database: from `open_database`; used only from this thread.
            objects: the bucket.
            limits: of the tiers.
            health: of the disk, if others tell of it too.
            is_away: tells whether Supabase is known to be away, if others ask it too.

        Leaving stops downloads, and keeps what is complete.
        """
        transfers: dict[str, Transfer] = {}
        shelf = Shelf(directory, database, limits, transfers, health or DiskHealth())
        try:
            await shelf.threads.run(_make_directories, directory)
        except OSError as exc:
            shelf.health.failed("making the cache directories", exc)
        failure: Exception | None = None
        try:
            async with anyio.create_task_group() as tasks:
                store = cls(transfers, shelf, Source(objects, is_away), tasks.start_soon)
                tasks.start_soon(partial(run_janitor, shelf))
                try:
                    yield store
                except Exception as exc:  # noqa: BLE001 - raised again below, not in a group
                    failure = exc
                finally:
                    store._close()
                    tasks.cancel_scope.cancel()
        finally:
            # No task is left that could write; the files were closed, what they leave is removed.
            shelf.disk.close()
            with anyio.CancelScope(shield=True):
                await shelf.threads.run(shelf.disk.remove_partials)
        if failure is not None:
            raise failure

    def _close(self) -> None:
        self._closed = True
        error = ExaifsError("the content store was closed")
        self._small.close(error)
        for transfer in list(self._transfers.values()):
            transfer.close(error)

    async def read(self, ref: ObjectRef, offset: int, size_bytes: int) -> bytes:
        """Return bytes [offset, offset + size_bytes) of a content; short only where it ends.

        Raises:
            Stale: this version is gone from the bucket, and not here.
            IntegrityError: what the bucket has is not what the row says.
            RemoteError: the bytes are not here and Supabase does not give them.
        """
        size_bytes = clip(offset, size_bytes, ref.size_bytes)
        if size_bytes == 0:
            return b""
        while True:
            data = self.read_nowait(ref, offset, size_bytes)
            if data is None:
                data = await self._read_disk(self._shelf.pins.current(ref), offset, size_bytes)
            if data is None:
                data = await self._read_remote(self._shelf.pins.current(ref), offset, size_bytes)
            if data is not None:
                return data

    def read_nowait(self, ref: ObjectRef, offset: int, size_bytes: int) -> bytes | None:
        """Return the bytes if no disk and no network need be waited for; None: use `read`."""
        if (size_bytes := clip(offset, size_bytes, ref.size_bytes)) == 0:
            return b""
        ref = self._shelf.pins.current(ref)
        sha256 = self._shelf.sha256_of(ref)
        if sha256 is not None:
            data = self._shelf.memory.read(sha256, offset, size_bytes)
            if data is not None:
                self._memory_hits += 1
                self._shelf.disk.touch(sha256)
                return data
            file = self._shelf.disk.opened(sha256)
            if file is not None:
                # Copying a MiB in the event loop would hold up everybody else.
                return self._hit(sha256, file.read_nowait(offset, size_bytes) if size_bytes < MIB else None)
        transfer = self._transfers.get(ref.version)
        data = None if transfer is None else transfer.read_nowait(offset, size_bytes)
        self._disk_hits += data is not None
        return data

    def pin(self, ref: ObjectRef) -> None:
        """Count a handle that is open: the content is read ahead, and not evicted."""
        self._shelf.pins.pin(ref)

    def unpin(self, ref: ObjectRef) -> None:
        """Count a handle that was closed. The last one stops read-ahead."""
        ref = self._shelf.pins.current(ref)
        if not self._shelf.pins.unpin(ref) or self._closed:
            return
        transfer = self._transfers.get(ref.version)
        if transfer is not None:
            transfer.settle()
        if self._shelf.over_limit():
            self._spawn(self._shelf.make_room)

    async def materialize(self, ref: ObjectRef) -> None:
        """Have the content complete and verified on the local disk. Pin it, or it may go again.

        Raises:
            NoSpace: the local disk has no room.
            ExaifsError: the local disk cannot be used, or as `read`.
        """
        ref = self._shelf.pins.current(ref)
        self._shelf.check(ref)
        sha256 = self._shelf.sha256_of(ref)
        if sha256 is not None and await self._shelf.disk.open(sha256) is not None:
            if await self._shelf.disk.has_file(sha256):
                self._shelf.disk.touch(sha256)
                return
            await self._shelf.disk.discard(sha256)  # open, but somebody removed its name
        if ref.size_bytes > SMALL_BYTES:
            await self._transfer(ref).wait_kept()
        else:
            data = await self._small_content(ref)
            await self._small.wait_written()
            problem = await self._shelf.keep_bytes(sha256_of_bytes(data), data)
            if problem is not None:
                raise problem

    def local_path(self, ref: ObjectRef) -> Path | None:
        """Return the complete content's file, verified by this process; None if there is none."""
        sha256 = self._shelf.sha256_of(self._shelf.pins.current(ref))
        if sha256 is None or not self._shelf.disk.is_verified(sha256):
            return None
        return self._shelf.disk.path(sha256)

    async def copy_to(self, ref: ObjectRef, fd: int) -> Digest:
        """Copy the whole content to an empty open file, sharing blocks where the disk can.

        What is here is compared once more: in a copy that is changed nobody could find damage any more.

        Returns:
            The digest of what is there now.

        Raises:
            NoSpace: the local disk has no room.
            ExaifsError: the local disk cannot be used, or as `read`.
        """
        self.pin(ref)
        try:
            for _attempt in range(_COPIES):
                await self.materialize(ref)
                path, sha256 = self.local_path(ref), self.sha256_of(ref)
                assert path is not None, "pinned contents are not evicted"
                assert sha256 is not None, "verified by this process"
                digest = await self._shelf.threads.run(copy_contents, path, fd)
                if digest.of(os.fstat(fd).st_size) == sha256:
                    return digest
                os.ftruncate(fd, 0)
                await self._shelf.disk.discard(sha256)  # damaged since: fetch it again
        except OSError as exc:
            raise local_error(exc) from exc
        finally:
            self.unpin(ref)
        raise IntegrityError(f"{ref.key}: the local disk does not give back what was written to it")

    async def adopt(self, path: Path, sha256: str, size_bytes: int) -> None:
        """Make a staged file cached content; it is renamed, or removed when the content is here.

        Nothing is raised when the disk refuses: the bytes are in the bucket.

        Args:
            path: on the file system of the cache directory; nobody writes to it any more.
            sha256: what its bytes were hashed to.
            size_bytes: its length.
        """
        known = await self._shelf.disk.has_file(sha256)
        if known or await self._shelf.keep_file(path, sha256, size_bytes) is not None:
            await self._shelf.threads.run(unlink_quietly, path)
        self._shelf.disk.touch(sha256)
        await self._shelf.make_room()

    def rekey(self, old: ObjectRef, new: ObjectRef) -> None:
        """Follow our own move or copy: the same bytes have another version."""
        old = self._shelf.pins.current(old)
        sha256 = self._shelf.sha256_of(old)
        if sha256 is not None and new.sha256 is None:
            self._shelf.aliases.learn(new.version, sha256)
        self._shelf.pins.rekey(old, new)
        self._shelf.damage.rekey(old, new)
        if new.version not in self._transfers and old.version in self._transfers:
            transfer = self._transfers.pop(old.version)
            transfer.ref = new
            self._transfers[new.version] = transfer

    def sha256_of(self, ref: ObjectRef) -> str | None:
        """Return the content's SHA-256: from its row, or found by reading it."""
        return self._shelf.sha256_of(ref)

    async def with_room(self, size_bytes: int, attempt: Callable[[], Awaitable[T]]) -> T:
        """Do something that only this host has; what is merely cached gives way to it on a full disk.

        Raises:
            NoSpace: nothing is left to evict; see `Shelf.with_room`.
        """
        try:
            return await self._shelf.with_room(size_bytes, attempt)
        except NoSpace as exc:
            self._shelf.health.failed("writing what is new", exc)
            raise

    async def drop_clean(self) -> None:
        """Drop every content that nobody has open, from memory and disk."""
        await self._small.wait_written()
        await self._shelf.drop_clean()

    async def sweep(self, now_ns: int | None = None) -> SweepReport:
        """Drop what was not used for too long, then what is too much; the janitor does it regularly.

        Args:
            now_ns: the time to judge by, nanoseconds since the epoch; now, if not given.
        """
        return await sweep(self._shelf, time.time_ns() if now_ns is None else now_ns)

    async def trim(self, max_age_s: float, keep_bytes: int) -> SweepReport:
        """Drop what was not used for so long, then by use until so much is left on disk."""
        expired = await self._shelf.expire(time.time_ns() - int(max_age_s * 1e9))
        return SweepReport(expired, await self._shelf.shrink(keep_bytes))

    async def reconcile(self) -> ReconcileReport:
        """Settle where the cache directory and its table disagree; the janitor does it daily."""
        return await reconcile(self._shelf)

    def statistics(self) -> CacheStatistics:
        """Return what the tiers hold and did."""
        shelf = self._shelf
        return CacheStatistics(
            memory_limit_bytes=shelf.limits.memory_bytes,
            memory_bytes=shelf.memory.total_bytes,
            memory_items=shelf.memory.items,
            disk_limit_bytes=shelf.limits.disk_bytes,
            disk_bytes=shelf.disk.total_bytes + shelf.partial_bytes,
            disk_items=shelf.disk.items,
            memory_hits=self._memory_hits,
            disk_hits=self._disk_hits,
            remote_reads=self._remote_reads,
            requests=self._source.requests,
            bytes_fetched=self._source.bytes_fetched,
            evictions=shelf.evictions,
            disk_disabled=shelf.trouble,
        )

    def _hit(self, sha256: str, data: bytes | None) -> bytes | None:
        if data is not None:
            self._disk_hits += 1
            self._shelf.disk.touch(sha256)
        return data

    async def _read_disk(self, ref: ObjectRef, offset: int, size_bytes: int) -> bytes | None:
        """Read from a complete file, verified; None when there is none (any more)."""
        sha256 = self._shelf.sha256_of(ref)
        file = None if sha256 is None else await self._shelf.disk.open(sha256)
        if sha256 is None or file is None:
            return None
        data = file.read_nowait(offset, size_bytes) if size_bytes < MIB else None
        if data is not None:
            return self._hit(sha256, data)
        try:
            data = await self._read_in_thread(file, sha256, ref.size_bytes, offset, size_bytes)
        except OSError as exc:
            self._shelf.health.failed("reading cached content", exc)
            data = b""
        if len(data) < size_bytes:
            await self._shelf.disk.discard(sha256)
            return None
        return self._hit(sha256, data)

    async def _read_in_thread(
        self, file: LocalFile, sha256: str, total_bytes: int, offset: int, size_bytes: int
    ) -> bytes:
        """Read from a file that is not in the page cache; a small one whole, and into memory.

        Larger ones stay out of memory: the kernel's cache above and below us holds them better.
        """
        threads = self._shelf.threads
        if total_bytes > SMALL_BYTES:
            return await file.read(threads, offset, size_bytes)
        whole = await file.read(threads, 0, total_bytes)
        if len(whole) == total_bytes:
            self._shelf.keep_in_memory(whole, sha256)
        return whole[offset : offset + size_bytes]

    async def _read_remote(self, ref: ObjectRef, offset: int, size_bytes: int) -> bytes | None:
        """Fetch what is not here; None: look again."""
        self._shelf.check(ref)
        self._remote_reads += 1
        if ref.size_bytes > SMALL_BYTES:
            return await self._transfer(ref).read(offset, size_bytes)
        data = await self._small_content(ref)
        return data[offset : offset + size_bytes]

    async def _small_content(self, ref: ObjectRef) -> bytes:
        if ref.size_bytes > 0:
            sha256 = self._shelf.sha256_of(ref)
            known = None if sha256 is None else self._shelf.memory.read(sha256, 0, ref.size_bytes)
            return known or self._small.arrived(ref) or await self._small.fetch(ref)
        empty = sha256_of_bytes(b"")
        if ref.sha256 not in {None, empty}:
            raise IntegrityError(hash_problem(ref, empty))
        self._shelf.aliases.learn(ref.version, empty)
        return b""

    def _transfer(self, ref: ObjectRef) -> Transfer:
        if self._closed:
            raise ExaifsError("the content store was closed")
        transfer = self._transfers.get(ref.version)
        if transfer is None:
            transfer = Transfer(ref, self._transfers, self._shelf, self._source, self._spawn)
            self._transfers[ref.version] = transfer
        return transfer


def _make_directories(directory: Path) -> None:
    for name in ("content", "partial", "staging"):
        (directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)
