"""Several tasks on two mounts through a bad network, with outages and kills, and what must come of it.

Each task has a directory of its own (`tasks`), where it knows exactly what may be there. A shared directory
adds chaos; of it only agreement and whole versions are asked, and that files which nobody removes are all
there in the end, wherever their directory was renamed to.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import trio

from exaifs.cache.unsent.conflicts import list_conflicts
from exaifs.config import load
from exaifs.errors import ExaifsError
from exaifs.fs.filesystem import FileSystem
from exaifs.model import AttributeChange, Ino
from exaifs.names import PLACEHOLDER
from tests.simulation.kernel import Kernel
from tests.simulation.play import OUTDATED
from tests.simulation.replay import Server
from tests.simulation.tasks import MARK, NAMES, Manner, Possible, Private, Task, is_trouble
from tests.simulation.weather import Link, Weather, choose, distant
from tests.simulation.world import (
    check_agreement,
    check_database,
    check_index,
    check_nothing_left,
    let_go,
    settle,
)

MOUNTS = ("one", "two")
SHARED = ("s/a", "s/b", "s/d", "s/d/a", "s/d/b", "s/e")
FAR = {name: name.encode() * 9 for name in ("x", "deep/y", "deep/down/z")}
"""Files of a third host, in a directory that goes by one name or another, and is seldom listed."""

FAR_NAMES = ("s/far", "s/near")
FAR_BELOW = ("", "", "deep/", "deep/down/")
SHARED_BYTES = {"one": 60, "two": 64}
"""All shared contents of a mount are as long, so that two writers of it cannot blend: the later covers all.

Those of the other are not: a server that drops metadata takes an object of the same size for one's own.
"""

PACE_S = 1.0
OPERATIONS = 12
END_S = 24 * 3600.0
"""Nothing hangs: all is over by then, by the mock clock."""


@dataclass
class Storm:
    """One simulation, all of it chosen by a seed."""

    seed: int
    directory: Path
    versions: set[bytes] = field(default_factory=lambda: {b""})
    precious: set[bytes] = field(default_factory=set)
    """Contents that were acknowledged, and that nobody removes or replaces."""
    privates: list[Private] = field(default_factory=list)
    caches: dict[str, Path] = field(default_factory=dict)
    """Of each mount, the cache directory of its newest run."""
    running: dict[str, FileSystem] = field(default_factory=dict)
    behind: set[str] = field(default_factory=set)
    """Mounts whose last run ended while its index was in memory, as the disk refused it."""
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.server = Server()
        self.server.bucket.keeps_metadata = choose(self.chance, [True, True, False])
        self.server.ignores_range = choose(self.chance, [False, True])
        for name, data in FAR.items():
            self.server.bucket.put(f"{FAR_NAMES[0]}/{name}", data)
        self.weather = Weather(
            self.chance,
            drop_rate=choose(self.chance, [0.0, 0.02, 0.1, 0.3]),
            delay_s=choose(self.chance, [0.01, 0.5, 3.0]),
            stall_rate=choose(self.chance, [0.0, 0.0, 0.03]),
        )
        self._tag = 0
        self.fills = choose(self.chance, [False, True])
        """Whether the disk of the caches is full now and then."""
        self.settings = {name: self._choose_settings() for name in MOUNTS}

    def _choose_settings(self) -> dict[str, object]:
        return {
            "write_mode": choose(self.chance, ["through", "through", "back"]),
            "offline_writes": choose(self.chance, ["journal", "journal", "refuse"]),
            "write_back_s": choose(self.chance, [0.0, 2.0]),
            "conflict": choose(self.chance, ["last-close", "last-close", "refuse"]),
            "consistency": choose(self.chance, ["feed", "feed", "open"]),
            "memory_cache_bytes": choose(self.chance, [100_000_000, 0]),
            "disk_cache_mb": choose(self.chance, [1000, 1000, 0]),
        }

    async def run(self) -> None:
        """Play the storm, calm it, and compare."""
        with trio.fail_after(END_S):
            await self._storm()
            self.note(f"calm, after {self.settings}")
            self.weather.calm()
            self._free_disk()
            self._log_again()
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
                    for name in MOUNTS:
                        mounts.start_soon(self._mount, name)
            outages.cancel()
            nursery.cancel_scope.cancel()

    async def _outages(self, scope: trio.CancelScope) -> None:
        if self.chance.random() < 0.1:
            await self._outage()  # before anything is known
        while not scope.cancel_called:
            await trio.sleep(self.chance.uniform(0, 30))
            full = "full" if self.fills else "nothing"
            what = choose(self.chance, ["offline", "trim", "unlogged", full, full])
            if what == "trim":
                self.note("the change log is trimmed")
                self.server.bucket.trim_log()
            elif what == "offline":
                await self._outage()
            elif what == "unlogged":
                self.note("no change log")
                self.server.trigger_installed = self.server.bucket.is_logged = False
                await trio.sleep(self.chance.uniform(0, 100))
                self._log_again()
            elif what == "full":
                self.note("the disk is full")
                limit_file_size(choose(self.chance, [0, 4096, 50_000]))
                await trio.sleep(self.chance.uniform(0, 15))
                self._free_disk()

    async def _outage(self) -> None:
        self.note("offline")
        self.server.online = False
        await trio.sleep(self.chance.uniform(0, 20))
        self.server.online = True
        self.note("online")

    def _log_again(self) -> None:
        if not self.server.trigger_installed:
            self.note("the change log goes on")
            self.server.trigger_installed = True
            self.server.bucket.break_log()

    def _free_disk(self) -> None:
        if limit_file_size(resource.RLIM_INFINITY):
            self.note("there is room on the disk")

    # -- a mount -----------------------------------------------------------------------------------

    async def _mount(self, name: str) -> None:
        cache = self.directory / name
        await trio.Path(cache).mkdir()
        mine = [Private(f"{name}{number}", self.settings[name]) for number in range(3)]
        self.privates += mine
        for run in range(choose(self.chance, [1, 2, 2, 3])):
            self.caches[name] = cache
            for private in mine:
                private.held = None
            link = Link()
            with trio.CancelScope() as life:
                async with trio.open_nursery() as nursery:
                    left = self.directory / f"{name}{run}"
                    if self.chance.random() < 0.5:
                        nursery.start_soon(self._kill, life, link, name, left)
                    await self._serve(name, link, mine)
                    nursery.cancel_scope.cancel()
            cache = self.caches[name]

    async def _kill(self, life: trio.CancelScope, link: Link, name: str, left: Path) -> None:
        """End a run at some moment; the next one finds the cache directory as it is then."""
        await trio.sleep(self.chance.uniform(0, 30))
        self._note_end(name)
        self._free_disk()
        shutil.copytree(self.caches[name], left, ignore=shutil.ignore_patterns("*-shm"))
        self.caches[name] = left
        self.note(f"{name} is killed")
        link.cut = True
        life.cancel()

    async def _serve(self, name: str, link: Link, mine: list[Private]) -> None:
        remote = distant(self.server.remote(), self.weather, link)
        config = load(uid=1000, gid=1000, freshness_s=PACE_S, **self.settings[name])
        self._free_disk()  # on a full disk nothing begins
        self.note(f"{name} is mounted")
        async with FileSystem.open(config, remote, self.caches[name], None) as fs:
            try:
                async with trio.open_nursery() as background:
                    await background.start(fs.run)
                    if name in self.behind:
                        await _catch_up(fs)
                    self.running[name] = fs
                    kernel = Kernel(fs)
                    background.start_soon(kernel.listen)
                    async with trio.open_nursery() as nursery:
                        for private in mine:
                            nursery.start_soon(self._work, kernel, private)
                    background.cancel_scope.cancel()
                left = await fs.drain(choose(self.chance, [0.5, 5.0]))
                self.note(f"{name} is unmounted, {left} left")
                self._note_end(name)
            finally:
                close_staged(fs)

    def _note_end(self, name: str) -> None:
        """Note whether the index on the disk is what the mount knows: the next run finds that one."""
        fs = self.running.get(name)
        if fs is not None and fs.core.contents.statistics().disk_disabled is not None:
            self.behind.add(name)
        elif fs is not None:
            self.behind.discard(name)

    async def _work(self, kernel: Kernel, private: Private) -> None:
        task = Task(
            private,
            kernel,
            chance=self.chance,
            fresh=self._fresh,
            sent=self._sent,
            note=self.note,
            may_fill=self.fills,
        )
        for _ in range(OPERATIONS):
            await trio.sleep(self.chance.uniform(0, 3))
            if private.also is not None or self.chance.random() < 0.35:
                await self._shared(kernel, SHARED_BYTES[private.path[:3]])
            else:
                await task.step()
        await task.finish()

    def _fresh(self, size: int) -> bytes:
        self._tag += 1
        data = (b"<%06d>" % self._tag * (size // 8 + 1))[:size]
        self.versions.add(data)
        return data

    def _sent(self, path: str) -> bytes | None:
        stored = self.server.bucket.objects.get(path)
        return None if stored is None else stored.data

    # -- what everybody does -----------------------------------------------------------------------

    async def _shared(self, kernel: Kernel, size: int) -> None:
        path, other = choose(self.chance, SHARED), choose(self.chance, SHARED)
        verb = choose(
            self.chance,
            [
                *("make", "make", "write", "read", "unlink", "rename", "rename", "mkdir", "rmdir", "link"),
                *("ls", "chmod", "far", "far", "precious", "precious"),
            ],
        )
        try:
            await self._chaos(kernel, verb, path, other, size)
        except ExaifsError as exc:
            if not (is_trouble(exc) or isinstance(exc, OUTDATED)):
                raise
            self.note(f"{verb} {path} {other}: {exc!r}")
        else:
            self.note(f"{verb} {path} {other}")

    async def _chaos(  # noqa: C901 - a table
        self, kernel: Kernel, verb: str, path: str, other: str, size: int
    ) -> None:
        match verb:
            case "make" | "write" | "read":
                await self._touch(kernel, verb, path, size)
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
            case "link":
                await kernel.symlink(self._fresh(size).decode(), path)
            case "precious":
                await self._keep_precious(kernel, size)
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

    async def _keep_precious(self, kernel: Kernel, size: int) -> None:
        """Make a file that everybody leaves alone; only the directories above it are renamed."""
        data = self._fresh(size)
        path = f"{choose(self.chance, FAR_NAMES)}/{choose(self.chance, FAR_BELOW)}{self._tag}"
        handle, ino = await kernel.create(path)
        try:
            await kernel.fs.files.write(handle, 0, data)
            await kernel.fs.files.flush(handle)
            self.precious.add(data)
            self.note(f"precious {path}")
        finally:
            await kernel.release(handle, ino)

    async def _touch(self, kernel: Kernel, verb: str, path: str, size: int) -> None:
        if verb == "make":
            handle, ino = await kernel.create(path)
        else:
            flags = os.O_RDONLY if verb == "read" else os.O_RDWR | os.O_TRUNC
            handle, ino = await kernel.open(path, flags)
        try:
            if verb == "read":
                if choose(self.chance, [False, True]):
                    await trio.sleep(self.chance.uniform(0, 5))
                data = await kernel.read_all(handle)
                assert data in self.versions, f"{path}: {data!r} never was"
            else:
                await kernel.fs.files.write(handle, 0, self._fresh(size))
                await kernel.fs.files.flush(handle)
        finally:
            await kernel.release(handle, ino)

    # -- when it is over ---------------------------------------------------------------------------

    async def _compare(self) -> None:
        for cache in self.caches.values():
            await self._send_all(cache)
        for cache in self.caches.values():
            await self._check_mount(cache)
            check_database(cache / "index.db")
        for private in self.privates:
            self._check_private(private)
        there = {stored.data for stored in self.server.bucket.objects.values()}
        wanted = self.precious | set(FAR.values())
        if any(settings["conflict"] == "refuse" for settings in self.settings.values()):
            there |= self._kept_aside()
        assert there >= wanted, f"lost: {wanted - there}"

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

        aside = self._kept_aside()
        for name in NAMES:
            certain = private.possible(name)
            possible = certain
            if private.settings["conflict"] == "refuse" and certain & aside:
                possible = certain | private.late.get(name, set())
            shown = [(data or b"-")[:8] for data in possible]
            assert found(name) <= possible, f"{private.path}/{name}: {found(name)!r:.80}, not {shown}"
            if possible == certain:
                for place in places:
                    self._check_manner(f"{place}/{name}", private.manner(name))
        for old, new, possible in private.moved:
            there = (found(old) | found(new)) & possible
            assert there, f"{private.path}: lost between {old} and {new}"
        if private.also is None and private.made:
            self._check_manner(f"{private.path}/{PLACEHOLDER}", private.own)
        self._check_nothing_else(private, places)

    def _check_manner(self, key: str, manner: Manner) -> None:
        record = self.server.bucket.find(key)
        if record is not None:
            mark, mode = record.xattrs.get(MARK.decode()), record.posix.mode
            if mode is None:  # cut off before its commit, on a server that drops metadata
                mode = 0o755 if key.endswith(PLACEHOLDER) else 0o644
            assert mode in manner.modes, f"{key}: {mode:o}, not {manner.modes}"
            assert mark in manner.marks, f"{key}: {mark!r}, not {manner.marks}"

    def _check_nothing_else(self, private: Private, places: list[str]) -> None:
        keys = self.server.bucket.objects
        for place in private.former:
            left = [key for key in keys if key.startswith(f"{place}/")]
            assert not left, f"{left} after a rename"
        for place in places:
            there = {key[len(place) + 1 :] for key in keys if key.startswith(f"{place}/")}
            assert there <= {*NAMES, PLACEHOLDER}, f"{there} in {place}"
        if private.made:
            assert any(key.startswith(f"{place}/") for key in keys for place in places), private.path

    def _kept_aside(self) -> set[bytes]:
        """Return what lost a conflict on one of the mounts."""
        directories = [cache / "conflicts" for cache in self.caches.values()]
        return {
            (directory / f"{conflict.id}.data").read_bytes()
            for directory in directories
            for conflict in list_conflicts(directory)
        }


async def _catch_up(fs: FileSystem) -> None:
    """Wait until a mount has sent everything, and heard of what it did itself and did not keep."""
    answers: set[float] = set()
    # What an answer had to leave alone comes with the next, and what that did not tell is listed.
    while len(answers) < 3 or not await fs.directories.reconcile():
        await trio.sleep(PACE_S)
        if fs.writes.sender.left():
            answers.clear()
        elif fs.feed.lag_s is not None:
            answers.add(round(trio.current_time() - fs.feed.lag_s, 3))


def limit_file_size(limit_bytes: int) -> bool:
    """Have the kernel refuse to write past a size, as a full disk does; tell whether that is new."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    return soft != limit_bytes


def close_staged(fs: FileSystem) -> None:
    """Close what the end of the process closes."""
    for inode in fs.core.table:
        if inode.staged is not None:
            inode.staged.rest()
