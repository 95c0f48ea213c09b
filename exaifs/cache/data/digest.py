"""The SHA-256 of a file that is being written: made on the way, as far as it is written in order."""

from __future__ import annotations

import errno
import hashlib
import os

from exaifs.cache.data.blocks import MIB


class Digest:
    """Follows the changes of one file; a new one is of an empty file."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._hashed_bytes = 0

    @classmethod
    def of_file(cls, fd: int) -> Digest:
        """Read a file to its end; blocks.

        Raises:
            OSError: it cannot be read.
        """
        digest = cls()
        while digest._read_on(fd, MIB):
            pass
        return digest

    def read_on(self, fd: int, until_bytes: int) -> None:
        """Follow what was written behind what is followed already, up to an offset; blocks.

        Raises:
            OSError: it cannot be read, or the file ends before.
        """
        while self._hashed_bytes < until_bytes:
            if not self._read_on(fd, min(MIB, until_bytes - self._hashed_bytes)):
                raise OSError(errno.EIO, "the file became shorter")

    def _read_on(self, fd: int, size_bytes: int) -> int:
        data = os.pread(fd, size_bytes, self._hashed_bytes)
        self.follow(self._hashed_bytes, data)
        return len(data)

    @property
    def followed_bytes(self) -> int:
        """How much of the file, from its start, is hashed."""
        return self._hashed_bytes

    def follow(self, offset: int, data: bytes | memoryview) -> None:
        """Take notice of a write."""
        if offset == self._hashed_bytes:
            self._hash.update(data)
            self._hashed_bytes += len(data)
        elif offset < self._hashed_bytes:
            self.lose()  # rewritten

    def cut(self, size_bytes: int) -> None:
        """Take notice of a truncation."""
        if size_bytes == 0:
            self._hash = hashlib.sha256()
            self._hashed_bytes = 0
        elif size_bytes < self._hashed_bytes:
            self.lose()

    def lose(self) -> None:
        """Follow no longer: the file must be read to know."""
        self._hashed_bytes = -1

    def of(self, size_bytes: int) -> str | None:
        """Return the digest of a file of this length, if all of it was followed; lower-case hex."""
        return self._hash.hexdigest() if self._hashed_bytes == size_bytes else None
