"""Which of many numbered operations may run: each waits for the earlier ones that touch the same keys.

Two operations touch if they name the same key, or one of them a prefix above the other's key. Adding and
removing cost the depth of the keys, but for a prefix, which waits for everything below it.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence

from exaifs.cache.names.keyset import prefixes_above


class Ordering:
    """Operations by number, added in ascending order. No method awaits."""

    def __init__(self) -> None:
        self._keys: dict[int, Sequence[str]] = {}
        # Numbers by key, and by each prefix above a key, the latest last.
        self._at: defaultdict[str, dict[int, None]] = defaultdict(dict)
        self._below: defaultdict[str, dict[int, None]] = defaultdict(dict)
        self._waits_for: dict[int, set[int]] = {}
        self._followers: defaultdict[int, list[int]] = defaultdict(list)
        self._ready: dict[int, None] = {}

    def add(self, number: int, keys: Sequence[str]) -> None:
        """Add an operation behind all others."""
        earlier = {found for key in keys for found in self._touching(key)}
        self._keys[number] = keys
        for key in keys:
            self._at[key][number] = None
            for prefix in prefixes_above(key):
                self._below[prefix][number] = None
        self._waits_for[number] = earlier
        for one in earlier:
            self._followers[one].append(number)
        if not earlier:
            self._ready[number] = None

    def _touching(self, key: str) -> Iterator[int]:
        """Yield what an operation on a key must wait for: of those on one key the latest is enough."""
        for above in (key, *prefixes_above(key)):
            numbers = self._at.get(above)
            if numbers:
                yield next(reversed(numbers))
        if key.endswith("/"):
            yield from self._below.get(key, ())

    def latest(self, key: str) -> list[int]:
        """Return the last two operations that touch a key, or something above it, the latest first."""
        every = {number for above in (key, *prefixes_above(key)) for number in self._at.get(above, ())}
        return heapq.nlargest(2, every)

    def remove(self, number: int) -> None:
        """Remove an operation that was carried out; those that waited only for it are ready."""
        for key in self._keys.pop(number):
            self._drop(self._at, key, number)
            for prefix in prefixes_above(key):
                self._drop(self._below, prefix, number)
        self._ready.pop(number, None)
        for earlier in self._waits_for.pop(number):
            self._followers[earlier].remove(number)  # it was given up before its turn
        for follower in self._followers.pop(number, ()):
            left = self._waits_for[follower]
            left.discard(number)
            if not left:
                self._ready[follower] = None

    def ready(self) -> list[int]:
        """Return the operations that wait for no other, in ascending order."""
        return sorted(self._ready)

    @staticmethod
    def _drop(numbers: defaultdict[str, dict[int, None]], key: str, number: int) -> None:
        numbers[key].pop(number, None)
        if not numbers[key]:
            del numbers[key]
