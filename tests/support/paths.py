"""Paths on a `FileSystem` without a kernel: does what the kernel would do for each system call.

Look-ups are counted and forgotten as the kernel counts and forgets them, so that a leak shows.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from exaifs.config import load
from exaifs.fs.filesystem import FileSystem
from exaifs.model import ROOT_INO, AttributeChange, Attributes, Caller, Handle, Ino
from tests.support.double import DoubleServer

CALLER = Caller(uid=1000, gid=1000, pid=1, umask=0o022)


class Paths:
    """System calls by path."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs

    @asynccontextmanager
    async def inode(self, path: str) -> AsyncIterator[Ino]:
        """Look a path up, component by component, and forget it at the end."""
        held: list[Ino] = []
        ino = ROOT_INO
        try:
            for part in [part for part in path.split("/") if part]:
                ino = (await self.fs.namespace.lookup(ino, part)).ino
                held.append(ino)
            yield ino
        finally:
            self.fs.namespace.forget([(one, 1) for one in held])

    @asynccontextmanager
    async def parent(self, path: str) -> AsyncIterator[tuple[Ino, str]]:
        head, _, name = path.rpartition("/")
        async with self.inode(head) as ino:
            yield ino, name

    async def stat(self, path: str) -> Attributes:
        async with self.inode(path) as ino:
            return await self.fs.namespace.getattr(ino)

    @asynccontextmanager
    async def open(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> AsyncIterator[Handle]:
        """Open, then close, as system calls do: flush may raise, release never does."""
        if flags & os.O_CREAT:
            async with self.parent(path) as (parent, name):
                handle, attributes = await self.fs.files.create(parent, name, mode, flags, CALLER)
            held = attributes.ino
        else:
            async with self.inode(path) as ino:
                opened = await self.fs.files.open(ino, flags, CALLER)
                await self.fs.namespace.lookup(*await self._where(path))
                handle, held = opened.handle, ino
        try:
            yield handle
            await self.fs.files.flush(handle)
        finally:
            await self.fs.files.release(handle)
            self.fs.namespace.forget([(held, 1)])

    async def _where(self, path: str) -> tuple[Ino, str]:
        async with self.parent(path) as where:
            return where

    async def create(self, path: str, data: bytes = b"", mode: int = 0o644) -> None:
        async with self.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode) as handle:
            await self.write_all(handle, data)

    async def overwrite(self, path: str, data: bytes) -> None:
        async with self.open(path, os.O_WRONLY | os.O_TRUNC) as handle:
            await self.write_all(handle, data)

    async def write_all(self, handle: Handle, data: bytes, offset: int = 0) -> None:
        for start in range(0, len(data), 128 * 1024):
            await self.fs.files.write(handle, offset + start, data[start : start + 128 * 1024])

    async def read(self, path: str) -> bytes:
        async with self.open(path) as handle:
            return await self.read_all(handle)

    async def read_all(self, handle: Handle, chunk_bytes: int = 128 * 1024) -> bytes:
        parts: list[bytes] = []
        offset = 0
        while part := await self.fs.files.read(handle, offset, chunk_bytes):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    async def ls(self, path: str = "") -> list[str]:
        """Names without `.` and `..`."""
        return [name for name in await self.ls_all(path) if name not in {".", ".."}]

    async def ls_all(self, path: str = "") -> list[str]:
        async with self.inode(path) as ino:
            handle = await self.fs.namespace.opendir(ino)
            try:
                return [entry.name for entry in await self.fs.namespace.readdir(handle, 0)]
            finally:
                self.fs.namespace.releasedir(handle)

    async def mkdir(self, path: str, mode: int = 0o755) -> None:
        async with self.parent(path) as (parent, name):
            attributes = await self.fs.namespace.mkdir(parent, name, mode, CALLER)
            self.fs.namespace.forget([(attributes.ino, 1)])

    async def symlink(self, target: str, path: str) -> None:
        async with self.parent(path) as (parent, name):
            attributes = await self.fs.namespace.symlink(parent, name, os.fsencode(target), CALLER)
            self.fs.namespace.forget([(attributes.ino, 1)])

    async def readlink(self, path: str) -> str:
        async with self.inode(path) as ino:
            return os.fsdecode(await self.fs.namespace.readlink(ino))

    async def unlink(self, path: str) -> None:
        async with self.parent(path) as (parent, name):
            await self.fs.namespace.unlink(parent, name)

    async def rmdir(self, path: str) -> None:
        async with self.parent(path) as (parent, name):
            await self.fs.namespace.rmdir(parent, name)

    async def rename(self, old: str, new: str, flags: int = 0) -> None:
        async with self.parent(old) as (parent, name), self.parent(new) as (new_parent, new_name):
            await self.fs.namespace.rename(parent, name, new_parent, new_name, flags)

    async def setattr(self, path: str, change: AttributeChange) -> Attributes:
        async with self.inode(path) as ino:
            return await self.fs.namespace.setattr(ino, change, None)

    async def getxattr(self, path: str, name: str) -> bytes:
        async with self.inode(path) as ino:
            return await self.fs.xattrs.get(ino, name.encode())

    async def listxattr(self, path: str) -> list[str]:
        async with self.inode(path) as ino:
            return [name.decode() for name in await self.fs.xattrs.list(ino)]

    async def setxattr(self, path: str, name: str, value: bytes) -> None:
        async with self.inode(path) as ino:
            await self.fs.xattrs.set(ino, name.encode(), value)

    async def removexattr(self, path: str, name: str) -> None:
        async with self.inode(path) as ino:
            await self.fs.xattrs.remove(ino, name.encode())


async def follow(paths: Paths) -> None:
    """Take in everything up to now."""
    with trio.fail_after(60):
        while await paths.fs.feed.poll():
            pass


@asynccontextmanager
async def mounted(
    server: DoubleServer, directory: Path, *, drain_s: float = 60.0, **settings: Any
) -> AsyncIterator[Paths]:
    """Open a file system on a server; the same directory again is a restart."""
    await trio.Path(directory).mkdir(exist_ok=True)
    config = load(**{"uid": 1000, "gid": 1000, "freshness_s": 3600.0, **settings})
    remote = server.remote()
    hello = await remote.catalog.hello() if server.online else None
    async with FileSystem.open(config, remote, directory, hello) as fs, trio.open_nursery() as nursery:
        await nursery.start(fs.run)
        if server.online and server.trigger_installed:
            with trio.fail_after(60):
                await fs.feed.wait_caught_up()
        yield Paths(fs)
        await fs.drain(drain_s)
        nursery.cancel_scope.cancel()
