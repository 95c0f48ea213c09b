"""Plays programs of single steps by two mounts and an outside writer, and judges every answer.

A mount that has taken in every change, and has nothing left to send, must answer as POSIX says for what
the bucket holds; another may also answer for an older state, but never with other bytes than a version that
was.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import trio
import trio.testing

from exaifs.config import load
from exaifs.errors import (
    Busy,
    ExaifsError,
    Exists,
    InvalidArgument,
    IsADirectory,
    NoAttribute,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    Stale,
    Unreachable,
)
from exaifs.fs.tables.inodes import Inode
from exaifs.model import AttributeChange, Handle, Ino
from exaifs.names import PLACEHOLDER
from tests.simulation.kernel import Kernel
from tests.simulation.ledger import Ledger
from tests.simulation.programs import MOUNTS, Program, Step, World
from tests.simulation.replay import Server
from tests.simulation.weather import Link, Weather, distant
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

OUTDATED = (NotFound, Exists, NotEmpty, IsADirectory, NotADirectory, Stale, InvalidArgument, NotPermitted)
"""What a mount may answer that has not heard of the newest changes."""

AWAY = (Unreachable, Busy)
"""What it may answer when its requests, or their answers, are lost: done or not."""

PACE_S = 1.0
"""From one step to the next."""

SIZES = (0, 7, 100, 140_000)
"""In bytes; the largest is copied on the server when its content is known there."""


@dataclass
class Held:
    """A handle that stays open across steps."""

    handle: Handle
    ino: Ino
    writable: bool


class Actor:
    """One mount, with what is known of it.

    Args:
        name: of the mount.
        cache: its cache directory.
        settings: of its file system.
        weather: between it and the bucket.
    """

    def __init__(self, name: str, cache: Path, settings: dict[str, object], weather: Weather) -> None:
        self.name = name
        self.cache = cache
        self.kernel: Kernel
        self.held: list[Held] = []
        self.followed = True
        """Whether it has heard of every change, and the bucket of all that was done here."""
        self.content: dict[Ino, bytes] = {}
        """Bytes that an inode was seen to have: they change only by this mount's own writes."""
        self.unsent: dict[Ino, set[bytes | None]] = {}
        """Inodes that were written since the last close, with what they showed before."""
        self.link = Link()
        self.settings = settings
        self._weather = weather
        self._stopping = trio.Event()
        self._stopped = trio.Event()

    async def live(self, server: Server, *, task_status: trio.TaskStatus[None]) -> None:
        """Be mounted until `stop`."""
        self._stopping, self._stopped = trio.Event(), trio.Event()
        remote = distant(server.remote(), self._weather, self.link)
        config = load(uid=1000, gid=1000, freshness_s=3600.0, **self.settings)
        async with opened(config, remote, self.cache) as fs, trio.open_nursery() as nursery:
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

    @property
    def waits(self) -> bool:
        """Whether something that was promised here is not in the bucket yet."""
        core = self.kernel.fs.core
        return bool(core.changes.outbox.operations) or any(
            inode.dirty and (inode.opens == 0 or (inode.staged is not None and inode.staged.kept))
            for inode in core.table
        )


class Play:
    """One program being played.

    Args:
        program: what to play.
        directory: empty, for the cache directories.
    """

    def __init__(self, program: Program, directory: Path) -> None:
        self.log: list[str] = []
        self.server = Server()
        self.steps = program.steps
        self.directory = directory
        self._nursery: trio.Nursery
        self.ledger = Ledger()
        self.versions: set[bytes] = {b""}
        """Every content that ever was in the bucket, or was written on a mount."""
        self._stored: dict[str, bytes] = {}
        """The bytes of each version that the bucket had after a step."""
        self._tag = self._runs = 0
        self._prepare(program.world)

    def _prepare(self, world: World) -> None:
        self.server.bucket.keeps_metadata = world.keeps_metadata
        self.server.ignores_range = world.ignores_range
        self._weather = Weather(random.Random(world.seed), world.drop_rate)
        self.actors = {
            name: Actor(name, self.directory / name, world.settings.get(name, {}), self._weather)
            for name in MOUNTS
        }

    async def run(self) -> None:
        """Play the program, let everything settle, and compare."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for actor in self.actors.values():
                await trio.Path(actor.cache).mkdir(exist_ok=True)
                await self._start(actor)
            await self._play_all()
            self.note("calm")
            await self._finish()
            for actor in self.actors.values():
                await actor.stop()
        for actor in self.actors.values():
            check_database(actor.cache / "index.db")
        there = {stored.data for stored in self.server.bucket.objects.values()}
        self.ledger.check(there, [actor.cache for actor in self.actors.values()])

    async def _play_all(self) -> None:
        for step in self.steps:
            await self._play(step)

    def note(self, text: str) -> None:
        """Remember what happened, for the message of a failure."""
        self.log.append(f"{trio.current_time():8.2f} {text}")

    async def _start(self, actor: Actor) -> None:
        await self._nursery.start(actor.live, self.server)
        actor.followed = False
        await self._sync(actor)

    async def _sync(self, actor: Actor) -> None:
        """Have a mount send and hear everything, if it can."""
        if actor.link.cut:
            return
        if actor.waits:
            await self._close_all(actor)
            self._replace_bases(actor)
            await actor.kernel.fs.drain(60.0)
            self._forget_sent(actor)
        try:
            await settle(self.server, actor.kernel.fs)
        except AWAY:
            if not self._weather.drop_rate:
                raise
            return
        assert self._weather.drop_rate or not actor.waits, "something is never sent"
        actor.followed = not self._weather.drop_rate

    async def _finish(self) -> None:
        self._weather.calm()
        for actor in self.actors.values():
            actor.link.cut = False
            await self._close_all(actor)
        for actor in self.actors.values():
            await settle(self.server, actor.kernel.fs)  # now it knows that the bucket is there
            self._replace_bases(actor)
            assert await actor.kernel.fs.drain(600.0) == 0, f"{actor.name}: something is never sent"
        kernels = [actor.kernel for actor in self.actors.values()]
        await settle(self.server, *(kernel.fs for kernel in kernels))
        for actor in self.actors.values():
            check_index(self.server, actor.kernel.fs.core.index)
            await check_agreement(self.server, actor.kernel)
            actor.kernel.drop_caches()
            keys = set(self.server.bucket.objects)
            await let_go(actor.kernel.fs)
            check_nothing_left(actor.kernel.fs, actor.cache / "staging", keys)

    # -- what is owed ------------------------------------------------------------------------------

    async def _shown(self, actor: Actor, path: str) -> bytes | None:
        """Return the bytes that a mount shows, as far as is known; None: no file, or not known."""
        fs = actor.kernel.fs
        prefix = ""
        *above, name = path.split("/")
        with suppress(ExaifsError):
            # As the kernel and the mount do before anything is done to the name.
            await actor.kernel.walk(path)
            await fs.directories.ensure(prefix)
        for part in above:
            directory = fs.core.index.child(prefix, part)
            if directory is None or not directory.is_dir:
                return None
            prefix = directory.key
            with suppress(ExaifsError):
                await fs.directories.ensure(prefix)
        entry = fs.core.index.child(prefix, name)
        if entry is None or entry.is_dir:
            return None
        return self._bytes_at(actor, entry.ino)

    def _bytes_at(self, actor: Actor, ino: Ino) -> bytes | None:
        core = actor.kernel.fs.core
        inode, entry = core.table.live(ino), core.index.by_ino(ino)
        if inode is None and entry is not None:
            inode = Inode(entry)
        return None if inode is None else self._bytes_of(inode)

    def _bytes_of(self, inode: Inode) -> bytes | None:
        if inode.staged is not None:
            return inode.staged.path.read_bytes()
        for data in self.versions:
            if _sha256(data) == inode.entry.sha256:
                return data
        return self._stored.get(inode.entry.version or "")

    def _replace_bases(self, actor: Actor) -> None:
        """What was written and not closed may be sent, in place of what was there."""
        for bases in actor.unsent.values():
            self.ledger.release(*bases)

    def _forget_sent(self, actor: Actor) -> None:
        """What was sent after a close that failed is unsent no more; nobody was told that it is safe."""
        table = actor.kernel.fs.core.table
        for ino in list(actor.unsent):
            inode = table.live(ino)
            if inode is None or not inode.dirty:
                del actor.unsent[ino]

    def _forgive_unseen(self, path: str) -> None:
        """A name that is new here may replace one that another host made since: the README says so."""
        stored = self.server.bucket.objects.get(path)
        if stored is not None:
            self.ledger.release(stored.data)

    # -- judging -----------------------------------------------------------------------------------

    async def _play(self, step: Step) -> None:
        await trio.sleep(PACE_S)
        before = self.server.bucket.cursor
        actor = self.actors.get(step.actor)
        self.note(str(step))
        if actor is None:
            self._outside(step)
        else:
            await getattr(self, f"_{step.verb}")(actor, step)
            await trio.testing.wait_all_tasks_blocked()
            actor.followed &= not (actor.link.cut or actor.waits)
        self.ledger.settle()
        self._stored |= {each.version: each.data for each in self.server.bucket.objects.values()}
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
            away = isinstance(exc, AWAY) and not actor.followed
            if not away and type(exc) not in (errors if actor.followed else OUTDATED):
                raise AssertionError(f"{exc!r} instead of {errors or 'success'}") from exc
            self.note(f"    {exc!r}")
            actor.followed &= not isinstance(exc, AWAY)
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
        except AWAY:
            assert not actor.followed
            return False
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

    def _edited(self, actor: Actor, ino: Ino, data: bytes, *bases: bytes | None) -> None:
        """Note what an inode shows after a write.

        Args:
            actor: the mount.
            ino: the inode.
            data: what it shows now.
            bases: what it showed before, where that was not read.
        """
        actor.unsent.setdefault(ino, {actor.content.get(ino), *bases})
        actor.content[ino] = data
        self.versions.add(data)

    def _sent(self, actor: Actor, ino: Ino) -> None:
        """After a close that returned: the bytes are in the bucket, or kept (promise 1)."""
        if ino not in actor.unsent:
            return
        self.ledger.release(*actor.unsent.pop(ino))
        key = actor.key(ino)
        if key is None:
            return
        data = actor.content[ino]
        self.ledger.owe(data, f"closed by {actor.name} as {key}")
        inode = actor.kernel.fs.core.table.live(ino)
        if inode is not None and inode.dirty:
            assert inode.staged is not None
            assert inode.staged.kept, f"{key!r} was neither sent nor kept"
            assert inode.staged.acknowledged
        else:
            assert self.server.bucket.objects[key].data == data, f"{key!r} was not sent"

    async def _flush_held(self, actor: Actor, held: Held) -> None:
        """Do what close(2) does first."""
        inode = actor.kernel.fs.core.table.live(held.ino)
        unseen = None
        if inode is not None and inode.entry.pending and not actor.followed:
            unseen = self.server.bucket.objects.get(inode.entry.key)
        self.ledger.doubt(*actor.unsent.get(held.ino, ()), None if unseen is None else unseen.data)
        try:
            await actor.kernel.fs.files.flush(held.handle)
        except Stale as exc:
            self.note(f"    close: {exc!r}")
            assert actor.settings.get("conflict") == "refuse"
            self.ledger.owe(actor.content[held.ino], f"refused to {actor.name}")
            self.ledger.release(*actor.unsent.pop(held.ino, ()))  # kept here, and written over here
        except AWAY as exc:
            self.note(f"    close: {exc!r}")
            assert not actor.followed
            self.ledger.release(*actor.unsent.get(held.ino, ()))
        else:
            if held.writable:
                self._sent(actor, held.ino)
        if unseen is not None and inode is not None and _was_sent(inode):
            self.ledger.release(unseen.data)

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
        shown = await self._shown(actor, path)

        async def call() -> None:
            handle, ino = await actor.kernel.open(path, flags)
            actor.held.append(Held(handle, ino, writable=flags & os.O_ACCMODE != os.O_RDONLY))
            if flags & os.O_TRUNC:
                inode = actor.kernel.fs.core.table.live(ino)
                asked = None if inode is None else self._bytes_of(Inode(inode.entry))
                self._edited(actor, ino, b"", shown, asked)

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
        except AWAY:
            assert not actor.followed
            return
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
        except AWAY:
            assert not actor.followed
            return
        except Stale:
            assert self._is_replaced(actor, held) or not actor.followed
            return
        self._edited(actor, held.ino, before[:size].ljust(size, b"\0"))

    async def _truncate(self, actor: Actor, step: Step) -> None:
        """Call truncate by path."""
        tree = self._tree(actor)
        if self._is_link(actor, tree, step.path):
            return
        known: dict[Ino, bytes | None] = {}
        size = step.number % 2 * 5

        async def act(ino: Ino) -> None:
            known[ino] = self._bytes_at(actor, ino)  # the kernel tries again on ESTALE
            self.ledger.doubt(known[ino])
            await actor.kernel.fs.namespace.setattr(ino, AttributeChange(size_bytes=size), None)

        async def call() -> None:
            try:
                await actor.kernel.call_ino(step.path, act)
            except AWAY:
                for ino, shown in known.items():
                    self._cut_or_not(actor, ino, shown, size)
                raise

        if await self._judge(actor, self._file(tree, step.path), call):
            self.ledger.release(*known.values())  # also of a file that lost a conflict before that
            ino, shown = known.popitem()
            await self._look_at_truncated(actor, step.path, ino, size, shown)

    def _cut_or_not(self, actor: Actor, ino: Ino, shown: bytes | None, size: int) -> None:
        """Take it as it is after a truncation without an answer; the kernel asks for the size again."""
        self.ledger.release(shown)
        before, now = actor.content.get(ino, shown), self._bytes_at(actor, ino)
        if before is None or now is None:
            return
        assert now in {before, before[:size].ljust(size, b"\0")}
        if now != before:
            self._edited(actor, ino, now, shown)

    async def _look_at_truncated(
        self, actor: Actor, path: str, ino: Ino, size: int, shown: bytes | None
    ) -> None:
        data = self._bytes_at(actor, ino)
        if actor.followed or data is None:
            handle, again = await actor.kernel.open(path, os.O_RDONLY)
            data = await actor.kernel.read_all(handle)
            await actor.kernel.release(handle, again)
            assert again == ino
        assert len(data) == size
        before = actor.content.get(ino)
        assert before is None or data == before[: len(data)].ljust(len(data), b"\0")
        self._edited(actor, ino, data, shown)
        if not any(held.ino == ino for held in actor.held):
            self._sent(actor, ino)

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
            await self._flush_held(actor, held)

    async def _close_one(self, actor: Actor, step: Step) -> None:
        if actor.held:
            await self._close(actor, step.number // 4 % len(actor.held))

    async def _close(self, actor: Actor, position: int) -> None:
        held = actor.held.pop(position)
        await self._flush_held(actor, held)
        await actor.kernel.release(held.handle, held.ino)

    async def _close_all(self, actor: Actor) -> None:
        while actor.held:
            await self._close(actor, 0)

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
            assert actor.waits or f"{step.path}/{PLACEHOLDER}" in self.server.bucket.objects

        await self._judge(actor, self._free(self._tree(actor), step.path), call)

    async def _symlink(self, actor: Actor, step: Step) -> None:
        self.versions.add(step.other.encode())

        async def call() -> None:
            self._forgive_unseen(step.path)
            await actor.kernel.symlink(step.other, step.path)
            assert actor.waits or self.server.bucket.objects[step.path].data == step.other.encode()

        await self._judge(actor, self._free(self._tree(actor), step.path), call)

    async def _unlink(self, actor: Actor, step: Step) -> None:
        tree = self._tree(actor)

        async def call() -> None:
            if not actor.followed and not actor.link.cut:
                self._forgive_unseen(step.path)  # rm removes what has the name when it arrives
            unsent = actor.pending
            await self._replacing(actor, step.path, actor.kernel.unlink(step.path))
            if actor.followed:
                # What another host has under the name of a file that was never sent shows then.
                there = actor.pending if tree.files[step.path] in unsent else self.server.bucket.objects
                assert tree.files[step.path] not in there
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
            assert actor.waits or f"{step.path}/{PLACEHOLDER}" not in self.server.bucket.objects

        await self._judge(actor, problem, call)

    async def _rename(self, actor: Actor, step: Step) -> None:
        tree = self._tree(actor)
        problem = self._rename_problem(tree, step.path, step.other)
        moved = self._below(tree, step.path) if not problem else {}
        keys = {tree.files[step.path + below] for below in moved}

        async def call() -> None:
            unsent = keys & actor.pending
            if step.path == step.other:
                await actor.kernel.rename(step.path, step.other)
            else:
                await self._replacing(actor, step.other, actor.kernel.rename(step.path, step.other))
            if actor.followed:
                now = self._below(visible(self.server, actor.pending), step.other)
                assert now.keys() == moved.keys(), "what was renamed is not there"
                # Until it is sent, the bucket has what it replaces, or nothing.
                sent = [below for below in moved if tree.files[step.path + below] not in unsent]
                assert all(moved[below] in {None, now[below]} for below in sent)
                # What another host has under the name of a file that was never sent shows then.
                left = keys & actor.pending | (keys - unsent).intersection(self.server.bucket.objects)
                assert step.path == step.other or not left

        await self._judge(actor, problem, call)

    async def _replacing(self, actor: Actor, path: str, call: Awaitable[None]) -> None:
        """Do what removes what a name shows, and what was written here under it and waits.

        Without an answer it is done or not.
        """
        gone = [await self._shown(actor, path), *self._waiting_for(actor, path)]
        self.ledger.doubt(*gone)
        try:
            await call
        except AWAY:
            self.ledger.release(*gone)
            raise
        self.ledger.release(*gone)

    def _waiting_for(self, actor: Actor, path: str) -> list[bytes | None]:
        """Return what this mount has closed under a key, and not sent: the name may show another."""
        inodes = [inode for inode in actor.kernel.fs.core.table if inode.dirty and inode.entry.key == path]
        return [self._bytes_of(inode) for inode in inodes]

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
        try:
            await actor.kernel.fs.feed.poll()
        except AWAY:
            assert actor.link.cut or self._weather.drop_rate

    async def _settle(self, actor: Actor, _step: Step) -> None:
        await self._sync(actor)

    async def _drop_caches(self, actor: Actor, _step: Step) -> None:
        actor.kernel.drop_caches()

    async def _drop_contents(self, actor: Actor, _step: Step) -> None:
        await actor.kernel.fs.core.contents.drop_clean()

    async def _offline(self, actor: Actor, _step: Step) -> None:
        actor.link.cut = True

    async def _online(self, actor: Actor, _step: Step) -> None:
        actor.link.cut = False

    async def _restart(self, actor: Actor, _step: Step) -> None:
        """Unmount in order and mount again on the same cache directory."""
        await self._close_all(actor)
        self._replace_bases(actor)
        left = await actor.kernel.fs.drain(60.0)
        assert left == 0 or actor.link.cut or self._weather.drop_rate
        await self._begin_anew(actor)

    async def _kill(self, actor: Actor, _step: Step) -> None:
        """Mount again on what kill -9 leaves; what was being written is lost, and may be sent."""
        left = self.directory / f"{actor.name}{self._runs}"
        self._runs += 1
        shutil.copytree(actor.cache, left, ignore=shutil.ignore_patterns("*-shm"))
        self._replace_bases(actor)
        cut, actor.link.cut = actor.link.cut, True
        actor.held.clear()
        await self._begin_anew(actor, left, cut=cut)

    async def _begin_anew(self, actor: Actor, cache: Path | None = None, *, cut: bool = False) -> None:
        await actor.stop()
        actor.content.clear()
        actor.unsent.clear()
        if cache is not None:
            actor.cache, actor.link = cache, Link(cut)
        await self._start(actor)

    # -- another client ----------------------------------------------------------------------------

    def _outside(self, step: Step) -> None:
        bucket = self.server.bucket
        if step.verb in {"put", "put_same", "remove"}:
            stored = bucket.objects.get(step.path)
            self.ledger.release(None if stored is None else stored.data)
        if step.verb == "put":
            data = self._fresh(step.number)
            bucket.put(step.path, data)
            self.ledger.owe(data, f"put as {step.path}")
        elif step.verb == "put_same" and step.other in bucket.objects:
            # Nothing is owed: who saw these bytes under this name may replace them, whoever put them there.
            bucket.put(step.path, bucket.objects[step.other].data)
        elif step.verb == "remove":
            bucket.remove([step.path])
        elif step.verb == "remove_marker":
            bucket.remove([f"{step.path}/{PLACEHOLDER}"])
        elif step.verb == "move" and step.path in bucket.objects and step.other not in bucket.objects:
            bucket.move(step.path, step.other)
        elif step.verb == "trim":
            bucket.trim_log()


@lru_cache(maxsize=1000)
def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _was_sent(inode: Inode) -> bool:
    """Tell whether the bucket has, or may have, bytes that were written here."""
    return inode.staged is None or not inode.dirty or inode.staged.uploads.tried
