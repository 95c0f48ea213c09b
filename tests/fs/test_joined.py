"""Changes of one row that wait are joined: after an outage they cost what one costs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio
import trio.testing

from exaifs.errors import ExaifsError, NoAttribute, Unreachable
from exaifs.model import AttributeChange
from exaifs.names import PLACEHOLDER
from tests.fs import scenes
from tests.fs.conftest import Mount
from tests.fs.scenes import file_size_limit
from tests.support.double import DoubleServer
from tests.support.paths import Paths

pytestmark = pytest.mark.anyio

CHANGES = ("put", "commit", "patch", "remove", "move", "copy")


def changes(server: DoubleServer) -> dict[str, int]:
    """Return how many requests changed something."""
    return {name: server.counts[name] for name in CHANGES if server.counts[name]}


async def back(server: DoubleServer, paths: Paths) -> None:
    """Have Supabase answer again, and everything sent; count what that takes."""
    server.counts.clear()
    await scenes.back(server, paths)


async def change_often(paths: Paths, path: str, times: int) -> None:
    """Call chmod, touch, setfattr and setfattr -x again and again."""
    for number in range(times):
        await paths.setattr(path, AttributeChange(mode=0o600 + number % 8))
        await paths.setattr(path, AttributeChange(mtime_ns=number + 1))
        await paths.setxattr(path, f"user.k{number % 3}", b"%d" % number)
        await paths.setxattr(path, "user.gone", b"x")
        await paths.removexattr(path, "user.gone")


async def test_a_thousand_changes_of_one_row_are_one_request(server: DoubleServer, mount: Mount) -> None:
    """chmod, touch, setfattr and setfattr -x of one file while Supabase is away: the last counts."""
    async with mount() as paths:
        await paths.create("f", b"1")
        await paths.setxattr("f", "user.gone", b"there before")
        await paths.setxattr("f", "user.kept", b"k")
        server.online = False
        await change_often(paths, "f", 200)
        assert len(paths.fs.core.changes.outbox.operations) <= 2
        await back(server, paths)
        assert changes(server)["patch"] <= 2
        record = server.bucket.record("f")
        assert (record.posix.mode, record.posix.mtime_ns) == (0o607, 200)
        assert dict(record.xattrs) == {
            "user.kept": b"k",
            "user.k0": b"198",
            "user.k1": b"199",
            "user.k2": b"197",
        }
        stat = await paths.stat("f")
        assert (stat.mode & 0o777, stat.mtime_ns) == (0o607, 200)
        with pytest.raises(NoAttribute):
            await paths.getxattr("f", "user.gone")


async def test_a_directory_too(server: DoubleServer, mount: Mount) -> None:
    """Its row is its marker's; a directory without one gets it first."""
    server.bucket.put("d/f", b"1")
    async with mount() as paths:
        await paths.ls("d")
        server.online = False
        await change_often(paths, "d", 20)
        await back(server, paths)
        assert changes(server)["put"] == 1
        assert changes(server)["patch"] <= 2
        assert server.bucket.record(f"d/{PLACEHOLDER}").posix.mode == 0o603


async def test_only_what_lies_on_the_same_side_of_a_rename_is_joined(
    server: DoubleServer, mount: Mount
) -> None:
    """Before and after it a key is another file's: order is kept."""
    async with mount() as paths:
        await paths.create("a", b"a")
        await paths.create("b", b"b")
        server.online = False
        await paths.setattr("a", AttributeChange(mode=0o600))
        await paths.setattr("b", AttributeChange(mode=0o640))
        await paths.rename("a", "t")
        await paths.rename("b", "a")
        await paths.setattr("a", AttributeChange(mtime_ns=5))
        await paths.setattr("t", AttributeChange(mtime_ns=6))
        await paths.setattr("a", AttributeChange(mode=0o444))
        await paths.setxattr("t", "user.k", b"t")
        await back(server, paths)
        assert changes(server) == {"patch": 4, "move": 2}
        a, t = server.bucket.record("a"), server.bucket.record("t")
        assert (server.bucket.objects["a"].data, a.posix.mode, a.posix.mtime_ns) == (b"b", 0o444, 5)
        assert (server.bucket.objects["t"].data, t.posix.mode, t.posix.mtime_ns) == (b"a", 0o600, 6)
        assert (dict(a.xattrs), dict(t.xattrs)) == ({}, {"user.k": b"t"})


async def test_bytes_that_wait_carry_what_was_changed_beside_them(
    server: DoubleServer, mount: Mount
) -> None:
    """Attributes before and after a write: one row, one upload."""
    async with mount() as paths:
        await paths.create("f", b"old")
        server.online = False
        await change_often(paths, "f", 20)
        await paths.overwrite("f", b"new")
        await change_often(paths, "f", 20)
        await back(server, paths)
        assert changes(server)["put"] == 1
        assert changes(server)["patch"] <= 2
        record = server.bucket.record("f")
        assert server.bucket.objects["f"].data == b"new"
        assert (record.posix.mode, record.posix.mtime_ns) == (0o603, 20)
        assert record.xattrs["user.k1"] == b"19"


async def test_what_was_removed_needs_no_attributes(server: DoubleServer, mount: Mount) -> None:
    """chmod, then unlink: only the removal is sent."""
    async with mount() as paths:
        await paths.create("f", b"1")
        server.online = False
        await change_often(paths, "f", 5)
        await paths.unlink("f")
        assert len(paths.fs.core.changes.outbox.operations) <= 2
        await back(server, paths)
        assert changes(server)["remove"] == 1
        assert server.bucket.objects == {}


async def test_a_directory_made_and_removed_again_and_again_costs_nothing(
    server: DoubleServer, mount: Mount
) -> None:
    """mkdir, chmod, rmdir, a hundred times, as programs do with directories for locks."""
    async with mount(offline_writes="journal") as paths:
        await paths.ls()
        server.online = False
        for _ in range(100):
            await paths.mkdir("lock")
            await paths.setattr("lock", AttributeChange(mode=0o700))
            await paths.rmdir("lock")
        assert len(paths.fs.core.changes.outbox.operations) <= 2
        await back(server, paths)
        # One that was being tried when it was removed: made with its row, and removed.
        assert set(changes(server).items()) <= {("put", 1), ("commit", 1), ("remove", 1)}
        assert server.bucket.objects == {}
        assert await paths.ls() == []


async def test_a_directory_whose_making_had_no_answer_is_removed(
    server: DoubleServer, mount: Mount
) -> None:
    """Its marker may be in the bucket, whoever tried: the call itself, or an earlier run."""
    async with mount() as paths:
        await paths.ls()
        server.inject("put", Unreachable("cut"), after=True)
        await paths.mkdir("d")
        server.online = False
        await paths.rmdir("d")
        await back(server, paths)
        assert server.bucket.objects == {}


async def test_one_that_an_earlier_run_may_have_made_is_removed(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """A run was killed after its request, before the journal could say that it was done."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.mkdir("d")
        shutil.copytree(tmp_path / "cache", tmp_path / "killed", ignore=shutil.ignore_patterns("*-shm"))
        await back(server, paths)
    assert list(server.bucket.objects) == [f"d/{PLACEHOLDER}"]
    server.online = False
    async with mount("killed") as paths:
        await paths.rmdir("d")
        await back(server, paths)
        assert server.bucket.objects == {}


async def test_a_change_while_the_one_before_is_sent_is_sent_after_it(
    server: DoubleServer, mount: Mount
) -> None:
    """What is under way is not changed any more: nothing of the new one is lost."""
    async with mount() as paths:
        await paths.create("f", b"1")
        server.online = False
        await paths.setattr("f", AttributeChange(mode=0o600))
        server.online = True
        with server.hold("patch") as gate:
            paths.fs.writes.sender.hurry()
            await gate.wait_arrived()
            await paths.setattr("f", AttributeChange(mode=0o640))
            await paths.setxattr("f", "user.k", b"v")
        await back(server, paths)
        record = server.bucket.record("f")
        assert (record.posix.mode, dict(record.xattrs)) == (0o640, {"user.k": b"v"})


async def test_a_change_that_cannot_be_written_leaves_what_waits_as_it_was(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """The cache disk is full: the call fails, and what was acknowledged before is sent."""
    async with mount() as paths:
        await paths.create("f", b"1")
        server.online = False
        await paths.setattr("f", AttributeChange(mode=0o600))
        log = tmp_path / "cache" / "journal" / "log"
        with file_size_limit((await trio.Path(log).stat()).st_size), pytest.raises(ExaifsError):
            await paths.setxattr("f", "user.k", b"v")
        await back(server, paths)
        record = server.bucket.record("f")
        assert (record.posix.mode, dict(record.xattrs)) == (0o600, {})


async def test_the_next_run_finds_joined_changes(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """What a kill leaves is one record, and it has all of them."""
    async with mount() as paths:
        await paths.create("f", b"1")
        server.online = False
        await change_often(paths, "f", 10)
        shutil.copytree(tmp_path / "cache", tmp_path / "killed", ignore=shutil.ignore_patterns("*-shm"))
        server.online = True
        server.inject("patch", Unreachable("killed"), times=1000)
    server.clear_faults()
    server.online = False
    async with mount("killed") as paths:
        assert (await paths.stat("f")).mode & 0o777 == 0o601
        assert await paths.getxattr("f", "user.k0") == b"9"
        await paths.setxattr("f", "user.more", b"m")
        await back(server, paths)
        record = server.bucket.record("f")
        assert (record.posix.mode, record.posix.mtime_ns) == (0o601, 10)
        assert record.xattrs["user.more"] == b"m"
