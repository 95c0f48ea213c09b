"""Takes over what an earlier run left: the journal's records, in order, and the staged files they name.

Nothing is asked of Supabase. The index may be behind the journal (a power cut), ahead of it (killed between
the two), or gone: each record is made true in it again, and doing so twice changes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import structlog

from exaifs.cache.names.entries import Entry
from exaifs.cache.names.index import Index
from exaifs.cache.names.merge import Difference, show_directory
from exaifs.cache.names.naming import reclaim
from exaifs.cache.unsent.intents import (
    Intent,
    Mark,
    Move,
    Operation,
    Patch,
    Put,
    Remove,
    Unmark,
    from_record,
)
from exaifs.cache.unsent.journalfile import Record
from exaifs.errors import ExaifsError
from exaifs.fs.core import Core
from exaifs.fs.sending.conflicts import Conflicts
from exaifs.fs.sending.sender import Sender
from exaifs.fs.staged.staging import MEMORY_SUFFIX, Staged
from exaifs.fs.tables.inodes import Inode
from exaifs.fs.unsent.outbox import moved_key
from exaifs.model import Ino
from exaifs.names import OBJECT_MARK, decode_component, path_of, split_key

_log = structlog.get_logger(__name__)

_NAMED = 20
"""So many unsent files are named in the log of a start; `.exaifs/sync` lists all that wait."""


class Adoption:
    """One take-over, before anything is served.

    Args:
        core: index, inodes, outbox.
        conflicts: keeps bytes whose place is not known any more.
        sender: sends what is found.
        staging: directory of the staged files.
    """

    def __init__(self, core: Core, conflicts: Conflicts, sender: Sender, staging: Path) -> None:
        self._index: Index = core.index
        self._table = core.table
        self._outbox = core.changes.outbox
        self._conflicts = conflicts
        self._sender = sender
        self._staging = staging
        self._useless: list[int] = []
        self._adopted: dict[Ino, tuple[int, Put]] = {}
        self._moves: dict[int, Move] = {}
        self._last: dict[Ino, int] = {}
        self._new: set[Ino] = set()
        self._unread: set[str] = set()
        self._lost_records = self._outbox.lost_records

    async def run(self, records: Mapping[int, Record]) -> int:
        """Take over everything; return how many files and operations wait.

        Raises:
            OSError: the staging directory cannot be read.
        """
        intents = self._read(records)
        if self._lost_records:
            # The index knows as done what a lost record said, and nobody will do now.
            self._index.expire_all()
        for intent in intents.values():
            self._index.reserve_ino(intent.entry.ino)
        kept = {intent.entry.ino for intent in intents.values() if isinstance(intent, Put | Mark | Move)}
        self._new = {intent.entry.ino for intent in intents.values() if isinstance(intent, Mark)}
        for entry in self._index.drop_pending(kept):
            _log.info("a file of the last run was never closed", path=path_of(entry.key))
            self._index.doubt_key(entry.key)  # what listings said of the name was left aside
        self._moves = {number: move for number, move in intents.items() if isinstance(move, Move)}
        self._last = {intent.entry.ino: number for number, intent in intents.items()}
        for number, intent in intents.items():
            await self._adopt(number, intent)
        self._give_free_names(intents.values())
        self._outbox.discard_records(self._useless)
        await self._outbox.sync()
        if await self._keep_orphans(self._unread | {put.staged for _number, put in self._adopted.values()}):
            self._outbox.trust_records()
        return len(self._adopted) + len(self._outbox.operations)

    def _read(self, records: Mapping[int, Record]) -> dict[int, Intent]:
        intents: dict[int, Intent] = {}
        for number, record in records.items():
            try:
                intents[number] = from_record(record)
            except (ValueError, KeyError, TypeError) as exc:
                # By its checksum it is whole: another version wrote it. It stays in the journal.
                self._lost_records = True
                _log.error(
                    "a record of unsent writes is not understood", record=dict(record), reason=str(exc)
                )
        return intents

    async def _adopt(self, number: int, intent: Intent) -> None:
        if isinstance(intent, Put):
            await self._adopt_put(number, intent)
            return
        self._make_true(number, intent)
        self._outbox.adopt(number, intent)

    # -- files -------------------------------------------------------------------------------------

    async def _adopt_put(self, number: int, put: Put) -> None:
        try:
            staged = Staged.reopen(self._staging / put.staged)
        except OSError as exc:
            self._pass_over(number, put, exc)
            return
        # Whether these bytes were sent, too, after the record was written, nobody knows.
        last = {} if put.sha256 is None else {put.sha256: put.size_bytes}
        staged.resume(put.write_ids, {**put.sent, **last})
        staged.acknowledged, staged.closed_ns = put.acknowledged, put.closed_ns
        staged.expected_sha256 = put.sha256
        staged.sealed = True
        entry = self._placed(put.entry)
        inode = self._table.of(entry)
        if inode.staged is not None:
            await self._keep_older(inode, inode.staged)
        inode.entry = entry
        inode.staged = staged
        self._adopted[inode.ino] = (number, put)
        self._outbox.take_put(number, put)
        self._sender.note(inode, at_once=True)
        tell = _log.warning if len(self._adopted) <= _NAMED else _log.debug
        tell("adopted a file that was not sent", path=path_of(entry.key), size_bytes=staged.size_bytes)

    def _pass_over(self, number: int, put: Put, exc: OSError) -> None:
        """Go on without bytes that are gone: set aside, or sent, just before the end. Or unreadable."""
        known = self._index.by_ino(put.entry.ino)
        if known is not None and known.pending:
            self._index.remove(known)
        path, reason = path_of(put.entry.key), str(exc)
        if isinstance(exc, FileNotFoundError):
            _log.warning("the bytes of an unsent file are not here any more", path=path, file=put.staged)
            self._useless.append(number)
        else:
            _log.error("the bytes of an unsent file cannot be read", path=path, reason=reason)
            self._unread.add(put.staged)

    async def _keep_older(self, inode: Inode, older: Staged) -> None:
        await self._conflicts.keep_ours(
            older, inode.entry.key, "older bytes of a file that was written again"
        )
        number, _put = self._adopted.pop(inode.ino)
        self._useless.append(number)

    def _placed(self, wanted: Entry) -> Entry:
        """Give an unsent file its name in the index, whatever that knows, and return its entry."""
        known = self._index.by_ino(wanted.ino)
        there = self._index.file(wanted.parent, wanted.component)
        if known is not None and not known.is_dir:
            # A folder may have come to the name since the record was written, and be shown under it.
            if known.key == wanted.key:
                wanted = replace(wanted, name=known.name)
            else:
                if there is not None:
                    self._index.remove(there)
                wanted = replace(wanted, name=self._free_name(wanted))
            self._index.rename(known, wanted)
        elif there is not None:
            # The index may know by now of another host's file there; sending compares that with ours.
            wanted = replace(wanted, ino=there.ino, name=there.name)
        else:
            wanted = replace(wanted, name=self._free_name(wanted))
            self._index.put(wanted)
        return wanted

    def _free_name(self, entry: Entry) -> str:
        name = entry.name
        while self._index.child(entry.parent, name) is not None:
            name += OBJECT_MARK
        return name

    # -- operations --------------------------------------------------------------------------------

    def _make_true(self, number: int, operation: Operation) -> None:
        known = self._index.by_ino(operation.entry.ino)
        match operation:
            case Remove() | Unmark():
                if known is not None:
                    self._index.remove(known)
                    self._drop_put(operation.entry.ino)
            case Move():
                self._make_moved(number, operation, known)
            case Mark():
                if known is not None or not self._is_superseded(number, operation.entry):
                    self._make_marked(operation, known)
            case Patch() if known is not None:
                entry = operation.entry
                # The entry's times may be those of bytes that were never kept.
                posix = operation.posix or known.posix
                self._table.put(replace(known, posix=posix, xattrs=entry.xattrs))
            case Patch():
                pass

    def _make_moved(self, number: int, operation: Move, known: Entry | None) -> None:
        wanted, replaced = operation.entry, operation.replaced
        if wanted.is_dir and wanted.ino not in self._new:
            # Its marker was written meanwhile: it is in the bucket.
            wanted = replace(wanted, pending=False)
            if known is not None and known.pending:
                known = replace(known, pending=False)
                self._table.put(known)
        if known is not None and known.key in self._places_after(number, wanted.key):
            gone = None if replaced is None else self._index.by_ino(replaced.ino)
            if gone is not None and gone.ino != known.ino:
                self._index.remove(gone)  # made true again by an earlier record
                self._drop_put(gone.ino)
            return
        if known is None and self._is_superseded(number, wanted):
            return
        there = self._index.child(wanted.parent, wanted.name)
        if there is not None:
            self._index.remove(there)
            self._drop_put(there.ino)
        # Another host may have removed the last file of the directory meanwhile, and that went with it.
        self._table.apply(show_directory(self._index, wanted.parent, at_ns=time.time_ns()))
        if known is None:
            self._index.put(wanted)
            return
        placed = replace(known, parent=wanted.parent, name=wanted.name, component=wanted.component)
        below = self._table.below(known.key) if known.is_dir else [self._table.live(known.ino)]
        self._index.rename(known, placed)
        self._table.refresh(inode for inode in below if inode is not None)

    def _is_superseded(self, number: int, entry: Entry) -> bool:
        """Tell whether the index is so far ahead that a later file has an entry's name.

        One of which there is no record was sent already. (After a power cut it may be an older one; then
        the index has the feed's place of then, too, and hears of both again.)
        """
        there = self._index.child(entry.parent, entry.name)
        return there is not None and self._last.get(there.ino, number + 1) > number

    def _places_after(self, number: int, key: str) -> set[str]:
        """Return what may be called `key` after an operation: the index may know some of the later ones."""
        places = {key}
        for later, move in self._moves.items():
            if later > number:
                key = moved_key(key, move.source, move.entry.key)
                places.add(key)
        return places

    def _make_marked(self, operation: Mark, known: Entry | None) -> None:
        entry = replace(operation.entry, marker=True, pending=operation.is_new)
        if known is not None:
            entry = replace(known, marker=True)
        self._table.put(entry)
        if operation.is_new and self._index.loaded_at_ns(entry.key) is None:
            self._index.mark_loaded(entry.key, 1)

    def _drop_put(self, ino: Ino) -> None:
        """A put that came before: the operation has removed or replaced its file."""
        adopted = self._adopted.pop(ino, None)
        inode = self._table.live(ino)
        if adopted is None or inode is None or inode.staged is None:
            return
        self._useless.append(adopted[0])
        self._outbox.drop(adopted[1].staged)
        inode.unlinked = True
        inode.staged.close()
        inode.staged = None
        self._table.release(inode)

    # -- names -------------------------------------------------------------------------------------

    def _give_free_names(self, intents: Iterable[Intent]) -> None:
        """Another key may have waited for a name that was removed or renamed just before the end."""
        difference = Difference()
        for intent in intents:
            match intent:
                case Move():
                    key = intent.source
                case Remove() | Unmark():
                    key = intent.entry.key
                case _:
                    continue
            parent, component = split_key(key.removesuffix("/"))
            difference.moved(reclaim(self._index, parent, decode_component(component)))
        self._table.apply(difference)

    # -- files without a record --------------------------------------------------------------------

    async def _keep_orphans(self, adopted: set[str]) -> bool:
        """Drop staged files that no record names: they were never acknowledged, if no record is lost.

        Else they are set aside. Returns whether all of them could be.
        """
        kept_all = True
        for path in self._staging.glob(f"*{MEMORY_SUFFIX}"):
            if path.with_suffix(".data").name not in adopted:
                path.unlink(missing_ok=True)
        for path in self._staging.glob("*.data"):
            if path.name in adopted:
                continue
            described = path.with_suffix(".json")  # how an earlier version kept them
            if not (self._lost_records or described.exists()):
                path.unlink(missing_ok=True)
                continue
            try:
                await self._conflicts.keep_ours(
                    Staged.reopen(path), _key_in(described), "unsent bytes without a readable record"
                )
                described.unlink(missing_ok=True)
            except (ExaifsError, OSError) as exc:
                kept_all = False
                _log.error(
                    "unsent bytes without a record stay where they are", file=str(path), reason=str(exc)
                )
        return kept_all


def _key_in(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
