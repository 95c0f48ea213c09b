"""A file system in memory behind the interface of `exaifs.fs`, to try the FUSE adapter alone.

It counts the kernel's lookups exactly, fails where it is told to, and keeps nothing.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from exaifs.errors import (
    BadHandle,
    Exists,
    NoAttribute,
    NotADirectory,
    NotEmpty,
    NotFound,
    Stale,
    Unreachable,
)
from exaifs.fs.upstream.invalidation import Invalidation, StaleAttributes, StaleName
from exaifs.model import ROOT_INO, AttributeChange, Attributes, Caller, Handle, Ino


@dataclass(frozen=True, slots=True)
class MemEntry:
    name: str
    attributes: Attributes
    cookie: int


@dataclass(frozen=True, slots=True)
class MemOpened:
    handle: Handle
    keep_cache: bool = True
    direct_io: bool = False


@dataclass(frozen=True, slots=True)
class MemStatistics:
    block_size: int = 4096
    blocks: int = 1 << 20
    blocks_free: int = 1 << 19
    files: int = 1000
    files_free: int = 500
    name_max: int = 255


@dataclass
class _Node:
    attributes: Attributes
    data: bytearray = field(default_factory=bytearray)
    children: dict[str, Ino] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    lookups: int = 0
    links: int = 1


class MemFileSystem:
    """Plays `FileSystem`, `Namespace`, `Files` and `Xattrs` at once.

    A file whose content is `raise KIND` raises that kind of error when it is read. Setting the attribute
    `user.another-host` of any file plays another host, see `_another_host`.

    Args:
        report: a file that receives the lookup counts that are not zero, after each forget.
    """

    attr_timeout_s = 60.0

    def __init__(self, report: Path | None = None) -> None:
        self.namespace = self.files = self.xattrs = self
        self._report = report
        self._next = 2
        self._handles: dict[Handle, Ino] = {}
        self._listings: dict[Handle, list[MemEntry]] = {}
        self._nodes: dict[Ino, _Node] = {ROOT_INO: _Node(self._attributes(ROOT_INO, stat.S_IFDIR | 0o755))}
        self.invalidations = self
        self._stale, self._next_stale = trio.open_memory_channel[Invalidation](math.inf)

    def entry_timeout_s(self, _attributes: Attributes) -> float:
        return 60.0

    def _attributes(self, ino: Ino, mode: int) -> Attributes:
        now = time.time_ns()
        return Attributes(ino, mode, 1, os.getuid(), os.getgid(), 0, now, now, now)

    def _new(self, parent: Ino, name: str, mode: int) -> _Node:
        children = self._node(parent).children
        if name in children:
            raise Exists(name)
        ino = Ino(self._next)
        self._next += 1
        node = self._nodes[ino] = _Node(self._attributes(ino, mode), lookups=1)
        children[name] = ino
        return node

    def _node(self, ino: Ino) -> _Node:
        if ino not in self._nodes:
            raise Stale(str(ino))
        return self._nodes[ino]

    def _child(self, parent: Ino, name: str) -> _Node:
        node = self._node(parent)
        if name not in node.children:
            raise NotFound(name)
        return self._node(node.children[name])

    def _opened(self, fh: Handle) -> _Node:
        if fh not in self._handles:
            raise BadHandle(str(fh))
        return self._node(self._handles[fh])

    def _handle(self, ino: Ino) -> Handle:
        handle = Handle(self._next)
        self._next += 1
        self._handles[handle] = ino
        return handle

    def _write_report(self) -> None:
        if self._report is not None:
            counted = [f"{ino} {node.lookups}" for ino, node in self._nodes.items() if node.lookups]
            self._report.write_text("\n".join(counted))

    # --- FileSystem

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def drain(self, deadline_s: float) -> int:
        assert deadline_s >= 0
        return 0

    # --- Invalidations

    async def take(self) -> Invalidation:
        return await self._next_stale.receive()

    def _another_host(self, command: bytes) -> None:
        """Change a name or an inode as if another host had: `rm NAME` or `chmod NAME`, in the root.

        `crash it` makes a background task fail.
        """
        verb, name = command.decode().split()
        if verb == "crash":
            self._stale.close()
            return
        node = self._child(ROOT_INO, name)
        if verb == "rm":
            del self._node(ROOT_INO).children[name]
            self._stale.send_nowait(StaleName(ROOT_INO, name))
        else:
            node.attributes = replace(node.attributes, mode=stat.S_IFREG | 0o600)
            self._stale.send_nowait(StaleAttributes(node.attributes.ino))

    # --- Namespace

    async def lookup(self, parent: Ino, name: str) -> Attributes:
        node = self._child(parent, name)
        node.lookups += 1
        return node.attributes

    def forget(self, forgotten: Sequence[tuple[Ino, int]]) -> None:
        for ino, count in forgotten:
            node = self._nodes.get(ino)
            assert node is not None, f"forget of unknown inode {ino}"
            node.lookups -= count
            assert node.lookups >= 0 or ino == ROOT_INO, f"inode {ino}: {node.lookups}"
        self._write_report()

    async def getattr(self, ino: Ino) -> Attributes:
        return self._node(ino).attributes

    async def setattr(self, ino: Ino, change: AttributeChange, fh: Handle | None) -> Attributes:
        del fh
        node = self._node(ino)
        old = node.attributes
        if change.size_bytes is not None:
            size = change.size_bytes
            node.data[:] = node.data[:size] + bytes(max(0, size - len(node.data)))
        node.attributes = replace(
            old,
            mode=old.mode if change.mode is None else stat.S_IFMT(old.mode) | change.mode,
            uid=old.uid if change.uid is None else change.uid,
            gid=old.gid if change.gid is None else change.gid,
            size_bytes=len(node.data),
            atime_ns=old.atime_ns if change.atime_ns is None else change.atime_ns,
            mtime_ns=old.mtime_ns if change.mtime_ns is None else change.mtime_ns,
        )
        return node.attributes

    async def mkdir(self, parent: Ino, name: str, mode: int, caller: Caller) -> Attributes:
        del caller
        return self._new(parent, name, stat.S_IFDIR | mode).attributes

    async def symlink(self, parent: Ino, name: str, target: bytes, caller: Caller) -> Attributes:
        del caller
        node = self._new(parent, name, stat.S_IFLNK | 0o777)
        node.data[:] = target
        return node.attributes

    async def mknod(self, parent: Ino, name: str, mode: int, caller: Caller) -> Attributes:
        del caller
        return self._new(parent, name, stat.S_IFREG | mode).attributes

    async def readlink(self, ino: Ino) -> bytes:
        return bytes(self._node(ino).data)

    async def unlink(self, parent: Ino, name: str) -> None:
        self._child(parent, name).links -= 1
        del self._node(parent).children[name]

    async def rmdir(self, parent: Ino, name: str) -> None:
        if self._child(parent, name).children:
            raise NotEmpty(name)
        del self._node(parent).children[name]

    async def rename(self, parent: Ino, name: str, new_parent: Ino, new_name: str, flags: int) -> None:
        if flags & 1 and new_name in self._node(new_parent).children:
            raise Exists(new_name)
        moved = self._child(parent, name).attributes.ino
        del self._node(parent).children[name]
        self._node(new_parent).children[new_name] = moved

    async def opendir(self, ino: Ino) -> Handle:
        node = self._node(ino)
        if not node.attributes.is_dir:
            raise NotADirectory(str(ino))
        handle = self._handle(ino)
        self._listings[handle] = []
        return handle

    def releasedir(self, fh: Handle) -> None:
        del self._handles[fh], self._listings[fh]

    async def readdir(self, fh: Handle, after: int) -> Iterator[MemEntry]:
        if after == 0:
            children = self._opened(fh).children.items()
            self._listings[fh] = [
                MemEntry(name, self._node(ino).attributes, cookie)
                for cookie, (name, ino) in enumerate(children, start=1)
            ]
        return iter(self._listings[fh][after:])

    def took(self, entry: MemEntry) -> None:
        self._node(entry.attributes.ino).lookups += 1

    async def statfs(self) -> MemStatistics:
        return MemStatistics()

    # --- Files

    async def create(
        self, parent: Ino, name: str, mode: int, flags: int, caller: Caller
    ) -> tuple[Handle, Attributes]:
        del flags, caller
        attributes = self._new(parent, name, stat.S_IFREG | mode).attributes
        return self._handle(attributes.ino), attributes

    async def open(self, ino: Ino, flags: int, caller: Caller) -> MemOpened:
        del flags, caller
        self._node(ino)
        return MemOpened(self._handle(ino))

    def read_nowait(self, fh: Handle, offset: int, size_bytes: int) -> bytes | None:
        node = self._opened(fh)
        if node.data.startswith(b"raise "):
            return None
        return bytes(node.data[offset : offset + size_bytes])

    async def read(self, fh: Handle, offset: int, size_bytes: int) -> bytes:
        del offset, size_bytes
        what = bytes(self._opened(fh).data).split()[1]
        await trio.lowlevel.checkpoint()
        if what == b"bug":
            raise KeyError("a bug")
        if what == b"group":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._fail)
        if what == b"full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if what == b"hang":
            await trio.sleep_forever()
        raise Unreachable("no answer")

    async def _fail(self) -> None:
        await trio.lowlevel.checkpoint()
        raise NotFound("gone")

    async def write(self, fh: Handle, offset: int, data: bytes) -> int:
        node = self._opened(fh)
        if len(node.data) < offset:
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + len(data)] = data
        node.attributes = replace(node.attributes, size_bytes=len(node.data))
        return len(data)

    async def flush(self, fh: Handle) -> None:
        self._opened(fh)

    async def fsync(self, fh: Handle, datasync: bool) -> None:  # noqa: FBT001 - the real signature
        del datasync
        self._opened(fh)

    async def release(self, fh: Handle) -> None:
        del self._handles[fh]

    # --- Xattrs

    async def get(self, ino: Ino, name: bytes, uid: int | None = None) -> bytes:  # noqa: ARG002 - as Xattrs
        xattrs = self._node(ino).xattrs
        if name not in xattrs:
            raise NoAttribute(repr(name))
        return xattrs[name]

    async def list(self, ino: Ino) -> list[bytes]:
        return list(self._node(ino).xattrs)

    async def set(self, ino: Ino, name: bytes, value: bytes) -> None:
        if name == b"user.another-host":
            self._another_host(value)
            return
        self._node(ino).xattrs[name] = value

    async def remove(self, ino: Ino, name: bytes) -> None:
        if name not in self._node(ino).xattrs:
            raise NoAttribute(repr(name))
        del self._node(ino).xattrs[name]
