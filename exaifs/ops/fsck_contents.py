"""`exaifs fsck` on cached contents: each file is what its name says, and the table knows it.

Whatever is wrong here goes: the bucket has the bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio

from exaifs.cache.inspection import IndexFile
from exaifs.cache.localfile import sha256_of_file
from exaifs.config import MIB
from exaifs.ops.fsck_conflicts import remove
from exaifs.ops.fsck_report import Finding, Progress, Report

_NAME: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Place:
    """A directory with `content/`, `partial/` and a table of contents: a mount's, or a program's beside it.

    Attributes:
        directory: of it.
        index: None: there is none, or it is damaged.
        in_use: somebody works in it: what may be under way is left alone.
    """

    directory: Path
    index: IndexFile | None
    in_use: bool

    def path(self, sha256: str) -> Path:
        """Return where a content is, or would be."""
        return self.directory / "content" / sha256[:2] / sha256


async def check_contents(place: Place, report: Report, progress: Progress) -> AsyncIterator[Finding]:
    """Compare all contents with their names, and with the table.

    Raises:
        ExaifsError: the table cannot be read.
    """
    files = await anyio.to_thread.run_sync(_files, place.directory / "content")
    rows = {} if place.index is None else place.index.contents()
    total = sum(files.values())
    progress.begin(f"cached contents ({len(files):,} files, {total // MIB:,} MiB)", total)
    for path, size_bytes in files.items():
        report.checked["contents"] += 1
        finding = await _check_file(place, path, rows, report)
        if finding is not None:
            yield finding
        progress.advance(size_bytes)
    for finding in _leftovers(place, rows):
        yield finding


async def _check_file(place: Place, path: Path, rows: Mapping[str, int], report: Report) -> Finding | None:
    if path != place.path(path.name) or not _NAME.fullmatch(path.name):
        return _misplaced(path)
    found = await anyio.to_thread.run_sync(_hash, path)
    if found is None:  # evicted meanwhile
        return None
    if found != path.name:
        return _damaged(place, path, found)
    report.contents.setdefault(path.name, path)
    if place.index is None:
        return None
    return _unknown(place, place.index, path, rows.get(path.name))


def _leftovers(place: Place, rows: Mapping[str, int]) -> Iterator[Finding]:
    """Find rows without a file, and downloads that nobody goes on with."""
    if place.index is not None:
        for sha256 in rows:
            if not place.path(sha256).exists() and place.index.content(sha256) is not None:
                yield _gone(place.index, sha256)
    if not place.in_use:
        for path in sorted((place.directory / "partial").glob("*")):
            yield _partial(path)


def _files(directory: Path) -> dict[Path, int]:
    found: dict[Path, int] = {}
    for base, _directories, names in os.walk(directory):
        for name in names:
            path = Path(base, name)
            try:
                found[path] = path.lstat().st_size
            except OSError:
                continue
    return dict(sorted(found.items()))


def _hash(path: Path) -> str | None:
    """Return the digest; words where the file cannot be read; None: it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as exc:
        return f"unreadable: {exc.strerror}"
    try:
        return sha256_of_file(fd, os.fstat(fd).st_size)
    except OSError as exc:
        return f"unreadable: {exc.strerror}"
    finally:
        os.close(fd)


def _misplaced(path: Path) -> Finding:
    async def mend() -> str:
        return remove(path)

    what = "a file that is no cached content, or in the wrong directory"
    return Finding("cache", "content_misplaced", str(path), what, mend=mend)


def _damaged(place: Place, path: Path, found: str) -> Finding:
    async def mend() -> str:
        done = remove(path)
        if place.index is not None:
            place.index.forget_content(path.name)
        return f"{done}; it is fetched again when it is needed"

    what = f"a cached content is damaged: it is not what its name says but {found}"
    return Finding("cache", "content_damaged", str(path), what, mend=mend)


def _unknown(place: Place, index: IndexFile, path: Path, known_bytes: int | None) -> Finding | None:
    """Compare a file with its row, and look at that again where somebody may just be writing it."""
    try:
        status = path.lstat()
    except OSError:
        return None
    if known_bytes == status.st_size or (place.in_use and index.content(path.name) == status.st_size):
        return None

    async def mend() -> str:
        index.add_content(path.name, status.st_size, max(status.st_atime_ns, status.st_mtime_ns))
        return "taken into the table"

    what = "a cached content that the table does not have, or with another length"
    return Finding("cache", "content_not_in_table", str(path), what, mend=mend)


def _gone(index: IndexFile, sha256: str) -> Finding:
    async def mend() -> str:
        index.forget_content(sha256)
        return "taken out of the table"

    return Finding("cache", "content_gone", sha256, "the table has a content whose file is gone", mend=mend)


def _partial(path: Path) -> Finding:
    async def mend() -> str:
        return remove(path)

    what = "a download that was not finished; the next mount removes it"
    return Finding("cache", "partial_left", str(path), what, "note", mend=mend)
