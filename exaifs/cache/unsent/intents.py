"""What the write journal's records say: each is one thing that Supabase does not have, or does not do, yet.

A `Put` is a state: these staged bytes belong under this key; a newer one of the same staged file replaces
it. The others are operations, carried out in the order of their numbers. Entries travel whole, so that a
lost index can be made again from the journal.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from exaifs.cache.names.entries import COLUMNS, Entry, from_row, to_row
from exaifs.cache.unsent.journalfile import Record
from exaifs.model import Ino, Posix

_NO_XATTRS: Mapping[str, bytes] = {}


@dataclass(frozen=True, slots=True)
class Put:
    """Staged bytes, and the attributes that travel with them, belong under the entry's key.

    Attributes:
        entry: as it is here. While `pending`, nothing is in the bucket under its key; else its version,
            hash, ETag and size are those of the object that these bytes replace.
        staged: name of the file in `staging/`.
        sha256: of the staged bytes, where it was computed; they are compared with it before they are sent.
        write_ids: of the uploads that were tried.
        closed_ns: when close(2), or fsync(2), was answered; by it the last close wins.
        acknowledged: whether it was answered with success: else another host's file is never replaced.
        sent: SHA-256 and size in bytes of what they may have left, for servers that keep no write ids.
    """

    entry: Entry
    staged: str
    size_bytes: int
    sha256: str | None = None
    write_ids: Sequence[str] = ()
    closed_ns: int = 0
    acknowledged: bool = True
    sent: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Remove:
    """An object is to be deleted, if it still is the one that was removed here.

    Attributes:
        entry: as it was.
        write_ids: of uploads from here that may be what is there, as no answer came to them.
        sent: SHA-256 of what they may have sent, for servers that keep no write ids.
    """

    entry: Entry
    write_ids: Sequence[str] = ()
    sent: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Move:
    """An object, or for a directory all objects below it, is to have another key.

    Attributes:
        source: the key it had: a directory's prefix ends in a slash.
        entry: as it is after that.
        replaced: the file that had the new name.
        write_ids: of uploads from here that may be what has it, as no answer came to them.
        sent: SHA-256 of what they sent, for servers that keep no write ids.
    """

    source: str
    entry: Entry
    replaced: Entry | None = None
    write_ids: Sequence[str] = ()
    sent: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Mark:
    """A directory is to have a folder marker, with its attributes.

    Attributes:
        entry: of the directory.
        is_new: whether it was made here.
    """

    entry: Entry
    is_new: bool


@dataclass(frozen=True, slots=True)
class Unmark:
    """A directory's folder marker is to be deleted.

    Attributes:
        entry: as it was.
    """

    entry: Entry


@dataclass(frozen=True, slots=True)
class Patch:
    """A row is to get other attributes.

    Attributes:
        entry: as it is after that; of a directory the row is its marker's.
        posix: None: as it is.
    """

    entry: Entry
    posix: Posix | None = None
    set_xattrs: Mapping[str, bytes] = field(default_factory=lambda: _NO_XATTRS)
    drop_xattrs: Sequence[str] = ()


Operation = Remove | Move | Mark | Unmark | Patch
Intent = Put | Operation

_NAMES: dict[type[Intent], str] = {
    Put: "put",
    Remove: "remove",
    Move: "move",
    Mark: "mark",
    Unmark: "unmark",
    Patch: "patch",
}


def keys_of(intent: Intent) -> tuple[str, ...]:
    """Return the keys an intent is about; a prefix stands for all below it."""
    match intent:
        case Move():
            return (intent.source, intent.entry.key)
        case Mark() | Unmark():
            return (intent.entry.marker_key,)
        case Patch() if intent.entry.is_dir:
            return (intent.entry.marker_key,)
        case _:
            return (intent.entry.key,)


MAX_JOINED_BYTES = 65_536
"""Of extended attributes in one patch that several were joined to: each time it is written anew."""


def joined(earlier: Operation, later: Patch) -> Patch | None:
    """Return the patch that does what two do, if nothing lies between them; None: both are needed."""
    if not isinstance(earlier, Patch) or earlier.entry.ino != later.entry.ino:
        return None
    changed = {**earlier.set_xattrs, **later.set_xattrs}
    dropped = {**dict.fromkeys(earlier.drop_xattrs), **dict.fromkeys(later.drop_xattrs)}
    if sum(len(name) + len(value) for name, value in changed.items()) > MAX_JOINED_BYTES:
        return None
    return Patch(
        later.entry,
        _merged(earlier.posix, later.posix),
        {name: value for name, value in changed.items() if name not in later.drop_xattrs},
        tuple(name for name in dropped if name not in later.set_xattrs),
    )


def _merged(earlier: Posix | None, later: Posix | None) -> Posix | None:
    if earlier is None or later is None:
        return later or earlier
    return Posix.from_json({**earlier.to_json(), **later.to_json()})


def outdates(later: Operation, earlier: Operation) -> bool:
    """Tell whether an operation leaves nothing of one on the same key before it."""
    if isinstance(later, Remove):
        superseded = isinstance(earlier, Patch)
    else:
        superseded = isinstance(later, Unmark) and isinstance(earlier, Mark | Patch)
    return superseded and later.entry.ino == earlier.entry.ino


def to_record(intent: Intent) -> Record:
    """Return the JSON object of an intent."""
    record: dict[str, Any] = {"op": _NAMES[type(intent)], "entry": _entry_to_json(intent.entry)}
    match intent:
        case Put():
            record |= {
                "staged": intent.staged,
                "size_bytes": intent.size_bytes,
                "sha256": intent.sha256,
                "write_ids": list(intent.write_ids),
                "closed_ns": intent.closed_ns,
                "acknowledged": intent.acknowledged,
                "sent": dict(intent.sent),
            }
        case Move():
            replaced = intent.replaced
            record |= {
                "source": intent.source,
                "replaced": None if replaced is None else _entry_to_json(replaced),
                "write_ids": list(intent.write_ids),
                "sent": list(intent.sent),
            }
        case Mark():
            record["is_new"] = intent.is_new
        case Patch():
            record |= {
                "posix": None if intent.posix is None else intent.posix.to_json(),
                "set": {name: _to_text(value) for name, value in intent.set_xattrs.items()},
                "drop": list(intent.drop_xattrs),
            }
        case Remove():
            record |= {"write_ids": list(intent.write_ids), "sent": list(intent.sent)}
        case Unmark():
            pass
    return record


def from_record(record: Record) -> Intent:
    """Read what `to_record` made.

    Raises:
        ValueError, KeyError, TypeError: it was made by something else.
    """
    entry = _entry_from_json(record["entry"])
    match record["op"]:
        case "put":
            return Put(
                entry,
                _file_name(record["staged"]),
                int(record["size_bytes"]),
                record["sha256"],
                tuple(str(write_id) for write_id in record["write_ids"]),
                int(record["closed_ns"]),
                bool(record["acknowledged"]),
                {str(sha256): int(size) for sha256, size in dict(record.get("sent", {})).items()},
            )
        case "remove":
            write_ids = tuple(str(write_id) for write_id in record["write_ids"])
            return Remove(entry, write_ids, tuple(str(sha256) for sha256 in record["sent"]))
        case "move":
            replaced = record["replaced"]
            return Move(
                str(record["source"]),
                entry,
                None if replaced is None else _entry_from_json(replaced),
                tuple(str(write_id) for write_id in record["write_ids"]),
                tuple(str(sha256) for sha256 in record.get("sent", [])),
            )
        case "mark":
            return Mark(entry, bool(record["is_new"]))
        case "unmark":
            return Unmark(entry)
        case "patch":
            posix = record["posix"]
            return Patch(
                entry,
                None if posix is None else Posix.from_json(posix),
                {name: _from_text(value) for name, value in record["set"].items()},
                tuple(record["drop"]),
            )
        case unknown:
            raise ValueError(f"an operation {unknown!r} that this version does not know")


def _entry_to_json(entry: Entry) -> dict[str, Any]:
    values = dict(zip(COLUMNS, to_row(entry), strict=True))
    values["name"] = os.fsdecode(values["name"])
    return values


def _entry_from_json(values: Mapping[str, Any]) -> Entry:
    row = {**values, "name": os.fsencode(values["name"])}
    entry = from_row([row[column] for column in COLUMNS])
    return replace(entry, ino=Ino(int(entry.ino)))


def _file_name(value: Any) -> str:
    name = str(value)
    if "/" in name or name in {"", ".", ".."}:
        raise ValueError(f"not the name of a staged file: {name!r}")
    return name


def _to_text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _from_text(value: str) -> bytes:
    return base64.b64decode(value)
