"""A program on one mount, killed at every moment that differs, and what each next run must make of it.

The program runs once. After every step of the event loop, and within it before every call that may change
the disk, on whatever thread, the cache directory and the server are copied, as they would be found after
kill -9. From each copy a next run starts, first without the server, then with it: it
must show, and send, a state that was acknowledged, or one that the call under way leads to.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import trio

from exaifs.cache.unsent.conflicts import list_conflicts
from exaifs.errors import Unreachable
from exaifs.model import AttributeChange, Handle, Ino, Posix
from exaifs.remote.interface import Upload
from tests.simulation.replay import Server
from tests.simulation.trees import (
    Node,
    Tree,
    copied,
    gentle,
    is_tree,
    mounted,
    short,
    shown,
    stored,
    tree_of,
)
from tests.simulation.weather import choose
from tests.simulation.world import settle
from tests.support.double_providers import ProviderRows
from tests.support.double_state import BucketState
from tests.support.paths import CALLER, Paths

RUN_S = 3600.0
SENT_S = 600.0
STEPS = 12

VERBS = (
    *("write", "write", "write", "write", "append", "truncate", "symlink", "unlink"),
    *("rename", "rename", "rename", "mkdir", "mkdir", "rmdir"),
    *("chmod", "utime", "setxattr", "dropxattr", "adorn", "adorn", "spin"),
    *("open", "poke", "fsync", "close"),
    *("offline", "offline", "online", "wait", "wait", "lose", "lose"),
)
FILLED = {
    **dict.fromkeys(("symlink", "mkdir"), "write"),
    **dict.fromkeys(("append", "truncate"), "file"),
    **dict.fromkeys(("chmod", "utime", "setxattr", "dropxattr", "adorn"), "node"),
    **dict.fromkeys(("poke", "fsync", "close"), "held"),
    "online": "offline",
}
"""Verbs whose paths are chosen as another's."""

REQUESTS = ("put", "move", "copy", "remove", "commit", "patch", "carry_row", "stat", "list_tree")


@dataclass
class Moment:
    """What a kill leaves, and what the next run may make of it."""

    number: int
    cache: Path
    bucket: BucketState
    allowed: frozenset[Tree]
    doing: str


@dataclass
class Program:
    """One program of calls on one mount, chosen by a seed; or given."""

    seed: int
    directory: Path
    steps: list[tuple[str, ...]] | None = None
    settings: dict[str, object] = field(default_factory=dict)
    known: Mapping[str, bytes] = field(default_factory=dict)
    """What the bucket has from the start, by key; none of it is listed before the program does."""
    log: list[str] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.server = Server()
        self.cache = self.directory / "cache"
        for key, data in self.known.items():
            theirs = Upload(hashlib.sha256(data).hexdigest(), "text/plain", Posix(mode=0o644), key)
            self.server.bucket.put(key, data, "text/plain", theirs)
        self._newest = stored(self.server)
        self.allowed: set[Tree] = {tree_of(self._newest)}
        self.doubt: frozenset[Tree] = frozenset()
        self.doing = "start"
        self.held: dict[str, Handle] = {}
        self.held_paths: dict[str, str | None] = {}
        self.serving = False
        self._seen: set[bytes] = set()
        self._noting = False
        self._tag = 0
        if not self.settings:
            self.settings = {
                "write_mode": choose(self.chance, ["through", "through", "back"]),
                "write_back_s": choose(self.chance, [0.0, 2.0]),
            }

    # -- the first run -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Play the program, remembering every moment."""
        self.cache.mkdir()
        with trio.fail_after(RUN_S):
            async with mounted(self.server, self.cache, self.settings) as paths:
                self.paths = paths
                await paths.ls()
                self.serving = True
                try:
                    await self._play()
                    self.doing = "unmounting"
                    await paths.fs.drain(choose(self.chance, [0.5, 60.0]))
                finally:
                    self.serving = False

    async def _play(self) -> None:
        for index in range(STEPS if self.steps is None else len(self.steps)):
            step = self.steps[index] if self.steps is not None else self._choose_step()
            self.doing = f"{index}: {' '.join(step)}"
            self.log.append(self.doing)
            await getattr(self, f"_{step[0]}")(*step[1:])
            self.doing = f"after {self.doing}"
        await trio.sleep(self.chance.uniform(0, 3))

    def note_moment(self) -> None:
        """Copy what a kill would leave now, unless nothing has changed."""
        if self.serving and not self._noting:
            self._noting = True  # copying makes calls, too
            try:
                self._note_moment()
            finally:
                self._noting = False

    def _note_moment(self) -> None:
        allowed = frozenset(self.allowed) | self.doubt
        digest = digest_of(repr(sorted(map(repr, allowed))), self.server.bucket, self.cache)
        if digest in self._seen:
            return
        self._seen.add(digest)
        number = len(self.moments)
        kept = self.directory / f"moment{number}"
        shutil.copytree(self.cache, kept, ignore=shutil.ignore_patterns("*-shm"))
        bucket = copied(self.server.bucket)
        self.moments.append(Moment(number, kept, bucket, allowed, self.doing))

    # -- what may be there -------------------------------------------------------------------------

    def _one(self) -> dict[str, Node]:
        """Return what the mount shows now: the newest of what is allowed."""
        return dict(self.newest)

    @property
    def newest(self) -> dict[str, Node]:
        return self._newest

    async def _call(
        self,
        act: Callable[[], Awaitable[object]],
        change: Callable[[dict[str, Node]], None],
        *,
        keeps: bool = False,
    ) -> None:
        """Make a call that turns every state that is allowed into another.

        Args:
            act: the call.
            change: what it does.
            keeps: whether what was allowed still is after it, as nothing has made it durable.
        """
        after = set()
        for tree in self.allowed:
            nodes = dict(tree)
            change(nodes)
            after.add(tree_of(nodes))
        before = self.allowed
        self.allowed = before | after
        await act()
        change(self._newest)
        self.allowed = before | after if keeps else after

    def _fresh(self) -> bytes:
        self._tag += 1
        size = choose(self.chance, [0, 7, 60, 60, 140_000])
        return (b"<%04d>" % self._tag * (size // 6 + 1))[:size]

    # -- choosing ----------------------------------------------------------------------------------

    def _files(self) -> list[str]:
        return [path for path, node in self._newest.items() if node.kind == "file"]

    def _dirs(self) -> list[str]:
        return [path for path, node in self._newest.items() if node.kind == "dir"]

    def _any_path(self) -> str:
        parent = choose(self.chance, ["", "", *self._dirs()])
        name = choose(self.chance, ["a", "b", "c"])
        return f"{parent}/{name}" if parent else name

    def _choose_step(self) -> tuple[str, ...]:
        while True:
            verb = choose(self.chance, VERBS)
            step = getattr(self, f"_fill_{FILLED.get(verb, verb)}", lambda verb: (verb,))(verb)
            if step is not None:
                return (verb, *step[1:])

    def _one_of(self, verb: str, paths: list[str]) -> tuple[str, ...] | None:
        return (verb, choose(self.chance, paths)) if paths else None

    def _fill_write(self, verb: str) -> tuple[str, ...] | None:
        path = self._any_path()
        node = self._newest.get(path)
        return (verb, path) if node is None or (verb == "write" and node.kind == "file") else None

    def _fill_spin(self, verb: str) -> tuple[str, ...] | None:
        path = self._any_path()
        return None if path in self._newest else (verb, path)

    def _fill_file(self, verb: str) -> tuple[str, ...] | None:
        return self._one_of(verb, self._files())

    def _fill_node(self, verb: str) -> tuple[str, ...] | None:
        return self._one_of(verb, self._files() + self._dirs())

    def _fill_unlink(self, verb: str) -> tuple[str, ...] | None:
        return self._one_of(verb, [path for path, node in self._newest.items() if node.kind != "dir"])

    def _fill_rmdir(self, verb: str) -> tuple[str, ...] | None:
        full = {path.rpartition("/")[0] for path in self._newest}
        return self._one_of(verb, [path for path in self._dirs() if path not in full])

    def _fill_rename(self, verb: str) -> tuple[str, ...] | None:
        if not self._newest:
            return None
        old, new = choose(self.chance, sorted(self._newest)), self._any_path()
        return (verb, old, new) if self._may_rename(old, new) else None

    def _fill_open(self, verb: str) -> tuple[str, ...] | None:
        return None if self.held else self._one_of(verb, self._files())

    def _fill_held(self, verb: str) -> tuple[str, ...] | None:
        return (verb,) if self.held else None

    def _fill_lose(self, verb: str) -> tuple[str, ...] | None:
        return (verb, choose(self.chance, REQUESTS), choose(self.chance, ["before", "after"]))

    def _fill_offline(self, verb: str) -> tuple[str, ...] | None:
        return (verb,) if self.server.online == (verb == "offline") else None

    def _may_rename(self, old: str, new: str) -> bool:
        if old == new or new.startswith(old + "/"):
            return False
        target, source = self._newest.get(new), self._newest[old]
        if target is None:
            return True
        if source.kind == "dir":
            return target.kind == "dir" and not any(path.startswith(new + "/") for path in self._newest)
        return target.kind != "dir"

    # -- the calls ---------------------------------------------------------------------------------

    async def _write(self, path: str) -> None:
        data = self._fresh()
        exists = path in self._newest

        def opened(nodes: dict[str, Node]) -> None:
            nodes[path] = replace(nodes.get(path, Node("file")), data=b"", mtime_ns=None)

        def written(nodes: dict[str, Node]) -> None:
            nodes[path] = replace(nodes.get(path, Node("file")), data=data, mtime_ns=None)

        flags = os.O_WRONLY | (os.O_TRUNC if exists else os.O_CREAT | os.O_EXCL)
        before = set(self.allowed)
        async with self.paths.parent(path) as (parent, name):
            if exists:
                attributes = await self.paths.fs.namespace.lookup(parent, name)
                ino = attributes.ino
                await self._call(lambda: self._open_for(path, ino, flags), opened, keeps=True)
            else:

                async def create() -> None:
                    handle, made = await self.paths.fs.files.create(parent, name, 0o644, flags, CALLER)
                    self.held[path + "!"] = handle
                    self._ino = made.ino

                await self._call(create, opened, keeps=True)
                ino = self._ino
            handle = self.held.pop(path + "!")
            for start in range(0, len(data), 128 * 1024):
                await self.paths.fs.files.write(handle, start, data[start : start + 128 * 1024])
            # Half-written bytes were never promised, and never are in the journal.
            self.allowed = before | self.allowed
            await self._call(lambda: self.paths.fs.files.flush(handle), written)
            await self.paths.fs.files.release(handle)
            self.paths.fs.namespace.forget([(ino, 1)])

    async def _open_for(self, path: str, ino: Ino, flags: int) -> None:
        opened = await self.paths.fs.files.open(ino, flags, CALLER)
        self.held[path + "!"] = opened.handle

    async def _append(self, path: str) -> None:
        more = b"+" * choose(self.chance, [1, 5])
        offset = len(self._newest[path].content)

        def change(nodes: dict[str, Node]) -> None:
            if path in nodes:
                nodes[path] = replace(nodes[path], data=nodes[path].content + more, mtime_ns=None)

        async def act() -> None:
            async with self.paths.open(path, os.O_WRONLY) as handle:
                await self.paths.fs.files.write(handle, offset, more)

        await self._call(act, change)

    async def _truncate(self, path: str) -> None:
        size = choose(self.chance, [0, 3, 9])

        def change(nodes: dict[str, Node]) -> None:
            if path in nodes:
                data = nodes[path].content[:size].ljust(size, b"\0")
                nodes[path] = replace(nodes[path], data=data, mtime_ns=None)

        change_size = AttributeChange(size_bytes=size)
        await self._call(lambda: self.paths.setattr(path, change_size), change, keeps=self._is_held(path))

    async def _chmod(self, path: str) -> None:
        mode = choose(self.chance, [0o600, 0o640, 0o755])

        def change(nodes: dict[str, Node]) -> None:
            if path in nodes:
                nodes[path] = replace(nodes[path], mode=mode)

        act = AttributeChange(mode=mode)
        await self._call(lambda: self.paths.setattr(path, act), change, keeps=self._is_held(path))

    async def _utime(self, path: str) -> None:
        mtime_ns = self.chance.randrange(10**18)

        def change(nodes: dict[str, Node]) -> None:
            if path in nodes and nodes[path].kind == "file":
                nodes[path] = replace(nodes[path], mtime_ns=mtime_ns)

        act = AttributeChange(mtime_ns=mtime_ns)
        await self._call(lambda: self.paths.setattr(path, act), change, keeps=self._is_held(path))

    def _is_held(self, path: str) -> bool:
        """Tell whether a file is open: what only travels with unsent bytes is lost with them."""
        return path in self.held_paths.values()

    async def _setxattr(self, path: str) -> None:
        name, value = choose(self.chance, ["user.k", "user.l"]), b"%d" % self.chance.randrange(1000)

        def change(nodes: dict[str, Node]) -> None:
            if path in nodes:
                xattrs = {**dict(nodes[path].xattrs), name: value}
                nodes[path] = replace(nodes[path], xattrs=tuple(sorted(xattrs.items())))

        await self._call(lambda: self.paths.setxattr(path, name, value), change)

    async def _dropxattr(self, path: str) -> None:
        if not self._newest[path].xattrs:
            return
        name = self._newest[path].xattrs[0][0]

        def change(nodes: dict[str, Node]) -> None:
            if path in nodes:
                left = tuple(pair for pair in nodes[path].xattrs if pair[0] != name)
                nodes[path] = replace(nodes[path], xattrs=left)

        await self._call(lambda: self.paths.removexattr(path, name), change)

    async def _adorn(self, path: str) -> None:
        """Change all attributes, and again: what waits of that is joined."""
        for _ in range(2):
            await self._chmod(path)
            await self._setxattr(path)
            await self._utime(path)
            await self._dropxattr(path)

    async def _spin(self, path: str) -> None:
        """Make a directory and remove it, twice: what waits of that may vanish."""
        for _ in range(2):
            await self._mkdir(path)
            await self._chmod(path)
            await self._rmdir(path)

    async def _rename(self, old: str, new: str) -> None:
        if new in self._newest and self._newest[new].kind == "dir":
            # An empty directory goes first: a rename over it that is cut off may leave only that.
            without = {tree_of({p: n for p, n in tree if p != new}) for tree in self.allowed}
            self.doubt = frozenset(without)
        await self._call(lambda: self.paths.rename(old, new), lambda nodes: _renamed(nodes, old, new))
        self.doubt = frozenset()
        for key, path in self.held_paths.items():
            if path == new:
                self.held_paths[key] = None
            elif path is not None and (path == old or path.startswith(old + "/")):
                self.held_paths[key] = new + path[len(old) :]

    async def _unlink(self, path: str) -> None:
        await self._call(lambda: self.paths.unlink(path), lambda nodes: _dropped(nodes, path))
        for key, held in self.held_paths.items():
            if held == path:
                self.held_paths[key] = None

    async def _mkdir(self, path: str) -> None:
        await self._call(
            lambda: self.paths.mkdir(path),
            lambda nodes: nodes.update({path: Node("dir", mode=0o755)}),
        )

    async def _rmdir(self, path: str) -> None:
        await self._call(lambda: self.paths.rmdir(path), lambda nodes: _dropped(nodes, path))

    async def _symlink(self, path: str) -> None:
        self._tag += 1
        target = f"target{self._tag}"
        await self._call(
            lambda: self.paths.symlink(target, path),
            lambda nodes: nodes.update({path: Node("symlink", target.encode(), 0o777)}),
        )

    async def _offline(self) -> None:
        self.server.online = False

    async def _online(self) -> None:
        self.server.online = True

    async def _lose(self, operation: str, after: str) -> None:
        """Have the next such request fail, before or after it did what was asked."""
        self.server.inject(operation, Unreachable("lost"), after=after == "after")

    async def _list(self, path: str) -> None:
        """Have the mount know the names in a directory."""
        await self.paths.ls(path)

    async def _wait(self) -> None:
        await trio.sleep(choose(self.chance, [0.005, 0.02, 0.1, 1.0, 40.0]))

    # An open file: what is written through it is promised by fsync and close only.

    async def _open(self, path: str) -> None:
        async with self.paths.inode(path) as ino:
            opened = await self.paths.fs.files.open(ino, os.O_RDWR, CALLER)
        self.held["held"] = opened.handle
        self.held_paths["held"] = path

    async def _poke(self) -> None:
        handle, path = self.held["held"], self.held_paths["held"]
        data = self._fresh()[:60] or b"#"
        await self._call(
            lambda: self.paths.fs.files.write(handle, 0, data),
            lambda nodes: _poked(nodes, path, data),
            keeps=True,
        )

    async def _fsync(self) -> None:
        await self._durable(lambda: self.paths.fs.files.fsync(self.held["held"], _datasync=False))

    async def _close(self) -> None:
        handle = self.held["held"]
        await self._durable(lambda: self.paths.fs.files.flush(handle))
        await self.paths.fs.files.release(handle)
        del self.held["held"], self.held_paths["held"]

    async def _durable(self, act: Callable[[], Awaitable[object]]) -> None:
        path = self.held_paths["held"]
        await act()
        if path is not None:
            newest = self._newest[path]
            self.allowed = {tree_of({**dict(tree), path: newest}) for tree in self.allowed}

    def next_run(self, moment: Moment) -> Program:
        """Return the run that takes over from a kill, to be killed itself at every step."""
        program = Program(self.seed, self.directory / f"after{moment.number}", [], self.settings)
        shutil.copytree(moment.cache, program.cache)
        program.server.bucket = copied(moment.bucket)
        program.server.providers = ProviderRows(program.server.bucket)
        program.allowed = set(moment.allowed)
        program.log = self.log
        return program

    async def recover(self) -> None:
        """Take over and send everything, remembering every moment."""
        self.log.append("killed, and the next run as well")
        with trio.fail_after(RUN_S):
            self.doing = "opening"
            self.serving = True
            async with mounted(self.server, self.cache, self.settings) as paths:
                self.doing = "recovering"
                await _wait_sent(paths)
                self.serving = False

    # -- the next runs -----------------------------------------------------------------------------

    async def check(self, moment: Moment) -> None:
        """Start from what a kill left, without the server and with it."""
        server = Server()
        server.bucket = copied(moment.bucket)
        server.providers = ProviderRows(server.bucket)
        server.online = False
        try:
            with trio.fail_after(RUN_S):
                await self._check(server, moment)
        except BaseException:
            self.log.append(f"at moment {moment.number}, {moment.doing}")
            raise

    async def _check(self, server: Server, moment: Moment) -> None:
        weather = gentle()
        async with mounted(server, moment.cache, self.settings, weather) as paths:
            # Times may be those of bytes that were lost, until the row is heard of again.
            known = {path: replace(node, mtime_ns=None) for path, node in (await shown(paths)).items()}
            timeless = [{p: replace(n, mtime_ns=None) for p, n in tree} for tree in moment.allowed]
            offline = replace(moment, allowed=frozenset(map(tree_of, timeless)))
            self._compare(known, offline, "shown while offline")
            server.online = True
            await _wait_sent(paths)
            assert paths.fs.writes.sender.left() == 0
            weather.calm()
            await settle(server, paths.fs)
            self._compare(stored(server), moment, "in the bucket")
            self._compare(await shown(paths), moment, "shown after all was sent")
            found = list_conflicts(moment.cache / "conflicts")
            assert not found, f"a conflict with nobody: {found}"
            left = [path.name for path in (moment.cache / "staging").iterdir()]
            assert not left, f"left in staging: {left}"
            assert not paths.fs.core.changes.outbox._journal.records

    def _compare(self, found: dict[str, Node], moment: Moment, what: str) -> None:
        if not any(is_tree(found, tree) for tree in moment.allowed):
            allowed = "\n   ".join(short(dict(tree)) for tree in moment.allowed)
            raise AssertionError(f"{what}:\n   {short(found)}\nnot one of\n   {allowed}")


async def _wait_sent(paths: Paths) -> None:
    with trio.move_on_after(SENT_S):
        while paths.fs.writes.sender.left():  # noqa: ASYNC110 - on the mock clock
            await trio.sleep(1)


def _renamed(nodes: dict[str, Node], old: str, new: str) -> None:
    if old not in nodes:
        return
    nodes.pop(new, None)
    for path in sorted(nodes):
        if path == old or path.startswith(old + "/"):
            nodes[new + path[len(old) :]] = nodes.pop(path)


def _dropped(nodes: dict[str, Node], path: str) -> None:
    nodes.pop(path, None)


def _poked(nodes: dict[str, Node], path: str | None, data: bytes) -> None:
    if path is not None and path in nodes:
        old = nodes[path].content
        nodes[path] = replace(nodes[path], data=data + old[len(data) :], mtime_ns=None)


def digest_of(more: str, bucket: BucketState, *caches: Path) -> bytes:
    """Return what is the same for two moments at which the same is there."""
    digest = hashlib.sha256(more.encode())
    digest.update(repr((bucket.cursor, sorted(bucket.objects.items()))).encode())
    for cache in caches:
        for top, _directories, names in sorted(os.walk(cache)):
            for name in sorted(names):
                if not name.endswith("-shm"):
                    digest.update(f"{top}/{name}".encode())
                    digest.update(Path(top, name).read_bytes())
    return digest.digest()


class Noting(Protocol):
    """What remembers moments."""

    def note_moment(self) -> None:
        """Remember this one."""


class AtEveryStep(trio.abc.Instrument):
    """Has a program remember every moment."""

    def __init__(self, program: Noting) -> None:
        self._program = program
        self.failure: BaseException | None = None
        """Why it does so no more: trio goes on without an instrument that fails."""

    def after_task_step(self, _task: trio.lowlevel.Task) -> None:
        try:
            self._program.note_moment()
        except BaseException as exc:
            self.failure = exc
            raise
