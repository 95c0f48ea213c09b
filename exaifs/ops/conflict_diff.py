"""Compares the bytes that lost a conflict with what is there instead: file, row, or what was noted."""

from __future__ import annotations

import difflib
import errno
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import anyio

from exaifs.cache.localfile import sha256_of_file
from exaifs.cache.unsent.conflicts import Conflict
from exaifs.config import MIB, Config
from exaifs.errors import ExaifsError, NameTooLong, NotFound
from exaifs.model import ObjectRecord
from exaifs.names import child_key
from exaifs.ops.conflicts import Store
from exaifs.processes import ask_child
from exaifs.remote.client import open_remote

MAX_TEXT_BYTES: Final = MIB
"""Larger files are told apart by size and hash only."""
LOOK_DEADLINE_S: Final = 120.0
"""For reading a file through the mount: it may have to be fetched."""
ASK_DEADLINE_S: Final = 5.0

Source = Literal["mount", "row", "description"]

_LOOK: Final = f"""
import hashlib, json, os, stat, sys
found, data = {{}}, b""
try:
    fd = os.open(sys.argv[1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise IsADirectoryError(21, "not a file")
    found = {{"size_bytes": info.st_size, "written_ns": info.st_mtime_ns}}
    try:
        found["sha256"] = os.getxattr(fd, "user.checksum.sha256").decode()
    except OSError:
        digest, offset = hashlib.sha256(), 0
        while chunk := os.pread(fd, {MIB}, offset):
            digest.update(chunk)
            offset += len(chunk)
        found["sha256"] = digest.hexdigest()
    if info.st_size <= {MAX_TEXT_BYTES}:
        while chunk := os.pread(fd, {MIB}, len(data)):
            data += chunk
except OSError as exc:
    found = {{"errno": exc.errno}}
sys.stdout.buffer.write(json.dumps(found).encode() + b"\\n" + data)
"""


@dataclass(frozen=True, slots=True)
class Side:
    """One of two versions; None: not known."""

    size_bytes: int
    sha256: str | None
    written_ns: int | None
    host: str | None

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "written_unix_s": None if self.written_ns is None else self.written_ns / 1e9,
            "host": self.host,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was kept, and what is there instead.

    Attributes:
        current: None: nothing is there, or nothing is known of it.
        source: who told of `current`.
        note: for people: why there is no more to say; empty where all is said.
        lines: a unified diff from what is there to what was kept; None where that makes no sense.
    """

    kept: Side
    current: Side | None
    source: Source
    note: str
    lines: list[str] | None

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "kept": self.kept.to_json(),
            "current": None if self.current is None else self.current.to_json(),
            "current_from": self.source,
            "identical": self.current is not None and self.kept.sha256 == self.current.sha256,
            "note": self.note,
            "diff": self.lines,
        }


AskRow = Callable[[str], Awaitable[ObjectRecord | None]]


async def compare(store: Store, conflict: Conflict, ask_row: AskRow | None) -> Comparison:
    """Compare both sides.

    Args:
        store: with a mount, the file is read through it.
        conflict: one of it.
        ask_row: used where there is no mount, or None.

    Raises:
        OSError: the kept bytes cannot be read.
    """
    kept, data = await anyio.to_thread.run_sync(_kept, store.data(conflict), conflict)
    if conflict.path is None:
        return Comparison(kept, None, "description", "where these bytes belonged is not known", None)
    if store.mount is not None:
        return await anyio.to_thread.run_sync(_with_mount, store.mount, conflict, kept, data)
    noted = conflict.winner
    told = None if noted is None else Side(noted.size_bytes, noted.sha256, noted.written_ns, noted.host)
    if ask_row is None:
        return Comparison(kept, told, "description", "not mounted: as noted when it happened", None)
    try:
        record = await ask_row(conflict.path)
    except ExaifsError as exc:
        return Comparison(kept, told, "description", f"as noted when it happened, because: {exc}", None)
    if record is None:
        return Comparison(kept, None, "row", "the bucket has no such file now", None)
    now = Side(record.size_bytes, record.sha256, record.updated_ns or None, None)
    return Comparison(kept, now, "row", "not mounted: contents are not compared line by line", None)


def row_asker(config: Config) -> AskRow:
    """Return what looks for a path's row, once and briefly."""

    async def ask(path: str) -> ObjectRecord | None:
        key = key_of(path)
        with anyio.move_on_after(ASK_DEADLINE_S):
            async with open_remote(config) as remote:
                return (await remote.catalog.stat([key])).get(key)
        raise ExaifsError(f"no answer within {ASK_DEADLINE_S:g} s")

    return ask


def key_of(path: str) -> str:
    """Return the key that a path of a mount has.

    Raises:
        NotFound: no key can have it.
    """
    key = ""
    for part in path.split("/"):
        try:
            key = child_key(f"{key}/" if key else "", part)
        except (NameTooLong, ExaifsError) as exc:
            raise NotFound(f"no key has the path {path!r}: {exc}") from exc
    return key


def _kept(path: Path, conflict: Conflict) -> tuple[Side, bytes | None]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size_bytes = os.fstat(fd).st_size
        sha256 = sha256_of_file(fd, size_bytes)
        data = os.pread(fd, MAX_TEXT_BYTES, 0) if size_bytes <= MAX_TEXT_BYTES else None
    finally:
        os.close(fd)
    return Side(size_bytes, sha256, conflict.kept.written_ns, conflict.kept.host), data


def _with_mount(mount: Path, conflict: Conflict, kept: Side, data: bytes | None) -> Comparison:
    assert conflict.path is not None
    answer = ask_child(_LOOK, mount / conflict.path, LOOK_DEADLINE_S)
    if answer is None:
        return Comparison(
            kept, None, "mount", f"the mount does not answer within {LOOK_DEADLINE_S:g} s", None
        )
    head, _newline, now = answer.partition(b"\n")
    found = json.loads(head)
    if "errno" in found:
        code = int(found["errno"])
        why = (
            "there is no such file now"
            if code in {errno.ENOENT, errno.ENOTDIR}
            else f"the file cannot be read now: {os.strerror(code)}"
        )
        return Comparison(kept, None, "mount", why, None)
    winner = conflict.winner
    same = winner is not None and winner.sha256 == found["sha256"]
    host = winner.host if same and winner is not None else None
    current = Side(found["size_bytes"], found["sha256"], found["written_ns"], host)
    if current.sha256 == kept.sha256:
        return Comparison(kept, current, "mount", "both have the same content", None)
    lines = None if data is None else _lines(now, data, current.size_bytes, conflict)
    note = "" if lines is not None else "not compared line by line: no text, or too large"
    return Comparison(kept, current, "mount", note, lines)


def _lines(now: bytes, kept: bytes, now_bytes: int, conflict: Conflict) -> list[str] | None:
    if len(now) != now_bytes or b"\0" in now or b"\0" in kept:
        return None
    try:
        before, after = now.decode("utf-8"), kept.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return [
        line.rstrip("\n")
        for line in difflib.unified_diff(
            before.splitlines(keepends=True),
            after.splitlines(keepends=True),
            f"{conflict.path} (now)",
            f"{conflict.path} (kept as {conflict.id})",
        )
    ]
