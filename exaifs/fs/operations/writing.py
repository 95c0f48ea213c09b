"""Changes to a file's bytes: the staged copy is made at the first of them.

Writers of one file wait for each other and for its publishing by the inode's lock; readers never do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from exaifs.errors import ExaifsError, InvalidArgument, IsADirectory
from exaifs.fs.core import Core
from exaifs.fs.sending.publish import Publisher
from exaifs.fs.staged.staging import Staged
from exaifs.fs.tables.inodes import Inode
from exaifs.model import AttributeChange


class Writer:
    """Writes and truncates.

    Args:
        core: whose contents a file that is changed in part is filled from.
        publisher: knows the size limit, and publishes a truncation that no close will follow.
        directory: where staged files live.
    """

    def __init__(self, core: Core, publisher: Publisher, directory: Path) -> None:
        self._core = core
        self._publisher = publisher
        self._directory = directory

    async def stage_new(self, inode: Inode) -> None:
        """Give a new file its empty staged copy.

        Raises:
            NoSpace: the cache disk is full.
        """
        staged = await self._core.contents.with_room(0, self._created)
        if inode.staged is None:
            inode.staged = staged
        else:  # by somebody who opened it while room was made
            staged.close()

    async def _created(self) -> Staged:
        return Staged.create(self._directory)

    async def write(
        self, inode: Inode, offset: int, data: bytes, check: Callable[[], None] = lambda: None
    ) -> int:
        """Write all of `data`.

        Args:
            inode: a file.
            offset: where.
            data: what.
            check: called when the file can be written; raises what keeps it from being.

        Raises:
            FileTooLarge: past the bucket's limit.
            NoSpace: the cache disk is full.
        """
        async with inode.lock:
            self._publisher.check_size(inode, offset + len(data))
            written = await self._core.contents.with_room(
                len(data), partial(self._write, inode, offset, data, check)
            )
            _modified(inode)
        return written

    async def _write(self, inode: Inode, offset: int, data: bytes, check: Callable[[], None]) -> int:
        staged = await self._writable(inode)
        check()
        return staged.write_at(offset, data)

    async def resize(self, inode: Inode, size_bytes: int, *, publish: bool) -> None:
        """Truncate, or extend with zeros.

        Args:
            inode: a file.
            size_bytes: its new size.
            publish: send it now unless it is open for writing, because no close will follow.

        Raises:
            IsADirectory, InvalidArgument, FileTooLarge: as they say.
        """
        if inode.entry.is_dir:
            raise IsADirectory("a directory has no size to set")
        if inode.entry.kind != "file":
            raise InvalidArgument("only files have a size to set")
        async with inode.lock:
            self._publisher.check_size(inode, size_bytes)
            await self._core.contents.with_room(0, partial(self._resize, inode, size_bytes))
            _modified(inode)
            if publish and inode.writers == 0:
                try:
                    await self._publisher.close_and_settle(inode)
                except ExaifsError:
                    await self._publisher.keep_unsent(inode)  # the size was changed all the same
                    raise

    async def _resize(self, inode: Inode, size_bytes: int) -> None:
        staged = await self._writable(inode, keep_bytes=size_bytes > 0)
        staged.truncate(size_bytes)

    async def _writable(self, inode: Inode, *, keep_bytes: bool = True) -> Staged:
        """Return a staged copy that may be changed: never the one that a close was answered for."""
        staged = inode.staged
        if staged is None:
            return await self._stage(inode, keep_bytes=keep_bytes)
        if staged.sealed:
            fresh = await staged.copy() if keep_bytes else staged.empty_copy()
            staged.rest()
            inode.staged = staged = fresh
        return staged

    async def _stage(self, inode: Inode, *, keep_bytes: bool = True) -> Staged:
        staged = Staged.create(self._directory)
        try:
            if keep_bytes and inode.entry.size_bytes > 0 and not inode.entry.pending:
                stored = self._core.stored(inode.entry)
                staged.filled(await self._core.contents.copy_to(stored, staged.fd))
        except BaseException:
            staged.close()
            raise
        inode.staged = staged
        return staged


def _modified(inode: Inode) -> None:
    now_ns = time.time_ns()
    inode.change_posix(AttributeChange(mtime_ns=now_ns), now_ns)
