"""Contents that were handed out, in part, before it was known whether their bytes are the right ones."""

from __future__ import annotations

from collections.abc import Callable

from exaifs.model import ObjectRef


class Damage:
    """Remembers them, so that who has read such bytes hears of it."""

    def __init__(self) -> None:
        self._watchers: list[Callable[[ObjectRef], None]] = []
        self._by_version: dict[str, int] = {}
        self._doubted: set[str] = set()
        self.found = 0
        """How many were found so far: the moment, for `since`."""

    def watch(self, act: Callable[[ObjectRef], None]) -> None:
        """Have something called with each content that is found."""
        self._watchers.append(act)

    def note(self, ref: ObjectRef) -> None:
        """Some of a copy of this content was handed out, and that copy was wrong."""
        self.found += 1
        self._by_version[ref.version] = self.found
        for act in self._watchers:
            act(ref)

    def doubt(self, ref: ObjectRef) -> None:
        """Some of this content was handed out, and the rest will never be compared with it."""
        self._doubted.add(ref.version)

    def take_doubt(self, ref: ObjectRef) -> bool:
        """Tell whether there is such doubt, which the caller ends: nobody goes on with those bytes."""
        if ref.version not in self._doubted:
            return False
        self._doubted.remove(ref.version)
        return True

    def since(self, ref: ObjectRef, moment: int) -> bool:
        """Tell whether that happened to a content after a moment; 0: ever."""
        return self._by_version.get(ref.version, 0) > moment

    def rekey(self, old: ObjectRef, new: ObjectRef) -> None:
        """Follow our own move: the same bytes have another version."""
        if old.version in self._by_version:
            self._by_version[new.version] = self._by_version[old.version]
        if old.version in self._doubted:
            self._doubted.add(new.version)
