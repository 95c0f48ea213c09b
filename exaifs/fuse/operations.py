"""The FUSE handlers: decode, one call into `fs`, encode. No decisions.

pyfuse3 calls them from its worker tasks, many at once. `translate.answered` turns every exception into
an errno, so nothing a handler does can end the mount.
"""

# pyfuse3.Operations documents every handler.
# ruff: noqa: D102
from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyfuse3
import trio

from exaifs.errors import ExaifsError, NotPermitted, NotSupported
from exaifs.fuse.invalidate import forget_attributes
from exaifs.fuse.translate import answered, attribute_change, caller, entry_attributes, quiet_errno
from exaifs.model import Attributes, Handle, Ino

if TYPE_CHECKING:
    from exaifs.fs.filesystem import FileSystem

_USER_NAMESPACE = b"user."


class Operations(pyfuse3.Operations):
    """Requests of the kernel to one file system.

    Args:
        fs: what answers them.

    `started` is set when the kernel has greeted the mount: from then on it is usable.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, fs: FileSystem) -> None:
        super().__init__()
        self._fs = fs
        self._namespace = fs.namespace
        self._files = fs.files
        self._xattrs = fs.xattrs
        self.started = trio.Event()

    def init(self) -> None:
        self.started.set()

    def _entry(self, attributes: Attributes) -> pyfuse3.EntryAttributes:
        own_s = attributes.timeout_s
        return entry_attributes(
            attributes,
            entry_timeout_s=self._fs.entry_timeout_s(attributes) if own_s is None else own_s,
            attr_timeout_s=self._fs.attr_timeout_s if own_s is None else own_s,
        )

    @answered
    async def lookup(
        self, parent_inode: int, name: bytes, _ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._entry(await self._namespace.lookup(Ino(parent_inode), os.fsdecode(name)))

    @answered
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self._namespace.forget([(Ino(ino), count) for ino, count in inode_list])

    @answered
    async def getattr(self, inode: int, _ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(await self._namespace.getattr(Ino(inode)))

    @answered
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        _ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        handle = None if fh is None else Handle(fh)
        change = attribute_change(attr, fields)
        try:
            return self._entry(await self._namespace.setattr(Ino(inode), change, handle))
        except ExaifsError:
            # The kernel takes it that nothing was changed; but a file may have its new size, which could
            # only not be sent. Appending to it at the old one would leave zeros between.
            forget_attributes(Ino(inode))
            raise

    @answered
    async def readlink(self, inode: int, _ctx: pyfuse3.RequestContext) -> bytes:
        return bytes(await self._namespace.readlink(Ino(inode)))

    @answered
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, _rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if not stat.S_ISREG(mode):
            raise NotPermitted("a bucket holds no devices, fifos or sockets")
        made = await self._namespace.mknod(Ino(parent_inode), os.fsdecode(name), mode & 0o7777, caller(ctx))
        return self._entry(made)

    @answered
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        made = await self._namespace.mkdir(Ino(parent_inode), os.fsdecode(name), mode & 0o7777, caller(ctx))
        return self._entry(made)

    @answered
    async def unlink(self, parent_inode: int, name: bytes, _ctx: pyfuse3.RequestContext) -> None:
        await self._namespace.unlink(Ino(parent_inode), os.fsdecode(name))

    @answered
    async def rmdir(self, parent_inode: int, name: bytes, _ctx: pyfuse3.RequestContext) -> None:
        await self._namespace.rmdir(Ino(parent_inode), os.fsdecode(name))

    @answered
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        made = await self._namespace.symlink(Ino(parent_inode), os.fsdecode(name), target, caller(ctx))
        return self._entry(made)

    @answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        _ctx: pyfuse3.RequestContext,
    ) -> None:
        await self._namespace.rename(
            Ino(parent_inode_old),
            os.fsdecode(name_old),
            Ino(parent_inode_new),
            os.fsdecode(name_new),
            flags,
        )

    @answered
    async def link(
        self, _inode: int, _new_parent_inode: int, _new_name: bytes, _ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        raise NotPermitted("a bucket holds no hard links")

    @answered
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        opened = await self._files.open(Ino(inode), flags, caller(ctx))
        return pyfuse3.FileInfo(fh=opened.handle, keep_cache=opened.keep_cache, direct_io=opened.direct_io)

    @answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        handle, attributes = await self._files.create(
            Ino(parent_inode), os.fsdecode(name), mode & 0o7777, flags, caller(ctx)
        )
        return pyfuse3.FileInfo(fh=handle), self._entry(attributes)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        data = self._files.read_nowait(Handle(fh), off, size)
        return await self._files.read(Handle(fh), off, size) if data is None else data

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._files.write(Handle(fh), off, buf)

    @answered
    async def flush(self, fh: int) -> None:
        await self._files.flush(Handle(fh))

    @answered
    async def fsync(self, fh: int, datasync: bool) -> None:  # noqa: FBT001 - pyfuse3's signature
        await self._files.fsync(Handle(fh), datasync)

    @answered
    async def release(self, fh: int) -> None:
        await self._files.release(Handle(fh))

    @answered
    async def opendir(self, inode: int, _ctx: pyfuse3.RequestContext) -> int:
        return await self._namespace.opendir(Ino(inode))

    @answered
    async def readdir(self, fh: int, off: int, token: pyfuse3.ReaddirToken) -> None:
        taken = []
        for entry in await self._namespace.readdir(Handle(fh), off):
            attributes = self._entry(entry.attributes)
            if not pyfuse3.readdir_reply(token, os.fsencode(entry.name), attributes, entry.cookie):
                break
            taken.append(entry)
        # Only now: had the loop failed, the kernel would have got none of them.
        for entry in taken:
            self._namespace.took(entry)

    @answered
    async def releasedir(self, fh: int) -> None:
        self._namespace.releasedir(Handle(fh))

    @answered
    async def fsyncdir(self, fh: int, _datasync: bool) -> None:  # noqa: FBT001 - pyfuse3's signature
        """Names are durable as soon as the call that changed them has returned."""

    @answered
    async def statfs(self, _ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        statistics = await self._namespace.statfs()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = statistics.block_size
        data.f_blocks = statistics.blocks
        data.f_bfree = data.f_bavail = statistics.blocks_free
        data.f_files = statistics.files
        data.f_ffree = data.f_favail = statistics.files_free
        data.f_namemax = statistics.name_max
        return data

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        _check_namespace(name)
        return await self._xattrs.get(Ino(inode), name, ctx.uid)

    @answered
    async def listxattr(self, inode: int, _ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return await self._xattrs.list(Ino(inode))

    @answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, _ctx: pyfuse3.RequestContext) -> None:
        # pyfuse3 has asked getxattr before, where XATTR_CREATE or XATTR_REPLACE was given.
        _check_namespace(name)
        await self._xattrs.set(Ino(inode), name, value)

    @answered
    async def removexattr(self, inode: int, name: bytes, _ctx: pyfuse3.RequestContext) -> None:
        _check_namespace(name)
        await self._xattrs.remove(Ino(inode), name)

    # The kernel then does it by itself and does not ask again.
    poll = quiet_errno(errno.ENOSYS)


def _check_namespace(name: bytes) -> None:
    """Refuse names outside `user.*`.

    EOPNOTSUPP, never ENODATA or ENOSYS: ls -l then asks once for a whole directory instead of once or
    twice for each file, and `user.*` keeps working.
    """
    if not name.startswith(_USER_NAMESPACE):
        raise NotSupported("only user.* attributes exist here")
