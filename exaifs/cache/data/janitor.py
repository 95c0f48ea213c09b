"""Keeps the cache directory in order: age, size, leftovers of earlier runs, rows without files.

Runs in the background after the store was opened, so that mounting never waits for a scan.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskStatus

from exaifs.cache.data.disk import DiskTier
from exaifs.cache.data.shelf import Shelf
from exaifs.cache.localfile import create, unlink_quietly, write_at

_log = structlog.get_logger(__name__)

_SWEEP_INTERVAL_S = 600.0
_LOOK_INTERVAL_S = 2.0
"""How soon a disk that failed is found to work again."""

_PROBE = bytes(256 * 1024)
"""What such a disk must take."""

_RECONCILE_EVERY = 144
"""Sweeps from one comparison of files and rows to the next: a day."""

_CONTENT_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What one sweep dropped."""

    expired: int
    """Contents not used for too long."""
    evicted: int
    """Contents over the size limit."""


@dataclass(frozen=True, slots=True)
class ReconcileReport:
    """What did not agree between the cache directory and its table."""

    leftovers: int
    """Files removed that an earlier run did not finish, or that have no business here."""
    found: int
    """Contents without a row; taken in, and verified at their first use."""
    lost: int
    """Rows whose file was gone or had another length."""


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    size_bytes: int
    used_ns: int


async def run(shelf: Shelf, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Compare files with rows, then sweep every ten minutes, until cancelled."""
    task_status.started()
    sweeps = 0
    while True:
        try:
            if sweeps % _RECONCILE_EVERY == 0:
                await reconcile(shelf)
            await sweep(shelf, time.time_ns())
        except OSError as exc:
            shelf.health.failed("tidying the cache directory", exc)
        except Exception:  # noqa: BLE001 - tidying is tried again; it must not end the reads
            _log.exception("the cache janitor stumbled")
        sweeps += 1
        with anyio.move_on_after(_SWEEP_INTERVAL_S):
            while True:
                await anyio.sleep(_LOOK_INTERVAL_S)
                await probe(shelf)


async def probe(shelf: Shelf) -> None:
    """Look whether a disk that failed works again, and take it into use then.

    An index that had to go to memory comes before contents: they give way to it.
    """
    if shelf.trouble is None:
        return
    try:
        if shelf.database.trouble is None:
            await _write_something(shelf)
        else:
            await shelf.with_room(shelf.database.needed_bytes, partial(_write_index, shelf))
    except OSError as exc:
        _log.debug("the disk of the cache directory still fails", reason=str(exc))
    else:
        shelf.health.worked()


async def _write_something(shelf: Shelf) -> None:
    await shelf.threads.run(_write_and_remove, shelf.disk.new_partial())


async def _write_index(shelf: Shelf) -> None:
    await _write_something(shelf)
    shelf.database.try_disk()


async def sweep(shelf: Shelf, now_ns: int) -> SweepReport:
    """Drop what was last used too long before `now_ns`, then the least recently used above the limit."""
    expired = await shelf.expire(now_ns - int(shelf.limits.max_age_s * 1e9))
    before = shelf.evictions
    await shelf.make_room()
    if expired or shelf.evictions > before:
        _log.info("cache swept", expired=expired, evicted=shelf.evictions - before)
    return SweepReport(expired, shelf.evictions - before)


async def reconcile(shelf: Shelf) -> ReconcileReport:
    """Settle what a crash, a rebuilt index or a person left in the cache directory."""
    disk = shelf.disk
    rows = disk.rows()
    # What is placed or evicted from here on is not judged by the two snapshots alone.
    partials, contents = await disk.threads.run(_scan, disk.partial_directory, disk.content_directory)
    leftovers = [path for path in partials if not disk.is_of_this_run(path.name)]
    found = 0
    for file in contents:
        sha256 = file.path.name
        if file.path != disk.path(sha256) or not _CONTENT_NAME.fullmatch(sha256):
            leftovers.append(file.path)
        elif sha256 not in rows:
            found += await _take_in(disk, file)
    await disk.threads.run(_unlink, leftovers)
    sizes = {file.path.name: file.size_bytes for file in contents}
    suspects = [sha256 for sha256, size_bytes in rows.items() if sizes.get(sha256) != size_bytes]
    lost = [sha256 for sha256 in suspects if await _is_lost(disk, sha256)]
    shelf.aliases.prune()
    report = ReconcileReport(len(leftovers), found, len(lost))
    if any((leftovers, found, lost)):
        _log.info("cache directory tidied", leftovers=len(leftovers), found=found, lost=len(lost))
    return report


async def _take_in(disk: DiskTier, file: _File) -> bool:
    async with disk.names:
        if disk.size_of(file.path.name) is not None or not await disk.threads.run(file.path.exists):
            return False
        disk.add_found(file.path.name, file.size_bytes, file.used_ns)
    return True


async def _is_lost(disk: DiskTier, sha256: str) -> bool:
    """Look again, for it may have been placed or evicted meanwhile; drop it if it is really lost."""
    async with disk.names:
        expected = disk.size_of(sha256)
        lost = expected is not None and expected != await disk.threads.run(_size, disk.path(sha256))
    if lost:
        await disk.discard(sha256)
    return lost


def _write_and_remove(path: Path) -> None:
    """Write a file to the disk itself, not only to the page cache, and remove it.

    Raises:
        OSError: the disk refuses.
    """
    fd = create(path)
    try:
        write_at(fd, 0, _PROBE)
        os.fsync(fd)
    finally:
        os.close(fd)
        unlink_quietly(path)


def _scan(partial_directory: Path, content_directory: Path) -> tuple[list[Path], list[_File]]:
    contents: list[_File] = []
    for directory, _, names in os.walk(content_directory):
        for path in (Path(directory, name) for name in names):
            try:
                status = path.lstat()
            except OSError:
                continue
            contents.append(_File(path, status.st_size, max(status.st_atime_ns, status.st_mtime_ns)))
    return list(partial_directory.glob("*")), contents


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except OSError:
        return None


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        unlink_quietly(path)
