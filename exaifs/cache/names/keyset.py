"""Sets of keys and prefixes, and whether another key lies in, above or below one of them.

A prefix ends in a slash and stands for everything below it. All questions cost the depth of a key, not
the size of the set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator


def prefixes_above(key: str) -> Iterator[str]:
    """Yield the prefixes a key lies below, the shortest first; a prefix does not lie below itself."""
    end = key.find("/")
    while 0 <= end < len(key) - 1:
        yield key[: end + 1]
        end = key.find("/", end + 1)


class KeySet:
    """Keys and prefixes, each counted. No method awaits."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._above: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, key: str) -> None:
        """Count a key once more."""
        self._counts[key] += 1
        self._above.update(prefixes_above(key))

    def discard(self, key: str) -> None:
        """Count a key once less."""
        _less(self._counts, key)
        for prefix in prefixes_above(key):
            _less(self._above, prefix)

    def covers(self, key: str) -> bool:
        """Tell whether a key is in the set, or below one of its prefixes."""
        return bool(self._counts) and (
            key in self._counts or any(prefix in self._counts for prefix in prefixes_above(key))
        )

    def overlaps(self, key: str) -> bool:
        """Tell whether the set covers a key, or holds something below it."""
        return self.covers(key) or (key.endswith("/") and key in self._above)


def _less(counts: Counter[str], key: str) -> None:
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]
