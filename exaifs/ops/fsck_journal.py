"""`exaifs fsck` on the write journal and the staged files that its records name.

What is acknowledged and not in Supabase is here and nowhere else. So nothing is cut: bytes that no record
names, or that are not what was kept, become conflicts; lines that cannot be read, too; and only a record
whose bytes are gone is taken out, after the cache was asked for them.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import anyio

from exaifs.cache.localfile import copy_contents, create, sha256_of_file
from exaifs.cache.unsent.intents import Intent, Mark, Put, from_record, keys_of
from exaifs.cache.unsent.journal import open_journal, sync_directory
from exaifs.cache.unsent.journalfile import DIRECTORY as JOURNAL, Loaded, Record, read_journal
from exaifs.errors import ExaifsError, JournalError
from exaifs.names import path_of
from exaifs.ops.fsck_conflicts import keep_aside, remove
from exaifs.ops.fsck_report import Finding, Progress, Report

STAGING: Final = "staging"
"""As `fs/` names it in a cache directory."""


@dataclass(slots=True)
class JournalState:
    """A journal as it was at one moment.

    Attributes:
        intents: the records that are understood, by number.
        unknown: those that are not, with the reason.
        problem: why nothing could be read; None: it could.
    """

    loaded: Loaded = field(default_factory=Loaded)
    intents: dict[int, Intent] = field(default_factory=dict)
    unknown: dict[int, tuple[Record, str]] = field(default_factory=dict)
    problem: str | None = None

    @property
    def puts(self) -> dict[int, Put]:
        """The records of staged files."""
        return {number: intent for number, intent in self.intents.items() if isinstance(intent, Put)}

    @property
    def staged(self) -> set[str]:
        """Names of all staged files that a record may be about."""
        named = {put.staged for put in self.puts.values()}
        return named | {str(record.get("staged")) for record, _reason in self.unknown.values()}

    @property
    def inos(self) -> set[int]:
        """Inode numbers of the files and directories that the journal will make."""
        return {int(it.entry.ino) for it in self.intents.values() if isinstance(it, Put | Mark)}

    @property
    def keys(self) -> set[str]:
        """All keys that are about to change, as far as the records can be read."""
        known = {key for intent in self.intents.values() for key in keys_of(intent)}
        return known | {key for record, _reason in self.unknown.values() for key in _keys_in(record)}


def _keys_in(record: Record) -> set[str]:
    found = {str(record["source"])} if isinstance(record.get("source"), str) else set()
    entry = record.get("entry")
    if isinstance(entry, Mapping):
        found.add(f"{entry.get('parent', '')}{entry.get('component', '')}")
    return found


def read_state(cache_directory: Path) -> JournalState:
    """Read a journal without changing anything."""
    state = JournalState()
    try:
        state.loaded = read_journal(cache_directory / JOURNAL)
    except (JournalError, OSError) as exc:
        state.problem = str(exc)
        return state
    for number, record in state.loaded.records.items():
        try:
            state.intents[number] = from_record(record)
        except (ValueError, KeyError, TypeError) as exc:
            state.unknown[number] = (record, f"{type(exc).__name__}: {exc}")
    return state


async def check_journal(
    cache_directory: Path, state: JournalState, report: Report, progress: Progress, *, mounted: bool
) -> AsyncIterator[Finding]:
    """Compare records and staged files.

    The order counts for repairs: bytes without a record are safe before the journal is written again, since
    the next mount drops them once it looks whole.

    Args:
        cache_directory: of the bucket.
        state: of its journal.
        report: has the contents that may stand in for staged files.
        progress: told of it.
        mounted: a daemon appends to the journal, and has open files staged without a record.
    """
    directory = cache_directory / JOURNAL
    progress.begin(f"the journal of unsent writes ({len(state.loaded.records):,} records)")
    report.checked["journal_records"] += len(state.loaded.records)
    if state.problem is not None:
        advice = "Nothing in the journal was checked. Use the exaifs that wrote it, or restore the file."
        what = f"the journal cannot be read: {state.problem}"
        yield Finding("journal", "journal_unreadable", str(directory), what, advice=advice)
        return
    if not mounted:
        for path in _orphans(cache_directory, state):
            yield _orphan(cache_directory, path)
    if state.loaded.damaged:
        yield _damaged_lines(directory, len(state.loaded.damaged))
    for number, (_record, reason) in state.unknown.items():
        yield _not_understood(directory, number, reason)
    for number, put in state.puts.items():
        report.checked["staged_files"] += 1
        finding = await anyio.to_thread.run_sync(
            partial(_compared, cache_directory, number, put, report.contents)
        )
        if finding is not None and (not mounted or number in read_state(cache_directory).intents):
            yield finding
    # Looked for last: the repair of damaged lines makes some.
    for path in sorted(directory.glob("damaged-*")):
        yield _damaged_record(cache_directory, path)


# -- staged files --------------------------------------------------------------------------------------


def _orphans(cache_directory: Path, state: JournalState) -> list[Path]:
    named = state.staged
    files = sorted((cache_directory / STAGING).glob("*"))
    return [path for path in files if path.suffix == ".data" and path.name not in named]


def _orphan(cache_directory: Path, path: Path) -> Finding:
    if path.stat().st_size == 0:

        async def drop() -> str:
            return remove(path)

        what = "an empty staged file that no record names"
        return Finding("journal", "staged_empty", str(path), what, "note", mend=drop)

    async def mend() -> str:
        described = path.with_suffix(".json")  # how an earlier version kept them
        reason = "unsent bytes without a readable record"
        done = keep_aside(cache_directory, path, _path_in(described), reason)
        remove(described)
        return done

    what = "staged bytes that no record of the journal names: the next mount may drop them"
    return Finding("journal", "staged_without_record", str(path), what, mend=mend)


def _path_in(described: Path) -> str | None:
    try:
        return path_of(str(json.loads(described.read_text(encoding="utf-8"))["key"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _compared(cache_directory: Path, number: int, put: Put, contents: Mapping[str, Path]) -> Finding | None:
    path = cache_directory / STAGING / put.staged
    where = path_of(put.entry.key)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        mend = partial(_replace_or_drop, cache_directory, number, put, contents)
        what = f"the staged bytes of an unsent file are gone ({put.staged}, {put.size_bytes} bytes)"
        return Finding("journal", "staged_missing", where, what, mend=mend)
    except OSError as exc:
        what = f"the staged bytes of an unsent file cannot be read: {exc.strerror} ({put.staged})"
        return Finding("journal", "staged_unreadable", where, what, advice="Look at the disk.")
    try:
        size_bytes = os.fstat(fd).st_size
        digest = None if put.sha256 is None else sha256_of_file(fd, size_bytes)
    finally:
        os.close(fd)
    if digest != put.sha256:
        mend = partial(_replace_or_drop, cache_directory, number, put, contents)
        what = (
            f"the staged bytes of an unsent file are not what was kept ({put.staged}, {size_bytes} bytes)"
        )
        return Finding("journal", "staged_damaged", where, what, mend=mend)
    if put.sha256 is None and size_bytes != put.size_bytes:
        # Written on after an fsync, or damaged: nobody can tell.
        what = (
            f"the staged bytes of an unsent file have another length than when they were kept "
            f"({put.staged}, {size_bytes} bytes instead of {put.size_bytes})"
        )
        return Finding("journal", "staged_changed", where, what, "note")
    return None


async def _replace_or_drop(
    cache_directory: Path, number: int, put: Put, contents: Mapping[str, Path]
) -> str:
    """Take the bytes from the cache; else keep what is there as a conflict, and take the record out."""
    staged = cache_directory / STAGING / put.staged
    source = contents.get(put.sha256 or "")
    if source is not None:
        await anyio.to_thread.run_sync(_replace, source, staged)
        return "restored from the cache, which has the same content"
    done = "the record was taken out: the bytes are nowhere on this host"
    if await anyio.Path(staged).exists():
        reason = "the bytes were damaged on the disk before they were sent"
        path = path_of(put.entry.key)
        done = await anyio.to_thread.run_sync(keep_aside, cache_directory, staged, path, reason)
    await _drop_record(cache_directory, number)
    return done


def _replace(source: Path, staged: Path) -> None:
    temporary = staged.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    fd = create(temporary)
    try:
        copy_contents(source, fd)
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.replace(staged)
    sync_directory(staged.parent)


async def _drop_record(cache_directory: Path, number: int) -> None:
    journal, _records = open_journal(cache_directory / JOURNAL)
    try:
        journal.forget([number])
        await journal.sync()
    finally:
        journal.close()


# -- the file ------------------------------------------------------------------------------------------


def _damaged_lines(directory: Path, number: int) -> Finding:
    async def mend() -> str:
        try:
            journal, _records = await anyio.to_thread.run_sync(open_journal, directory)
        except JournalError as exc:
            raise ExaifsError(str(exc)) from exc
        journal.close()
        return "copied them aside, and wrote the journal again with all records that can be read"

    what = f"{number} lines of the journal cannot be read"
    return Finding("journal", "journal_lines_damaged", str(directory / "log"), what, mend=mend)


def _not_understood(directory: Path, number: int, reason: str) -> Finding:
    advice = "It stays: mount with the version of exaifs that wrote it, which carries it out."
    what = f"record {number} of the journal is whole, but not understood ({reason})"
    return Finding("journal", "record_not_understood", str(directory / "log"), what, advice=advice)


def _damaged_record(cache_directory: Path, path: Path) -> Finding:
    async def mend() -> str:
        return keep_aside(cache_directory, path, None, "a damaged record of the journal of unsent writes")

    what = "a damaged record of unsent writes, set aside by an earlier run"
    return Finding("journal", "damaged_record", str(path), what, mend=mend)
