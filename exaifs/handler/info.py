"""What a program is told of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from exaifs.names import path_of
from exaifs.remote.files import FileRow, FileRows


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file of the bucket, as it was when it was asked for."""

    file_id: str
    """Its name for ever: kept when the file is renamed or overwritten. Empty in lists, where no trigger
    gave another client's upload one; `stat` does."""
    path: str
    """As below a mountpoint."""
    name: str
    size_bytes: int
    mime_type: str
    sha256: str | None
    """Lower-case hex; None: uploaded by another client, and not read by exaifs yet."""
    created_at: datetime
    updated_at: datetime
    """When the present bytes were stored."""
    metadata: Mapping[str, Any]
    """What was given with uploads: `continuation_id`, `file_type`, and your own keys."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values; times in ISO 8601.

        What was given with uploads is in `metadata`, and stands beside the others, too, where it has other
        names than they.
        """
        return {
            **self.metadata,
            "file_id": self.file_id,
            "path": self.path,
            "name": self.name,
            "size_bytes": self.size_bytes,
            "mime_type": self.mime_type,
            "sha256": self.sha256,
            "created_at": self.created_at.isoformat(),
            "updated_at": self.updated_at.isoformat(),
            "metadata": dict(self.metadata),
        }


DESCRIBED = frozenset(field.name for field in fields(FileInfo))
"""What `FileInfo.to_dict` says of every file."""


@dataclass(frozen=True, slots=True)
class FilePage:
    """Some files, in the order of their keys."""

    files: tuple[FileInfo, ...]
    cursor: str | None
    """Give it back for the next page; None at the end. A page may be short, or empty, before the end."""


def info_of(row: FileRow) -> FileInfo:
    """Return what is known of a file."""
    record = row.record
    path = path_of(record.key)
    return FileInfo(
        file_id=record.file_id or "",
        path=path,
        name=path.rpartition("/")[2],
        size_bytes=record.size_bytes,
        mime_type=record.mime_type,
        sha256=record.sha256,
        created_at=_time(record.created_ns),
        updated_at=_time(record.updated_ns),
        metadata=dict(row.metadata),
    )


def page_of(rows: FileRows) -> FilePage:
    """Return a page for programs."""
    return FilePage(tuple(info_of(row) for row in rows.files), rows.next_after)


def _time(ns: int) -> datetime:
    return datetime.fromtimestamp(ns / 1e9, UTC)
