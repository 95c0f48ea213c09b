"""The write journal: what this host has acknowledged and Supabase does not have yet.

A file of lines (`journalfile`), appended to and fsynced before anybody is told that something is safe.
Each line is one atomic step that adds numbered records and takes others away. Records of which the work is
done make the file grow: it is rewritten when most of it is dead.

A full disk stops what is new, not the end of what is old: a reserve is kept for saying that something is
done, and a part of it for small changes such as removing a file.

No lock over the network. Works under asyncio and trio.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import anyio

from exaifs.cache.health import DiskHealth
from exaifs.cache.localfile import Threads, is_out_of_space, unlink_quietly
from exaifs.cache.unsent.journalfile import HEADER, LOG_NAME, Loaded, Record, content_of, encode, parse
from exaifs.cache.unsent.reserve import Reserve
from exaifs.errors import ExaifsError, NoSpace

DOUBT_NAME = "doubt"
"""A file that is there from when records are found lost until what they were about has been looked at."""

_RESERVE_NAME = "reserve"
_RESERVE_BYTES = 512 * 1024
"""Kept free for the moment when the disk is full."""

_FOR_DONE_BYTES = 384 * 1024
"""So much of it only for what says that something is done: room for thousands of lines."""

_MIN_DEAD_BYTES = 256 * 1024
"""Less than this is not worth rewriting the file for."""


class _Step:
    """One line that waits to be written; records it adds may be new, or other words for known ones."""

    def __init__(self, add: Mapping[int, Record], done: Sequence[int], *, is_new: bool = False) -> None:
        self.add = add
        self.done = done
        self.is_new = is_new
        """Whether it adds work, rather than saying that some is done."""
        self.is_settled = False
        self.error: ExaifsError | None = None


class Journal:
    """An open journal; make it with `open_journal`.

    Args:
        directory: exists; belongs to this process.
        loaded: what the file held.
        health: told when the disk refuses.
    """

    def __init__(self, directory: Path, loaded: Loaded, health: DiskHealth) -> None:
        self._directory = directory
        self._doubt = directory / DOUBT_NAME
        # A run makes the file before anything else: without even its beginning, somebody took it away.
        self.lost_records = bool(loaded.damaged) or loaded.size_bytes < len(HEADER) or self._doubt.exists()
        """Whether there may have been records that could not be read, by this run or one before `trust`."""
        self._health = health
        self._threads = Threads(1)
        self._writing = anyio.Lock()
        # Mutable state, changed without an await. `_live` is what a rewritten file would hold.
        self._live: dict[int, Record] = dict(loaded.records)
        self._next = loaded.highest + 1
        self._waiting: list[_Step] = []
        self._forgotten: set[int] = set()
        self._reserve = Reserve(directory / _RESERVE_NAME, _RESERVE_BYTES)
        self._identity = directory.stat()
        self._fd: int | None = None
        self._size_bytes = 0
        self._rewrite_above_bytes = 0

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
        known = {**dict(zip(numbers, add, strict=True)), **(revised or {})}
        step = _Step(known, list(done), is_new=bool(add))
        self._waiting.append(step)
        # Shielded: a step that is written although nobody holds it would be carried out by the next run.
        with anyio.CancelScope(shield=True):
            async with self._writing:
                if not step.is_settled:
                    await self._write_waiting()
        if step.error is not None:
            raise step.error
        return numbers

    def trust(self) -> None:
        """What lost records may have been about is in order: the next run need not look again."""
        unlink_quietly(self._doubt)

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
        error = await self._try_to_write(batch)
        if isinstance(error, NoSpace):
            # What is done is written even where what is new has no room.
            new = [step for step in batch if step.is_new]
            batch = [step for step in batch if not step.is_new]
            _settle(new, error)
            error = await self._try_to_write(batch) if new and batch else error
        _settle(batch, error)
        if error is not None:
            self._forgotten |= forgotten

    async def _try_to_write(self, batch: Sequence[_Step]) -> ExaifsError | None:
        """Write steps, and know what they say; return the trouble instead of raising it."""
        try:
            await self._threads.run(self._write, batch)
        except OSError as exc:
            self._health.failed("writing the journal of unsent writes", exc)
            return _translated(exc)
        for step in batch:
            for number in step.done:
                self._live.pop(number, None)
            self._live.update(step.add)
        return None

    # -- in a thread -------------------------------------------------------------------------------

    def _write(self, batch: Sequence[_Step]) -> None:
        """Append lines and have them on the disk, or leave the file as it was."""
        floor_bytes = _FOR_DONE_BYTES if any(step.is_new for step in batch) else 0
        while True:
            try:
                self._append(batch)
                break
            except OSError as exc:
                if not (is_out_of_space(exc) and self._reserve.release(floor_bytes)):
                    raise
        self._reserve.fill()

    def _append(self, batch: Sequence[_Step]) -> None:
        self._check_directory()
        if self._fd is None or os.fstat(self._fd).st_nlink == 0:  # a next run would not find it
            self._rewrite()
        elif self._size_bytes > self._rewrite_above_bytes:
            self._shorten()
        assert self._fd is not None
        data = b"".join(encode(step.add, step.done) for step in batch if step.add or step.done)
        try:
            _write_all(self._fd, data, self._size_bytes)
        except OSError:
            try:
                os.ftruncate(self._fd, self._size_bytes)
            except OSError:
                self.close()
            raise
        try:
            # The length of the file belongs to its data: fdatasync(2) writes it too.
            os.fdatasync(self._fd)
        except OSError:
            # After a failed sync nobody knows which pages are on the disk, and a second one may say yes:
            # the next step begins a new file.
            self.close()
            raise
        self._size_bytes += len(data)

    def _check_directory(self) -> None:
        """Refuse to go on where somebody cleared the cache directory: what is written would be lost.

        Another process may have a directory of that name by now.
        """
        try:
            ours = os.path.samestat(self._directory.stat(), self._identity)
        except (FileNotFoundError, NotADirectoryError):
            ours = False
        if not ours:
            raise OSError(errno.EIO, "the cache directory was removed while in use: mount again")

    def _shorten(self) -> None:
        """Rewrite a file that has grown; where that fails it goes on growing."""
        try:
            self._rewrite()
        except OSError:
            if self._fd is None:
                raise
            self._rewrite_above_bytes = self._size_bytes + _MIN_DEAD_BYTES

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
            # From here on nobody knows which of the two files has the name.
            self.close()
            temporary.replace(self.path)
            sync_directory(self._directory)
        except OSError:
            os.close(fd)
            unlink_quietly(temporary)
            raise
        self._fd = fd
        self._size_bytes = len(data)
        self._rewrite_above_bytes = max(_MIN_DEAD_BYTES, 2 * len(data))

    def open(self) -> None:
        """Begin a file that holds what is live; the other half of the constructor.

        Raises:
            OSError: the disk refuses.
        """
        if self.lost_records:
            # Before the file looks whole: who is killed now has looked at nothing yet.
            self._doubt.touch(mode=0o600)
            sync_directory(self._directory)
        self._write(())


def open_journal(directory: Path, health: DiskHealth | None = None) -> tuple[Journal, dict[int, Record]]:
    """Open or create a journal, and return it with the records that are not done, oldest first.

    Args:
        directory: made if it is missing, for the owner only.
        health: of the disk, where others tell of it too.

    Raises:
        JournalError: it is of a format that this version does not know.
        OSError: it cannot be read or written.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    loaded = parse(content_of(directory), directory)
    journal = Journal(directory, loaded, health or DiskHealth())
    journal.open()
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


def _settle(steps: Iterable[_Step], error: ExaifsError | None) -> None:
    for step in steps:
        step.error = error
        step.is_settled = True


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def _translated(exc: OSError) -> ExaifsError:
    if is_out_of_space(exc):
        return NoSpace("the cache disk is full: free space or set FILE_CACHE_DIR to another disk")
    return ExaifsError(f"the journal of unsent writes cannot be written: {exc}")
