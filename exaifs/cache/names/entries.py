"""One name in the local index: the value, and its translation to and from SQLite and the server."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from exaifs.model import DIRECTORY_MIME, ROOT_INO, Ino, Kind, ObjectRecord, ObjectRef, Posix
from exaifs.names import PLACEHOLDER

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_UNRECORDED = Posix()


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, directory or symbolic link that is known to exist.

    `pending` entries were made here and are not in the bucket yet; only they have an empty version among
    files. A directory has no version; `marker` says whether a folder marker exists in the bucket.
    """

    parent: str
    name: str
    component: str
    kind: Kind
    ino: Ino
    pending: bool = False
    marker: bool = False
    version: str = ""
    size_bytes: int = 0
    mime_type: str = "application/octet-stream"
    etag: str = ""
    sha256: str | None = None
    file_id: str | None = None
    created_ns: int = 0
    updated_ns: int = 0
    ctime_ns: int = 0
    posix: Posix = _UNRECORDED
    xattrs: Mapping[str, bytes] = field(default_factory=lambda: _NOTHING)
    provider_file_ids: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)

    @property
    def key(self) -> str:
        """The object's key; for a directory its prefix: '' for the root, else ending in a slash."""
        if self.ino == ROOT_INO:
            return ""
        return f"{self.parent}{self.component}/" if self.is_dir else self.parent + self.component

    @property
    def is_dir(self) -> bool:
        """Whether this is a directory."""
        return self.kind == "dir"

    @property
    def ref(self) -> ObjectRef:
        """The bytes in the bucket; meaningless for directories and pending entries."""
        return ObjectRef(self.key, self.version, self.size_bytes, self.etag, self.sha256)

    @property
    def mtime_ns(self) -> int:
        """Recorded modification time, else the object's own."""
        return self.updated_ns if self.posix.mtime_ns is None else self.posix.mtime_ns

    @property
    def marker_key(self) -> str:
        """Key of a directory's folder marker."""
        return self.key + PLACEHOLDER

    def same_content(self, record: ObjectRecord) -> bool:
        """Whether `record` holds the same bytes, as far as can be proven without reading them."""
        if self.version == record.version:
            return True
        return (
            self.sha256 is not None
            and self.sha256 == record.sha256
            and self.size_bytes == record.size_bytes
        )

    def is_object_of(self, record: ObjectRecord) -> bool:
        """Whether `record` is the object this entry stands for, though a move gave it another version."""
        return self.same_content(record) or (
            self.etag != "" and self.etag == record.etag and self.size_bytes == record.size_bytes
        )


def from_record(record: ObjectRecord, *, parent: str, component: str, name: str, ino: Ino) -> Entry:
    """Make the entry that shows an object of the bucket."""
    kind: Kind = "symlink" if record.posix.kind == "symlink" else "file"
    return Entry(
        parent=parent,
        name=name,
        component=component,
        kind=kind,
        ino=ino,
        version=record.version,
        size_bytes=record.size_bytes,
        mime_type=record.mime_type,
        etag=record.etag,
        sha256=record.sha256,
        file_id=record.file_id,
        created_ns=record.created_ns,
        updated_ns=record.updated_ns,
        ctime_ns=record.updated_ns,
        posix=record.posix,
        xattrs=record.xattrs,
        provider_file_ids=record.provider_file_ids,
    )


def own_write(entry: Entry, record: ObjectRecord) -> Entry:
    """Return an entry after this host wrote or moved its object: same name and inode, new version."""
    fresh = from_record(
        record, parent=entry.parent, component=entry.component, name=entry.name, ino=entry.ino
    )
    return replace(fresh, kind=entry.kind, ctime_ns=max(entry.ctime_ns, fresh.ctime_ns))


def with_marker(entry: Entry, marker: ObjectRecord | None) -> Entry:
    """Return the directory with the attributes its marker's row keeps; None: it has no marker."""
    if marker is None:
        return replace(entry, marker=False)
    # A directory's times change with its names, here only: the row knows just what was set.
    known = [time_ns for time_ns in (marker.posix.mtime_ns, entry.posix.mtime_ns) if time_ns is not None]
    mtime_ns = max(known, default=None)
    return replace(
        entry,
        marker=True,
        mime_type=DIRECTORY_MIME,
        file_id=marker.file_id,
        created_ns=marker.created_ns,
        updated_ns=marker.updated_ns,
        posix=replace(marker.posix, mtime_ns=mtime_ns, kind="dir"),
        xattrs=marker.xattrs,
        provider_file_ids=marker.provider_file_ids,
    )


COLUMNS = (
    "parent", "name", "component", "kind", "ino", "pending", "marker", "version", "size_bytes",
    "mime_type", "etag", "sha256", "file_id", "created_ns", "updated_ns", "ctime_ns",
    "mode", "uid", "gid", "mtime_ns", "posix_kind", "xattrs", "provider_file_ids",
)  # fmt: skip
"""In the order that `to_row` and `from_row` know; a listing reads thousands of rows at once."""


def to_row(entry: Entry) -> tuple[Any, ...]:
    """Return the values of `COLUMNS`."""
    posix = entry.posix
    xattrs = {name: base64.b64encode(value).decode() for name, value in entry.xattrs.items()}
    return (
        entry.parent, os.fsencode(entry.name), entry.component, entry.kind, entry.ino,
        entry.pending, entry.marker, entry.version, entry.size_bytes, entry.mime_type, entry.etag,
        entry.sha256, entry.file_id, entry.created_ns, entry.updated_ns, entry.ctime_ns,
        posix.mode, posix.uid, posix.gid, posix.mtime_ns, posix.kind,
        json.dumps(xattrs) if xattrs else "",
        json.dumps(dict(entry.provider_file_ids)) if entry.provider_file_ids else "",
    )  # fmt: skip


def from_row(row: Sequence[Any]) -> Entry:
    """Read what `to_row` wrote."""
    (
        parent, name, component, kind, ino, pending, marker, version, size_bytes,
        mime_type, etag, sha256, file_id, created_ns, updated_ns, ctime_ns,
        mode, uid, gid, mtime_ns, posix_kind, xattrs, provider_file_ids,
    ) = row  # fmt: skip
    return Entry(
        parent, os.fsdecode(name), component, kind, ino, bool(pending), bool(marker), version, size_bytes,
        mime_type, etag, sha256, file_id, created_ns, updated_ns, ctime_ns,
        Posix(mode, uid, gid, mtime_ns, posix_kind),
        _xattrs(xattrs) if xattrs else _NOTHING,
        json.loads(provider_file_ids) if provider_file_ids else _NOTHING,
    )  # fmt: skip


def _xattrs(text: str) -> Mapping[str, bytes]:
    return {name: base64.b64decode(value) for name, value in json.loads(text).items()}
