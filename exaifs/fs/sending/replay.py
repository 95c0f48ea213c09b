"""Carries operations of the outbox out at Supabase, whatever has become of their objects meanwhile.

Each looks first: it may have been done already, by an attempt whose answer was lost or by a run that ended
before it could say so; or another host may have changed the object. What another host wrote is never
deleted, and where a move replaces it, it is kept aside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import structlog

from exaifs.cache.names.entries import Entry, with_marker
from exaifs.cache.names.keyset import prefixes_above
from exaifs.cache.names.merge import Difference, merge_changes
from exaifs.cache.unsent.intents import Mark, Move, Operation, Patch, Remove, Unmark, keys_of
from exaifs.errors import ExaifsError, IntegrityError, NameTooLong, NotFound
from exaifs.fs.core import Core
from exaifs.fs.sending.conflicts import Conflicts
from exaifs.fs.sending.relocation import Relocation
from exaifs.fs.tables.inodes import Inode
from exaifs.fs.unsent.carrier import Carrier
from exaifs.fs.unsent.keeping import Keeper
from exaifs.fs.unsent.verdicts import is_final
from exaifs.fs.upstream.directories import Directories
from exaifs.model import Ino, ObjectRecord
from exaifs.names import MAX_KEY_BYTES, path_of, split_key
from exaifs.remote.interface import Change, RowPatch

_log = structlog.get_logger(__name__)


class Replayer:
    """Carries out what waits in the outbox of one mount.

    Args:
        core: index, inodes, contents, outbox.
        directories: told of names that stand for something else.
        conflicts: keeps what is replaced.
        keeper: has the journal say what staged files replace now.
        on_change: told what names stand for other inodes.
    """

    def __init__(
        self,
        core: Core,
        directories: Directories,
        conflicts: Conflicts,
        keeper: Keeper,
        on_change: Callable[[Difference], None],
    ) -> None:
        self._index = core.index
        self._table = core.table
        self._contents = core.contents
        self._outbox = core.changes.outbox
        self._carrier: Carrier = core.changes.carrier
        self._conflicts = conflicts
        self._keeper = keeper
        self._relocation = Relocation(core, directories)
        self._on_change = on_change

    async def carry_out(self, number: int, operation: Operation) -> None:
        """Carry one out; it is forgotten when this returns.

        Raises:
            ExaifsError: it could not be; see `verdicts`.
        """
        surprised, revised = await self._carry_out(number, operation)
        await self._outbox.done(number, revised)
        await self._look_again(surprised)

    async def give_up(self, number: int, operation: Operation, why: BaseException) -> None:
        """Forget one that cannot be carried out: names show what the bucket has.

        Raises:
            ExaifsError: the journal cannot say so.
        """
        await self._outbox.done(number)
        what = type(operation).__name__.lower()
        self._conflicts.note(operation.entry.key, f"{what} given up, as Supabase does not do it: {why}")
        if isinstance(operation, Mark):
            self._unmark(operation)
        await self._look_again(list(keys_of(operation)))

    async def _carry_out(self, number: int, operation: Operation) -> tuple[list[str], dict[int, Operation]]:
        """Do it; return the keys that are not what was expected, and what later operations say now."""
        match operation:
            case Remove():
                return await self._remove(operation), {}
            case Move() if operation.entry.is_dir:
                return await self._move_tree(number, operation)
            case Move():
                return await self._move(number, operation)
            case Mark():
                await self._mark(operation)
            case Unmark():
                await self._carrier.remove([operation.entry.marker_key])
            case Patch():
                return await self._patch(number, operation), {}
        return [], {}

    # -- removing ----------------------------------------------------------------------------------

    async def _remove(self, operation: Remove) -> list[str]:
        entry = operation.entry
        record = (await self._carrier.look([entry.key])).get(entry.key)
        if record is None:
            return []
        if await self._conflicts.stays(operation, record):
            return [entry.key]
        await self._keep_open_bytes(entry, record)
        await self._carrier.remove([entry.key])
        return []

    async def _keep_open_bytes(self, entry: Entry, record: ObjectRecord) -> None:
        """Who has a removed file open goes on reading it."""
        inode = self._table.live(entry.ino)
        if inode is None or inode.opens == 0 or inode.staged is not None:
            return
        try:
            await self._contents.materialize(record.ref)
        except ExaifsError as exc:
            _log.warning(
                "open file removed before it was fetched", path=path_of(entry.key), reason=str(exc)
            )

    # -- moving ------------------------------------------------------------------------------------

    async def _move(self, number: int, operation: Move) -> tuple[list[str], dict[int, Operation]]:
        source, target, entry = operation.source, operation.entry.key, operation.entry
        found = await self._carrier.look([source, target])
        there, taken = found.get(source), found.get(target)
        record = await self._already_moved(entry, source, there, taken)
        if record is None and there is None:
            self._conflicts.note(source, "renamed here, but another host has removed it")
            return [source, target], {}
        if record is None:
            await self._conflicts.keep_replaced(operation, taken)
            record = await self._carrier.move(source, target, replace=taken is not None)
            if there is not None:
                self._outbox.carried_along(there, record)
        return [], await self._take_on(number, operation, record)

    async def _already_moved(
        self, entry: Entry, source: str, there: ObjectRecord | None, taken: ObjectRecord | None
    ) -> ObjectRecord | None:
        """Return the target's record if an earlier attempt has moved the file there.

        A file is known by its id, which goes along; equal bytes prove nothing while the source is there.
        """
        if taken is None:
            return None
        if entry.file_id is None or taken.file_id is None:
            is_source = there is not None and there.version == entry.version
            return taken if entry.is_object_of(taken) and not is_source else None
        if taken.file_id != entry.file_id:
            return None
        # Its row went along, and whoever makes a new file there gives it another id.
        if there is not None and await self._is_left_over(entry, there, taken):
            await self._carrier.remove([source])  # the last step of a rename over a file
        return taken

    async def _is_left_over(self, entry: Entry, there: ObjectRecord, taken: ObjectRecord) -> bool:
        """Tell whether an object is what a rename over a file has copied, and was to remove then."""
        if there.file_id not in {None, entry.file_id}:
            return False
        if entry.is_object_of(there) or _is_copy(there, taken):
            return True
        if taken.sha256 is None or there.size_bytes != taken.size_bytes:
            return False
        # It may be of an upload from here that had no answer, and some stores give a copy another ETag.
        try:
            await self._contents.materialize(there.ref)
        except IntegrityError:
            return False
        return self._contents.sha256_of(there.ref) == taken.sha256

    async def _take_on(self, number: int, operation: Move, record: ObjectRecord) -> dict[int, Operation]:
        later = self._later(number).get(operation.entry.ino, [])
        revised = self._revised(later, record)
        entry = self._index.by_ino(operation.entry.ino)
        if entry is not None and not entry.pending:
            self._relocation.take_on_entry(entry, record, operation.source, attributes_wait=bool(later))
            await self._keep_again(self._table.live(entry.ino))
        return revised

    async def _keep_again(self, *inodes: Inode | None) -> None:
        """Have the journal say what staged files replace now."""
        for inode in inodes:
            if inode is not None and inode.staged is not None:
                async with inode.lock:
                    await self._keeper.keep_again(inode)

    def _revised(self, later: Iterable[int], record: ObjectRecord) -> dict[int, Operation]:
        """Have later operations on the same file know the version it has now.

        Not where another host has changed it: a removal that waits is of what was there before. Not
        patches: they go by the key alone, and may be joined with newer ones, or dropped, at any time.
        """
        revised: dict[int, Operation] = {}
        for number in later:
            operation = self._outbox.operations.get(number)
            if operation is None or isinstance(operation, Patch):
                continue
            if operation.entry.is_object_of(record):
                entry = replace(operation.entry, version=record.version, etag=record.etag)
                revised[number] = replace(operation, entry=entry)
        return revised

    def _later(self, number: int) -> dict[Ino, list[int]]:
        """Return the numbers of later operations, by what they change."""
        found: dict[Ino, list[int]] = {}
        for later, operation in self._outbox.operations.items():
            if later > number:
                found.setdefault(operation.entry.ino, []).append(later)
        return found

    async def _move_tree(self, number: int, operation: Move) -> tuple[list[str], dict[int, Operation]]:
        """Move what is there, known here or not; what cannot go stays, and shows under its old name."""
        old, new = operation.source, operation.entry.key
        moving = {record.key: record async for record in self._carrier.tree(old)}
        left = await self._move_objects(old, new, moving)
        for key, exc in left.items():
            self._conflicts.note(key, f"its directory was renamed here, it stays: {exc}")
        revised, is_there = await self._take_on_tree(number, operation, moving)
        if not (is_there or left):
            self._conflicts.note(old, "renamed here, but another host has removed it")
        return [*([old] if left else []), *([] if is_there else [new])], revised

    async def _move_objects(
        self, old: str, new: str, moving: Mapping[str, ObjectRecord]
    ) -> dict[str, ExaifsError]:
        """Move all that can be moved; return what stays, and why."""
        if not moving:
            return {}
        left: dict[str, ExaifsError] = {
            key: NameTooLong(f"more than {MAX_KEY_BYTES} bytes")
            for key in moving
            if len(new.encode()) + len(key[len(old) :].encode()) > MAX_KEY_BYTES
        }
        left |= await self._keep_collisions(old, new, moving)
        moves = [(key, new + key[len(old) :]) for key in moving if key not in left]
        return left | await self._carrier.move_all(moves, replace=True, may_stay=is_final)

    async def _take_on_tree(
        self, number: int, operation: Move, moving: Mapping[str, ObjectRecord]
    ) -> tuple[dict[int, Operation], bool]:
        """Note what has moved; return what later operations say, and whether there is such a directory."""
        old, new = operation.source, operation.entry.key
        moved: set[str] = set()
        revised: dict[int, Operation] = {}
        async for page in self._carrier.tree_pages(new):
            waiting = self._later(number)  # more may wait since the page before
            for record in page:
                source = moving.get(old + record.key[len(new) :])
                if source is not None and _is_copy(source, record):
                    self._outbox.carried_along(source, record)
                key = self._outbox.local_key(number, record.key)
                if key is None:
                    continue
                entry = self._relocation.take_on(record, old + record.key[len(new) :], key, waiting=waiting)
                if entry is not None:
                    revised |= self._revised(waiting.get(entry.ino, ()), record)
                moved.add(key)
        entry = self._index.by_ino(operation.entry.ino)
        if entry is not None:
            self._relocation.drop_unmoved(entry.key, moved)
            await self._keep_again(*self._table.below(entry.key))
        is_there = (
            entry is None
            or entry.pending
            or entry.ino in self._later(number)
            or self._index.has_children(entry.key)
        )
        return revised, bool(moved) or is_there

    async def _keep_collisions(
        self, old: str, new: str, moving: Mapping[str, ObjectRecord]
    ) -> dict[str, ExaifsError]:
        """Keep what another host has put where something is about to go.

        Returns:
            What cannot go, as what is in its way cannot be kept.
        """
        left: dict[str, ExaifsError] = {}
        # All of them first: what fails below must leave no listing half read.
        for record in [record async for record in self._carrier.tree(new)]:
            source = moving.get(old + record.key[len(new) :])
            if source is None or not record.size_bytes or _is_copy(source, record):
                continue
            try:
                await self._conflicts.keep_theirs(record, "replaced by a rename on this host", None)
            except IntegrityError as exc:
                left[source.key] = exc
        return left

    # -- directories and attributes ----------------------------------------------------------------

    async def _mark(self, operation: Mark) -> None:
        newest = self._index.by_ino(operation.entry.ino) or operation.entry
        record = await self._carrier.mark(operation.entry, newest.posix)
        entry = self._index.by_ino(operation.entry.ino)
        if entry is not None:
            marked = with_marker(entry, record)
            self._table.put(replace(marked, pending=False, posix=entry.posix, xattrs=entry.xattrs))

    def _unmark(self, operation: Mark) -> None:
        """A directory's marker was refused: it is there only while something is in it."""
        entry = self._index.by_ino(operation.entry.ino)
        if entry is not None:
            self._table.put(replace(entry, pending=False, marker=False))

    async def _patch(self, number: int, operation: Patch) -> list[str]:
        (key,) = keys_of(operation)
        patch = RowPatch(operation.posix, operation.set_xattrs, operation.drop_xattrs)
        try:
            record = await self._carrier.patch(key, patch)
        except NotFound:
            self._conflicts.note(key, "changed here, but another host has removed it")
            return [key]
        entry = self._index.by_ino(operation.entry.ino)
        inode = self._table.live(operation.entry.ino)
        if inode is not None and inode.dirty:
            # What was changed since travels with its bytes.
            inode.entry = replace(inode.entry, file_id=record.file_id or inode.entry.file_id)
        elif entry is not None and entry.ino not in self._later(number):
            file_id = record.file_id or entry.file_id
            posix = operation.posix or entry.posix
            self._table.put(replace(entry, posix=posix, xattrs=record.xattrs, file_id=file_id))
        return []

    # -- afterwards --------------------------------------------------------------------------------

    async def _look_again(self, keys: list[str]) -> None:
        """Show what the bucket has under keys that were not what was expected."""
        if not keys:
            return
        plain = [key for key in keys if not key.endswith("/")]
        for prefix in set(keys) - set(plain):
            self._index.expire_below(prefix)
            self._index.expire(split_key(prefix[:-1])[0])
        with self._index.view() as view:
            try:
                found = await self._carrier.look(plain) if plain else {}
            except ExaifsError as exc:
                _log.info("names are listed anew when they are needed", reason=str(exc))
                for key in plain:
                    for prefix in (*prefixes_above(key), ""):
                        self._index.expire(prefix)
                return
            changes = [Change(key, found.get(key)) for key in plain]
            difference, skipped = merge_changes(self._index, changes, view=view, at_ns=time.time_ns())
        self._on_change(difference)
        for key in skipped:
            self._index.expire(split_key(key)[0])


def _is_copy(source: ObjectRecord, target: ObjectRecord) -> bool:
    """Tell whether bytes are the same, as after a move that replaces and was cut off."""
    same_size = source.size_bytes == target.size_bytes
    return same_size and (
        source.etag == target.etag != "" or source.write_id == target.write_id is not None
    )
