"""The write journal: what this host has acknowledged and Supabase does not have yet.

A file of lines (`journalfile`), appended to and fsynced before anybody is told that something is safe.
Each line is one atomic step that adds numbered records and takes others away. Records of which the work is
done make the file grow: it is rewritten when most of it is dead.

No lock over the network. Works under asyncio and trio.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import anyio

from exaifs.cache.journalfile import HEADER, LOG_NAME, Loaded, Record, content_of, encode, parse
from exaifs.cache.localfile import Threads, is_out_of_space
from exaifs.errors import ExaifsError, NoSpace

_RESERVE_NAME = "reserve"
_RESERVE_BYTES = 256 * 1024
"""Kept free for the moment when the disk is full: what is done must still be written then."""

_MIN_DEAD_BYTES = 256 * 1024
"""Less than this is not worth rewriting the file for."""


class _Step:
    """One line that waits to be written; records it adds may be new, or other words for known ones."""

    def __init__(self, add: Mapping[int, Record], done: Sequence[int]) -> None:
        self.add = add
        self.done = done
        self.is_settled = False
        self.error: ExaifsError | None = None


class Journal:
    """An open journal; make it with `open_journal`.

    Args:
        directory: exists; belongs to this process.
        loaded: what the file held.
    """

    def __init__(self, directory: Path, loaded: Loaded) -> None:
        self.damaged = tuple(loaded.damaged)
        """Files with damaged records of an earlier run."""
        self._directory = directory
        self._threads = Threads(1)
        self._writing = anyio.Lock()
        # Mutable state, changed without an await. `_live` is what a rewritten file would hold.
        self._live: dict[int, Record] = dict(loaded.records)
        self._next = loaded.highest + 1
        self._waiting: list[_Step] = []
        self._forgotten: set[int] = set()
        self._fd: int | None = None
        self._size_bytes = 0
        self._rewritten_bytes = 0

    @property
    def records(self) -> Mapping[int, Record]:
        """What is not done, by number."""
        return self._live

    @property
    def path(self) -> Path:
        """The file."""
        return self._directory / LOG_NAME

    async def append(
        self,
        add: Sequence[Record],
        done: Iterable[int] = (),
        revised: Mapping[int, Record] | None = None,
    ) -> list[int]:
        """Write one step; it survives a power cut when this returns.

        Args:
            add: new records.
            done: numbers of records that are done with, or that the new ones replace.
            revised: other words for known records, which keep their numbers.

        Returns:
            The numbers of the new records.

        Raises:
            NoSpace: the disk is full; nothing was written, and what was to be done with still counts.
            ExaifsError: the disk fails; likewise.
        """
        numbers = [self._allocate() for _ in add]
        step = _Step({**dict(zip(numbers, add, strict=True)), **(revised or {})}, list(done))
        self._waiting.append(step)
        # Shielded: a step that is written although nobody holds it would be carried out by the next run.
        with anyio.CancelScope(shield=True):
            async with self._writing:
                if not step.is_settled:
                    await self._write_waiting()
        if step.error is not None:
            raise step.error
        return numbers

    def forget(self, numbers: Iterable[int]) -> None:
        """Do with records; that is written with the next step, or by `sync`."""
        self._forgotten.update(number for number in numbers if number in self._live)

    async def sync(self) -> None:
        """Write what was forgotten; it survives a power cut when this returns.

        Raises:
            NoSpace, ExaifsError: as `append`; it is written with a later step.
        """
        if self._forgotten:
            await self.append([])

    def close(self) -> None:
        """Close the file; what was forgotten and not synced counts for the next run."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _allocate(self) -> int:
        number = self._next
        self._next += 1
        return number

    async def _write_waiting(self) -> None:
        """Write every step that waits, in one go; the caller holds the lock."""
        batch, self._waiting = self._waiting, []
        forgotten, self._forgotten = self._forgotten, set()
        if forgotten:
            batch.insert(0, _Step({}, sorted(forgotten)))
        error: ExaifsError | None = None
        try:
            await self._threads.run(self._write, batch)
        except OSError as exc:
            self._forgotten |= forgotten
            error = _translated(exc)
        for step in batch:
            step.is_settled = True
            step.error = error
            if error is None:
                for number in step.done:
                    self._live.pop(number, None)
                self._live.update(step.add)

    # -- in a thread -------------------------------------------------------------------------------

    def _write(self, batch: Sequence[_Step]) -> None:
        """Append lines and have them on the disk, or leave the file as it was."""
        try:
            self._append(batch)
        except OSError as exc:
            if not is_out_of_space(exc):
                raise
            # Full: what says that something is done must still find room.
            (self._directory / _RESERVE_NAME).unlink(missing_ok=True)
            self._append(batch)

    def _append(self, batch: Sequence[_Step]) -> None:
        if self._fd is None:
            self._rewrite()
        assert self._fd is not None
        data = b"".join(encode(step.add, step.done) for step in batch if step.add or step.done)
        try:
            _write_all(self._fd, data, self._size_bytes)
        except OSError:
            try:
                os.ftruncate(self._fd, self._size_bytes)
            except OSError:
                self._begin_anew()
            raise
        try:
            # The length of the file belongs to its data: fdatasync(2) writes it too.
            os.fdatasync(self._fd)
        except OSError:
            # After a failed sync nobody knows which pages are on the disk, and a second one may say yes.
            self._begin_anew()
            raise
        self._size_bytes += len(data)
        if self._size_bytes > max(_MIN_DEAD_BYTES, 2 * self._rewritten_bytes):
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Have the next step begin a new file: what is live then is known only after this one."""
        assert self._fd is not None
        os.close(self._fd)
        self._fd = None

    def _rewrite(self) -> None:
        """Replace the file by one with the live records only: temporary name, fsync, rename, fsync.

        The name is durable only with its directory; until then the old file, which says the same, is there.
        """
        temporary = self._directory / f"{LOG_NAME}.tmp"
        data = HEADER + b"".join(
            encode({number: record}, ()) for number, record in sorted(self._live.items())
        )
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, data, 0)
            os.fsync(fd)
            temporary.replace(self.path)
            sync_directory(self._directory)
        except OSError:
            os.close(fd)
            raise
        self._fd = fd
        self._size_bytes = self._rewritten_bytes = len(data)
        self._keep_reserve()

    def _keep_reserve(self) -> None:
        path = self._directory / _RESERVE_NAME
        with suppress(OSError):
            if not path.exists():
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(fd, 0, _RESERVE_BYTES)
                finally:
                    os.close(fd)


def open_journal(directory: Path) -> tuple[Journal, dict[int, Record]]:
    """Open or create a journal, and return it with the records that are not done, oldest first.

    Args:
        directory: made if it is missing, for the owner only.

    Raises:
        JournalError: it is of a format that this version does not know.
        OSError: it cannot be read or written.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    loaded = parse(content_of(directory), directory)
    journal = Journal(directory, loaded)
    journal._rewrite()  # noqa: SLF001 - the other half of the constructor; nobody else has it yet
    return journal, dict(sorted(loaded.records.items()))


def sync_directory(path: Path) -> None:
    """Have a directory's names on the disk: a rename is durable only with it (see fsync(2)).

    Raises:
        OSError: the disk fails.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def _translated(exc: OSError) -> ExaifsError:
    if is_out_of_space(exc):
        return NoSpace("the cache disk is full: free space or set FILE_CACHE_DIR to another disk")
    return ExaifsError(f"the journal of unsent writes cannot be written: {exc}")
