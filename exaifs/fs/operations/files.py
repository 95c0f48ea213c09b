"""Open files: create, open, read, write, truncate, flush, fsync, release.

Readers never wait for a lock. Writers take the inode's; the first write makes the staged copy, `flush`
publishes it, the last `release` gives it to the cache.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from exaifs.errors import BadHandle, ExaifsError, IntegrityError, IsADirectory, Stale
from exaifs.fs.core import Core
from exaifs.fs.operations.namespace import Namespace
from exaifs.fs.operations.writing import Writer
from exaifs.fs.report.virtual import VirtualFiles, is_virtual
from exaifs.fs.sending.publish import Publisher
from exaifs.fs.staged.staging import Staged
from exaifs.fs.tables.counters import AccessCounters
from exaifs.fs.tables.handles import HandleTable, OpenedFile, OpenFile
from exaifs.fs.tables.inodes import Inode
from exaifs.model import Attributes, Caller, Handle, Ino
from exaifs.names import path_of

_MOVE_PATIENCE_S = 5.0
"""How long a reader waits for a move of the file that is being carried out."""


class Files:
    """Operations on file handles.

    Args:
        core: inodes and clean bytes.
        handles: open files.
        namespace: makes names for `create`.
        publisher: where dirty bytes go.
        writer: makes and changes staged copies.
        counters: counts reads.
        virtual: what the daemon says about itself.
        revalidate: asks for a file's current version, when the one that is known is gone.
        ask_at_open: whether that is asked at each open, too.
    """

    def __init__(
        self,
        core: Core,
        handles: HandleTable,
        namespace: Namespace,
        *,
        publisher: Publisher,
        writer: Writer,
        counters: AccessCounters,
        virtual: VirtualFiles,
        revalidate: Callable[[Inode], Awaitable[None]],
        ask_at_open: bool = False,
    ) -> None:
        self._core = core
        self._table = core.table
        self._contents = core.contents
        self._handles = handles
        self._namespace = namespace
        self._publisher = publisher
        self._writer = writer
        self._counters = counters
        self._virtual = virtual
        self._revalidate = revalidate
        self._ask_at_open = ask_at_open

    async def create(
        self, parent: Ino, name: str, mode: int, flags: int, caller: Caller
    ) -> tuple[Handle, Attributes]:
        """Make a file and open it; it reaches the bucket when it is closed.

        Raises:
            Exists: the name is taken.
            NameTooLong, ReadOnly, NotADirectory: as they say.
        """
        inode = await self._namespace.make_file(parent, name, mode, caller)
        opened = self._open(inode, flags)
        opened.changed = True
        return opened.handle, self._table.attributes(inode)

    async def open(self, ino: Ino, flags: int, _caller: Caller) -> OpenedFile:
        """Open an existing file.

        Raises:
            IsADirectory, ReadOnly: as they say.
        """
        if is_virtual(ino):
            return self._virtual.open(ino, flags)
        if self._ask_at_open:
            await self._revalidate(self._table.peek(ino))
        inode = self._table.get(ino)
        if inode.entry.is_dir:
            raise IsADirectory(f"{path_of(inode.entry.key)} is a directory")
        if self._table.is_replaced(inode) or (inode.unlinked and inode.opens == 0):
            # The kernel looks the name up again and opens what it stands for now.
            raise Stale(f"{path_of(inode.entry.key)} was replaced by another host")
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        if writing or flags & os.O_TRUNC:
            self._core.check_writable()
        opened = self._open(inode, flags)
        if flags & os.O_TRUNC:
            try:
                await self._writer.resize(inode, 0, publish=False)
            except BaseException:
                self._close(opened)
                raise
            opened.changed = True
        # Content under an inode changes only through this host's kernel, so its pages stay good, unless
        # they are of a copy that was found wrong, or was given up before it could be.
        damage, ref = self._contents.damage, inode.entry.ref
        return OpenedFile(opened.handle, keep_cache=not (damage.take_doubt(ref) or damage.since(ref, 0)))

    def _open(self, inode: Inode, flags: int) -> OpenFile:
        opened = self._handles.open_file(inode, flags)
        opened.damage_seen = self._contents.damage.found
        if not inode.entry.pending:
            opened.pinned = inode.entry.ref
            self._contents.pin(opened.pinned)
        return opened

    def _close(self, opened: OpenFile) -> None:
        self._handles.close_file(opened.handle)
        if opened.pinned is not None:
            self._contents.unpin(opened.pinned)

    def read_nowait(self, fh: Handle, offset: int, size_bytes: int) -> bytes | None:
        """Answer from the staged copy, memory or page cache; None when `read` must be awaited."""
        if is_virtual(fh):
            return self._virtual.read(fh, offset, size_bytes)
        opened = self._handles.file(fh)
        if not opened.readable:
            raise BadHandle("not open for reading")
        inode = opened.inode
        if not opened.was_read:
            opened.was_read = True
            self._table.atimes.note_read(inode.entry, time.time_ns())
        self._check_copy(opened)
        if inode.staged is not None:
            return inode.staged.read_at(offset, size_bytes) if inode.staged.is_proven else None
        if inode.entry.pending:
            raise Stale("the unsent bytes of this file were kept aside; see `exaifs conflicts`")
        if offset >= inode.entry.size_bytes:
            return b""
        return self._contents.read_nowait(inode.entry.ref, offset, size_bytes)

    async def read(self, fh: Handle, offset: int, size_bytes: int) -> bytes:
        """Return bytes, short only at the end of the file.

        Raises:
            Stale: this version is gone from the bucket and was not cached.
            DamagedBytes: an earlier run's unsent bytes are not what was written.
            IntegrityError: the bucket's bytes are not what its row says, or some that were read before were
                not: large files are read before all of them is here.
            RemoteError: not cached, and Supabase does not answer.
        """
        while True:
            data = self.read_nowait(fh, offset, size_bytes)
            if data is not None:
                return data
            opened = self._handles.file(fh)
            inode = opened.inode
            if inode.staged is not None:
                await self._prove(inode, inode.staged)
                continue
            ref = inode.entry.ref
            try:
                fetched = await self._contents.read(self._core.stored(inode.entry), offset, size_bytes)
            except Stale:
                # Our own rename gives the same bytes another version.
                await self._core.claims.wait_free(ref.key)
                with trio.move_on_after(_MOVE_PATIENCE_S):
                    await self._core.changes.outbox.wait_settled(ref.key)
                if inode.entry.ref == ref and inode.staged is None:
                    # Have the next open find what is there now, even if no log ever tells of it.
                    if not (inode.unlinked or self._table.is_replaced(inode)):
                        await self._revalidate(inode)
                    raise
            else:
                self._check_copy(opened)
                return fetched

    def _check_copy(self, opened: OpenFile) -> None:
        """Refuse to go on where an earlier read through this handle may have had wrong bytes."""
        ref = opened.inode.entry.ref
        if self._contents.damage.since(ref, opened.damage_seen):
            raise IntegrityError(
                f"{path_of(ref.key)}: what was read of it came damaged; open it again and read it anew"
            )

    async def _prove(self, inode: Inode, staged: Staged) -> None:
        """Have unsent bytes of an earlier run compared, before anybody reads them."""
        try:
            await staged.prove()
        except ExaifsError:
            if inode.staged is staged:  # else look again: it was sent meanwhile
                raise

    async def write(self, fh: Handle, offset: int, data: bytes) -> int:
        """Write to the staged copy.

        Raises:
            FileTooLarge: past the bucket's limit.
            NoSpace: the cache disk is full.
            IntegrityError: what was read through this handle was damaged.
        """
        opened = self._handles.file(fh)
        if not opened.writable:
            raise BadHandle("not open for writing")
        # Programs write back what they have read, the kernel for mmap(2) in whole pages.
        return await self._writer.write(opened.inode, offset, data, partial(self._check_copy, opened))

    async def flush(self, fh: Handle) -> None:
        """close(2) of one descriptor: its bytes are in Supabase, or in the journal, when this returns.

        Raises:
            ExaifsError: they are not; the staged copy is kept and sent later.
        """
        if is_virtual(fh):
            return
        opened = self._handles.file(fh)
        inode = opened.inode
        if opened.answerable and inode.dirty:
            async with inode.lock:
                await self._publisher.close(inode)

    async def fsync(self, fh: Handle, _datasync: bool) -> None:  # noqa: FBT001  # pyfuse3's signature
        """Make what was written durable: it is in the journal when this returns, and is sent soon.

        Each write through a handle of open(2) with O_SYNC or O_DSYNC ends here, too, and keeps the promise
        of a close.

        Raises:
            NoSpace, ExaifsError: the local disk, or for O_SYNC Supabase, refuses.
        """
        if is_virtual(fh):
            return
        opened = self._handles.file(fh)
        inode = opened.inode
        if inode.dirty:
            async with inode.lock:
                if opened.flags & os.O_DSYNC:  # a bit of O_SYNC, too
                    await self._publisher.close(inode, seal=False)
                else:
                    await self._publisher.keep(inode)

    async def release(self, fh: Handle) -> None:
        """The last reference to a handle is gone; errors reach nobody, so nothing is lost here."""
        if is_virtual(fh):
            self._virtual.release(fh)
            return
        opened = self._handles.file(fh)
        inode = opened.inode
        self._close(opened)
        if opened.was_read and not inode.unlinked:
            self._counters.count(inode.entry.key)
        if inode.opens == 0 and inode.staged is not None:
            await self._publisher.finish(inode)
        self._table.release(inode)
