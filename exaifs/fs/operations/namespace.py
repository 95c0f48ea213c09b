"""Names: look-up, attributes, listing, and making files, directories and symbolic links.

Every answer comes from the index; a directory is listed first when it is not known or not fresh. Methods
that return the attributes of a name count one look-up for the kernel.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from exaifs.cache.names.entries import Entry
from exaifs.errors import Exists, InvalidArgument, NameTooLong, Stale
from exaifs.fs.core import Core
from exaifs.fs.operations.listing import Lister
from exaifs.fs.operations.markers import Markers
from exaifs.fs.operations.removal import Remover
from exaifs.fs.operations.rename import Renamer
from exaifs.fs.operations.rows import Rows
from exaifs.fs.operations.writing import Writer
from exaifs.fs.report.virtual import VirtualFiles, check_changeable, check_new_name, is_virtual
from exaifs.fs.sending.publish import Publisher
from exaifs.fs.tables.handles import DirectoryEntry, HandleTable
from exaifs.fs.tables.inodes import Inode
from exaifs.fs.unsent.keeping import Keeper
from exaifs.fs.upstream.directories import Directories, touched
from exaifs.model import (
    DIRECTORY_MIME,
    SYMLINK_MIME,
    AttributeChange,
    Attributes,
    Caller,
    Handle,
    Ino,
    Kind,
    Posix,
)
from exaifs.names import MAX_NAME_BYTES, child_key, path_of, split_key
from exaifs.remote.interface import RowPatch

MAX_SYMLINK_BYTES = 4095
"""PATH_MAX less the terminating zero."""

_BLOCK_BYTES = 4096
_NOMINAL_BYTES = 1 << 50
"""What statfs shows as capacity: a bucket has no size of its own."""


@dataclass(frozen=True, slots=True)
class FileSystemStatistics:
    """What statvfs(3) shows."""

    block_size: int
    blocks: int
    blocks_free: int
    files: int
    files_free: int
    name_max: int


class Namespace:
    """Operations on names and attributes of one mount."""

    def __init__(
        self,
        core: Core,
        handles: HandleTable,
        directories: Directories,
        *,
        markers: Markers,
        publisher: Publisher,
        writer: Writer,
        remover: Remover,
        renamer: Renamer,
        keeper: Keeper,
        virtual: VirtualFiles,
    ) -> None:
        self._core = core
        self._index = core.index
        self._table = core.table
        self._contents = core.contents
        self._handles = handles
        self._directories = directories
        self._lister = Lister(core)
        self._markers = markers
        self._rows = Rows(core, markers)
        self._publisher = publisher
        self._writer = writer
        self._remover = remover
        self._renamer = renamer
        self._keeper = keeper
        self._virtual = virtual

    # -- looking -----------------------------------------------------------------------------------

    async def lookup(self, parent: Ino, name: str) -> Attributes:
        """Return the attributes of a name.

        Raises:
            NotFound: proven absent.
            RemoteError: not known, and Supabase cannot be asked.
        """
        hidden = self._virtual.lookup(parent, name)
        if hidden is not None:
            return hidden
        directory = self._table.directory(parent)
        if name in {".", ".."}:
            return self._counted((directory if name == "." else self._table.parent(directory)).entry)
        if len(os.fsencode(name)) > MAX_NAME_BYTES:
            raise NameTooLong(f"a name of more than {MAX_NAME_BYTES} bytes")
        return self._counted(await self._directories.find(directory, name))

    def _counted(self, entry: Entry) -> Attributes:
        self._table.count_lookup(entry)
        return self._table.entry_attributes(entry)

    def forget(self, forgotten: Sequence[tuple[Ino, int]]) -> None:
        """The kernel drops references."""
        for ino, count in forgotten:
            if not is_virtual(ino):
                self._table.forget(ino, count)

    async def getattr(self, ino: Ino) -> Attributes:
        """Return the attributes of an inode the kernel knows."""
        if is_virtual(ino):
            return self._virtual.getattr(ino)
        inode = self._table.peek(ino)
        if inode.entry.is_dir and not inode.unlinked:
            await self._directories.freshen(inode.entry)
            inode = self._table.peek(ino)
        return self._table.attributes(inode)

    async def readlink(self, ino: Ino) -> bytes:
        """Return a symbolic link's target.

        Raises:
            InvalidArgument: not a symbolic link.
        """
        inode = self._table.get(ino)
        if inode.entry.kind != "symlink":
            raise InvalidArgument("not a symbolic link")
        if inode.staged is not None:
            await inode.staged.prove()
        if inode.staged is not None:
            return inode.staged.read_at(0, MAX_SYMLINK_BYTES)
        return await self._contents.read(self._core.stored(inode.entry), 0, inode.entry.size_bytes)

    async def statfs(self) -> FileSystemStatistics:
        """Return totals of what is known, against a nominal capacity."""
        files, used_bytes = self._index.totals()
        blocks = _NOMINAL_BYTES // _BLOCK_BYTES
        return FileSystemStatistics(
            block_size=_BLOCK_BYTES,
            blocks=blocks,
            blocks_free=blocks - used_bytes // _BLOCK_BYTES,
            files=files + (1 << 32),
            files_free=1 << 32,
            name_max=MAX_NAME_BYTES,
        )

    # -- listing -----------------------------------------------------------------------------------

    async def opendir(self, ino: Ino) -> Handle:
        """Open a directory for listing."""
        if is_virtual(ino):
            return self._virtual.opendir(ino)
        directory = self._table.directory(ino)
        await self._directories.ready(directory)
        return self._handles.open_directory(directory).handle

    async def readdir(self, fh: Handle, after: int) -> Iterator[DirectoryEntry]:
        """Return the names after a cookie, without an await between them; 0 begins anew."""
        if is_virtual(fh):
            return self._virtual.readdir(after)
        opened = self._handles.directory(fh)
        if after == 0:
            await self._directories.ready(opened.inode)
        return self._lister.entries(opened, after)

    def took(self, listed: DirectoryEntry) -> None:
        """The kernel took a listed name: that is a look-up, but for `.` and `..`."""
        if listed.entry is not None:
            self._table.count_lookup(listed.entry)

    def releasedir(self, fh: Handle) -> None:
        """Close a directory."""
        if is_virtual(fh):
            self._virtual.release(fh)
            return
        self._table.release(self._handles.close_directory(fh).inode)

    # -- attributes --------------------------------------------------------------------------------

    async def setattr(self, ino: Ino, change: AttributeChange, fh: Handle | None) -> Attributes:
        """Change size, mode, owner or times.

        Args:
            ino: which inode.
            change: what to change.
            fh: the handle of ftruncate(2) and the like; without one a new size is published at once.

        Raises:
            NotFound: the file was removed meanwhile.
            FileTooLarge, IsADirectory: as they say.
        """
        self._core.check_writable()
        check_changeable(ino, "")
        inode = self._table.get(ino)
        if inode.unlinked and inode.opens == 0 and not inode.entry.is_dir:
            raise Stale(f"{path_of(inode.entry.key)} was replaced")  # the kernel looks again
        if change.size_bytes is not None:
            await self._writer.resize(inode, change.size_bytes, publish=fh is None)
        wanted = (change.mode, change.uid, change.gid, change.mtime_ns)
        if any(value is not None for value in wanted):
            async with inode.lock:
                await self._set_posix(inode, change)
        elif change.atime_ns is not None:
            self._table.change_posix(inode, change, time.time_ns())
            self._table.store(inode)
        return self._table.attributes(inode)

    async def _set_posix(self, inode: Inode, change: AttributeChange) -> None:
        before = inode.entry
        self._table.change_posix(inode, change, time.time_ns())
        if inode.unlinked:
            return
        if inode.staged is not None and (inode.entry.pending or inode.dirty):
            # It travels with the bytes; also those that are already in the bucket get it then.
            inode.staged.touch()
            await self._keeper.keep_again(inode)
            return
        try:
            await self.patch_row(inode, RowPatch(posix=inode.entry.posix))
        except BaseException:
            inode.entry = replace(inode.entry, posix=before.posix, ctime_ns=before.ctime_ns)
            raise

    async def patch_row(self, inode: Inode, patch: RowPatch) -> None:
        """Change a row; see `Rows.patch`."""
        await self._rows.patch(inode, patch)

    # -- making ------------------------------------------------------------------------------------

    async def make_file(self, parent: Ino, name: str, mode: int, caller: Caller) -> Inode:
        """Make a file that is in the bucket once it is closed; counts a look-up."""
        inode = await self._make(parent, name, "file", mode, caller)
        try:
            await self._writer.stage_new(inode)
        except BaseException:
            self._remover.discard(inode)
            raise
        inode.lookups += 1
        return inode

    async def symlink(self, parent: Ino, name: str, target: bytes, caller: Caller) -> Attributes:
        """Make a symbolic link: a small object whose bytes are the target."""
        if not 0 < len(target) <= MAX_SYMLINK_BYTES:
            raise NameTooLong("a symbolic link's target has 1 to 4095 bytes")
        inode = await self._make(parent, name, "symlink", 0o777, caller)
        inode.entry = replace(inode.entry, mime_type=SYMLINK_MIME)
        return await self._closed(inode, target)

    async def mknod(self, parent: Ino, name: str, mode: int, caller: Caller) -> Attributes:
        """Make an empty file that nobody opens."""
        return await self._closed(await self._make(parent, name, "file", mode, caller), b"")

    async def _closed(self, inode: Inode, data: bytes) -> Attributes:
        """Bring a new file or link that nobody opens into the bucket; or it is not made."""
        try:
            await self._writer.stage_new(inode)
            await self._writer.write(inode, 0, data)
            async with inode.lock:
                await self._publisher.close_and_settle(inode)
        except BaseException:
            if inode.may_be_stored:
                self._index.doubt_key(inode.entry.key)
            self._remover.discard(inode)
            raise
        return self._counted(inode.entry)

    async def mkdir(self, parent: Ino, name: str, mode: int, caller: Caller) -> Attributes:
        """Make a directory, with its marker."""
        inode = await self._make(parent, name, "dir", mode, caller)
        try:
            async with inode.lock, self._core.claims.held(lambda: (inode.entry.marker_key,)):
                await self._write_directory(inode)
        except BaseException:
            self._remover.discard(inode)
            raise
        return self._counted(inode.entry)

    async def _write_directory(self, inode: Inode) -> None:
        inode.entry = await self._markers.make(inode.entry)
        self._table.store(inode)
        self._index.mark_loaded(inode.entry.key, time.time_ns())

    async def _make(self, parent: Ino, name: str, kind: Kind, mode: int, caller: Caller) -> Inode:
        """Put a pending name into the index.

        Raises:
            Exists, NameTooLong, ReadOnly: as they say.
            NotFound: the directory was removed.
        """
        self._core.check_writable()
        check_new_name(parent, name)
        directory = self._table.directory(parent)
        child_key(directory.entry.key, name)  # refuse before asking
        prefix = await self._directories.ready(directory)
        self._directories.check_there(directory)
        key = child_key(prefix, name)
        if self._index.child(prefix, name) is not None:
            raise Exists(f"{name!r} exists")
        now_ns = time.time_ns()
        entry = Entry(
            parent=prefix,
            name=name,
            component=split_key(key)[1],
            kind=kind,
            ino=self._index.allocate_ino(),
            pending=True,
            mime_type=DIRECTORY_MIME if kind == "dir" else "application/octet-stream",
            created_ns=now_ns,
            updated_ns=now_ns,
            ctime_ns=now_ns,
            posix=self._new_posix(directory, kind, mode, caller, now_ns),
        )
        self._index.put(entry)
        self.note_change(prefix, now_ns)
        return self._table.of(entry)

    def _new_posix(self, directory: Inode, kind: Kind, mode: int, caller: Caller, now_ns: int) -> Posix:
        parent = self._table.attributes(directory)
        inherits = bool(parent.mode & stat.S_ISGID)
        if inherits and kind == "dir":
            mode |= stat.S_ISGID
        return Posix(
            mode=mode & 0o7777,
            uid=caller.uid,
            gid=parent.gid if inherits else caller.gid,
            mtime_ns=now_ns,
            kind=kind,
        )

    # -- removing and renaming ---------------------------------------------------------------------

    async def unlink(self, parent: Ino, name: str) -> None:
        """Remove a file or symbolic link.

        Raises:
            IsADirectory, NotFound, ReadOnly: as they say.
        """
        self._core.check_writable()
        check_changeable(parent, name)
        directory = self._table.directory(parent)
        await self._remover.unlink(await self._directories.find(directory, name))
        self.note_change(directory.entry.key, time.time_ns())

    async def rmdir(self, parent: Ino, name: str) -> None:
        """Remove an empty directory.

        Raises:
            NotADirectory, NotEmpty, NotFound, ReadOnly: as they say.
        """
        self._core.check_writable()
        check_changeable(parent, name)
        directory = self._table.directory(parent)
        await self._remover.rmdir(await self._directories.find(directory, name))
        self.note_change(directory.entry.key, time.time_ns())

    async def rename(self, parent: Ino, name: str, new_parent: Ino, new_name: str, flags: int) -> None:
        """Give a name another place, replacing the target as POSIX says.

        Raises:
            InvalidArgument: RENAME_EXCHANGE, which a bucket cannot do atomically.
            NotFound: there is no such name, or the directory it is to go to was removed.
        """
        self._core.check_writable()
        check_changeable(parent, name)
        check_new_name(new_parent, new_name)
        source_directory = self._table.directory(parent)
        target_directory = self._table.directory(new_parent)
        while True:
            await self._directories.ready(target_directory)
            entry = await self._directories.find(source_directory, name)
            self._directories.check_there(target_directory)
            if await self._renamer.rename(entry, target_directory, new_name, flags):
                break
        now_ns = time.time_ns()
        self.note_change(source_directory.entry.key, now_ns)
        self.note_change(target_directory.entry.key, now_ns)

    def note_change(self, prefix: str, now_ns: int) -> None:
        """A directory's own times change with its names; kept here, not sent."""
        directory = self._index.directory(prefix)
        if directory is None:
            return
        self._table.put(touched(directory, now_ns))
