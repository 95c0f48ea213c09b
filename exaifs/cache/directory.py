"""The cache directory of one bucket: made, checked, and locked for one daemon.

`FILE_CACHE_DIR` holds one directory a bucket, so that several mounts and projects can share the setting.
The lock file names the daemon that holds it; `exaifs umount` finds the daemon of a mount by it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from exaifs.cache.unsent.journalfile import DIRECTORY as JOURNAL, LOG_NAME, read_journal
from exaifs.errors import JournalError, MountError
from exaifs.processes import LOCK_NAME, holder_of, read_lock

_log = structlog.get_logger(__name__)

_MIN_FREE_BYTES = 16 << 20
"""Below this the local index could not be made; a full disk is refused before anything is mounted."""

_SLUG_CHARACTERS = 60

_NOWHERE = "nowhere: exaifs fsck repairs it"
"""In the lock file instead of a mountpoint."""


def directory_of(cache_dir: Path, identity: str) -> Path:
    """Return where the cache of one bucket lives: readable for people, distinct by its hash.

    Args:
        cache_dir: `FILE_CACHE_DIR`.
        identity: names project and bucket.
    """
    words = re.sub(r"[^A-Za-z0-9]+", "-", identity.partition("://")[2] or identity).strip("-")
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return cache_dir.absolute() / f"{words[:_SLUG_CHARACTERS]}-{digest}"


@contextmanager
def locked_directory(cache_dir: Path, identity: str, mountpoint: Path) -> Iterator[Path]:
    """Make the directory and hold it for this process.

    Args:
        cache_dir: `FILE_CACHE_DIR`.
        identity: names project and bucket.
        mountpoint: absolute; written into the lock file.

    Raises:
        MountError: it cannot be written, the disk is full, it lies inside the mountpoint, or another
            daemon uses it.
    """
    directory = directory_of(cache_dir, identity)
    if directory.is_relative_to(mountpoint):
        raise MountError(
            f"the cache directory {cache_dir} is inside the mountpoint {mountpoint}. "
            "Set FILE_CACHE_DIR to a directory outside."
        )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise _unusable(directory, exc) from exc
    try:
        _lock(descriptor, directory, mountpoint)
        yield directory
    finally:
        # The file stays: removing it could unlock a daemon that opened it meanwhile.
        os.close(descriptor)


@contextmanager
def checked_directory(directory: Path, lock_name: str, *, hold: bool) -> Iterator[str | None]:
    """Find out whether somebody uses a cache directory, and keep everybody out where that is wanted.

    Args:
        directory: exists.
        lock_name: of the file that its user holds.
        hold: keep it locked in the block, if it is free; else it is only looked at, and may be taken since.

    Yields:
        None where nobody uses it; else where it is mounted, as far as that is known.

    Raises:
        OSError: the lock file cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT if hold else os.O_RDONLY
    try:
        descriptor = os.open(directory / lock_name, flags | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:  # and looking makes none
        yield None
        return
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if hold else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            yield str(read_lock(directory / lock_name).get("mountpoint") or "?")
            return
        if hold:
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "mountpoint": _NOWHERE}).encode(), 0)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        yield None
    finally:
        os.close(descriptor)


def unsent_elsewhere(directory: Path) -> dict[Path, int]:
    """Count what waits to be sent in the cache directories of other buckets and projects.

    Nobody sends it unless they are mounted: after a change of SUPABASE_URL, say, that is easily
    overlooked. Those that a daemon uses, or that cannot be read, are left out.

    Args:
        directory: ours, in `FILE_CACHE_DIR` beside the others.

    Returns:
        How many files and changes wait in each, where any do.
    """
    found: dict[Path, int] = {}
    for log in sorted(directory.parent.glob(f"*/{JOURNAL}/{LOG_NAME}")):
        place = log.parent.parent
        if place == directory or holder_of(place / LOCK_NAME) is not None:
            continue
        if waiting := unsent_in(place):
            found[place] = waiting
    return found


def unsent_in(directory: Path) -> int:
    """Count the files and changes that wait in a bucket's cache directory; 0 if that cannot be told.

    Args:
        directory: of a bucket whose daemon has ended.
    """
    with suppress(OSError, JournalError):
        return len(read_journal(directory / JOURNAL).records)
    return 0


def _lock(descriptor: int, directory: Path, mountpoint: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        holder = read_lock(directory / LOCK_NAME)
        raise MountError(
            f"the cache directory {directory} is in use by another exaifs (process "
            f"{holder.get('pid', '?')}, mounted at {holder.get('mountpoint', '?')}). Use that mount, "
            "end it with exaifs umount, or set FILE_CACHE_DIR to another directory."
        ) from exc
    try:
        _check_room(directory)
        words = json.dumps({"pid": os.getpid(), "mountpoint": str(mountpoint)}).encode()
        os.pwrite(descriptor, words, 0)  # over what is there: that needs no room
        os.truncate(descriptor, len(words))
        os.fsync(descriptor)
    except OSError as exc:
        raise _unusable(directory, exc) from exc


def _check_room(directory: Path) -> None:
    """Refuse to begin on a full disk, but not to go on: what waits there to be sent needs no room."""
    status = os.statvfs(directory)
    free_bytes = status.f_bavail * status.f_frsize
    if free_bytes >= _MIN_FREE_BYTES:
        return
    if not (directory / "index.db").exists():
        raise MountError(
            f"the disk of the cache directory {directory} is full ({free_bytes >> 20} MiB free). Make "
            "room, or set FILE_CACHE_DIR to another disk."
        )
    _log.warning("the disk of the cache directory is full", free_mib=free_bytes >> 20)


def _unusable(directory: Path, exc: OSError) -> MountError:
    return MountError(
        f"cannot write to the cache directory {directory}: {exc.strerror}. Make it writable, free the "
        "disk, or set FILE_CACHE_DIR to another directory."
    )
