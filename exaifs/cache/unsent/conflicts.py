"""Bytes that lost a conflict, kept until somebody decides: `conflicts/ID.data`, described by `ID.json`.

Written by the daemon; read, restored and discarded by `exaifs conflicts`. A description is written last and
renamed into place, so one that exists is whole and its bytes are on the disk.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from exaifs.cache.unsent.journal import sync_directory

DIRECTORY = "conflicts"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Version:
    """One side of a conflict, as far as it is known.

    Attributes:
        size_bytes: of its bytes.
        sha256: of its bytes.
        written_ns: when its file was closed, nanoseconds since the epoch.
        host: who wrote it; None: another host, which Supabase does not name.
    """

    size_bytes: int
    sha256: str | None = None
    written_ns: int | None = None
    host: str | None = None


@dataclass(frozen=True, slots=True)
class Conflict:
    """Bytes that were kept aside.

    Attributes:
        id: names it.
        path: where they belonged, relative to the mount; None: not known any more.
        reason: why they are here, for people.
        noted_ns: when they were kept.
        kept: the bytes that are here.
        winner: what is in the bucket instead; None: nothing, or not known.
    """

    id: str
    path: str | None
    reason: str
    noted_ns: int
    kept: Version
    winner: Version | None = None


def this_host() -> str:
    """Return this host's name."""
    return socket.gethostname()


def new_file(directory: Path) -> Path:
    """Return where the bytes of a new conflict go; call `describe` when they are there.

    Args:
        directory: `conflicts/` of a cache directory; made if it is missing.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}.data"


def describe(
    data: Path, *, path: str | None, reason: str, kept: Version, winner: Version | None = None
) -> Conflict:
    """Have a conflict's bytes and description on the disk, and return it.

    Args:
        data: from `new_file`, with the bytes.
        path: see `Conflict`.
        reason: see `Conflict`.
        kept: see `Conflict`.
        winner: see `Conflict`.

    Raises:
        OSError: the disk refuses.
    """
    conflict = Conflict(data.stem, path, reason, time.time_ns(), kept, winner)
    final = data.with_suffix(".json")
    temporary = data.with_suffix(".tmp")
    fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump({"format": _FORMAT, **asdict(conflict)}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(final)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(data.parent)
    return conflict


def data_of(directory: Path, conflict: Conflict) -> Path:
    """Return the file with a conflict's bytes."""
    return directory / f"{conflict.id}.data"


@contextmanager
def one_at_a_time(directory: Path) -> Iterator[None]:
    """Wait for other commands that change what is kept; the daemon, which only adds, needs no turn.

    Args:
        directory: exists.

    Raises:
        OSError: it cannot be opened.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def list_conflicts(directory: Path) -> list[Conflict]:
    """Return what is kept, oldest first; what cannot be read is passed over (`data` files remain)."""
    found = []
    for path in directory.glob("*.json"):
        try:
            found.append(_read(path))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda conflict: conflict.noted_ns)


def _read(path: Path) -> Conflict:
    value = json.loads(path.read_text(encoding="utf-8"))
    if value["format"] != _FORMAT:
        raise ValueError(f"format {value['format']}")
    winner = value["winner"]
    return Conflict(
        id=path.stem,
        path=value["path"],
        reason=str(value["reason"]),
        noted_ns=int(value["noted_ns"]),
        kept=Version(**value["kept"]),
        winner=None if winner is None else Version(**winner),
    )


def discard(directory: Path, conflict: Conflict) -> None:
    """Delete a conflict's bytes and description.

    Raises:
        OSError: they cannot be deleted.
    """
    data = data_of(directory, conflict)
    data.unlink(missing_ok=True)
    data.with_suffix(".json").unlink(missing_ok=True)
