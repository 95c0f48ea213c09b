"""Several tasks on two mounts through a bad network, with outages and crashes, and what must come of it.

Each task has a directory of its own, where it knows exactly what may be there: what an operation that
failed, or was cut off by a crash, may have left is kept as several possibilities. A shared directory adds
chaos; of it only agreement and whole versions are asked.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import trio

from exaifs.cache.unsent.conflicts import list_conflicts
from exaifs.config import load
from exaifs.errors import Busy, Exists, NotFound, Stale, Unreachable
from exaifs.fs.filesystem import FileSystem
from exaifs.model import AttributeChange, Ino
from tests.simulation.kernel import Kernel
from tests.simulation.play import OUTDATED
from tests.simulation.weather import Weather, choose, distant
from tests.simulation.world import (
    check_agreement,
    check_database,
    check_index,
    check_nothing_left,
    let_go,
    settle,
)
from tests.support.double import DoubleServer

TEMPORARY = (Unreachable, Busy)
NAMES = ("a", "b", "c")
SHARED = ("s/a", "s/b", "s/d", "s/d/a", "s/d/b", "s/e")
FAR = {name: name.encode() * 9 for name in ("x", "deep/y", "deep/down/z")}
"""Files of a third host, in a directory that goes by one name or another, and is seldom listed."""

FAR_NAMES = ("s/far", "s/near")
SHARED_BYTES = 60
"""All shared contents are as long, so that two writers of one mount cannot blend: the later covers all."""

PRIVATE_BYTES = (0, 60, 60, 60, 140_000, 1_200_000)
PACE_S = 1.0
OPERATIONS = 12
END_S = 24 * 3600.0
"""Nothing hangs: all is over by then, by the mock clock."""

Possible = set[bytes | None]
"""What a path may hold; None: nothing is there."""


@dataclass
class Private:
    """A directory that one task alone uses, and what may be in it."""

    path: str
    made: bool = False
    """Whether it is certain to exist."""
    files: dict[str, Possible] = field(default_factory=dict)
    moved: list[tuple[str, str, Possible]] = field(default_factory=list)
    """Renames that may be half done: the content is under the old name, the new one, or both."""
    also: str | None = None
    """Where a directory rename was going that may be half done."""
    late: dict[str, Possible] = field(default_factory=dict)
    """Closes without an answer that were replaced since: if they arrive they are another's to the mount."""

    def usable(self) -> list[str]:
        """Return the names that are not part of a rename that failed."""
        unsure = {name for old, new, _ in self.moved for name in (old, new)}
        return [name for name in NAMES if name not in unsure]

    def possible(self, name: str) -> Possible:
        return self.files.get(name, {None})


@dataclass
class Storm:
    """One simulation, all of it chosen by a seed."""

    seed: int
    directory: Path
    versions: set[bytes] = field(default_factory=lambda: {b""})
    privates: list[Private] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.server = DoubleServer()
        for name, data in FAR.items():
            self.server.bucket.put(f"{FAR_NAMES[0]}/{name}", data)
        rate = choose(self.chance, [0.0, 0.02, 0.1, 0.3])
        self.weather = Weather(self.chance, rate, choose(self.chance, [0.01, 0.5, 3.0]))
        self._tag = 0
        self.settings = {
            "write_mode": choose(self.chance, ["through", "through", "back"]),
            "offline_writes": choose(self.chance, ["journal", "journal", "refuse"]),
            "write_back_s": choose(self.chance, [0.0, 2.0]),
            "conflict": choose(self.chance, ["last-close", "last-close", "refuse"]),
        }

    @property
    def sends_at_close(self) -> bool:
        """Whether close returns only when the bucket has the bytes."""
        return self.settings["write_mode"] == "through" and self.settings["offline_writes"] == "refuse"

    async def run(self) -> None:
        """Play the storm, calm it, and compare."""
        with trio.fail_after(END_S):
            await self._storm()
            self.note(f"calm, after {self.settings}")
            self.weather.calm()
            self.server.online = True
            await self._compare()

    def note(self, text: str) -> None:
        """Remember what happened, for the message of a failure."""
        self.log.append(f"{trio.current_time():9.2f} {text}")

    async def _storm(self) -> None:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as outages:
                nursery.start_soon(self._outages, outages)
                async with trio.open_nursery() as mounts:
                    mounts.start_soon(self._mount, "one", 0.6)
                    mounts.start_soon(self._mount, "two", 0.3)
            outages.cancel()
            nursery.cancel_scope.cancel()

    async def _outages(self, scope: trio.CancelScope) -> None:
        while not scope.cancel_called:
            await trio.sleep(self.chance.uniform(0, 40))
            what = choose(self.chance, ["offline", "trim", "nothing"])
            if what == "trim":
                self.server.bucket.trim_log()
            elif what == "offline":
                self.note("offline")
                self.server.online = False
                await trio.sleep(self.chance.uniform(0, 20))
                self.server.online = True
                self.note("online")

    # -- a mount -----------------------------------------------------------------------------------

    async def _mount(self, name: str, crash_rate: float) -> None:
        cache = self.directory / name
        await trio.Path(cache).mkdir()
        mine = [Private(f"{name}{number}") for number in range(3)]
        self.privates += mine
        if self.chance.random() < crash_rate:
            with trio.move_on_after(self.chance.uniform(0, 30)):
                await self._serve(cache, mine)
            self.note(f"{name} crashed, or was done")
        await self._serve(cache, mine)

    async def _serve(self, cache: Path, mine: list[Private]) -> None:
        remote = distant(self.server.remote(), self.weather)
        config = load(uid=1000, gid=1000, freshness_s=PACE_S, **self.settings)
        async with FileSystem.open(config, remote, cache, None) as fs:
            try:
                async with trio.open_nursery() as background:
                    await background.start(fs.run)
                    kernel = Kernel(fs)
                    background.start_soon(kernel.listen)
                    async with trio.open_nursery() as nursery:
                        for private in mine:
                            nursery.start_soon(self._work, kernel, private)
                    background.cancel_scope.cancel()
                await fs.drain(5.0)
            finally:
                close_staged(fs)

    async def _work(self, kernel: Kernel, private: Private) -> None:
        for _ in range(OPERATIONS):
            await trio.sleep(self.chance.uniform(0, 3))
            if private.also is not None or self.chance.random() < 0.4:
                await self._shared(kernel)
            else:
                await self._private(kernel, private)

    def _fresh(self, size: int) -> bytes:
        self._tag += 1
        data = (b"<%06d>" % self._tag * (size // 8 + 1))[:size]
        self.versions.add(data)
        return data

    # -- what one task alone does ------------------------------------------------------------------

    async def _private(self, kernel: Kernel, private: Private) -> None:
        verbs = [self._write, self._write, self._write, self._read, self._unlink, self._rename]
        verbs += [self._append, self._mark]
        usable = private.usable()
        if not private.made:
            await self._make(kernel, private)
        elif not usable or self.chance.random() < 0.1:
            await self._rename_all(kernel, private)
        else:
            verb = choose(self.chance, verbs)
            try:
                await verb(kernel, private, choose(self.chance, usable))
            except TEMPORARY as exc:
                self.note(f"{private.path}: {exc}")
            except Stale as exc:
                self.note(f"{private.path}: stale: {exc}")

    async def _make(self, kernel: Kernel, private: Private) -> None:
        try:
            await kernel.mkdir(private.path)
        except TEMPORARY:
            return
        except Exists:
            pass  # the answer to an earlier attempt was lost
        private.made = True

    async def _write(self, kernel: Kernel, private: Private, name: str) -> None:
        """Replace a file, or make it; when close returns it is safe."""
        before = private.possible(name)
        path = f"{private.path}/{name}"
        try:
            if before == {None}:
                handle, ino = await kernel.create(path)
            else:
                handle, ino = await kernel.open(path, os.O_RDWR | os.O_TRUNC)
        except (NotFound, Exists):
            assert len(before) > 1, f"{path}: it is certain what is there"
            return
        data = self._fresh(choose(self.chance, PRIVATE_BYTES))
        # A truncation is sent when nobody closes the file in order: the handle ends with the process.
        private.files[name] = before | {data, b""}
        self.note(f"write {path} {data[:8]!r}")
        try:
            for start in range(0, len(data), 128 * 1024):
                chunk = data[start : start + 128 * 1024]
                await kernel.fs.files.write(handle, start, chunk)
            await kernel.fs.files.flush(handle)
            if self.sends_at_close:
                assert self.server.bucket.objects[path].data == data, f"{path} was not sent"
            private.files[name] = {data}
            self.note(f"closed {path} {data[:8]!r}")
        finally:
            await kernel.release(handle, ino)
        private.files[name] = {data}

    async def _append(self, kernel: Kernel, private: Private, name: str) -> None:
        """Write behind the end, have that made durable, and close."""
        before = private.possible(name)
        if len(before) != 1 or None in before:
            return
        (old,) = before
        assert old is not None
        path, data = f"{private.path}/{name}", b"+" * 5
        handle, ino = await kernel.open(path, os.O_RDWR)
        private.files[name] = before | {old + data}
        self.note(f"append {path}")
        try:
            await kernel.fs.files.write(handle, len(old), data)
            await kernel.fs.files.fsync(handle, False)  # noqa: FBT003 - pyfuse3's signature
            private.files[name] = {old + data}
            await kernel.fs.files.flush(handle)
            self.note(f"appended {path}")
        finally:
            await kernel.release(handle, ino)

    async def _mark(self, kernel: Kernel, private: Private, name: str) -> None:
        """Change attributes, of the file or of its directory."""
        path = choose(self.chance, [private.path, f"{private.path}/{name}"])
        change = AttributeChange(mode=choose(self.chance, [0o600, 0o700, 0o755]))
        value = b"%d" % self.chance.randrange(100)

        async def act(ino: Ino) -> None:
            await kernel.fs.namespace.setattr(ino, change, None)
            await kernel.fs.xattrs.set(ino, b"user.k", value)

        try:
            await kernel.call_ino(path, act)
        except NotFound:
            assert path == private.path or None in private.possible(name), f"{path} is gone"

    async def _read(self, kernel: Kernel, private: Private, name: str) -> None:
        path = f"{private.path}/{name}"
        possible = private.possible(name)
        try:
            handle, ino = await kernel.open(path, os.O_RDONLY)
        except NotFound:
            assert None in possible, f"{path} is gone"
            return
        try:
            data = await kernel.read_all(handle)
        finally:
            await kernel.release(handle, ino)
        assert data in possible, f"{path}: {data[:8]!r}, not one of {[(p or b'-')[:8] for p in possible]}"

    async def _unlink(self, kernel: Kernel, private: Private, name: str) -> None:
        path = f"{private.path}/{name}"
        before = private.possible(name)
        private.files[name] = before | {None}
        try:
            await kernel.unlink(path)
            self.note(f"unlinked {path}")
        except NotFound:
            assert None in before, f"{path} is gone"
            return
        private.files[name] = {None}

    async def _rename(self, kernel: Kernel, private: Private, name: str) -> None:
        new = choose(self.chance, private.usable())
        source, target = private.possible(name), private.possible(new)
        if new == name or source == {None}:
            return
        private.files[name], private.files[new] = source | {None}, target | source
        doubt = (name, new, source)
        private.moved.append(doubt)
        self.note(f"rename {private.path}: {name} to {new}")
        try:
            await kernel.rename(f"{private.path}/{name}", f"{private.path}/{new}")
        except NotFound:
            assert None in source, f"{private.path}/{name} is gone"
            return
        private.moved.remove(doubt)
        if len(target) > 1:
            private.late[new] = private.late.get(new, set()) | (target - {None})
        private.files[name], private.files[new] = {None}, source - {None}
        self.note(f"renamed {private.path}: {name} to {new}")

    async def _rename_all(self, kernel: Kernel, private: Private) -> None:
        """Rename the directory; if that stops half-way, nobody touches it again."""
        old, private.also = private.path, f"{private.path}x"
        self.note(f"rename {old}")
        try:
            await kernel.rename(old, private.also)
        except (*TEMPORARY, NotFound, Stale) as exc:
            self.note(f"rename {old}: {exc!r}")
            return
        private.path, private.also = private.also, None
        self.note(f"renamed {old}")

    # -- what everybody does -----------------------------------------------------------------------

    async def _shared(self, kernel: Kernel) -> None:
        path, other = choose(self.chance, SHARED), choose(self.chance, SHARED)
        verb = choose(
            self.chance,
            ["make", "make", "write", "read", "unlink", "rename", "mkdir", "rmdir", "ls", "chmod", "far"],
        )
        try:
            await self._chaos(kernel, verb, path, other)
        except (*TEMPORARY, *OUTDATED) as exc:
            self.note(f"{verb} {path} {other}: {exc!r}")
        else:
            self.note(f"{verb} {path} {other}")

    async def _chaos(self, kernel: Kernel, verb: str, path: str, other: str) -> None:
        match verb:
            case "make" | "write" | "read":
                await self._touch(kernel, verb, path)
            case "unlink":
                await kernel.unlink(path)
            case "rename":
                await kernel.rename(path, other)
            case "mkdir":
                await kernel.mkdir(choose(self.chance, ["s", path]))
            case "rmdir":
                await kernel.rmdir(path)
            case "ls":
                await kernel.ls("s")
            case "far":
                await self._move_far(kernel)
            case _:
                change = AttributeChange(mode=choose(self.chance, [0o600, 0o644]))

                async def act(ino: Ino) -> None:
                    await kernel.fs.namespace.setattr(ino, change, None)

                await kernel.call_ino(path, act)

    async def _move_far(self, kernel: Kernel) -> None:
        old, new = self.chance.sample(FAR_NAMES, 2)
        if self.chance.random() < 0.2:
            await kernel.ls(old)
        await kernel.rename(old, new)

    async def _touch(self, kernel: Kernel, verb: str, path: str) -> None:
        if verb == "make":
            handle, ino = await kernel.create(path)
        else:
            flags = os.O_RDONLY if verb == "read" else os.O_RDWR | os.O_TRUNC
            handle, ino = await kernel.open(path, flags)
        try:
            if verb == "read":
                data = await kernel.read_all(handle)
                assert data in self.versions, f"{path}: {data!r} never was"
            else:
                await kernel.fs.files.write(handle, 0, self._fresh(SHARED_BYTES))
                await kernel.fs.files.flush(handle)
        finally:
            await kernel.release(handle, ino)

    # -- when it is over ---------------------------------------------------------------------------

    async def _compare(self) -> None:
        for name in ("one", "two"):
            await self._send_all(self.directory / name)
        for name in ("one", "two"):
            await self._check_mount(self.directory / name)
            check_database(self.directory / name / "index.db")
        for private in self.privates:
            self._check_private(private)
        there = {stored.data for stored in self.server.bucket.objects.values()}
        assert there >= set(FAR.values()), f"lost: {set(FAR.values()) - there}"

    async def _send_all(self, cache: Path) -> None:
        """Mount once more, and have everything sent that was kept."""
        config = load(uid=1000, gid=1000, freshness_s=3600.0)
        async with FileSystem.open(config, self.server.remote(), cache, None) as fs:
            try:
                assert await fs.drain(60.0) == 0
                await settle(self.server, fs)
            finally:
                close_staged(fs)

    async def _check_mount(self, cache: Path) -> None:
        config = load(uid=1000, gid=1000, freshness_s=3600.0)
        async with FileSystem.open(config, self.server.remote(), cache, None) as fs:
            try:
                await settle(self.server, fs)
                check_index(self.server, fs.core.index)
                kernel = Kernel(fs)
                await check_agreement(self.server, kernel)
                kernel.drop_caches()
                await let_go(fs)
                check_nothing_left(fs, cache / "staging", set(self.server.bucket.objects))
            finally:
                close_staged(fs)

    def _check_private(self, private: Private) -> None:
        objects = self.server.bucket.objects
        places = [private.path] if private.also is None else [private.path, private.also]

        def found(name: str) -> Possible:
            every = [f"{place}/{name}" for place in places]
            return {objects[key].data for key in every if key in objects} or {None}

        for name, certain in private.files.items():
            possible = certain
            if self.settings["conflict"] == "refuse" and certain & self._kept_aside():
                possible = certain | private.late.get(name, set())
            shown = [(data or b"-")[:8] for data in possible]
            assert found(name) <= possible, f"{private.path}/{name}: {found(name)!r:.80}, not {shown}"
        for old, new, possible in private.moved:
            there = (found(old) | found(new)) & possible
            assert there, f"{private.path}: lost between {old} and {new}"

    def _kept_aside(self) -> set[bytes]:
        """Return what lost a conflict on one of the mounts."""
        directories = [self.directory / name / "conflicts" for name in ("one", "two")]
        return {
            (directory / f"{conflict.id}.data").read_bytes()
            for directory in directories
            for conflict in list_conflicts(directory)
        }


def close_staged(fs: FileSystem) -> None:
    """Close what the end of the process closes."""
    for inode in fs.core.table:
        if inode.staged is not None:
            inode.staged.rest()
