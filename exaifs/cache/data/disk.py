"""The disk tier: complete, verified contents as files named by their SHA-256.

`content/ab/<sha256>` holds a content, the table `contents` says which are there; `partial/` holds what
is being written. Nothing is scanned at start: rows and files that disagree are settled when touched, and
by the janitor.

No file is synced to the disk. Supabase has the bytes, and the first use in a process compares the
SHA-256 with the name, so a file torn by a power cut is found, dropped and fetched again; a rename makes
sure that a killed process leaves whole files only.

State changes are synchronous. One lock orders renames into `content/` and unlinks from it, and both look
at the rows again once they hold it; it is never held over the network.
"""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import anyio
import structlog

from exaifs.cache.connection import transaction
from exaifs.cache.data.blocks import SMALL_BYTES
from exaifs.cache.health import DiskHealth
from exaifs.cache.localfile import LocalFile, Threads, read_at, sha256_of_file, unlink_quietly
from exaifs.limits import descriptor_limit

_log = structlog.get_logger(__name__)

_OPEN_FILES = 128
"""Descriptors kept open at most, and no more than one in `_SHARE` of those that the process may have."""

_SHARE = 8

_USES_BEFORE_WRITE = 256
"""How many contents are used before their times are written, in one transaction."""


class DiskTier:
    """Complete contents on disk.

    Args:
        directory: the cache directory; `content/` and `partial/` in it are this tier's.
        database: has the table `contents`.
        threads: where file system calls go.
        health: told of every trouble.
    """

    def __init__(
        self, directory: Path, database: sqlite3.Connection, threads: Threads, health: DiskHealth
    ) -> None:
        self.content_directory = directory / "content"
        self.partial_directory = directory / "partial"
        self.threads = threads
        self.names = anyio.Lock()
        self._database = database
        self._health = health
        self._open_files = min(_OPEN_FILES, descriptor_limit() // _SHARE)
        self._files: OrderedDict[str, LocalFile] = OrderedDict()
        self._opening: dict[str, anyio.Event] = {}
        self._verified: set[str] = set()  # checked against their name by this process
        self._used: dict[str, int] = {}  # sha256 → last use, not yet in the table
        self._run = secrets.token_hex(8)
        self._serial = count()
        self.total_bytes = 0
        self.items = 0
        with self._excused("counting"):
            row = database.execute("SELECT count(*), coalesce(sum(size_bytes), 0) FROM contents")
            self.items, self.total_bytes = row.fetchone()

    def path(self, sha256: str) -> Path:
        """Return where a content is, or would be."""
        return self.content_directory / sha256[:2] / sha256

    def new_partial(self) -> Path:
        """Return a name in `partial/` that nobody has had before."""
        return self.partial_directory / f"{self._run}-{next(self._serial)}"

    def is_of_this_run(self, partial_name: str) -> bool:
        """Tell whether a name in `partial/` was given by `new_partial` here."""
        return partial_name.startswith(self._run)

    def remove_partials(self) -> None:
        """Remove what unfinished downloads of this run left; blocks."""
        for path in self.partial_directory.glob(f"{self._run}*"):
            unlink_quietly(path)

    def size_of(self, sha256: str) -> int | None:
        """Return the size of a content that is there, as the table says."""
        row = None
        with self._excused("looking up"):
            row = self._database.execute(
                "SELECT size_bytes FROM contents WHERE sha256 = ?", (sha256,)
            ).fetchone()
        return None if row is None else int(row[0])

    def is_verified(self, sha256: str) -> bool:
        """Tell whether a content is there and this process has compared it with its name."""
        return sha256 in self._verified and self.size_of(sha256) is not None

    def rows(self) -> dict[str, int]:
        """Return the sizes of all contents by SHA-256, as the table says."""
        sizes: dict[str, int] = {}
        with self._excused("listing"):
            sizes.update(self._database.execute("SELECT sha256, size_bytes FROM contents").fetchall())
        return sizes

    def touch(self, sha256: str) -> None:
        """Count a content as used now; written in batches."""
        self._used[sha256] = time.time_ns()
        if len(self._used) >= _USES_BEFORE_WRITE:
            self.flush_uses()

    def flush_uses(self) -> None:
        """Write the times of use that are only in memory."""
        if not self._used:
            return
        used, self._used = self._used, {}
        with self._excused("writing times of use"), transaction(self._database):
            self._database.executemany(
                "UPDATE contents SET last_used_ns = ? WHERE sha256 = ?",
                [(used_ns, sha256) for sha256, used_ns in used.items()],
            )

    def opened(self, sha256: str) -> LocalFile | None:
        """Return a content that is open, hence verified."""
        file = self._files.get(sha256)
        if file is not None:
            self._files.move_to_end(sha256)
        return file

    async def open(self, sha256: str) -> LocalFile | None:
        """Open a content, verified; None when it is not there, or was damaged and is dropped now.

        One task opens and verifies, whoever else asks waits for it.
        """
        while True:
            file = self.opened(sha256)
            if file is not None:
                return file
            size_bytes = self.size_of(sha256)
            if size_bytes is None:
                return None
            other = self._opening.get(sha256)
            if other is None:
                break
            await other.wait()
        self._opening[sha256] = anyio.Event()
        try:
            return await self._open(sha256, size_bytes)
        finally:
            self._opening.pop(sha256).set()

    async def _open(self, sha256: str, size_bytes: int) -> LocalFile | None:
        opener = _open_known if sha256 in self._verified else _open_and_hash
        try:
            fd, digest = await self.threads.run(opener, self.path(sha256), size_bytes)
        except OSError as exc:
            if exc.errno in {errno.EMFILE, errno.ENFILE}:
                self._retire(len(self._files) // 2)
                self._health.failed("opening cached content", exc)
                return None
            if not isinstance(exc, FileNotFoundError):
                self._health.failed("reading cached content", exc)
            await self.discard(sha256)
            return None
        file = LocalFile(fd)
        if self.size_of(sha256) is None:  # evicted meanwhile
            file.retire()
            return None
        if digest not in {None, sha256}:
            file.retire()
            _log.warning("cached content was damaged, dropped", sha256=sha256, found=digest)
            await self.discard(sha256)
            return None
        self._verified.add(sha256)
        self._remember_open(sha256, file)
        return file

    async def place(
        self, source: Path, sha256: str, size_bytes: int, file: LocalFile | None = None
    ) -> None:
        """Make a file the content it holds, replacing what is there.

        Args:
            source: in the cache directory, complete and verified; renamed.
            sha256: what it was verified to be.
            size_bytes: its length.
            file: its descriptor, which stays open for the readers to come.

        Raises:
            OSError: the disk or the table refuses; the source may be gone.
        """
        target = self.path(sha256)
        async with self.names:
            await self.threads.run(_move, source, target)
            try:
                self._add(sha256, size_bytes)
            except sqlite3.Error as exc:
                await self.threads.run(unlink_quietly, target)
                raise OSError(errno.EIO, f"the index cannot be written: {exc}") from exc
            self._close(sha256)
            self._verified.add(sha256)
            if file is not None:
                self._remember_open(sha256, file.share())

    async def has_file(self, sha256: str) -> bool:
        """Tell whether a verified content is there, asking the disk too."""
        return self.is_verified(sha256) and await self.threads.run(self.path(sha256).exists)

    def add_found(self, sha256: str, size_bytes: int, used_ns: int) -> None:
        """Take a file that no row knew into the table; it is verified at its first use."""
        with self._excused("adding a found content"):
            self._add(sha256, size_bytes, used_ns)

    def _add(self, sha256: str, size_bytes: int, used_ns: int | None = None) -> None:
        before = self.size_of(sha256)
        self._database.execute(
            "INSERT OR REPLACE INTO contents VALUES (?, ?, ?)",
            (sha256, size_bytes, time.time_ns() if used_ns is None else used_ns),
        )
        self.total_bytes += size_bytes - (before or 0)
        self.items += before is None

    def evict(self, pinned: Collection[str], keep_bytes: int) -> list[str]:
        """Forget the least recently used until at most `keep_bytes` are left; the caller unlinks."""
        excess = self.total_bytes - keep_bytes
        if excess <= 0:
            return []
        self.flush_uses()
        victims: dict[str, int] = {}
        with self._excused("choosing victims"):
            for sha256, size_bytes in self._database.execute(
                "SELECT sha256, size_bytes FROM contents ORDER BY last_used_ns"
            ):
                if excess <= 0:
                    break
                if sha256 not in pinned:
                    victims[sha256] = size_bytes
                    excess -= size_bytes
        self.forget(victims)
        return list(victims)

    def expire(self, pinned: Collection[str], before_ns: int) -> list[str]:
        """Forget what was last used before a time; the caller unlinks."""
        self.flush_uses()
        victims: list[str] = []
        with self._excused("choosing victims"):
            rows = self._database.execute(
                "SELECT sha256 FROM contents WHERE last_used_ns < ?", (before_ns,)
            ).fetchall()
            victims = [sha256 for (sha256,) in rows if sha256 not in pinned]
        self.forget(victims)
        return victims

    def forget(self, contents: Iterable[str]) -> None:
        """Take contents out of the table; open descriptors go when their last reader is done."""
        known = {sha256: size for sha256 in contents if (size := self.size_of(sha256)) is not None}
        with self._excused("forgetting"), transaction(self._database):
            self._database.executemany(
                "DELETE FROM contents WHERE sha256 = ?", [(sha256,) for sha256 in known]
            )
            self.total_bytes -= sum(known.values())
            self.items -= len(known)
        for sha256 in known:
            self._used.pop(sha256, None)
            self._verified.discard(sha256)
            self._close(sha256)

    async def unlink(self, contents: Iterable[str]) -> None:
        """Remove the files of contents that were forgotten and have not come back since."""
        async with self.names:
            paths = [self.path(sha256) for sha256 in contents if self.size_of(sha256) is None]
            if paths:
                await self.threads.run(_unlink_all, paths)

    async def discard(self, sha256: str) -> None:
        """Forget a content that is missing, unreadable or damaged, and remove its file."""
        self.forget([sha256])
        await self.unlink([sha256])

    def close(self) -> None:
        """Write what is only in memory and close all files."""
        self.flush_uses()
        self._retire(len(self._files))

    def _remember_open(self, sha256: str, file: LocalFile) -> None:
        self._files[sha256] = file
        self._retire(len(self._files) - self._open_files)

    def _retire(self, number: int) -> None:
        for _ in range(number):
            self._files.popitem(last=False)[1].retire()

    def _close(self, sha256: str) -> None:
        file = self._files.pop(sha256, None)
        if file is not None:
            file.retire()

    @contextmanager
    def _excused(self, doing: str) -> Iterator[None]:
        """A table that cannot be read or written is a miss, never a reader's error."""
        try:
            yield
        except sqlite3.Error as exc:
            self._health.failed(f"{doing} in the index", exc)


def _open_and_hash(path: Path, size_bytes: int) -> tuple[int, str | None]:
    """Open a content and hash it; a wrong length gives a wrong digest."""
    return _opened(path, size_bytes, sha256_of_file)


def _open_known(path: Path, size_bytes: int) -> tuple[int, str | None]:
    """Open a content whose hash this process knows; its length is compared all the same."""
    return _opened(path, size_bytes, _read_ahead)


def _read_ahead(fd: int, size_bytes: int) -> None:
    """Have the read that follows find a small content in the page cache."""
    if size_bytes <= SMALL_BYTES:
        read_at(fd, 0, size_bytes)


def _opened(path: Path, size_bytes: int, look: Callable[[int, int], str | None]) -> tuple[int, str | None]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fd, look(fd, size_bytes) if os.fstat(fd).st_size == size_bytes else "another length"
    except OSError:
        os.close(fd)
        raise


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def _unlink_all(paths: Iterable[Path]) -> None:
    for path in paths:
        unlink_quietly(path)
