"""Which bytes must still be somewhere: in the bucket, or among what lost a conflict.

Bytes are owed from the close, or the other client's upload, that brought them. They are no longer when
somebody who saw them replaced or removed them: a mount that showed them, or a client that talks to the
bucket itself. Whoever replaces what it has not seen has to keep it aside.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from exaifs.cache.unsent.conflicts import list_conflicts


class Ledger:
    """What is owed. Contents differ, but empty ones, which nobody misses."""

    def __init__(self) -> None:
        self._owed: dict[bytes, str] = {}
        self._doubtful: set[bytes] = set()

    def owe(self, data: bytes | None, who: str) -> None:
        """Somebody was told that these bytes are safe."""
        if data:
            self._owed[data] = who

    def release(self, *contents: bytes | None) -> None:
        """Who saw these bytes has replaced or removed them."""
        for data in contents:
            self._owed.pop(data or b"", None)

    def doubt(self, *contents: bytes | None) -> None:
        """What is being done may have replaced or removed these by now; see `settle`."""
        self._doubtful.update(data for data in contents if data)

    def settle(self) -> None:
        """It is done."""
        self._doubtful.clear()

    def as_of_now(self) -> Ledger:
        """Return what is owed for certain, whatever becomes of what is being done."""
        now = Ledger()
        now._owed = {data: who for data, who in self._owed.items() if data not in self._doubtful}
        return now

    def check(self, there: Iterable[bytes], caches: Iterable[Path]) -> None:
        """See that nothing is lost.

        Args:
            there: what the bucket has.
            caches: the cache directory of each mount.
        """
        kept = {
            (cache / "conflicts" / f"{conflict.id}.data").read_bytes()
            for cache in caches
            for conflict in list_conflicts(cache / "conflicts")
        }
        lost = {data: who for data, who in self._owed.items() if data not in kept.union(there)}
        assert not lost, f"lost: {[(data[:12], who) for data, who in lost.items()]}"
