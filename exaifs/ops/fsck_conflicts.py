"""`exaifs fsck` on what lost a conflict, and how other checks keep bytes aside there."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio

from exaifs.cache.localfile import copy_contents, create, sha256_of_file
from exaifs.cache.unsent.conflicts import (
    DIRECTORY,
    Conflict,
    Version,
    data_of,
    describe,
    list_conflicts,
    new_file,
    this_host,
)
from exaifs.cache.unsent.journal import sync_directory
from exaifs.ops.fsck_report import Finding, Progress, Report


def keep_aside(cache_directory: Path, source: Path, path: str | None, reason: str) -> str:
    """Move a file of the cache directory to the conflicts; return what was done.

    Its bytes are on the disk in one of both places at every moment, under a description or their old name.

    Raises:
        OSError: the disk refuses; the file is where it was.
    """
    data = new_file(cache_directory / DIRECTORY)
    try:
        try:
            os.link(source, data)
        except PermissionError:  # a file system without hard links
            fd = create(data)
            try:
                copy_contents(source, fd)
            finally:
                os.close(fd)
        conflict = describe(data, path=path, reason=reason, kept=_version(data))
    except OSError:
        data.unlink(missing_ok=True)
        raise
    source.unlink()
    sync_directory(source.parent)
    return f"kept as the conflict {conflict.id}: see `exaifs conflicts`"


def remove(path: Path) -> str:
    """Remove a file that nobody needs; return what was done.

    Raises:
        OSError: the disk refuses.
    """
    path.unlink(missing_ok=True)
    return "removed"


def _version(data: Path) -> Version:
    fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        digest = sha256_of_file(fd, status.st_size)
    finally:
        os.close(fd)
    return Version(status.st_size, digest, status.st_mtime_ns, this_host())


async def check_conflicts(
    cache_directory: Path, report: Report, progress: Progress, *, mounted: bool
) -> AsyncIterator[Finding]:
    """Compare bytes and descriptions of all that is kept.

    Args:
        cache_directory: of the bucket.
        report: counts what was checked.
        progress: told of it.
        mounted: something may be being kept now, whose description comes last.

    Raises:
        OSError: the directory cannot be read.
    """
    directory = cache_directory / DIRECTORY
    if not directory.is_dir():
        return
    known = list_conflicts(directory)
    progress.begin(f"bytes that lost a conflict ({len(known):,})")
    for conflict in known:
        report.checked["conflicts"] += 1
        finding = await anyio.to_thread.run_sync(_compared, directory, conflict)
        if finding is not None:
            yield finding
    for finding in _halves(directory, {conflict.id for conflict in known}, mounted=mounted):
        yield finding
    waiting = sum(data_of(directory, conflict).exists() for conflict in known)
    if waiting:
        what = f"{waiting} conflicts wait for a decision: see `exaifs conflicts`"
        yield Finding("conflicts", "conflicts_waiting", str(directory), what, "note")


def _halves(directory: Path, described: set[str], *, mounted: bool) -> Iterator[Finding]:
    """Find bytes without a description, and descriptions without bytes that cannot be read either."""
    if not mounted:
        for path in sorted(directory.glob("*.data")):
            if path.stem not in described:
                yield _undescribed(path)
        for path in sorted(directory.glob("*.tmp")):
            yield _unfinished(path)
    for path in sorted(directory.glob("*.json")):
        if path.stem not in described and not path.with_suffix(".data").exists() and path.exists():
            yield _without_bytes(path, "it cannot be read either")


def _compared(directory: Path, conflict: Conflict) -> Finding | None:
    path = data_of(directory, conflict)
    try:
        found = _version(path)
    except FileNotFoundError:
        description = path.with_suffix(".json")
        belonged = conflict.path or "a path that is not known"
        words = f"{conflict.kept.size_bytes} bytes of {belonged}"
        return _without_bytes(description, words) if description.exists() else None
    kept = conflict.kept
    if found.size_bytes == kept.size_bytes and kept.sha256 in {None, found.sha256}:
        return None
    return Finding(
        "conflicts",
        "conflict_damaged",
        str(path),
        f"kept bytes are not what was kept ({found.size_bytes} bytes, {kept.size_bytes} were kept)",
        advice=f"Look at them, then `exaifs conflicts restore --force {conflict.id}`, or discard it.",
    )


def _without_bytes(path: Path, words: str) -> Finding:
    async def mend() -> str:
        return _remove_description(path)

    what = f"a conflict whose bytes are gone ({words})"
    return Finding("conflicts", "conflict_without_bytes", str(path), what, mend=mend)


def _undescribed(path: Path) -> Finding:
    async def mend() -> str:
        reason = "kept for a conflict, but its description was lost"
        describe(path, path=None, reason=reason, kept=_version(path))
        return f"described again: see `exaifs conflicts`; restoring {path.stem} needs --to"

    what = "bytes of a conflict without a readable description"
    return Finding("conflicts", "conflict_without_description", str(path), what, mend=mend)


def _remove_description(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")
    path.unlink(missing_ok=True)
    return f"removed the description, which said: {' '.join(text.split())}"


def _unfinished(path: Path) -> Finding:
    async def mend() -> str:
        return remove(path)

    what = "a description that was never finished"
    return Finding("conflicts", "description_unfinished", str(path), what, "note", mend=mend)
