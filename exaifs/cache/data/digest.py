"""The SHA-256 of a file that is being changed: made on the way, as long as it is written in order."""

from __future__ import annotations

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
        buffer = bytearray(MIB)
        view = memoryview(buffer)
        while count := os.preadv(fd, [view], digest._hashed_bytes):
            digest.follow(digest._hashed_bytes, view[:count])
        return digest

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
