"""Unlink and rmdir: from the bucket, or into the outbox, first, then from the index."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import structlog

from exaifs.cache.names.entries import Entry
from exaifs.errors import ExaifsError, IsADirectory, NotADirectory, NotEmpty, NotFound
from exaifs.fs.core import Core
from exaifs.fs.operations.markers import Markers
from exaifs.fs.sending.conflicts import Conflicts
from exaifs.fs.staged.staging import Staged
from exaifs.fs.tables.inodes import Inode, locked
from exaifs.fs.upstream.directories import Directories
from exaifs.names import path_of

_log = structlog.get_logger(__name__)


class Remover:
    """Removes names of one mount."""

    def __init__(
        self, core: Core, directories: Directories, markers: Markers, conflicts: Conflicts
    ) -> None:
        self._core = core
        self._index = core.index
        self._table = core.table
        self._contents = core.contents
        self._changes = core.changes
        self._outbox = core.changes.outbox
        self._claims = core.claims
        self._directories = directories
        self._markers = markers
        self._conflicts = conflicts

    async def unlink(self, entry: Entry) -> None:
        """Remove a file or symbolic link; who has it open keeps its bytes.

        Raises:
            IsADirectory: use `rmdir`.
            NotFound: somebody else was quicker.
        """
        if entry.is_dir:
            raise IsADirectory(f"{entry.name!r} is a directory")
        inode = self._table.of(entry)
        ousted = self.ousted(entry)
        try:
            async with locked(inode, *ousted):
                if inode.unlinked:
                    raise NotFound(f"no {entry.name!r} here")
                await self.keep_bytes(inode)
                await self.set_aside(ousted, entry.key)
                await self._markers.keep_without(inode.entry)
                async with self._claims.held(lambda: (inode.entry.key,)):
                    await self._remove_object(inode)
                    self.discard(inode)
                    self.abandon(inode.entry, held=ousted)
                    self._directories.name_freed(inode.entry)
                    await self._outbox.sync()
        finally:
            self._table.release(inode)

    async def _remove_object(self, inode: Inode) -> None:
        """Remove what is, or may be, in the bucket: a file that was never sent costs nothing."""
        if inode.may_be_stored:
            staged = inode.staged
            await self._changes.remove(
                inode.entry,
                stays=self._conflicts.stays,
                unsent=staged,
                dropped=() if staged is None else staged.names,
            )

    async def keep_bytes(self, inode: Inode) -> None:
        """Before an open file leaves the bucket, have its bytes here."""
        if inode.opens == 0 or inode.staged is not None or inode.entry.pending:
            return
        try:
            await self._contents.materialize(self._core.stored(inode.entry))
        except ExaifsError as exc:
            _log.warning(
                "open file removed before its bytes were fetched",
                path=path_of(inode.entry.key),
                reason=str(exc),
            )

    def discard(self, inode: Inode, *, is_replaced: bool = False) -> None:
        """Drop a name from the index; its staged bytes go with the last close.

        They are not to be sent any more once `Outbox.sync` has returned.

        Args:
            inode: whose name.
            is_replaced: whether another takes the name now: the index changes then, in one step.
        """
        if not is_replaced:
            self._index.remove(inode.entry)
        inode.unlinked = True
        if inode.staged is not None:
            self._outbox.drop(*inode.staged.names)
            if inode.opens == 0:
                inode.staged.close()
                inode.staged = None
        self._table.release(inode)

    def ousted(self, entry: Entry) -> list[Inode]:
        """Return the closed files with unsent bytes that a name stood for before another host's took it.

        Args:
            entry: what the name stands for now.
        """
        return [
            inode
            for inode in self._table
            # Of thousands, without making their keys.
            if inode.entry.component == entry.component
            and inode.ino != entry.ino
            and inode.entry.key == entry.key
            and inode.dirty
            and not inode.opens
        ]

    async def set_aside(self, ousted: Iterable[Inode], key: str) -> None:
        """Before a name leaves, keep aside what was promised of files that it stood for before.

        Who removes or renames what the name shows has not seen their bytes, and a file that is gone must
        not be brought back by them.

        Args:
            ousted: of the name; their locks are held.
            key: of the name.

        Raises:
            ExaifsError: the disk refuses; they are as they were.
        """
        for inode in ousted:
            if inode.staged is None or inode.entry.key != key or inode.opens or not inode.is_promised:
                continue
            kept = inode.staged.newest_kept
            assert kept is not None
            await self._conflicts.keep_ours(kept, key, "another host's file had its name, which left here")
            self._drop(inode, inode.staged)

    def abandon(self, entry: Entry, *, held: Collection[Inode] = ()) -> None:
        """After a name left: closed files it stood for before, replaced there, must not bring it back.

        Their unsent bytes, whose close failed, go. The caller has claimed the key.

        Args:
            entry: what the name stood for.
            held: whose locks the caller holds.
        """
        for inode in self.ousted(entry):
            if inode.is_promised:
                continue  # replaced a moment ago: sending it decides
            assert inode.staged is not None
            if inode.lock.locked() and inode not in held:  # who holds it settles
                inode.unlinked = True
                self._outbox.drop(*inode.staged.names)
            else:
                self._drop(inode, inode.staged)

    def _drop(self, inode: Inode, staged: Staged) -> None:
        inode.unlinked = True
        inode.staged = inode.failure = None
        self._outbox.drop(*staged.names)
        staged.close()
        self._table.release(inode)

    async def rmdir(self, entry: Entry) -> None:
        """Remove an empty directory.

        Raises:
            NotADirectory, NotEmpty: as they say.
        """
        if not entry.is_dir:
            raise NotADirectory(f"{entry.name!r} is not a directory")
        inode = self._table.of(entry)
        try:
            async with inode.lock:
                if inode.unlinked:
                    raise NotFound(f"no {entry.name!r} here")
                await self._markers.keep_without(inode.entry)
                await self._directories.ready(inode)
                async with self._claims.held(lambda: (inode.entry.marker_key,)):
                    if self._index.has_children(inode.entry.key):
                        raise NotEmpty(f"{entry.name!r} is not empty, perhaps of keys that cannot be shown")
                    await self._markers.remove(inode.entry)
                    self.discard(inode)
                    self._directories.name_freed(inode.entry)
        finally:
            self._table.release(inode)
