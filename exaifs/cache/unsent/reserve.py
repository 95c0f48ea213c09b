"""A file that keeps some of the disk free, for the moment when it is full.

Whoever must still write then takes it back piece by piece; it is filled again when there is room.
The functions block, and raise nothing: a reserve that cannot be kept is only missing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_STEP_BYTES = 64 * 1024


class Reserve:
    """One reserve; nothing is taken before `fill`.

    Args:
        path: the file, perhaps of an earlier run.
        size_bytes: how much it keeps.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self.left_bytes = _size_of(path)
        """How much it keeps now."""

    def release(self, floor_bytes: int) -> bool:
        """Free a piece of it, down to `floor_bytes`; tell whether there was one to free."""
        if self.left_bytes <= floor_bytes:
            return False
        try:
            os.truncate(self._path, max(floor_bytes, self.left_bytes - _STEP_BYTES))
        except OSError:
            return False
        self.left_bytes = max(floor_bytes, self.left_bytes - _STEP_BYTES)
        return True

    def fill(self) -> None:
        """Make it whole again, where that leaves as much for others."""
        if self.left_bytes == self._size_bytes:
            return
        with suppress(OSError):
            status = os.statvfs(self._path.parent)
            if status.f_bavail * status.f_frsize >= 2 * self._size_bytes:
                self._allocate()

    def _allocate(self) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, self._size_bytes)
            os.ftruncate(fd, self._size_bytes)
            self.left_bytes = self._size_bytes
        except OSError:
            # A part of it may have been allocated: what cannot be whole is not to fill the disk.
            os.ftruncate(fd, self.left_bytes)
            raise
        finally:
            os.close(fd)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
