"""Writes the bytes that lost a conflict back to where they belonged, or to another place.

Through a mount the file is overwritten, as `cat kept > file` does, and not replaced by a new one: so it
keeps its id, its attributes and its mode. What it held until then becomes a conflict of its own before the
first byte is written: restoring can be taken back, and a program that is killed half-way loses nothing.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from exaifs import mountpoint
from exaifs.cache.localfile import create, read_at, sha256_of_file, write_at
from exaifs.cache.unsent.conflicts import (
    Conflict,
    Version,
    describe,
    discard,
    new_file,
    one_at_a_time,
    this_host,
)
from exaifs.config import MIB
from exaifs.errors import ExaifsError, Exists, IntegrityError, IsADirectory, MountError, NotFound
from exaifs.ops.conflicts import Store, explain_os_error


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of it.

    Attributes:
        path: where the bytes are now.
        previous: id of the conflict that what was there before has become; None: there was nothing.
        was_identical: nothing had to be written.
    """

    path: Path
    previous: str | None = None
    was_identical: bool = False


def restore(
    store: Store, conflict_id: str, to: Path | None, *, force: bool = False, keep: bool = False
) -> Restored:
    """Write kept bytes back, and discard the conflict once that has succeeded.

    Args:
        store: has the conflict.
        conflict_id: which.
        to: another place than where the bytes belonged.
        force: replace a file outside of a mount; take bytes that are not what was kept.
        keep: leave the conflict.

    Raises:
        NotFound: there is no such conflict.
        MountError: the bucket is not mounted, and no other place is given.
        Exists, IsADirectory: the place is taken.
        IntegrityError: the bytes are not what was kept any more.
        ExaifsError: they cannot be written; nothing was discarded.
    """
    store.find(conflict_id)  # a store that is not there has nothing to wait for
    with one_at_a_time(store.directory):
        conflict = store.find(conflict_id)
        target = _target(store, conflict, to)
        with _open_kept(store, conflict, force=force) as (kept, digest):
            try:
                if _is_in_mount(target):
                    restored = _write_in_place(store, conflict, kept, digest, target)
                else:
                    restored = _write_outside(kept, target, force=force)
            except OSError as exc:
                raise explain_os_error(exc, f"{conflict.id} cannot be written to {target}") from exc
        if not keep:
            discard(store.directory, conflict)
    return restored


def _target(store: Store, conflict: Conflict, to: Path | None) -> Path:
    if to is not None:
        return Path(os.path.realpath(to.absolute().parent)) / to.name
    if conflict.path is None:
        raise ExaifsError(
            f"where the bytes of {conflict.id} belonged is not known ({conflict.reason}): name a place "
            "with --to"
        )
    if store.mount is None:
        raise MountError(
            f"the bucket is not mounted with the cache directory {store.cache_directory}, so "
            f"{conflict.path} cannot be written. Mount it, name the mount with --mount, or name a place "
            "with --to."
        )
    return store.mount / conflict.path


def _is_in_mount(target: Path) -> bool:
    above = [mount for mount in mountpoint.mounts() if target.is_relative_to(mount.path)]
    return bool(above) and max(above, key=lambda mount: len(mount.path.parts)).is_ours


@contextmanager
def _open_kept(store: Store, conflict: Conflict, *, force: bool) -> Iterator[tuple[int, str]]:
    """Open the kept bytes, compared with their description."""
    try:
        fd = os.open(store.data(conflict), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise NotFound(f"the bytes of {conflict.id} are gone; run `exaifs fsck`") from exc
    try:
        size_bytes = os.fstat(fd).st_size
        digest = sha256_of_file(fd, size_bytes)
        good = size_bytes == conflict.kept.size_bytes and conflict.kept.sha256 in {None, digest}
        if not (good or force):
            raise IntegrityError(
                f"the bytes of {conflict.id} are not what was kept: damaged on the disk. Look at "
                f"{store.data(conflict)}; --force takes them as they are."
            )
        yield fd, digest
    finally:
        os.close(fd)


def _write_in_place(store: Store, conflict: Conflict, kept: int, digest: str, target: Path) -> Restored:
    """Overwrite a file of a mount; the error of close(2), which sends the bytes, is ours too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(target, flags)
    except FileNotFoundError:
        _fill_new(os.open(target, flags | os.O_CREAT | os.O_EXCL, 0o666), kept, target)
        return Restored(target)
    except IsADirectoryError as exc:
        raise IsADirectory(f"{target} is a directory: name another place with --to") from exc
    previous = None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Exists(f"{target} is no file: name another place with --to")
        now = sha256_of_file(fd, found.st_size)
        if now == digest:
            return Restored(target, was_identical=True)
        if found.st_size:
            size_bytes = os.fstat(kept).st_size
            restored = Version(size_bytes, digest, None, this_host())
            previous = _keep_previous(store, conflict, fd, target, restored)
        try:
            _overwrite(fd, kept)
        except OSError:
            if previous is not None:
                _put_back(fd, store.data(previous))
            raise
    finally:
        os.close(fd)
    return Restored(target, None if previous is None else previous.id)


def _fill_new(fd: int, kept: int, target: Path) -> None:
    try:
        _copy(kept, fd)
    except OSError:
        with suppress(OSError):
            target.unlink()
        os.close(fd)
        raise
    os.close(fd)


def _keep_previous(store: Store, conflict: Conflict, fd: int, target: Path, winner: Version) -> Conflict:
    """Make what is there now a conflict, on the disk when this returns."""
    data = new_file(store.directory)
    try:
        copy = create(data)
        try:
            _copy(fd, copy)
            found = os.fstat(copy)
            digest = sha256_of_file(copy, found.st_size)
        finally:
            os.close(copy)
        path = conflict.path
        if store.mount is not None and target.is_relative_to(store.mount):
            path = os.fspath(target.relative_to(store.mount))
        return describe(
            data,
            path=path,
            reason=f"what was there when {conflict.id} was restored",
            kept=Version(found.st_size, digest, os.fstat(fd).st_mtime_ns, None),
            winner=winner,
        )
    except BaseException:
        data.unlink(missing_ok=True)
        raise


def _overwrite(fd: int, source: int) -> None:
    os.ftruncate(fd, 0)
    _copy(source, fd)


def _put_back(fd: int, path: Path) -> None:
    """After a write that failed: nobody must get half of it. What was there is a conflict by now anyway."""
    with suppress(OSError):
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _overwrite(fd, source)
        finally:
            os.close(source)


def _write_outside(kept: int, target: Path, *, force: bool) -> Restored:
    """Write a file that is whole under its name, and on the disk."""
    if target.is_dir():
        raise IsADirectory(f"{target} is a directory: name a file")
    if target.exists() and not force:
        raise Exists(f"{target} is there already; --force replaces it")
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            _copy(kept, fd)
            os.fsync(fd)
        finally:
            os.close(fd)
        if force:
            temporary.replace(target)
        else:
            _name_new(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return Restored(target)


def _name_new(temporary: Path, target: Path) -> None:
    """Give a file its name unless somebody else was quicker; link(2) replaces nothing."""
    try:
        os.link(temporary, target)
    except FileExistsError as exc:
        raise Exists(f"{target} is there already; --force replaces it") from exc
    except PermissionError:  # a file system without hard links
        temporary.rename(target)
    else:
        temporary.unlink()


def _copy(source: int, target: int) -> None:
    offset = 0
    while data := read_at(source, offset, MIB):
        write_at(target, offset, data)
        offset += len(data)
