"""What the daemon says about itself, and the hidden directory that shows it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import trio

from exaifs import __version__
from exaifs.errors import (
    Exists,
    IsADirectory,
    NoAttribute,
    NotADirectory,
    NotFound,
    NotPermitted,
    NotSupported,
    RemoteError,
    Unauthorized,
    Unreachable,
)
from exaifs.model import ROOT_INO, AttributeChange, Handle, Ino
from tests.fs.conftest import Mount
from tests.support.double import DoubleServer
from tests.support.paths import CALLER, Paths, follow

pytestmark = pytest.mark.anyio

STATUS = ".exaifs/status.json"


async def reach(paths: Paths, state: str) -> None:
    """Wait until the mount is in a state."""
    with trio.fail_after(60):
        while paths.fs.status().state != state:  # noqa: ASYNC110 - nothing announces it
            await trio.sleep(0.01)


async def test_a_mount_at_rest(server: DoubleServer, mount: Mount) -> None:
    """Online, nothing waits, and every figure is there."""
    server.bucket.put("d/a", b"12345")
    async with mount() as paths:
        await paths.ls("d")
        found = paths.fs.status()
        assert (found.state, found.reason) == ("online", None)
        assert found.feed.live
        assert found.feed.problem is None
        assert found.feed.lag_s is not None
        assert 0 <= found.feed.lag_s < 60
        assert found.server.offline_since_unix_s is None
        assert found.server.last_answer_age_s is not None
        assert 0 <= found.server.last_answer_age_s < 60
        assert (found.index.entries, found.index.loaded_directories) == (2, 2)
        assert found.index.database_bytes > 0
        assert (found.queue.dirty_open, found.queue.waiting, found.queue.failed) == (0, 0, 0)
        assert found.queue.oldest_unsent_unix_s is None
        assert all(names.count == 0 for names in found.odd_keys.values())
        facts = found.mount
        assert (facts.bucket, facts.version, facts.pid) == ("user-files", __version__, os.getpid())
        assert (facts.read_only, facts.freshness_s, facts.consistency) == (False, 3600.0, "feed")
        assert 0 <= facts.uptime_s < 60


async def test_cache_figures(server: DoubleServer, mount: Mount) -> None:
    """Each read is counted for the tier that had it; rates are computed here."""
    server.bucket.put("a", b"12345")
    async with mount() as paths:
        assert paths.fs.status().cache.hit_rate is None
        await paths.read("a")
        cold = paths.fs.status().cache
        assert (cold.remote.reads, cold.remote.share, cold.hit_rate) == (1, 1.0, 0.0)
        assert (cold.remote.fetched_bytes, cold.disk_disabled) == (5, None)
        await paths.read("a")
        warm = paths.fs.status().cache
        assert (warm.memory.hits, warm.memory.size_bytes, warm.memory.hit_rate) == (1, 5, 0.5)
        assert (warm.hit_rate, warm.remote.share) == (0.5, 0.5)
        assert paths.fs.status().access_counters_waiting == 1


async def test_what_is_unsent(server: DoubleServer, mount: Mount) -> None:
    """Open files with changes, files that wait, and why the last attempt failed."""
    async with mount(offline_writes="refuse", drain_s=0.01) as paths:
        async with paths.open("open", os.O_CREAT | os.O_WRONLY) as handle:
            await paths.write_all(handle, b"x")
            queue = paths.fs.status().queue
            assert (queue.dirty_open, queue.waiting, queue.failed) == (1, 0, 0)
            assert queue.oldest_unsent_age_s is not None
            assert 0 <= queue.oldest_unsent_age_s < 60
        assert paths.fs.status().queue.dirty_open == 0
        server.inject("put", Unreachable("no way out"), times=1000)
        with pytest.raises(Unreachable):
            await paths.create("kept", b"x")
        found = paths.fs.status()
        assert (found.queue.dirty_open, found.queue.waiting, found.queue.failed) == (0, 1, 1)
        assert found.queue.last_error == "no way out"


async def test_conflicts_are_counted(server: DoubleServer, mount: Mount, tmp_path: Path) -> None:
    """Those that wait are counted as they are on the disk, those seen since the start."""
    async with mount() as paths:
        facts = paths.fs.status()
        assert (facts.conflicts.waiting, facts.conflicts.seen) == (0, 0)
        assert facts.mount.cache_directory == str(tmp_path / "cache")
        await paths.create("a", b"mine")
        server.online = False
        async with paths.open("a", os.O_WRONLY | os.O_TRUNC) as handle:
            await paths.write_all(handle, b"mine again")
        server.bucket.put("a", b"another host's")
        server.online = True
        assert await paths.fs.drain(60) == 0
        found = paths.fs.status().conflicts
        assert (found.waiting, found.seen) == (1, 1)
    async with mount() as paths:
        found = paths.fs.status().conflicts
        assert (found.waiting, found.seen) == (1, 0)


async def test_offline_and_back(server: DoubleServer, mount: Mount) -> None:
    """Offline says since when; the snapshot needs no server; it recovers."""
    async with mount(freshness_s=0.01) as paths:
        server.online = False
        await reach(paths, "offline")
        found = paths.fs.status()
        assert found.server.offline_since_unix_s is not None
        assert found.server.offline_s is not None
        assert found.reason == found.server.problem == "the server does not answer"
        assert not found.feed.live
        server.counts.clear()
        assert json.loads(await paths.read(STATUS))["state"] == "offline"
        server.online = True
        await reach(paths, "online")
        assert paths.fs.status().server.problem is None


@pytest.mark.parametrize(
    ("problem", "words"),
    [(Unauthorized("the key is refused"), "the key is refused"), (None, "exaifs init")],
)
async def test_degraded_says_why(
    server: DoubleServer, mount: Mount, problem: RemoteError | None, words: str
) -> None:
    """A refused key and a missing trigger are no outage, but not well either."""
    if problem is None:
        server.trigger_installed = False
    async with mount(freshness_s=0.01) as paths:
        if problem is not None:
            server.inject("changes", problem, times=10**6)
        await reach(paths, "degraded")
        found = paths.fs.status()
        assert found.reason is not None
        assert words in found.reason
        assert not found.feed.live


async def test_a_gap_in_the_log_is_catching_up(server: DoubleServer, mount: Mount) -> None:
    """Until every loaded directory is listed again, the state says so."""
    server.bucket.put("d/a", b"1")
    async with mount() as paths:
        await paths.ls("d")
    server.bucket.trim_log()
    server.bucket.put("d/b", b"1")
    server.bucket.trim_log()
    with server.hold("list_directory") as gate:
        async with mount() as paths:
            await gate.wait_arrived()
            found = paths.fs.status()
            assert found.state == "catching-up"
            assert found.index.directories_to_list_again == 2
            gate.open()
            await reach(paths, "online")


async def test_the_file_holds_the_snapshot_at_open(server: DoubleServer, mount: Mount) -> None:
    """Readable in pieces, unchanged while open, without a request; stable names."""
    async with mount() as paths:
        await paths.ls()
        server.counts.clear()
        async with paths.open(STATUS) as handle:
            first = await paths.read_all(handle, chunk_bytes=100)
            await paths.create("a", b"x")
            assert await paths.read_all(handle) == first
        assert (await paths.stat(STATUS)).size_bytes == len(first)
        value = json.loads(first)
        assert set(value) == {
            "format", "at_unix_s", "state", "reason", "mount", "server", "feed", "index", "cache", "queue",
            "conflicts",
            "odd_keys", "access_counters_waiting",
        }  # fmt: skip
        assert json.loads(await paths.read(STATUS))["index"]["entries"] == 1
        assert server.counts["stat"] + server.counts["list_directory"] == 0


async def test_the_hidden_directory(mount: Mount) -> None:
    """Not listed in the root; itself listable; attributes are those of read-only files."""
    async with mount() as paths:
        await paths.create("a", b"")
        assert await paths.ls() == ["a"]
        assert await paths.ls_all(".exaifs") == [".", "..", "status.json", "sync"]
        directory, file = await paths.stat(".exaifs"), await paths.stat(STATUS)
        assert (directory.is_dir, directory.mode & 0o777, directory.uid) == (True, 0o555, 1000)
        assert (file.is_dir, file.mode & 0o777, file.uid) == (False, 0o444, 1000)
        assert file.size_bytes > 100
        assert await paths.listxattr(STATUS) == []
        with pytest.raises(NoAttribute):
            await paths.getxattr(STATUS, "user.x")
        with pytest.raises(NotFound):
            await paths.stat(".exaifs/other")
        with pytest.raises(NotADirectory):
            await paths.stat(f"{STATUS}/x")
        with pytest.raises(IsADirectory):
            await paths.fs.files.open((await paths.stat(".exaifs")).ino, os.O_RDONLY, CALLER)
        await paths.mkdir("d")
        await paths.create("d/.exaifs", b"ordinary")
        assert await paths.read("d/.exaifs") == b"ordinary"


async def test_nothing_in_it_can_be_changed(server: DoubleServer, mount: Mount) -> None:
    """EPERM for every change, and nothing of it reaches the bucket."""
    async with mount() as paths:
        await paths.create("a", b"x")
        before = dict(server.bucket.objects)
        for refused in (
            lambda: paths.create(".exaifs/new"),
            lambda: paths.create(".exaifs"),
            lambda: paths.mkdir(".exaifs"),
            lambda: paths.mkdir(".exaifs/d"),
            lambda: paths.symlink("a", ".exaifs/link"),
            lambda: paths.unlink(STATUS),
            lambda: paths.unlink(".exaifs"),
            lambda: paths.rmdir(".exaifs"),
            lambda: paths.rename(".exaifs", "b"),
            lambda: paths.rename(STATUS, "b"),
            lambda: paths.rename("a", ".exaifs"),
            lambda: paths.rename("a", ".exaifs/b"),
            lambda: paths.rename("a", STATUS),
            lambda: paths.overwrite(STATUS, b"x"),
            lambda: paths.setattr(STATUS, AttributeChange(mode=0o777)),
            lambda: paths.setattr(".exaifs", AttributeChange(mtime_ns=0)),
            lambda: paths.setxattr(STATUS, "user.x", b""),
        ):
            with pytest.raises((NotPermitted, NotSupported)):
                await refused()
        assert server.bucket.objects == before
        assert await paths.ls() == ["a"]


async def test_objects_below_that_name_stay_out_of_reach(server: DoubleServer, mount: Mount) -> None:
    """The bucket's own `.exaifs/...` is counted as odd, not shown, not mixed in."""
    server.bucket.put(STATUS, b"not ours")
    server.bucket.put(".exaifs/x/y", b"not ours")
    server.bucket.put("d/.exaifs/z", b"shown")
    async with mount() as paths:
        assert await paths.ls() == ["d"]
        assert await paths.read("d/.exaifs/z") == b"shown"
        found = json.loads(await paths.read(STATUS))["odd_keys"]["reserved_name"]
        assert found == {"count": 2, "names": [STATUS, ".exaifs/x/y"]}
        server.bucket.put(".exaifs", b"not ours either")
        await follow(paths)
        assert paths.fs.status().odd_keys["reserved_name"].count == 3
        assert await paths.ls() == ["d"]


async def test_numbers_do_not_clash(mount: Mount) -> None:
    """Inodes and handles of the hidden directory are far above all others, and fit 63 bits."""
    async with mount() as paths:
        await paths.create("a", b"")
        low = (await paths.stat("a")).ino
        high = [(await paths.stat(path)).ino for path in (".exaifs", STATUS)]
        assert low < 1 << 62 <= min(high) <= max(high) < 1 << 63
        assert len(set(high)) == 2
        opened = await paths.fs.files.open(high[1], os.O_RDONLY, CALLER)
        async with paths.open("a") as handle:
            assert handle < 1 << 62 <= opened.handle
        assert opened.direct_io
        assert not opened.keep_cache
        await paths.fs.files.fsync(opened.handle, False)  # noqa: FBT003 - pyfuse3's signature
        await paths.fs.files.release(opened.handle)
        with pytest.raises(Exists):
            await paths.create("a", b"")
        paths.fs.namespace.forget([(ino, 1) for ino in high])
        assert (await paths.fs.namespace.lookup(ROOT_INO, ".exaifs")).ino == high[0]
        handle = Handle(await paths.fs.namespace.opendir(Ino(high[0])))
        listed = list(await paths.fs.namespace.readdir(handle, 2))
        assert [entry.name for entry in listed] == ["status.json", "sync"]
        paths.fs.namespace.took(listed[0])
        paths.fs.namespace.releasedir(handle)


async def test_nothing_secret_is_in_it(mount: Mount) -> None:
    """The URL yes, the key no."""
    async with mount(supabase_url="https://p.supabase.co", supabase_key="sb_secret_abcdefgh") as paths:
        text = (await paths.read(STATUS)).decode("ascii")
        assert "https://p.supabase.co" in text
        assert "abcdefgh" not in text


async def test_names_that_are_not_text(server: DoubleServer, mount: Mount) -> None:
    """Names that are not UTF-8 do not break the file."""
    server.bucket.put("=FF/t", b"x")
    server.bucket.put("=FF/t/u", b"x")
    async with mount() as paths:
        await paths.ls(os.fsdecode(b"\xff"))
        found = json.loads(await paths.read(STATUS))["odd_keys"]["file_and_folder"]
        assert found["count"] == 1
        assert os.fsencode(found["names"][0]) == b"\xff/t (object)"
