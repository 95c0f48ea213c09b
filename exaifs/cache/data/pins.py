"""Which contents are open, and what our own moves have renamed them to.

Synchronous and in memory only; used by the content store.
"""

from __future__ import annotations

from collections.abc import Iterator

from exaifs.model import ObjectRef


class Pins:
    """Counts of open handles by version, following a version to the one it was moved to."""

    def __init__(self) -> None:
        self._pins: dict[str, tuple[ObjectRef, int]] = {}
        # Old version → new reference: handles opened before the move still name the old one.
        self._moved: dict[str, ObjectRef] = {}

    def current(self, ref: ObjectRef) -> ObjectRef:
        """Return what a reference is called now."""
        while ref.version in self._moved:
            ref = self._moved[ref.version]
        return ref

    def pin(self, ref: ObjectRef) -> None:
        """Count one more handle."""
        ref = self.current(ref)
        _, number = self._pins.get(ref.version, (ref, 0))
        self._pins[ref.version] = (ref, number + 1)

    def unpin(self, ref: ObjectRef) -> bool:
        """Count one handle less and tell whether it was the last. Unpinned already: no effect."""
        ref = self.current(ref)
        _, number = self._pins.get(ref.version, (ref, 0))
        if number > 1:
            self._pins[ref.version] = (ref, number - 1)
            return False
        if self._pins.pop(ref.version, None) is None:
            return False
        self._forget_moves_to(ref.version)
        return True

    def count(self, version: str) -> int:
        """Return how many handles have this version open."""
        return self._pins.get(version, (None, 0))[1]

    def rekey(self, old: ObjectRef, new: ObjectRef) -> None:
        """Follow a move: handles of the old version count for the new one."""
        old = self.current(old)
        if old.version == new.version or old.version not in self._pins:
            return
        self._moved.pop(new.version, None)
        _, number = self._pins.pop(old.version)
        self._pins[new.version] = (new, number + self.count(new.version))
        self._moved[old.version] = new

    def __iter__(self) -> Iterator[ObjectRef]:
        return iter([ref for ref, _ in self._pins.values()])

    def _forget_moves_to(self, version: str) -> None:
        # With no handle left, nobody can name the old versions any more.
        pending = [version]
        while pending:
            target = pending.pop()
            olds = [old for old, ref in self._moved.items() if ref.version == target]
            for old in olds:
                del self._moved[old]
            pending.extend(olds)
