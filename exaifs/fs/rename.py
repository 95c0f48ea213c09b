"""Rename on a store that has only move (never replaces) and copy (may replace).

A file to a free name is one move. Over a file it is copy, then carry the row, then delete: the target is
always the old or the new file, and after a crash both names exist. A directory is its objects moved one by
one, several at a time; if that stops half-way both directories exist and nothing is lost.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import structlog
import trio

from exaifs.cache.entries import Entry, own_write, with_marker
from exaifs.errors import (
    ExaifsError,
    Exists,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
)
from exaifs.fs.core import Core
from exaifs.fs.directories import Directories
from exaifs.fs.inodes import Inode, locked
from exaifs.fs.leftovers import describe_again
from exaifs.fs.markers import Markers
from exaifs.fs.removal import Remover
from exaifs.model import AttributeChange, ObjectRecord
from exaifs.names import MAX_KEY_BYTES, PLACEHOLDER, child_key, path_of, split_key

_log = structlog.get_logger(__name__)

RENAME_NOREPLACE = 1
"""renameat2(2)."""

_MOVES_AT_ONCE = 8
_PAGE = 1000


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


class Renamer:
    """Renames within one mount."""

    def __init__(self, core: Core, directories: Directories, markers: Markers, remover: Remover) -> None:
        self._index = core.index
        self._table = core.table
        self._contents = core.contents
        self._remote = core.remote
        self._claims = core.claims
        self._directories = directories
        self._markers = markers
        self._remover = remover

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
        job = _Job(source_inode, target_inode, entry, renamed, directory, flags)
        try:
            async with locked(source_inode, target_inode, *self._dirty_below(entry)):
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
            self._directories.name_freed(job.entry)
        return True

    def _is_overtaken(self, job: _Job) -> bool:
        """Whether names changed while locks and claims were waited for."""
        found = self._index.child(job.renamed.parent, job.renamed.name)
        expected = None if job.target is None else job.target.ino
        if (None if found is None else found.ino) != expected:
            return True
        filled = found is not None and found.is_dir and self._index.has_children(found.key)
        moved = job.directory.entry.key != job.renamed.parent or job.source.entry.key != job.entry.key
        return filled or moved

    # -- files -------------------------------------------------------------------------------------

    async def _rename_file(self, job: _Job) -> None:
        source, target = job.source, job.target
        if target is not None:
            await self._remover.keep_bytes(target)
        old = source.entry
        record = None if old.pending else await self._move_object(job)
        if record is None and source.may_be_stored:
            # Sent, but no answer came: what may be there must not stay under the old name.
            await self._remote.objects.remove([old.key])
        fresh = self._place(source, job.renamed)
        if record is None:
            fresh = _over(fresh, target)
        elif source.dirty:
            fresh = replace(fresh, version=record.version, etag=record.etag)
        else:
            fresh = self._moved(fresh, record)
        if target is not None:
            if source.staged is not None and target.staged is not None:
                # What may be there from the target is ours to replace, too.
                source.staged.write_ids[:0] = target.staged.write_ids
            self._remover.discard(target)
        self._index.rename(old, fresh)
        if fresh.ino == old.ino:
            source.entry = fresh
        self._remover.abandon(old.key)
        if fresh.ino != old.ino:
            self._directories.replaced(replace(old, parent=fresh.parent, name=fresh.name), fresh)
            return
        if record is not None:
            self._contents.rekey(old.ref, fresh.ref)
        source.change_posix(AttributeChange(), time.time_ns())
        self._table.store(source)
        describe_again(source)

    def _moved(self, entry: Entry, record: ObjectRecord) -> Entry:
        """Return a renamed entry in its new version; bytes that another host changed are a new inode."""
        fresh = own_write(entry, record)
        if entry.size_bytes == record.size_bytes and (
            entry.sha256 == record.sha256
            if entry.sha256 is not None and record.sha256 is not None
            else entry.etag == record.etag
        ):
            return fresh
        return replace(fresh, ino=self._index.allocate_ino())

    def _place(self, source: Inode, renamed: Entry) -> Entry:
        return replace(source.entry, parent=renamed.parent, name=renamed.name, component=renamed.component)

    async def _move_object(self, job: _Job) -> ObjectRecord:
        objects, catalog = self._remote.objects, self._remote.catalog
        old, new = job.source.entry, job.renamed
        if job.target is None:
            try:
                await objects.move(old.key, new.key)
            except Exists:
                if job.flags & RENAME_NOREPLACE:
                    raise
                _log.info("target appeared on another host; replacing it", path=path_of(new.key))
            else:
                return await self._record(new.key)
        await objects.copy(old.key, new.key)
        record = await catalog.carry_row(old.key, new.key)
        await objects.remove([old.key])
        return record

    async def _record(self, key: str) -> ObjectRecord:
        records = await self._remote.catalog.stat([key])
        if key not in records:
            raise NotFound(f"{path_of(key)} was removed by another host")
        return records[key]

    # -- directories -------------------------------------------------------------------------------

    async def _rename_directory(self, source: Inode, target: Inode | None, renamed: Entry) -> None:
        old, new = source.entry.key, renamed.key
        keys = [record.key async for record in self._tree(old)]
        longest = max((len(key.encode()) for key in keys), default=0)
        if longest - len(old.encode()) + len(new.encode()) > MAX_KEY_BYTES:
            raise InvalidArgument("a path below would be too long for the bucket")
        if target is not None:
            await self._markers.remove(target.entry)
            self._remover.discard(target)
        try:
            await self._move_all([(key, new + key[len(old) :]) for key in keys])
        except BaseException:
            # Some objects moved: let both directories be listed anew.
            self._index.mark_unloaded(old)
            self._index.mark_unloaded(source.entry.parent)
            self._index.mark_unloaded(renamed.parent)
            raise
        below = self._table.below(old)  # also what was made there during the moves
        self._index.rename(source.entry, self._place(source, renamed))
        self._table.refresh([source, *below])
        moved: set[str] = set()
        try:
            async for record in self._tree(new):
                self._take_on_move(record, old, new)
                moved.add(record.key)
            self._drop_unmoved(new, moved)
        except BaseException:
            # All moved, but what is there was not said: let it be listed anew.
            self._index.expire_below(new)
            raise
        finally:
            for inode in below:
                describe_again(inode)
        source.change_posix(AttributeChange(), time.time_ns())
        self._table.store(source)

    async def _tree(self, prefix: str) -> AsyncIterator[ObjectRecord]:
        after: str | None = ""
        while after is not None:
            page, after = await self._remote.catalog.list_tree(prefix, after, _PAGE)
            for record in page:
                yield record

    async def _move_all(self, moves: list[tuple[str, str]]) -> None:
        limiter = trio.CapacityLimiter(_MOVES_AT_ONCE)
        failures: list[ExaifsError] = []

        async def move(source: str, target: str) -> None:
            async with limiter:
                if failures:
                    return
                try:
                    await self._remote.objects.move(source, target)
                except NotFound:
                    return  # another host removed it meanwhile
                except ExaifsError as exc:
                    failures.append(exc)

        async with trio.open_nursery() as nursery:
            for source, target in moves:
                nursery.start_soon(move, source, target)
        if failures:
            raise failures[0]

    def _take_on_move(self, record: ObjectRecord, old: str, new: str) -> None:
        """After our own move the bytes are the same under another version: keep the inode."""
        parent, component = split_key(record.key)
        if component == PLACEHOLDER:
            directory = self._index.directory(parent)
            if directory is not None and not directory.marker:
                self._table.put(with_marker(directory, record))
            return
        entry = self._index.file(parent, component)
        if entry is None or entry.pending:
            return
        inode = self._table.live(entry.ino)
        dirty = inode is not None and inode.dirty
        fresh = own_write(entry, record) if dirty else self._moved(entry, record)
        if fresh.ino != entry.ino:
            self._index.put(fresh)
            self._directories.replaced(entry, fresh)
            return
        self._contents.rekey(replace(entry.ref, key=old + record.key[len(new) :]), fresh.ref)
        self._index.put(fresh)
        if inode is not None:
            inode.entry = (
                replace(inode.entry, version=fresh.version, etag=fresh.etag) if inode.dirty else fresh
            )

    def _drop_unmoved(self, prefix: str, moved: set[str]) -> None:
        """Forget names below that the bucket had no more: its log says so of the old names only."""
        there = {key[: end + 1] for key in moved for end in range(len(prefix), len(key)) if key[end] == "/"}
        for entry in self._index.below(prefix):
            inode = self._table.live(entry.ino)
            if entry.pending or entry.key in moved or (inode is not None and inode.dirty):
                continue
            if entry.is_dir and (entry.key in there or self._index.holds_pending(entry.key)):
                continue
            self._index.remove(entry)
            self._directories.removed(entry)


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
