"""What the kernel does between a process and the daemon: caches names, counts look-ups, retries ESTALE.

Names stay cached until the daemon says they are stale, so that a forgotten invalidation shows as a stale
answer, and a look-up that is never forgotten as an inode that stays.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from exaifs.errors import Exists, NotADirectory, NotFound, Stale
from exaifs.fs.filesystem import FileSystem
from exaifs.fs.upstream.invalidation import StaleName
from exaifs.model import ROOT_INO, Attributes, Handle, Ino
from tests.support.paths import CALLER

T = TypeVar("T")


def split(path: str) -> tuple[str, str]:
    """Split a path into its directory and its name."""
    head, _, name = path.rpartition("/")
    return head, name


class Kernel:
    """System calls by path on one mount."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        self._names: dict[tuple[Ino, str], Ino] = {}
        self._lookups: Counter[Ino] = Counter()
        self._opens: Counter[Ino] = Counter()

    # -- names -------------------------------------------------------------------------------------

    async def walk(self, path: str) -> Ino:
        """Return what a path stands for, asking only for names that are not cached."""
        ino = ROOT_INO
        for part in [part for part in path.split("/") if part]:
            known = self._names.get((ino, part))
            ino = await self._lookup(ino, part) if known is None else known
        return ino

    async def _lookup(self, parent: Ino, name: str) -> Ino:
        attributes = await self.fs.namespace.lookup(parent, name)
        self._instantiate(parent, name, attributes.ino)
        return attributes.ino

    def _instantiate(self, parent: Ino, name: str, ino: Ino) -> None:
        """Cache a name; the daemon counted one look-up for it."""
        self._lookups[ino] += 1
        before = self._names.get((parent, name))
        if before is not None and before != ino:
            self._drop(parent, name)
        self._names[parent, name] = ino

    def _drop(self, parent: Ino, name: str) -> None:
        """Forget a name and everything cached below it."""
        ino = self._names.pop((parent, name), None)
        if ino is None:
            return
        for below, child in [known for known in self._names if known[0] == ino]:
            self._drop(below, child)
        self._forget_unused(ino)

    def _forget_unused(self, ino: Ino) -> None:
        if ino not in self._names.values() and not self._opens[ino] and self._lookups[ino]:
            self.fs.namespace.forget([(ino, self._lookups.pop(ino))])

    async def listen(self) -> None:
        """Take what the daemon's notifying task would tell, until cancelled."""
        while True:
            invalidation = await self.fs.invalidations.take()
            if isinstance(invalidation, StaleName):
                self._drop(invalidation.parent, invalidation.name)

    def drop_caches(self) -> None:
        """Echo 2 into drop_caches."""
        for parent, name in [known for known in self._names if known[0] == ROOT_INO]:
            self._drop(parent, name)

    async def again(self, path: str, call: Callable[[], Awaitable[T]]) -> T:
        """Do a system call; on ESTALE look all names up anew, and do it once more."""
        try:
            return await call()
        except Stale:
            parent = ROOT_INO
            for part in [part for part in path.split("/") if part]:
                ino = self._names.get((parent, part))
                if ino is None:
                    break
                self._drop(parent, part)
                parent = ino
            return await call()

    # -- system calls ------------------------------------------------------------------------------

    async def stat(self, path: str) -> Attributes:
        async def call() -> Attributes:
            return await self.fs.namespace.getattr(await self.walk(path))

        return await self.again(path, call)

    async def open(self, path: str, flags: int) -> tuple[Handle, Ino]:
        """Open what exists."""

        async def call() -> tuple[Handle, Ino]:
            ino = await self.walk(path)
            self._opens[ino] += 1
            try:
                opened = await self.fs.files.open(ino, flags, CALLER)
            except BaseException:
                self.closed(ino)
                raise
            return opened.handle, ino

        return await self.again(path, call)

    async def create(self, path: str, flags: int = os.O_RDWR) -> tuple[Handle, Ino]:
        """Open with O_CREAT | O_EXCL."""
        head, name = split(path)

        async def call() -> tuple[Handle, Ino]:
            parent = await self._absent(head, name)
            handle, attributes = await self.fs.files.create(parent, name, 0o644, flags, CALLER)
            self._instantiate(parent, name, attributes.ino)
            self._opens[attributes.ino] += 1
            return handle, attributes.ino

        return await self.again(path, call)

    async def _absent(self, head: str, name: str) -> Ino:
        """Return the parent of a name that must not exist, as the kernel makes sure first."""
        parent = await self.walk(head)
        try:
            if (parent, name) not in self._names:
                await self._lookup(parent, name)
        except NotFound:
            return parent
        raise Exists(f"{name!r} exists")

    def closed(self, ino: Ino) -> None:
        """Count a handle that was released, or a call that has ended."""
        self._opens[ino] -= 1
        self._forget_unused(ino)

    async def read_all(self, handle: Handle, chunk_bytes: int = 128 * 1024) -> bytes:
        parts: list[bytes] = []
        offset = 0
        while part := await self.fs.files.read(handle, offset, chunk_bytes):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    async def release(self, handle: Handle, ino: Ino) -> None:
        await self.fs.files.release(handle)
        self.closed(ino)

    async def ls(self, path: str) -> dict[str, Attributes]:
        """List with attributes, as readdirplus does: every name is looked up."""

        async def call() -> dict[str, Attributes]:
            ino = await self.walk(path)
            handle = await self.fs.namespace.opendir(ino)
            found = {}
            try:
                for listed in await self.fs.namespace.readdir(handle, 0):
                    if listed.entry is not None:
                        self.fs.namespace.took(listed)
                        self._instantiate(ino, listed.name, listed.entry.ino)
                        found[listed.name] = listed.attributes
            finally:
                self.fs.namespace.releasedir(handle)
            return found

        return await self.again(path, call)

    async def mkdir(self, path: str) -> None:
        head, name = split(path)

        async def call() -> None:
            parent = await self._absent(head, name)
            made = await self.fs.namespace.mkdir(parent, name, 0o755, CALLER)
            self._instantiate(parent, name, made.ino)

        await self.again(path, call)

    async def symlink(self, target: str, path: str) -> None:
        head, name = split(path)

        async def call() -> None:
            parent = await self._absent(head, name)
            made = await self.fs.namespace.symlink(parent, name, target.encode(), CALLER)
            self._instantiate(parent, name, made.ino)

        await self.again(path, call)

    async def unlink(self, path: str) -> None:
        await self._leave(path, self.fs.namespace.unlink)

    async def rmdir(self, path: str) -> None:
        await self._leave(path, self.fs.namespace.rmdir)

    async def _leave(self, path: str, remove: Callable[[Ino, str], Awaitable[None]]) -> None:
        head, name = split(path)

        async def call() -> None:
            parent = await self.walk(head)
            await self.walk(path)
            await remove(parent, name)
            self._drop(parent, name)

        await self.again(path, call)

    async def rename(self, old: str, new: str, flags: int = 0) -> None:
        head, name = split(old)
        new_head, new_name = split(new)

        async def call() -> None:
            parent, new_parent = await self.walk(head), await self.walk(new_head)
            await self.walk(old)
            with suppress(NotFound, NotADirectory):
                await self.walk(new)
            await self.fs.namespace.rename(parent, name, new_parent, new_name, flags)
            if (parent, name) == (new_parent, new_name):
                return
            ino = self._names.pop((parent, name), None)
            self._drop(new_parent, new_name)
            if ino is not None:
                self._names[new_parent, new_name] = ino

        await self.again(old, call)

    async def call_ino(self, path: str, call: Callable[[Ino], Awaitable[T]]) -> T:
        """Do something with what a path stands for; it is not forgotten before that is done."""

        async def act() -> T:
            ino = await self.walk(path)
            self._opens[ino] += 1
            try:
                return await call(ino)
            finally:
                self.closed(ino)

        return await self.again(path, act)
