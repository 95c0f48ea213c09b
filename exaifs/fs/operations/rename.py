"""Rename within the index and the bucket; see `carrier` for what the bucket can do.

A file to a free name is one move; over a file the target is always the old or the new file. A directory is
its objects moved one by one, several at a time, known here or not: a part that was never listed is listed
once that was carried out. What takes more than one request is in the journal first: stopped half-way, every
file is in one of the two places, and the next run finishes it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from exaifs.cache.names.entries import Entry
from exaifs.cache.unsent.intents import Move
from exaifs.errors import (
    Exists,
    HalfDone,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
)
from exaifs.fs.core import Core
from exaifs.fs.operations.markers import Markers
from exaifs.fs.operations.removal import Remover
from exaifs.fs.sending.conflicts import Conflicts
from exaifs.fs.sending.relocation import Relocation
from exaifs.fs.staged.staging import Staged
from exaifs.fs.tables.inodes import Inode, locked
from exaifs.fs.unsent.keeping import Keeper, puts_of
from exaifs.fs.upstream.directories import Directories
from exaifs.model import AttributeChange, ObjectRecord
from exaifs.names import MAX_KEY_BYTES, child_key, path_of, split_key

RENAME_NOREPLACE = 1
"""renameat2(2)."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One rename: what was found before locks and claims were waited for."""

    source: Inode
    target: Inode | None
    entry: Entry
    """Of the source."""
    renamed: Entry
    directory: Inode
    """Where it goes."""
    flags: int
    ousted: Sequence[Inode]
    """See `Remover.ousted`; their locks are held."""


class Renamer:
    """Renames within one mount."""

    def __init__(
        self,
        core: Core,
        directories: Directories,
        markers: Markers,
        remover: Remover,
        *,
        keeper: Keeper,
        conflicts: Conflicts,
    ) -> None:
        self._index = core.index
        self._table = core.table
        self._contents = core.contents
        self._changes = core.changes
        self._outbox = core.changes.outbox
        self._claims = core.claims
        self._directories = directories
        self._markers = markers
        self._remover = remover
        self._keeper = keeper
        self._conflicts = conflicts
        self._relocation = Relocation(core, directories)

    async def rename(self, entry: Entry, directory: Inode, new_name: str, flags: int) -> bool:
        """Rename `entry` to `new_name` in a directory; both directories are loaded.

        Returns:
            False if another change came first: look the names up again.

        Raises:
            Exists: RENAME_NOREPLACE, and the target exists.
            InvalidArgument: other flags, or a directory into itself.
            IsADirectory, NotADirectory, NotEmpty, NameTooLong: as rename(2) says.
        """
        if flags & ~RENAME_NOREPLACE:
            raise InvalidArgument("only RENAME_NOREPLACE is possible on a bucket")
        new_prefix = directory.entry.key
        new_key = child_key(new_prefix, new_name)
        target = self._index.child(new_prefix, new_name)
        if target is not None and target.ino == entry.ino:
            return True
        if target is not None and flags & RENAME_NOREPLACE:
            raise Exists(f"{new_name!r} exists")
        if entry.is_dir and new_prefix.startswith(entry.key):
            raise InvalidArgument("a directory cannot move into itself")
        if target is not None:
            await self._check_replaceable(entry, target)
        source_inode = self._table.of(entry)
        target_inode = None if target is None else self._table.of(target)
        component = split_key(new_key)[1]
        if target is not None and not target.is_dir:
            component = target.component  # a name that clashes, or a raw one, has another key
        renamed = replace(entry, parent=new_prefix, name=new_name, component=component)
        ousted = [] if entry.is_dir else self._remover.ousted(entry)
        job = _Job(source_inode, target_inode, entry, renamed, directory, flags, ousted)
        try:
            async with locked(source_inode, target_inode, *ousted, *self._dirty_below(entry)):
                await self._remover.set_aside(ousted, entry.key)
                return await self._rename(job)
        finally:
            self._table.release(source_inode)
            if target_inode is not None:
                self._table.release(target_inode)

    def _dirty_below(self, entry: Entry) -> list[Inode]:
        """Files whose publishing must not run while their key changes."""
        return [inode for inode in self._table.below(entry.key) if inode.staged] if entry.is_dir else []

    async def _check_replaceable(self, entry: Entry, target: Entry) -> None:
        if target.is_dir and not entry.is_dir:
            raise IsADirectory(f"{target.name!r} is a directory")
        if entry.is_dir and not target.is_dir:
            raise NotADirectory(f"{target.name!r} is not a directory")
        if target.is_dir:
            await self._directories.ensure(target.key)
            if self._index.has_children(target.key):
                raise NotEmpty(f"{target.name!r} is not empty")

    async def _rename(self, job: _Job) -> bool:
        await self._markers.keep_without(job.source.entry)
        async with self._claims.held(lambda: (job.source.entry.key, job.renamed.key)):
            if job.source.unlinked:
                raise NotFound("removed meanwhile")
            if self._is_overtaken(job):
                return False
            if job.source.entry.is_dir:
                await self._rename_directory(job.source, job.target, job.renamed)
            else:
                await self._rename_file(job)
        return True

    def _is_overtaken(self, job: _Job) -> bool:
        """Whether names changed while locks and claims were waited for."""
        found = self._index.child(job.renamed.parent, job.renamed.name)
        expected = None if job.target is None else job.target.ino
        if (None if found is None else found.ino) != expected:
            return True
        filled = found is not None and found.is_dir and self._index.has_children(found.key)
        moved = job.directory.entry.key != job.renamed.parent or job.source.entry.key != job.entry.key
        return filled or moved or self._index.directory(job.renamed.parent) is None

    # -- files -------------------------------------------------------------------------------------

    async def _rename_file(self, job: _Job) -> None:
        source, target = job.source, job.target
        if target is not None:
            await self._remover.keep_bytes(target)
        old = source.entry
        may_be_stored = source.may_be_stored  # here, whatever is known of the target's uploads below
        if source.staged is not None and target is not None and target.staged is not None:
            await self._keep_instead(source, target.staged)
            source.staged.inherit(target.staged)
        record, unfinished = await self._move(job, may_be_stored=may_be_stored)
        fresh = self._renamed(job, record)
        if target is not None:
            self._remover.discard(target, is_replaced=True)
        self._index.rename(old, fresh)
        if fresh.ino == old.ino:
            source.entry = fresh
        self._remover.abandon(old, held=job.ousted)
        self._directories.name_freed(old)
        if fresh.ino != old.ino:
            self._directories.replaced(replace(old, parent=fresh.parent, name=fresh.name), fresh)
        else:
            if record is not None:
                self._contents.rekey(old.ref, fresh.ref)
            source.change_posix(AttributeChange(), time.time_ns())
            self._table.store(source)
        await self._keep_again(source)
        if unfinished is not None:
            # The kernel takes it that nothing was renamed.
            self._directories.removed(old)
            if target is not None:
                self._directories.replaced(target.entry, fresh)
            raise unfinished

    async def _move(self, job: _Job, *, may_be_stored: bool) -> tuple[ObjectRecord | None, HalfDone | None]:
        """Have the bucket, or the journal, say the new name.

        Returns:
            The record, if the bucket does; and what is to be raised once the names have been taken on.
        """
        if job.source.entry.pending:
            await self._move_unsent(job, may_be_stored=may_be_stored)
            return None, None
        try:
            return await self._move_object(job), None
        except HalfDone as exc:
            return None, exc

    async def _keep_instead(self, source: Inode, replaced: Staged) -> None:
        """What was promised of a file's bytes goes only when those that replace them are as safe."""
        staged = source.staged
        if (
            staged is not None
            and source.dirty
            and staged.newest_kept is None
            and replaced.newest_kept is not None
        ):
            await self._keeper.keep(source, acknowledged=False)

    async def _move_unsent(self, job: _Job, *, may_be_stored: bool) -> None:
        """Have the journal say the new name of a file that is not in the bucket."""
        source, target = job.source, job.target
        puts = puts_of([(source, self._renamed(job, None))])
        dropped = [] if target is None or target.staged is None else target.staged.names
        if may_be_stored:
            # Sent, but no answer came: what may be there must not stay under the old name.
            await self._changes.remove(
                source.entry, stays=self._conflicts.stays, unsent=source.staged, puts=puts, dropped=dropped
            )
        else:
            await self._outbox.keep(puts, dropped)

    async def _keep_again(self, *inodes: Inode) -> None:
        for inode in inodes:
            if inode.staged is not None:
                inode.staged.allow()
        await self._keeper.keep_again(*inodes)
        await self._outbox.sync()

    def _renamed(self, job: _Job, record: ObjectRecord | None) -> Entry:
        """Return the source's entry under its new name; `record` is None while its move waits."""
        source = job.source
        fresh = self._place(source, job.renamed)
        if source.entry.pending:
            return _over(fresh, job.target)
        if record is None:
            return fresh
        if source.dirty:
            if not source.entry.is_object_of(record):
                # Another host changed what these bytes are to replace: the close that sends them must look.
                self._index.contest(fresh.key)
                return fresh
            return replace(fresh, version=record.version, etag=record.etag)
        return self._relocation.moved(fresh, record)

    def _place(self, source: Inode, renamed: Entry) -> Entry:
        return replace(source.entry, parent=renamed.parent, name=renamed.name, component=renamed.component)

    async def _move_object(self, job: _Job) -> ObjectRecord | None:
        source, target = job.source, job.target
        renamed = self._place(source, job.renamed)
        is_stored = target is not None and not target.entry.pending
        replaced = target.entry if target is not None and is_stored else None
        dropped = [] if target is None or target.staged is None else target.staged.names
        move = Move(source.entry.key, renamed, replaced)
        if target is not None and target.staged is not None:
            uploads = target.staged.uploads
            move = replace(move, write_ids=tuple(uploads.write_ids), sent=tuple(uploads.sent))
        return await self._changes.move(
            move,
            may_replace=not job.flags & RENAME_NOREPLACE,
            keep=partial(self._conflicts.keep_replaced, move),
            puts=puts_of([(source, renamed)]),
            dropped=dropped,
            undone=puts_of([(source, source.entry)]),
        )

    # -- directories -------------------------------------------------------------------------------

    async def _rename_directory(self, source: Inode, target: Inode | None, renamed: Entry) -> None:
        before, old, new = source.entry, source.entry.key, renamed.key
        self._check_lengths((entry.key for entry in self._index.below(old)), old, new)
        if target is not None:
            await self._markers.remove(target.entry)
            self._remover.discard(target)
        below = self._table.below(old)
        puts = puts_of(
            (inode, replace(inode.entry, parent=new + inode.entry.parent[len(old) :])) for inode in below
        )

        async def move() -> Mapping[str, ObjectRecord]:
            moved = await self._move_objects(old, new)
            self._take_name(source, renamed)  # before the journal says that it is done
            self._index.list_next_time(new, needed=True)
            return moved

        try:
            moved = await self._changes.move_tree(
                Move(old, self._place(source, renamed)),
                move,
                puts=puts,
                undone=puts_of((inode, inode.entry) for inode in below),
            )
            if moved is None:
                self._take_name(source, renamed)
            else:
                await self._take_on_moved(old, new, moved)
        except BaseException:
            # The kernel takes it that nothing has changed.
            if source.entry.key != old:
                self._directories.replaced(before, source.entry)
            if target is not None:
                self._directories.removed(target.entry)
            raise
        source.change_posix(AttributeChange(), time.time_ns())
        self._table.store(source)
        await self._keep_again(*self._table.below(new))

    def _take_name(self, source: Inode, renamed: Entry) -> None:
        below = self._table.below(source.entry.key)  # also what was made there during the moves
        # What was waited for above may have written its marker.
        old = source.entry = self._index.by_ino(source.ino) or source.entry
        self._index.rename(old, self._place(source, renamed))
        self._table.refresh([source, *below])
        for inode in below:
            if self._index.by_ino(inode.ino) is None:
                # Another host's file has its name: unsent bytes, and who reads the old ones, go along.
                parent = renamed.key + inode.entry.parent[len(old.key) :]
                inode.entry = replace(inode.entry, parent=parent)
        self._directories.name_freed(old)

    def _check_lengths(self, keys: Iterable[str], old: str, new: str) -> None:
        longest = max((len(key.encode()) for key in keys), default=0)
        if longest - len(old.encode()) + len(new.encode()) > MAX_KEY_BYTES:
            raise InvalidArgument("a path below would be too long for the bucket")

    async def _move_objects(self, old: str, new: str) -> Mapping[str, ObjectRecord]:
        """Move what is there; a checkpoint after which another host's newest files may be left.

        Returns:
            What the bucket had, by its old key, of files with unsent bytes.

        Raises:
            NotFound: nothing is there: another host has removed or renamed the directory.
        """
        carrier = self._changes.carrier
        unsent = {inode.entry.key for inode in self._table.below(old) if inode.dirty}
        keys: list[str] = []
        found: dict[str, ObjectRecord] = {}
        async for record in carrier.tree(old):
            keys.append(record.key)
            if record.key in unsent:
                found[record.key] = record
        if not (keys or self._index.holds_pending(old)):
            raise NotFound(f"the directory {path_of(old)} was removed by another host")
        self._check_lengths(keys, old, new)
        await carrier.move_all([(key, new + key[len(old) :]) for key in keys])
        return found

    async def _take_on_moved(self, old: str, new: str, unsent: Mapping[str, ObjectRecord]) -> None:
        moved: set[str] = set()
        try:
            async for record in self._changes.carrier.tree(new):
                old_key = old + record.key[len(new) :]
                if old_key in unsent:
                    self._outbox.carried_along(unsent[old_key], record)
                self._relocation.take_on(record, old_key)
                moved.add(record.key)
            self._relocation.drop_unmoved(new, moved)
            self._index.list_next_time(new, needed=False)
            if not moved:
                self._index.doubt_key(new)  # gone while it was being moved, or there for unsent files only
        except BaseException:
            # All moved, but what is there was not said: let it be listed anew.
            self._index.expire_below(new)
            raise


def _over(pending: Entry, target: Inode | None) -> Entry:
    """Return an unsent file's entry after its rename: over a file, it is that file with unsent changes."""
    if target is None or target.entry.pending:
        return pending
    there = target.entry
    return replace(
        pending,
        pending=False,
        version=there.version,
        size_bytes=there.size_bytes,
        etag=there.etag,
        sha256=there.sha256,
        file_id=there.file_id,
    )
