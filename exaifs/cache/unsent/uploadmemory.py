"""What a large upload needs to go on after a restart, in a small file beside the bytes it sends."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import structlog

_log = structlog.get_logger(__name__)

_MAX_BYTES = 64 * 1024
"""Far more than any note has; a file that became something else is not read."""


class FileUploadMemory:
    """`remote.interface.UploadMemory` in one file.

    Not fsynced: a note that a power cut takes away costs the bytes that were sent, nothing else. While a
    note is written, `PATH.new` is beside it.

    Args:
        path: in a directory that exists; one file for one upload at a time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> str | None:
        """Return the note; None if there is none, or none that can be read."""
        try:
            with self._path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
            return data.decode() if len(data) <= _MAX_BYTES else None
        except (OSError, UnicodeDecodeError):
            return None

    def save(self, text: str) -> None:
        """Replace the note."""
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            new.write_text(text, encoding="utf-8")
            new.replace(self._path)
        except OSError as exc:
            _log.warning(
                "an upload would start over after a restart", path=str(self._path), reason=str(exc)
            )
            with suppress(OSError):
                new.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the note."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
