"""The writable local copy of a file: filled at the first write, hashed as it is written.

Bytes go straight to the local file, whose pages the kernel holds; a write costs microseconds and needs
no thread. Whoever calls holds the inode's lock.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

import trio

from exaifs.errors import ExaifsError, FileTooLarge, NoSpace

_HASH_CHUNK_BYTES = 1024 * 1024


def _translate(exc: OSError) -> ExaifsError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace("the cache disk is full: free space or set FILE_CACHE_DIR to another disk")
    if exc.errno == errno.EFBIG:
        return FileTooLarge("no file of the cache disk can be that large")
    return ExaifsError(f"the cache disk failed: {exc}")


class Staged:
    """One open staged file; make it with `create` or `reopen`."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.size_bytes = 0
        self.dirty = True
        self.dirty_since_ns = time.time_ns()
        """Since when there is something that only this host has, while `dirty`."""
        self.described = False
        """Whether a description beside it makes it survive this process; see `leftovers`."""
        self.refused = False
        """Whether the server refused these bytes for good, so that only a change is worth another try."""
        self.write_ids: list[str] = []
        """Of the uploads that were tried, so that one whose answer was lost is known again as ours."""
        self.generation = 0
        """Counts changes, so that a publish can tell whether it sent the newest."""
        self._identified = -1
        self._hash = hashlib.sha256()
        self._hashed_bytes = 0

    @classmethod
    def create(cls, directory: Path) -> Staged:
        """Make an empty one.

        Args:
            directory: on the same file system as the content directory.

        Raises:
            NoSpace: the disk is full.
        """
        path = directory / f"{secrets.token_hex(16)}.data"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise _translate(exc) from exc
        return cls(path, fd)

    @classmethod
    def reopen(cls, path: Path) -> Staged:
        """Open one that an earlier run left; it is dirty and described."""
        staged = cls(path, os.open(path, os.O_RDWR | os.O_CLOEXEC))
        staged.filled()
        staged.touch()
        staged.dirty_since_ns = os.fstat(staged.fd).st_mtime_ns
        staged.described = True
        return staged

    def __repr__(self) -> str:
        return f"<Staged {self.path.name} {self.size_bytes} bytes dirty={self.dirty}>"

    def filled(self) -> None:
        """Note that the file was filled from the content that is in the bucket."""
        self.size_bytes = os.fstat(self.fd).st_size
        self.dirty = False
        self._hashed_bytes = -1

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
            self.write_ids.append(secrets.token_hex(16))
            self._identified = self.generation
        return self.write_ids[-1]

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes, short only at the end."""
        try:
            return os.pread(self.fd, size_bytes, offset)
        except OSError as exc:
            raise _translate(exc) from exc

    def write_at(self, offset: int, data: bytes) -> int:
        """Write all of `data` and return its length.

        Raises:
            NoSpace: the disk is full; nothing is counted as written.
        """
        view = memoryview(data)
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(self.fd, view[done:], offset + done)
        except OSError as exc:
            self._undo(offset, done)
            raise _translate(exc) from exc
        if offset == self._hashed_bytes:
            self._hash.update(data)
            self._hashed_bytes += len(data)
        elif offset < self._hashed_bytes:
            self._hashed_bytes = -1  # rewritten: hash the file when it is published
        self.size_bytes = max(self.size_bytes, offset + len(data))
        self.touch()
        return len(data)

    def _undo(self, offset: int, written_bytes: int) -> None:
        """After a write that stopped half-way: what it put behind the end goes, the rest is a change."""
        with suppress(OSError):
            os.ftruncate(self.fd, self.size_bytes)
        if written_bytes and offset < self.size_bytes:
            self._hashed_bytes = -1
            self.touch()

    def truncate(self, size_bytes: int) -> None:
        """Cut or extend with zeros."""
        try:
            os.ftruncate(self.fd, size_bytes)
        except OSError as exc:
            raise _translate(exc) from exc
        if size_bytes == 0:
            self._hash = hashlib.sha256()
            self._hashed_bytes = 0
        elif size_bytes < self._hashed_bytes:
            self._hashed_bytes = -1
        self.size_bytes = size_bytes
        self.touch()

    async def sha256(self) -> str:
        """Return the digest of the whole file; a thread reads it unless it was written in order."""
        if self._hashed_bytes == self.size_bytes:
            return self._hash.hexdigest()
        return await trio.to_thread.run_sync(self._digest_file)

    def _digest_file(self) -> str:
        digest = hashlib.sha256()
        offset = 0
        try:
            while chunk := os.pread(self.fd, _HASH_CHUNK_BYTES, offset):
                digest.update(chunk)
                offset += len(chunk)
        except OSError as exc:
            raise _translate(exc) from exc
        return digest.hexdigest()

    def close(self, *, keep_file: bool = False) -> None:
        """Close, and remove the file unless it went elsewhere or must be kept."""
        os.close(self.fd)
        if not keep_file:
            self.path.unlink(missing_ok=True)
