"""Values that travel between the layers: immutable, without I/O, free to all above.

An *object* is bytes under a key in the bucket; its *record* is the object and its row in
`file_metadata`, as the SQL functions return them in one piece.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NewType

Ino = NewType("Ino", int)
"""An inode number, stable while the kernel refers to it and across restarts."""

Handle = NewType("Handle", int)
"""An open file or directory, as the kernel's `fh`."""

ROOT_INO = Ino(1)

Kind = Literal["file", "dir", "symlink"]

SYMLINK_MIME = "inode/symlink"
"""MIME type of the small object that holds a symbolic link's target."""

MAX_TIME_NS = 1 << 62
"""Latest time that is kept (in 2116): nanoseconds since the epoch; the earliest is the epoch."""

DIRECTORY_MIME = "inode/directory"
"""MIME type of the folder marker, whose row keeps the directory's own attributes."""

_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Posix:
    """Attributes Supabase has no column for; kept in `file_metadata.metadata.posix`.

    `None` means not recorded (an object made by another client): the mount's defaults apply, and the
    object's own time stands in for `mtime_ns`.
    """

    mode: int | None = None
    """Permission bits only (07777)."""
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    """Nanoseconds since the epoch."""
    kind: Kind = "file"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that the row keeps; what is not recorded is left out.

        Nanoseconds travel as text: servers in JavaScript round integers above 2**53.
        """
        values = {
            "mode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
            "mtime_ns": None if self.mtime_ns is None else str(self.mtime_ns),
            "kind": self.kind,
        }
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, value: Any) -> Posix:
        """Read what `to_json` wrote; anything malformed counts as not recorded."""
        if not isinstance(value, Mapping):
            return cls()
        kind = value.get("kind")
        return cls(
            mode=_int_or_none(value.get("mode"), 0o7777),
            uid=_int_or_none(value.get("uid"), 0xFFFF_FFFE),
            gid=_int_or_none(value.get("gid"), 0xFFFF_FFFE),
            mtime_ns=_int_or_none(value.get("mtime_ns"), MAX_TIME_NS),
            kind=kind if kind in ("file", "dir", "symlink") else "file",
        )


def _int_or_none(value: Any, maximum: int) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= maximum else None


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """Which bytes: enough to fetch them and to know them again.

    `version` changes on every overwrite, copy and move; `etag` (opaque) and `sha256` with content only.
    """

    key: str
    version: str
    size_bytes: int
    etag: str = ""
    sha256: str | None = None

    @property
    def content_id(self) -> str:
        """Name of the immutable content: its SHA-256 once known, its version until then."""
        return self.sha256 if self.sha256 is not None else f"v-{self.version}"


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """An object and its row. Times are nanoseconds since the epoch, by the server's clock."""

    key: str
    version: str
    size_bytes: int
    mime_type: str = "application/octet-stream"
    etag: str = ""
    created_ns: int = 0
    updated_ns: int = 0
    file_id: str | None = None
    sha256: str | None = None
    write_id: str | None = None
    posix: Posix = Posix()
    xattrs: Mapping[str, bytes] = field(default_factory=lambda: _EMPTY)
    """The user's own `user.*` attributes."""
    provider_file_ids: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)

    @property
    def ref(self) -> ObjectRef:
        """The bytes of this record."""
        return ObjectRef(self.key, self.version, self.size_bytes, self.etag, self.sha256)


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) shows. Times are nanoseconds since the epoch."""

    ino: Ino
    mode: int
    """With the file type."""
    nlink: int
    uid: int
    gid: int
    size_bytes: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    timeout_s: float | None = None
    """For how long the kernel may believe this; None: as long as the mount says."""

    @property
    def is_dir(self) -> bool:
        """Whether this is a directory."""
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True, slots=True)
class AttributeChange:
    """What setattr(2) asks for; `None` leaves a field as it is."""

    mode: int | None = None
    """Permission bits only."""
    uid: int | None = None
    gid: int | None = None
    size_bytes: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: taken from the FUSE request."""

    uid: int
    gid: int
    pid: int
    umask: int = 0o022
