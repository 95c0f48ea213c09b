"""Which keys were changed from here since a question was asked, so that its answer cannot undo that.

Kept in memory, and only while questions are on their way. Answers are merged by `merge.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from exaifs.cache.names.keyset import KeySet


@dataclass(frozen=True, slots=True)
class View:
    """When a question was asked; see `Recency.view`."""

    sequence: int


class Recency:
    """What is newer than the answers to come. A method is one step for every task."""

    def __init__(self) -> None:
        self._sequence = 0
        self._open_views = 0
        self._touched: dict[str, int] = {}
        self._touched_prefixes: dict[str, int] = {}
        self._outdated: dict[str, int] = {}
        self._all_outdated_at = -1
        self._listed: Counter[str] = Counter()
        self._claims = KeySet()
        self._left: set[str] = set()
        self._unasked: set[str] = set()
        self._contested: set[str] = set()

    @contextmanager
    def view(self, listed: str | None = None) -> Iterator[View]:
        """Mark that a question is being asked; merge its answer before leaving.

        Args:
            listed: the directory, if the question is what is in it.
        """
        self._open_views += 1
        if listed is not None:
            self._listed[listed] += 1
        try:
            yield View(self._sequence)
        finally:
            if listed is not None:
                self._listed[listed] -= 1
                self._listed += Counter()  # drops zeros
            self._open_views -= 1
            if self._open_views == 0:
                self._touched.clear()
                self._touched_prefixes.clear()
                self._outdated.clear()

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def touch(self, key: str) -> None:
        """Mark a key as changed now: answers asked for earlier leave it alone."""
        now = self._next()
        if self._open_views:
            self._touched[key] = now

    def is_newer(self, key: str, view: View) -> bool:
        """Tell whether a key was, or is being, changed here after a question was asked."""
        return self._touched.get(key, -1) > view.sequence or self.is_renamed(key, view)

    def is_renamed(self, prefix: str, view: View) -> bool:
        """Tell whether a directory was, or is being, renamed after a question was asked."""
        return self.is_claimed(prefix) or any(
            sequence > view.sequence and prefix.startswith(renamed)
            for renamed, sequence in self._touched_prefixes.items()
        )

    # -- claims ------------------------------------------------------------------------------------

    def claim(self, key: str) -> None:
        """Have answers leave a key alone, or with a final slash all keys below; see `fs.claims`."""
        self._claims.add(key)

    def release(self, key: str) -> None:
        """Undo one `claim`; answers asked for before now still leave the key alone."""
        self._claims.discard(key)
        now = self._next()
        if self._open_views:
            touched = self._touched_prefixes if key.endswith("/") else self._touched
            touched[key] = now

    def is_claimed(self, key: str) -> bool:
        """Tell whether a key is being changed from here."""
        return self._claims.covers(key)

    def leave(self, key: str) -> None:
        """Note that a listing left a claimed key alone, whatever it says of it."""
        self._left.add(key)

    def take_left(self, claimed: str) -> list[str]:
        """Return what was noted so of a claim, and forget it."""
        below = claimed if claimed.endswith("/") else None
        found = [key for key in self._left if key == claimed or (below and key.startswith(below))]
        self._left.difference_update(found)
        return found

    def ask_again(self, key: str) -> None:
        """Note that the feed is to ask for a key, as its log may not tell of it once more."""
        self._unasked.add(key)

    def take_unasked(self) -> set[str]:
        """Return what was noted so, and forget it."""
        unasked, self._unasked = self._unasked, set()
        return unasked

    def contest(self, key: str, *, ask_again: bool = False) -> None:
        """Note that the bucket has, or may have, another host's object under the key of unsent bytes.

        Args:
            key: of them.
            ask_again: whether the log may not tell of it once more: it shows when they leave their name.
        """
        self._contested.add(key)
        if ask_again:
            self.ask_again(key)

    def take_contested(self, key: str) -> bool:
        """Tell whether that was noted, and forget it."""
        contested = key in self._contested
        self._contested.discard(key)
        return contested

    # -- listings ----------------------------------------------------------------------------------

    def is_being_listed(self, key: str) -> bool:
        """Tell whether a listing of a directory on the way to a key is under way."""
        return any(key.startswith(prefix) for prefix in self._listed)

    def outdate_listings(self) -> None:
        """Have listings that are on their way done again: who knows whether a change of ours happened."""
        self._all_outdated_at = self._next()

    def outdate_listing(self, prefix: str) -> None:
        """Do so with those of one directory."""
        now = self._next()
        if self._open_views:
            self._outdated[prefix] = now

    def is_outdated(self, prefix: str, view: View) -> bool:
        """Tell whether a directory was to be listed again after its listing was asked for."""
        return max(self._all_outdated_at, self._outdated.get(prefix, -1)) > view.sequence
