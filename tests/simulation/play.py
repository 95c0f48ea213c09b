"""Plays programs of single steps by two mounts and an outside writer, and judges every answer.

A mount that has taken in every change must answer as POSIX says for what the bucket holds; one that has
not may also answer for an older state, but never with other bytes than a version that was.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trio.testing

from exaifs.errors import (
    ExaifsError,
    Exists,
    InvalidArgument,
    IsADirectory,
    NoAttribute,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    Rejected,
    Stale,
)
from exaifs.model import AttributeChange, Handle, Ino
from exaifs.names import PLACEHOLDER, path_of
from tests.simulation.kernel import Kernel
from tests.simulation.world import (
    Tree,
    check_agreement,
    check_database,
    check_index,
    check_nothing_left,
    let_go,
    opened,
    settle,
    visible,
)
from tests.support.double import DoubleServer

OUTDATED = (NotFound, Exists, NotEmpty, IsADirectory, NotADirectory, Stale, InvalidArgument, NotPermitted)
"""What a mount may answer that has not heard of the newest changes."""

SIZES = (0, 7, 100, 140_000)
"""In bytes; the largest is copied on the server when its content is known there."""


@dataclass(frozen=True)
class Step:
    """One operation: who does what to which path; `number` chooses sizes, offsets, handles."""

    actor: str
    verb: str
    path: str = ""
    other: str = ""
    number: int = 0


@dataclass
class Held:
    """A handle that stays open across steps."""

    handle: Handle
    ino: Ino
    writable: bool


class Actor:
    """One mount, with what is known of it."""

    def __init__(self, name: str, cache: Path) -> None:
        self.name = name
        self.cache = cache
        self.kernel: Kernel
        self.held: list[Held] = []
        self.followed = True
        """Whether it has heard of every change."""
        self.content: dict[Ino, bytes] = {}
        """Bytes that an inode was seen to have: they change only by this mount's own writes."""
        self.unsent: set[Ino] = set()
        self._stopping = trio.Event()
        self._stopped = trio.Event()

    async def live(self, server: DoubleServer, *, task_status: trio.TaskStatus[None]) -> None:
        """Be mounted until `stop`."""
        self._stopping, self._stopped = trio.Event(), trio.Event()
        async with opened(server.remote(), self.cache) as fs, trio.open_nursery() as nursery:
            self.kernel = Kernel(fs)
            nursery.start_soon(self.kernel.listen)
            task_status.started()
            await self._stopping.wait()
            nursery.cancel_scope.cancel()
        self._stopped.set()

    async def stop(self) -> None:
        """Unmount."""
        self._stopping.set()
        await self._stopped.wait()

    def key(self, ino: Ino) -> str | None:
        """Return the key under which an inode would be published; None when it was removed here."""
        inode = self.kernel.fs.core.table.live(ino)
        return None if inode is None or inode.unlinked else inode.entry.key

    @property
    def pending(self) -> set[str]:
        """Keys that were made here and are not in the bucket yet."""
        inodes = [inode for inode in self.kernel.fs.core.table if inode.entry.pending]
        return {inode.entry.key for inode in inodes if not inode.unlinked and not inode.entry.is_dir}


@dataclass
class Play:
    """One program being played."""

    server: DoubleServer
    directory: Path
    nursery: trio.Nursery = field(init=False)
    actors: dict[str, Actor] = field(default_factory=dict)
    versions: set[bytes] = field(default_factory=lambda: {b""})
    """Every content that ever was in the bucket, or was written on a mount."""
    _tag: int = 0

    async def run(self, steps: list[Step]) -> None:
        """Play a program, let everything settle, and compare."""
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            for name in ("one", "two"):
                actor = self.actors[name] = Actor(name, self.directory / name)
                await trio.Path(actor.cache).mkdir()
                await self._start(actor)
            for step in steps:
                await self._play(step)
            await self._finish()
            for actor in self.actors.values():
                await actor.stop()
        for actor in self.actors.values():
            check_database(actor.cache / "index.db")

    async def _start(self, actor: Actor) -> None:
        await self.nursery.start(actor.live, self.server)
        await self._sync(actor)

    async def _sync(self, actor: Actor) -> None:
        await settle(self.server, actor.kernel.fs)
        actor.followed = True

    async def _finish(self) -> None:
        for actor in self.actors.values():
            while actor.held:
                await self._close(actor, 0)
        for actor in self.actors.values():
            assert await actor.kernel.fs.drain(60.0) == 0
        kernels = [actor.kernel for actor in self.actors.values()]
        await settle(self.server, *(kernel.fs for kernel in kernels))
        for actor in self.actors.values():
            check_index(self.server, actor.kernel.fs.core.index)
            await check_agreement(self.server, actor.kernel)
            actor.kernel.drop_caches()
            keys = set(self.server.bucket.objects)
            await let_go(actor.kernel.fs)
            check_nothing_left(actor.kernel.fs, actor.cache / "staging", keys)

    # -- judging -----------------------------------------------------------------------------------

    async def _play(self, step: Step) -> None:
        before = self.server.bucket.cursor
        actor = self.actors.get(step.actor)
        if actor is None:
            self._outside(step)
        else:
            await getattr(self, f"_{step.verb}")(actor, step)
            await trio.testing.wait_all_tasks_blocked()
        if self.server.bucket.cursor != before:
            for other in self.actors.values():
                other.followed &= other is actor

    async def _judge(
        self, actor: Actor, errors: set[type[ExaifsError]], call: Callable[[], Awaitable[None]]
    ) -> bool:
        """Do a system call; tell whether it succeeded.

        Args:
            actor: the mount.
            errors: what POSIX allows in the newest state; success is allowed when this is empty.
            call: what to do.
        """
        try:
            await call()
        except ExaifsError as exc:
            allowed = errors if actor.followed else OUTDATED
            if type(exc) not in allowed:
                raise AssertionError(f"{exc!r} instead of {errors or 'success'}") from exc
            return False
        assert not errors or not actor.followed, f"success instead of {errors}"
        return True

    def _tree(self, actor: Actor) -> Tree:
        return visible(self.server, actor.pending)

    def _walk(self, tree: Tree, path: str) -> set[type[ExaifsError]]:
        """Return why the directory of a path cannot be reached, if so."""
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            above = "/".join(parts[:depth])
            if above not in tree.directories:
                return {NotADirectory} if above in tree.files else {NotFound}
        return set()

    def _existing(self, tree: Tree, path: str) -> set[type[ExaifsError]]:
        problem = self._walk(tree, path)
        if not problem and path not in tree.files and path not in tree.directories:
            problem = {NotFound}
        return problem

    def _file(self, tree: Tree, path: str) -> set[type[ExaifsError]]:
        return self._existing(tree, path) or ({IsADirectory} if path in tree.directories else set())

    def _free(self, tree: Tree, path: str) -> set[type[ExaifsError]]:
        problem = self._walk(tree, path)
        taken = path in tree.files or path in tree.directories
        return problem or ({Exists} if taken else set())

    def _is_link(self, actor: Actor, tree: Tree, path: str) -> bool:
        """Links are followed by the kernel, never opened."""
        record = self.server.bucket.find(tree.files.get(path, ""))
        shown = actor.kernel.fs.core.index
        head, _, name = path.rpartition("/")
        directory = shown.child(head + "/" if head else "", name)
        return (record is not None and record.posix.kind == "symlink") or (
            directory is not None and directory.kind == "symlink"
        )

    # -- contents ----------------------------------------------------------------------------------

    def _fresh(self, number: int) -> bytes:
        size = SIZES[number % len(SIZES)]
        self._tag += 1
        data = (b"<%d>" % self._tag * (size // 3 + 1))[:size]
        self.versions.add(data)
        return data

    def _saw(self, actor: Actor, ino: Ino, data: bytes) -> None:
        """Judge what a reader got."""
        known = actor.content.get(ino)
        if known is None:
            assert data in self.versions, f"not a version that ever was: {data[:40]!r}"
            actor.content[ino] = data
        assert actor.content[ino] == data, f"inode {ino} changed: {known!r:.50} to {data!r:.50}"

    async def _read_held(self, actor: Actor, held: Held) -> bool:
        """Read all through a handle; False: the version is gone, and was not here."""
        try:
            data = await actor.kernel.read_all(held.handle)
        except Stale:
            key = actor.key(held.ino)
            current = None if key is None else self.server.bucket.objects.get(key)
            assert held.ino not in actor.unsent, "our own bytes are gone"
            assert current is None or not actor.followed or self._is_replaced(actor, held)
            return False
        self._saw(actor, held.ino, data)
        return True

    def _is_replaced(self, actor: Actor, held: Held) -> bool:
        inode = actor.kernel.fs.core.table.live(held.ino)
        return inode is not None and (inode.unlinked or actor.kernel.fs.core.table.is_replaced(inode))

    def _edited(self, actor: Actor, ino: Ino, data: bytes) -> None:
        actor.content[ino] = data
        actor.unsent.add(ino)
        self.versions.add(data)

    async def _sent(self, actor: Actor, ino: Ino) -> None:
        """After a close that returned: the bytes are in the bucket (promise 1)."""
        if ino not in actor.unsent:
            return
        actor.unsent.discard(ino)
        key = actor.key(ino)
        if key is not None:
            assert self.server.bucket.objects[key].data == actor.content[ino], f"{key!r} was not sent"

    # -- files -------------------------------------------------------------------------------------

    async def _create(self, actor: Actor, step: Step) -> None:
        if await self._open_new(actor, step):
            await self._change(actor, actor.held[-1], self._fresh(step.number), 0)
            await self._close(actor, len(actor.held) - 1)

    async def _open_new(self, actor: Actor, step: Step) -> bool:
        async def call() -> None:
            handle, ino = await actor.kernel.create(step.path)
            actor.held.append(Held(handle, ino, writable=True))
            self._edited(actor, ino, b"")

        return await self._judge(actor, self._free(self._tree(actor), step.path), call)

    async def _open_existing(self, actor: Actor, path: str, flags: int) -> bool:
        tree = self._tree(actor)
        if self._is_link(actor, tree, path):
            return False

        async def call() -> None:
            handle, ino = await actor.kernel.open(path, flags)
            actor.held.append(Held(handle, ino, writable=flags & os.O_ACCMODE != os.O_RDONLY))
            if flags & os.O_TRUNC:
                self._edited(actor, ino, b"")

        return await self._judge(actor, self._file(tree, path), call)

    async def _overwrite(self, actor: Actor, step: Step) -> None:
        if await self._open_existing(actor, step.path, os.O_RDWR | os.O_TRUNC):
            await self._change(actor, actor.held[-1], self._fresh(step.number), 0)
            await self._close(actor, len(actor.held) - 1)

    async def _open_read(self, actor: Actor, step: Step) -> None:
        if len(actor.held) < 4:
            await self._open_existing(actor, step.path, os.O_RDONLY)

    async def _open_write(self, actor: Actor, step: Step) -> None:
        if len(actor.held) < 4:
            await self._open_existing(actor, step.path, os.O_RDWR)

    async def _open_create(self, actor: Actor, step: Step) -> None:
        if len(actor.held) < 4:
            await self._open_new(actor, step)

    async def _poke(self, actor: Actor, step: Step) -> None:
        """Write somewhere into an open file: in the middle, at the end, or after a hole."""
        held = self._choose(actor, step)
        if held is None or not held.writable or not await self._read_held(actor, held):
            return
        offset = (0, 3, len(actor.content[held.ino]), len(actor.content[held.ino]) + 9)[step.number % 4]
        await self._change(actor, held, self._fresh(step.number + 1), offset)

    async def _change(self, actor: Actor, held: Held, data: bytes, offset: int) -> None:
        if not data:
            return  # the kernel sends no empty writes
        before = actor.content[held.ino]
        try:
            await actor.kernel.fs.files.write(held.handle, offset, data)
        except Stale:
            assert held.ino not in actor.unsent
            assert self._is_replaced(actor, held) or not actor.followed
            return
        padded = before.ljust(offset, b"\0")
        self._edited(actor, held.ino, padded[:offset] + data + padded[offset + len(data) :])

    async def _cut(self, actor: Actor, step: Step) -> None:
        """Call ftruncate on an open file."""
        held = self._choose(actor, step)
        if held is None or not held.writable or not await self._read_held(actor, held):
            return
        before = actor.content[held.ino]
        size = (0, len(before) // 2, len(before) + 5)[step.number % 3]
        try:
            change = AttributeChange(size_bytes=size)
            await actor.kernel.fs.namespace.setattr(held.ino, change, held.handle)
        except Stale:
            assert self._is_replaced(actor, held) or not actor.followed
            return
        self._edited(actor, held.ino, before[:size].ljust(size, b"\0"))

    async def _truncate(self, actor: Actor, step: Step) -> None:
        """Call truncate by path."""
        tree = self._tree(actor)
        if self._is_link(actor, tree, step.path):
            return
        known: list[Ino] = []

        async def act(ino: Ino) -> None:
            known.append(ino)
            change = AttributeChange(size_bytes=step.number % 2 * 5)
            await actor.kernel.fs.namespace.setattr(ino, change, None)

        async def call() -> None:
            await actor.kernel.call_ino(step.path, act)

        if await self._judge(actor, self._file(tree, step.path), call):
            ino = known[-1]
            handle, again = await actor.kernel.open(step.path, os.O_RDONLY)
            data = await actor.kernel.read_all(handle)
            await actor.kernel.release(handle, again)
            before = actor.content.get(ino)
            assert again == ino
            assert len(data) == step.number % 2 * 5
            assert before is None or data == before[: len(data)].ljust(len(data), b"\0")
            is_open = any(held.ino == ino for held in actor.held)
            self._edited(actor, ino, data)
            if not is_open:
                await self._sent(actor, ino)

    async def _read(self, actor: Actor, step: Step) -> None:
        tree = self._tree(actor)
        if not await self._open_existing(actor, step.path, os.O_RDONLY):
            return
        held = actor.held.pop()
        readable = await self._read_held(actor, held)
        if actor.followed:
            assert readable, "the newest version cannot be read"
            if held.ino not in actor.unsent:
                assert actor.content[held.ino] == self.server.bucket.objects[tree.files[step.path]].data
        await actor.kernel.release(held.handle, held.ino)

    def _choose(self, actor: Actor, step: Step) -> Held | None:
        return actor.held[step.number // 4 % len(actor.held)] if actor.held else None

    async def _read_open(self, actor: Actor, step: Step) -> None:
        held = self._choose(actor, step)
        if held is not None:
            await self._read_held(actor, held)

    async def _flush(self, actor: Actor, step: Step) -> None:
        held = self._choose(actor, step)
        if held is not None and held.writable:
            await actor.kernel.fs.files.flush(held.handle)
            await self._sent(actor, held.ino)

    async def _close_one(self, actor: Actor, step: Step) -> None:
        if actor.held:
            await self._close(actor, step.number // 4 % len(actor.held))

    async def _close(self, actor: Actor, position: int) -> None:
        held = actor.held.pop(position)
        await actor.kernel.fs.files.flush(held.handle)
        if held.writable:
            await self._sent(actor, held.ino)
        await actor.kernel.release(held.handle, held.ino)

    # -- names -------------------------------------------------------------------------------------

    async def _ls(self, actor: Actor, step: Step) -> None:
        tree = self._tree(actor)
        problem = self._existing(tree, step.path) if step.path else set()
        if not problem and step.path in tree.files:
            problem = {NotADirectory}
        found: list[str] = []

        async def call() -> None:
            found.extend(await actor.kernel.ls(step.path))

        if await self._judge(actor, problem, call) and actor.followed:
            assert sorted(found) == tree.names(step.path)

    async def _stat(self, actor: Actor, step: Step) -> None:
        tree = self._tree(actor)

        async def call() -> None:
            attributes = await actor.kernel.stat(step.path)
            if actor.followed and attributes.ino not in actor.unsent and step.path in tree.files:
                record = self.server.bucket.record(tree.files[step.path])
                assert attributes.size_bytes == record.size_bytes
                mode = record.posix.mode
                assert mode is None or attributes.mode & 0o7777 == mode

        await self._judge(actor, self._existing(tree, step.path), call)

    async def _mkdir(self, actor: Actor, step: Step) -> None:
        async def call() -> None:
            await actor.kernel.mkdir(step.path)
            assert f"{step.path}/{PLACEHOLDER}" in self.server.bucket.objects

        await self._judge(actor, self._free(self._tree(actor), step.path), call)

    async def _symlink(self, actor: Actor, step: Step) -> None:
        self.versions.add(step.other.encode())

        async def call() -> None:
            await actor.kernel.symlink(step.other, step.path)
            assert self.server.bucket.objects[step.path].data == step.other.encode()

        await self._judge(actor, self._free(self._tree(actor), step.path), call)

    async def _unlink(self, actor: Actor, step: Step) -> None:
        tree = self._tree(actor)

        async def call() -> None:
            await actor.kernel.unlink(step.path)
            if actor.followed:
                assert tree.files[step.path] not in self.server.bucket.objects
                assert set(visible(self.server, actor.pending).directories) == tree.directories

        await self._judge(actor, self._file(tree, step.path), call)

    async def _rmdir(self, actor: Actor, step: Step) -> None:
        tree = self._tree(actor)
        problem = self._existing(tree, step.path)
        if not problem and step.path in tree.files:
            problem = {NotADirectory}
        if not problem and tree.names(step.path):
            problem = {NotEmpty}

        async def call() -> None:
            await actor.kernel.rmdir(step.path)
            assert f"{step.path}/{PLACEHOLDER}" not in self.server.bucket.objects

        await self._judge(actor, problem, call)

    async def _rename(self, actor: Actor, step: Step) -> None:
        tree = self._tree(actor)
        problem = self._rename_problem(tree, step.path, step.other)
        moved = self._below(tree, step.path) if not problem else {}
        keys = {tree.files[step.path + below] for below in moved}

        async def call() -> None:
            await actor.kernel.rename(step.path, step.other)
            if actor.followed:
                now = self._below(visible(self.server, actor.pending), step.other)
                assert now == moved, "what was renamed is not there"
                left = keys & (set(self.server.bucket.objects) | actor.pending)
                assert step.path == step.other or not left

        await self._judge(actor, problem, call)

    def _below(self, tree: Tree, path: str) -> dict[str, bytes | None]:
        """Return what is at and below a path, by relative path; None: not in the bucket yet."""
        found: dict[str, bytes | None] = {}
        for each, key in tree.files.items():
            if each == path or each.startswith(path + "/"):
                stored = self.server.bucket.objects.get(key)
                found[each[len(path) :]] = None if stored is None else stored.data
        return found

    def _rename_problem(self, tree: Tree, old: str, new: str) -> set[type[ExaifsError]]:
        problem = self._walk(tree, new) | self._existing(tree, old)
        if problem or old == new:
            return problem
        if old in tree.directories:
            if new.startswith(old + "/"):
                return {InvalidArgument}
            if new in tree.files:
                return {NotADirectory}
            if new in tree.directories and tree.names(new):
                return {NotEmpty}
        elif new in tree.directories:
            return {IsADirectory, NotEmpty} if old.startswith(new + "/") else {IsADirectory}
        return set()

    # -- attributes --------------------------------------------------------------------------------

    async def _chmod(self, actor: Actor, step: Step) -> None:
        tree = self._tree(actor)
        change = AttributeChange(mode=(0o600, 0o640, 0o755)[step.number % 3])

        async def act(ino: Ino) -> None:
            await actor.kernel.fs.namespace.setattr(ino, change, None)

        async def call() -> None:
            await actor.kernel.call_ino(step.path, act)
            assert (await actor.kernel.stat(step.path)).mode & 0o777 == change.mode

        await self._judge(actor, self._existing(tree, step.path), call)

    async def _set_xattr(self, actor: Actor, step: Step) -> None:
        tree = self._tree(actor)
        value = b"%d" % step.number

        async def act(ino: Ino) -> None:
            await actor.kernel.fs.xattrs.set(ino, b"user.k", value)
            assert await actor.kernel.fs.xattrs.get(ino, b"user.k") == value

        async def call() -> None:
            await actor.kernel.call_ino(step.path, act)

        problem = self._existing(tree, step.path)
        if not problem and self._is_link(actor, tree, step.path):
            problem = {NotPermitted}
        await self._judge(actor, problem, call)

    async def _drop_xattr(self, actor: Actor, step: Step) -> None:
        if self._is_link(actor, self._tree(actor), step.path):
            return

        async def act(ino: Ino) -> None:
            try:
                await actor.kernel.fs.xattrs.remove(ino, b"user.k")
            except NoAttribute:
                return

        async def call() -> None:
            await actor.kernel.call_ino(step.path, act)

        await self._judge(actor, self._existing(self._tree(actor), step.path), call)

    # -- the mount ---------------------------------------------------------------------------------

    async def _poll(self, actor: Actor, _step: Step) -> None:
        await actor.kernel.fs.feed.poll()

    async def _settle(self, actor: Actor, _step: Step) -> None:
        await self._sync(actor)

    async def _drop_caches(self, actor: Actor, _step: Step) -> None:
        actor.kernel.drop_caches()

    async def _drop_contents(self, actor: Actor, _step: Step) -> None:
        await actor.kernel.fs.core.contents.drop_clean()

    async def _restart(self, actor: Actor, _step: Step) -> None:
        """Unmount in order and mount again on the same cache directory."""
        while actor.held:
            await self._close(actor, 0)
        assert await actor.kernel.fs.drain(60.0) == 0
        await actor.stop()
        actor.content.clear()
        await self._start(actor)

    # -- another client ----------------------------------------------------------------------------

    def _outside(self, step: Step) -> None:
        bucket = self.server.bucket
        if step.verb == "put":
            bucket.put(step.path, self._fresh(step.number))
        elif step.verb == "put_same" and step.other in bucket.objects:
            bucket.put(step.path, bucket.objects[step.other].data)
        elif step.verb == "remove":
            bucket.remove([step.path])
        elif step.verb == "remove_marker":
            bucket.remove([f"{step.path}/{PLACEHOLDER}"])
        elif step.verb == "move" and step.path in bucket.objects and step.other not in bucket.objects:
            bucket.move(step.path, step.other)
        elif step.verb == "trim":
            bucket.trim_log()


__all__ = ["Play", "Rejected", "Step", "path_of"]
