"""The SHA-256 of a file, taken while it is written from start to end, so that nobody reads it again."""

from __future__ import annotations

import hashlib


class RunningDigest:
    """A digest that follows writes in order. A write elsewhere loses it: the file must be hashed then."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._hashed_bytes: int | None = 0
        """How much of the file, from its start, is in the digest; None: it does not follow any more."""

    def wrote(self, offset: int, data: bytes) -> None:
        """Follow a write."""
        if self._hashed_bytes is None:
            return
        if offset == self._hashed_bytes:
            self._hash.update(data)
            self._hashed_bytes += len(data)
        elif offset < self._hashed_bytes:
            self.lose()

    def truncated(self, size_bytes: int) -> None:
        """Follow ftruncate(2)."""
        if size_bytes == 0:
            self._hash = hashlib.sha256()
            self._hashed_bytes = 0
        elif self._hashed_bytes is not None and size_bytes < self._hashed_bytes:
            self.lose()

    def lose(self) -> None:
        """Note that the file holds something else than what was followed."""
        self._hashed_bytes = None

    def of(self, size_bytes: int) -> str | None:
        """Return the digest of a file of this size, as lower-case hex; None where it was not followed."""
        return self._hash.hexdigest() if self._hashed_bytes == size_bytes else None
