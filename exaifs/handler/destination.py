"""Where an upload goes, and what is kept of the metadata that came with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from exaifs.errors import InvalidArgument
from exaifs.handler.info import DESCRIBED
from exaifs.handler.texts import checked, texts_of
from exaifs.names import RESERVED_NAME, child_key, encode_name

FILE_TYPES = ("user_upload", "generated", "cache")

_FOLDERS = {"user_upload": "files", "generated": "generated", "cache": "cache"}
"""Of uploads that name no place; `uploads/` belongs to conversations."""

_OWN_FIELDS = frozenset({"version", "etag", "write_id", "posix", "xattrs"})
"""What exaifs itself keeps in the same column (migration 0009)."""

_TIME = re.compile(
    r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)",
    re.ASCII | re.IGNORECASE,
)
"""RFC 3339; what looks otherwise `exaifs gc` takes for no time."""

_HASH_DIGITS = 16
"""Enough to keep files of one name apart."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the metadata of an upload ask for."""

    path: str | None
    continuation_id: str | None
    fields: Mapping[str, Any]
    """For the row of a new file."""
    given: Mapping[str, Any]
    """For the row of one that was there: without what nobody said."""

    def key(self, name: str, sha256: str) -> str:
        """Return the key for a file.

        Args:
            name: the local file's.
            sha256: of its bytes.

        Raises:
            InvalidArgument, NameTooLong: it has none.
        """
        if self.path is not None:
            return key_of(self.path + name if self.path.endswith("/") else self.path)
        if self.continuation_id is not None:
            return child_key(child_key("uploads/", self.continuation_id) + "/", name)
        folder = _FOLDERS[self.fields["file_type"]]
        return child_key(f"{folder}/{sha256[:_HASH_DIGITS]}/", name)


def wish_of(metadata: Mapping[str, Any] | None) -> Wish:
    """Check the metadata of an upload.

    Raises:
        InvalidArgument: a value that cannot be.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidArgument("metadata are a dictionary of JSON values")
    given = _given(metadata or {})
    path, continuation_id = given.pop("path", None), given.get("continuation_id")
    fields = {"file_type": "user_upload", **given}
    expires_at = given.get("expires_at")
    if expires_at is not None and not (isinstance(expires_at, str) and _is_time(expires_at)):
        raise InvalidArgument("expires_at is a text, a time such as 2026-01-31T12:00:00Z")
    _check_fields(fields)
    if fields["file_type"] not in FILE_TYPES:
        raise InvalidArgument(f"file_type is one of {', '.join(FILE_TYPES)}")
    for name, value in (("path", path), ("continuation_id", continuation_id)):
        if value is not None and (not isinstance(value, str) or not value):
            raise InvalidArgument(f"{name} is a text that is not empty")
    if path is not None and path != "/":
        key_of(path.rstrip("/"))
    if continuation_id is not None:
        try:
            child_key("uploads/", continuation_id)
        except InvalidArgument:
            raise InvalidArgument(f"continuation_id must be one name, not {continuation_id!r}") from None
    return Wish(path, continuation_id, fields, given)


def _given(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said of a file; of what a download told, what was said with uploads, and the path.

    Else a file that is downloaded and uploaded again would keep all that was told of it, each time.
    """
    told = metadata.get("metadata")
    if not isinstance(told, Mapping) or not metadata.keys() >= DESCRIBED:
        return dict(metadata)
    theirs = {name: value for name, value in told.items() if name in DESCRIBED}
    said = {name: value for name, value in metadata.items() if name not in DESCRIBED}
    return {**theirs, **said, "path": metadata["path"]}


def _check_fields(fields: Mapping[str, Any]) -> None:
    """Refuse what the row cannot keep.

    Raises:
        InvalidArgument: says what.
    """
    own = sorted(_OWN_FIELDS.intersection(fields))
    if own:
        raise InvalidArgument(f"metadata cannot have the field {own[0]!r}, which exaifs itself uses")
    for name, value in fields.items():
        try:
            json.dumps({name: value}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as exc:
            raise InvalidArgument(
                f"metadata must be JSON values, and {name!r} is none ({exc}); times are texts"
            ) from exc
    for text in texts_of(fields):
        checked(text, "metadata")


def _is_time(text: str) -> bool:
    if not _TIME.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text.upper())
    except ValueError:
        return False
    return True


def key_of(path: str) -> str:
    """Return the key of a path below a mountpoint; a slash at its start is allowed.

    Raises:
        InvalidArgument, NameTooLong: no file can be there.
    """
    *folders, name = path.removeprefix("/").split("/")
    if (folders or [name])[0] == RESERVED_NAME:
        raise InvalidArgument(f"{RESERVED_NAME} is reserved")
    prefix = ""
    for folder in folders:
        prefix = child_key(prefix, folder) + "/"
    return child_key(prefix, name)


def prefix_of(path: str) -> str:
    """Return what the keys of all paths start with that start with this one."""
    return "/".join(encode_name(part) if part else "" for part in path.removeprefix("/").split("/"))
