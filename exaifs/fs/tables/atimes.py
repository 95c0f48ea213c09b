"""Access times: kept in memory, by the rule of `relatime`; reading never causes a request.

A time that was noted or set lives as long as the kernel knows the inode. Without one, atime is mtime.
Reads from the kernel's own pages are not seen here.
"""

from __future__ import annotations

from exaifs.cache.names.entries import Entry
from exaifs.model import Ino

_DAY_NS = 86_400_000_000_000


class AccessTimes:
    """Access times by inode number; synchronous, so no lock."""

    def __init__(self) -> None:
        self._times_ns: dict[Ino, int] = {}

    def of(self, entry: Entry) -> int:
        """Return an atime, in nanoseconds since the epoch."""
        return self._times_ns.get(entry.ino, entry.mtime_ns)

    def set(self, ino: Ino, atime_ns: int) -> None:
        """Set an atime, as utimensat(2) does."""
        self._times_ns[ino] = atime_ns

    def note_read(self, entry: Entry, now_ns: int) -> None:
        """Take a read for an access, unless the last one is younger than the last change and a day."""
        atime_ns = self.of(entry)
        if atime_ns <= max(entry.mtime_ns, entry.ctime_ns) or now_ns - atime_ns >= _DAY_NS:
            self._times_ns[entry.ino] = now_ns

    def forget(self, ino: Ino) -> None:
        """Nobody knows this inode any more."""
        self._times_ns.pop(ino, None)
