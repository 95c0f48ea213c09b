"""Staged files that could not be sent: described beside their bytes, and adopted by the next run.

A description is written, fsynced and renamed into place before anybody relies on it, so that a staged
file without one was never acknowledged and may go.
"""

from __future__ import annotations

import base64
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from exaifs.cache.entries import Entry
from exaifs.cache.index import Index
from exaifs.fs.inodes import Inode, InodeTable
from exaifs.fs.staging import Staged
from exaifs.model import Posix
from exaifs.names import OBJECT_MARK, decode_component, path_of, split_key

_log = structlog.get_logger(__name__)

_FORMAT = 1


def describe(inode: Inode) -> None:
    """Make an inode's staged bytes survive this process, with what is needed to send them."""
    staged = inode.staged
    assert staged is not None
    entry = inode.entry
    value = {
        "format": _FORMAT,
        "key": entry.key,
        "kind": entry.kind,
        "mime_type": entry.mime_type,
        "posix": replace(entry.posix, kind=entry.kind).to_json(),
        "xattrs": {name: base64.b64encode(data).decode() for name, data in entry.xattrs.items()},
        "write_ids": staged.write_ids,
        # What these bytes replace; nothing, if the file is new.
        "base": None
        if entry.pending
        else {
            "version": entry.version,
            "sha256": entry.sha256,
            "etag": entry.etag,
            "size_bytes": entry.size_bytes,
        },
    }
    os.fsync(staged.fd)
    final = _description(staged.path)
    temporary = final.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(final)
    # The two names are durable only with their directory.
    directory = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    staged.described = True


def describe_again(inode: Inode) -> None:
    """After a rename or a change of attributes: a description holds both."""
    if inode.staged is not None and inode.staged.described and not inode.unlinked:
        describe(inode)


def forget(staged: Staged) -> None:
    """Remove the description once the bytes are in the bucket or no longer wanted."""
    _description(staged.path).unlink(missing_ok=True)


def set_aside(staged: Staged) -> Path:
    """Close a staged file that another host's has superseded, keep its bytes, and return where."""
    aside = _aside(staged.path)
    staged.path.rename(aside)
    forget(staged)
    staged.close(keep_file=True)
    return aside


def _aside(path: Path) -> Path:
    return path.with_suffix(".conflict")


def adopt(directory: Path, index: Index, table: InodeTable) -> int:
    """Take over what an earlier run left; return how many files wait to be sent.

    Names that never reached the bucket and were not described are forgotten first.
    """
    for entry in index.drop_pending():
        _log.info("a file of the last run was never closed", path=path_of(entry.key))
    adopted = 0
    newest_first = sorted(directory.glob("*.data"), key=lambda path: -path.stat().st_mtime_ns)
    for path in newest_first:
        description = _description(path)
        if not description.exists():
            path.unlink()
            continue
        try:
            value = json.loads(description.read_text(encoding="utf-8"))
            _adopt_one(path, value, index, table)
        except (OSError, ValueError, KeyError, TypeError) as exc:
            _log.error(
                "unsent file set aside: cannot read its description", path=str(path), reason=str(exc)
            )
        else:
            adopted += 1
    return adopted


def _adopt_one(path: Path, value: dict[str, Any], index: Index, table: InodeTable) -> None:
    if value["format"] != _FORMAT:
        raise ValueError(f"format {value['format']}")
    key = str(value["key"])
    parent, component = split_key(key)
    entry = index.file(parent, component)
    if entry is None:
        entry = _new_entry(key, value, index)
        index.put(entry)
    inode = table.of(entry)
    if inode.staged is not None:
        path.rename(_aside(path))
        _description(path).unlink()
        _log.error(
            "older unsent bytes of a file are kept aside", path=path_of(key), kept_as=str(_aside(path))
        )
        return
    xattrs = {name: base64.b64decode(data) for name, data in value["xattrs"].items()}
    base = value.get("base")
    # The index may know by now of a newer file there; publishing will compare that with the base.
    inode.entry = replace(
        entry,
        mime_type=value["mime_type"],
        posix=Posix.from_json(value["posix"]),
        xattrs=xattrs,
        pending=base is None,
        version="" if base is None else str(base["version"]),
        sha256=None if base is None else base["sha256"],
        etag="" if base is None else str(base["etag"]),
        size_bytes=0 if base is None else int(base["size_bytes"]),
    )
    inode.staged = Staged.reopen(path)
    inode.staged.write_ids = [str(write_id) for write_id in value.get("write_ids", [])]
    _log.warning("adopted a file that was not sent", path=path_of(key), size_bytes=inode.size_bytes)


def _new_entry(key: str, value: dict[str, Any], index: Index) -> Entry:
    """Make a name for an unsent file that has none any more."""
    parent, component = split_key(key)
    now_ns = time.time_ns()
    name = decode_component(component)
    while index.child(parent, name) is not None:
        name += OBJECT_MARK
    return Entry(
        parent=parent,
        name=name,
        component=component,
        kind="symlink" if value["kind"] == "symlink" else "file",
        ino=index.allocate_ino(),
        pending=True,
        created_ns=now_ns,
        updated_ns=now_ns,
        ctime_ns=now_ns,
    )


def _description(path: Path) -> Path:
    return path.with_suffix(".json")
