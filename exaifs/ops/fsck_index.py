"""`exaifs fsck` on the local index: the file itself, and names that belong to nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Final

import anyio

from exaifs.cache.inspection import IndexFile, PendingName
from exaifs.names import path_of
from exaifs.ops.fsck_report import Finding, Progress, Report

INDEX_NAME: Final = "index.db"


async def check_index_file(
    path: Path, identity: str, progress: Progress
) -> tuple[IndexFile | None, list[Finding]]:
    """Check a file as a whole.

    Returns:
        The index, if its tables can be trusted; and what was found.
    """
    if not await anyio.Path(path).exists():
        return None, []
    index = IndexFile(path)
    progress.begin(f"the index {path.name}")
    problem = await anyio.to_thread.run_sync(index.problem)
    if problem is not None:
        return None, [_damaged(index, problem)]
    if await anyio.to_thread.run_sync(index.is_foreign, identity):
        what = "an index of another version of exaifs, or of another bucket; the next use rebuilds it"
        return None, [Finding("index", "index_foreign", str(path), what, "note")]
    return index, []


def _damaged(index: IndexFile, problem: str) -> Finding:
    async def mend() -> str:
        return f"set aside as {index.set_aside()}; the next mount builds a new one"

    return Finding("index", "index_damaged", str(index.path), f"the index is damaged: {problem}", mend=mend)


async def check_names(
    index: IndexFile, report: Report, recorded: Collection[int] | None, *, mounted: bool
) -> AsyncIterator[Finding]:
    """Look for names that belong to nothing.

    Args:
        index: of the mount.
        report: has the keys that the journal knows.
        recorded: inode numbers of files and directories that the journal has records of; None: not known,
            as names of open files are pending with nothing in the journal yet, or as it cannot be read.
        mounted: a daemon changes the index meanwhile.

    Raises:
        ExaifsError: the index cannot be read.
    """
    report.checked["names"] += await anyio.to_thread.run_sync(index.count_entries)
    if recorded is not None:
        for name in index.pending(recorded):
            yield _never_closed(index, name)
    lost = await anyio.to_thread.run_sync(index.lost_prefixes)
    if mounted:  # seen between two steps of the daemon?
        again = await anyio.to_thread.run_sync(index.lost_prefixes)
        lost = {prefix: number for prefix, number in lost.items() if prefix in again}
    for prefix, number in lost.items():
        yield _lost(index, report, prefix, number)


def _never_closed(index: IndexFile, name: PendingName) -> Finding:
    async def mend() -> str:
        index.forget_name(name.ino)
        return "taken out of the index"

    what = "a new file that was never closed: the journal has no record of it, and the bucket nothing"
    return Finding("index", "pending_without_record", path_of(name.key), what, mend=mend)


def _lost(index: IndexFile, report: Report, prefix: str, number: int) -> Finding:
    async def mend() -> str:
        index.forget_prefix(prefix)
        return "taken out of the index; they are listed again"

    what = f"the index has {number} names in a directory that it does not have"
    finding = Finding("index", "names_without_directory", path_of(prefix), what, mend=mend)
    if report.unsent.overlaps(prefix):
        finding.mend = None
        finding.advice = "Changes there wait to be sent: mount, let them be sent, and check again."
    return finding
