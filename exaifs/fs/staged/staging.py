"""The writable local copy of a file: filled at the first write, hashed as it is written.

Bytes go straight to the local file, whose pages the kernel holds; a write costs microseconds and needs
no thread. Whoever calls holds the inode's lock.

A staged file is *kept* once its bytes and a record of them are on the disk (`outbox`). After a close that
was answered on the strength of that it is also *sealed*: who writes again gets a copy of it, so that what
was acknowledged stays as it was until the new bytes are as safe.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import trio

from exaifs.cache.data.digest import Digest
from exaifs.cache.localfile import copy_contents, sha256_of_file
from exaifs.cache.unsent.journal import sync_directory
from exaifs.errors import IntegrityError
from exaifs.fs.staged.diskerrors import disk_error, disk_errors
from exaifs.fs.staged.traces import Traces
from exaifs.limits import descriptor_limit

MEMORY_SUFFIX = ".upload"

_SPARE_DESCRIPTORS = 32
"""Left for requests, uploads and the journal when programs write to very many files at once."""


class DamagedBytes(IntegrityError):
    """Staged bytes are not what they were when they were kept."""


class Staged:
    """One staged file; make it with `create` or `reopen`."""

    def __init__(self, path: Path, fd: int | None) -> None:
        self.path = path
        self._fd = fd
        self.size_bytes = 0
        self.dirty = True
        self.dirty_since_ns = time.time_ns()
        """Since when there is something that only this host has, while `dirty`."""
        self.sealed = False
        """Whether these bytes were acknowledged by a close and must not be changed in place."""
        self.acknowledged = True
        """Whether the newest close or fsync was answered with success; a failed one is still sent."""
        self.closed_ns = 0
        """When that was answered, by this host's clock."""
        self.expected_sha256: str | None = None
        """What the bytes must hash to, where they are an earlier run's."""
        self.predecessor: Staged | None = None
        """The sealed file that this one will replace, while only that one is kept."""
        self.refused = False
        """Whether the server refused these bytes for good, so that only a change is worth another try."""
        self.uploads = Traces()
        """What the bucket may have of these bytes, or earlier ones."""
        self.generation = 0
        """Counts changes, so that a publish can tell whether it sent the newest."""
        self.due_at = 0.0
        """When to send it in the background, by the event loop's clock."""
        self.attempts = 0
        """How often that failed in a row."""
        self.record_lingers = False
        """Whether the journal still names the file although it was sent: it could not be written."""
        self.is_proven = True
        """Whether the bytes are what they were when they were kept, as far as this run knows."""
        self._reads_only = False
        self._kept_generation = -1
        self._identified = -1
        self._digest = Digest()

    @classmethod
    def create(cls, directory: Path) -> Staged:
        """Make an empty one.

        Args:
            directory: on the same file system as the content directory.

        Raises:
            NoSpace: the disk is full.
            TooManyOpen: so many are open already that the rest of the daemon needs what is left.
        """
        path = directory / f"{secrets.token_hex(16)}.data"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise disk_error(exc) from exc
        staged = cls(path, fd)
        # The kernel gives the lowest number that is free.
        if fd >= descriptor_limit() - _SPARE_DESCRIPTORS:
            staged.close()
            raise disk_error(OSError(errno.EMFILE, "few descriptors are left"))
        return staged

    @classmethod
    def reopen(cls, path: Path) -> Staged:
        """Return one that an earlier run left: dirty, kept, and not open until it is needed."""
        staged = cls(path, None)
        found = path.stat()
        staged.size_bytes = found.st_size
        staged.dirty_since_ns = found.st_mtime_ns
        staged.generation = 1
        staged.note_kept(1)
        staged.is_proven = False
        staged._digest.lose()
        return staged

    @property
    def fd(self) -> int:
        """The open descriptor; for writing use `_fd_to_write`.

        Raises:
            ExaifsError: the file cannot be opened again.
        """
        if self._fd is None:
            with disk_errors():
                # To be sent it need not be written to, and a disk may refuse just that.
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            self._reads_only = True
        return self._fd

    @property
    def _fd_to_write(self) -> int:
        if self._fd is None or self._reads_only:
            with disk_errors():
                fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            self._close_fd()
            self._fd, self._reads_only = fd, False
        return self._fd

    @property
    def kept(self) -> bool:
        """Whether the present bytes survive a power cut."""
        return self._kept_generation == self.generation

    @property
    def ever_kept(self) -> bool:
        """Whether a record of this file, perhaps of older bytes, is in the journal."""
        return self._kept_generation >= 0

    def resume(self, write_ids: Sequence[str], sent: Mapping[str, int]) -> None:
        """Go on with the uploads of an earlier run: the newest was of the present bytes."""
        self.uploads.resume(list(write_ids), dict(sent))
        if write_ids:
            self._identified = self.generation

    def note_sending(self, sha256: str) -> None:
        """Note that an upload of the present bytes begins: whatever becomes of it, they may arrive."""
        self.uploads.begin(sha256, self.size_bytes)

    def note_kept(self, generation: int) -> None:
        """Note that the bytes of that generation, and a record of them, are on the disk."""
        self._kept_generation = generation

    def rest(self) -> None:
        """Give the descriptor back: thousands of files may wait to be sent.

        Who knows what the disk gives back when they are: the bytes are hashed again then.
        """
        self.expected_sha256 = self.known_sha256
        self._digest.lose()
        self._close_fd()

    def _close_fd(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __repr__(self) -> str:
        return f"<Staged {self.path.name} {self.size_bytes} bytes dirty={self.dirty}>"

    def filled(self, digest: Digest) -> None:
        """Note that the file was filled from the content that is in the bucket, which has that digest."""
        self.size_bytes = os.fstat(self.fd).st_size
        self.dirty = False
        self._digest = digest

    def touch(self) -> None:
        """Mark as changed."""
        if not self.dirty:
            self.dirty_since_ns = time.time_ns()
        self.dirty = True
        self.refused = False
        self.generation += 1

    def write_id(self) -> str:
        """Return what identifies an upload of the present bytes: the same when it is tried again."""
        if self._identified != self.generation:
            self.uploads.new_id()
            self._identified = self.generation
        return self.uploads.write_ids[-1]

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes, short only at the end."""
        try:
            return os.pread(self.fd, size_bytes, offset)
        except OSError as exc:
            raise disk_error(exc) from exc

    def write_at(self, offset: int, data: bytes) -> int:
        """Write all of `data` and return its length.

        Raises:
            NoSpace: the disk is full; nothing is counted as written.
        """
        view = memoryview(data)
        done = 0
        self.expected_sha256 = None
        try:
            while done < len(view):
                done += os.pwrite(self._fd_to_write, view[done:], offset + done)
        except OSError as exc:
            self._undo(offset, done)
            raise disk_error(exc) from exc
        self._digest.follow(offset, data)
        self.size_bytes = max(self.size_bytes, offset + len(data))
        self.touch()
        return len(data)

    def _undo(self, offset: int, written_bytes: int) -> None:
        """After a write that stopped half-way: what it put behind the end goes, the rest is a change."""
        with suppress(OSError):
            os.ftruncate(self.fd, self.size_bytes)
        if written_bytes and offset < self.size_bytes:
            self._digest.lose()
            self.touch()

    def truncate(self, size_bytes: int) -> None:
        """Cut or extend with zeros."""
        self.expected_sha256 = None
        with disk_errors():
            os.ftruncate(self._fd_to_write, size_bytes)
        self._digest.cut(size_bytes)
        self.size_bytes = size_bytes
        self.touch()

    async def sha256(self) -> str:
        """Return the digest of the whole file; a thread reads it unless it was written in order.

        Raises:
            DamagedBytes: they are not what was kept.
            ExaifsError: they cannot be read.
        """
        followed = self._digest.of(self.size_bytes)
        return await self._compared(self.fd) if followed is None else followed

    async def prove(self) -> None:
        """Compare an earlier run's bytes with their digest, before anybody gets them; needs no lock.

        Raises:
            DamagedBytes: they are not what was kept.
            ExaifsError: they cannot be read.
        """
        if self.is_proven or self.expected_sha256 is None:
            self.is_proven = True  # of an fsync nothing else is known
            return
        with disk_errors():
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)  # the other one may be closed meanwhile
        try:
            await self._compared(fd)
        finally:
            os.close(fd)

    async def _compared(self, fd: int) -> str:
        """Hash the file in a thread, and compare it with what is expected."""
        with disk_errors():
            found = await trio.to_thread.run_sync(lambda: sha256_of_file(fd, os.fstat(fd).st_size))
        self._compare(found, self.expected_sha256)
        self.is_proven = True
        return found

    def _compare(self, found: str | None, expected: str | None) -> None:
        if expected not in {None, found}:
            raise DamagedBytes(f"staged bytes were damaged on the disk: {self.path}")

    async def expect(self) -> None:
        """Know the digest of bytes that stay as they are from now on, so that damage is found later."""
        if self.known_sha256 is None:
            self.expected_sha256 = await self.sha256()

    @property
    def known_sha256(self) -> str | None:
        """The digest, if it costs nothing."""
        return self._digest.of(self.size_bytes) or self.expected_sha256

    async def sync(self) -> None:
        """Have the bytes, and the file's name, on the disk (fsync(2), of the directory too).

        Raises:
            NoSpace, ExaifsError: they are not.
        """
        await trio.to_thread.run_sync(self._sync)

    def _sync(self) -> None:
        with disk_errors():
            os.fsync(self.fd)
            if not self.ever_kept:
                sync_directory(self.path.parent)

    async def copy(self) -> Staged:
        """Return a copy that may be changed, blocks shared where the disk can.

        Raises:
            NoSpace: the disk is full.
            DamagedBytes: they are not what was kept; changed, nobody could tell any more.
        """
        twin = Staged.create(self.path.parent)
        try:
            with disk_errors():
                twin.filled(await trio.to_thread.run_sync(copy_contents, self.path, twin.fd))
            self._compare(twin.known_sha256, self.known_sha256)
        except BaseException:
            twin.close()
            raise
        twin.touch()
        self._hand_over(twin)
        return twin

    def empty_copy(self) -> Staged:
        """Do as `copy` followed by `truncate(0)`."""
        twin = Staged.create(self.path.parent)
        self._hand_over(twin)
        return twin

    def _hand_over(self, twin: Staged) -> None:
        twin.dirty_since_ns = self.dirty_since_ns
        twin.uploads.add(self.uploads)
        twin.predecessor = self
        twin.generation = self.generation + 1
        twin.acknowledged = self.acknowledged
        twin.closed_ns = self.closed_ns

    def close(self, *, keep_file: bool = False) -> None:
        """Close, and remove the file unless it went elsewhere or must be kept."""
        self._close_fd()
        if self.predecessor is not None:
            self.predecessor.close()
        if not keep_file:
            self.path.unlink(missing_ok=True)
            self.memory_path.unlink(missing_ok=True)

    @property
    def memory_path(self) -> Path:
        """Where a large upload notes how it can be taken up again."""
        return self.path.with_suffix(MEMORY_SUFFIX)

    @property
    def names(self) -> list[str]:
        """Names of the files that the journal may have a record of."""
        return [self.path.name, *([] if self.predecessor is None else self.predecessor.names)]

    def allow(self) -> None:
        """What the server refused, under another name or limit, is worth another try."""
        if self.refused:
            self.refused = False
            self.due_at = 0.0

    @property
    def newest_kept(self) -> Staged | None:
        """The file that the journal has a record of: this one, or the one that it will replace."""
        return self if self.ever_kept else self.predecessor

    def inherit(self, replaced: Staged) -> None:
        """What the bucket may have of a file that this one replaces is ours to replace, too."""
        for staged in (self, self.predecessor):
            if staged is not None:
                staged.uploads.add(replaced.uploads)
