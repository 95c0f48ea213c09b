"""A local file that appears whole, or not at all. Everything here blocks and belongs in a thread."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from exaifs.cache.localfile import unlink_quietly, write_at

_NAME_CHARACTERS = 60
"""Of the file's own name; with the rest it stays below 255 bytes in any alphabet."""


class PartFile:
    """A new file beside its place.

    Args:
        path: where it will be; what is there is replaced.

    Raises:
        OSError: the directory cannot be written.
    """

    def __init__(self, path: Path) -> None:
        if not path.name:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        self._path = path
        self._part = path.with_name(f".{path.name[:_NAME_CHARACTERS]}.{secrets.token_hex(4)}.part")
        # As the umask says, like any file that a program makes.
        self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._size_bytes = 0

    def begin(self) -> None:
        """Start from nothing again."""
        os.ftruncate(self._fd, 0)
        self._size_bytes = 0

    def write(self, data: bytes) -> None:
        """Add bytes."""
        write_at(self._fd, self._size_bytes, data)
        self._size_bytes += len(data)

    def finish(self) -> None:
        """Put the file in its place."""
        os.fsync(self._fd)
        self._part.replace(self._path)

    def close(self) -> None:
        """Remove what was not finished."""
        os.close(self._fd)
        unlink_quietly(self._part)
