"""While Supabase is away: what is acknowledged is kept, in order, and carried out when it is back."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from exaifs.errors import Busy, ExaifsError, Rejected, Unreachable
from exaifs.model import AttributeChange
from tests.fs.conftest import Mount
from tests.fs.scenes import back, contents, file_size_limit
from tests.support.double import DoubleServer

pytestmark = pytest.mark.anyio


def conflicts(tmp_path: Path) -> list[str]:
    """Return what was kept aside."""
    return [path.name for path in (tmp_path / "cache" / "conflicts").iterdir()]


async def test_a_close_is_acknowledged_and_sent_later(server: DoubleServer, mount: Mount) -> None:
    """`close` returns 0, the bytes are read here at once, and are in the bucket when it is back."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.create("f", b"offline")
        assert await paths.read("f") == b"offline"
        assert await paths.getxattr("f", "user.exai.state") == b"pending"
        await back(server, paths)
        assert server.bucket.objects["f"].data == b"offline"
        assert await paths.getxattr("f", "user.exai.state") == b"clean"


async def test_offline_writes_refuse_answers_an_error(server: DoubleServer, mount: Mount) -> None:
    """`EXAIFS_OFFLINE_WRITES=refuse`: neither a close nor a change of names is acknowledged."""
    async with mount(offline_writes="refuse") as paths:
        await paths.create("f", b"1")
        server.online = False
        with pytest.raises(Unreachable):
            await paths.create("g", b"2")
        with pytest.raises(Unreachable):
            await paths.rename("f", "h")
        with pytest.raises(Unreachable):
            await paths.mkdir("d")
        with pytest.raises(Unreachable):
            await paths.unlink("f")
        server.online = True


async def test_changes_of_names_are_carried_out_in_order(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """Names swapped, trees moved, names used again: the bucket ends as the mount shows it."""
    async with mount() as paths:
        await paths.mkdir("d")
        for name in ("a", "b", "d/x", "d/y"):
            await paths.create(name, name.encode())
        await paths.ls("d")
        server.online = False
        await paths.rename("a", "t")
        await paths.rename("b", "a")
        await paths.rename("t", "b")
        await paths.rename("d", "e")
        await paths.unlink("e/x")
        await paths.mkdir("d")
        await paths.rename("e/y", "d/y")
        await paths.create("e/x", b"new x")
        await paths.symlink("b", "link")
        await paths.mkdir("gone")
        await paths.rmdir("gone")
        await back(server, paths)
        shown = {name: server.bucket.objects[name].data for name in ("a", "b", "d/y", "e/x", "link")}
        assert shown == {"a": b"b", "b": b"a", "d/y": b"d/y", "e/x": b"new x", "link": b"b"}
        assert await paths.ls() == ["a", "b", "d", "e", "link"]
        assert await paths.ls("d") == ["y"]
        assert await paths.ls("e") == ["x"]
        assert await paths.readlink("link") == "b"
        assert not [key for key in server.bucket.objects if key.startswith("gone")]
        assert conflicts(tmp_path) == []


async def test_attributes_survive_all_that_happens_to_a_file(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """Mode, times, xattrs and the file's id, through chmod, rename over a file, write and chmod again."""
    async with mount() as paths:
        await paths.create("a", b"1")
        await paths.create("b", b"2")
        file_id = server.bucket.record("a").file_id
        server.online = False
        await paths.setxattr("a", "user.k", b"v")
        await paths.setattr("a", AttributeChange(mode=0o640))
        await paths.rename("a", "b")
        await paths.overwrite("b", b"3")
        await paths.setattr("b", AttributeChange(mode=0o600, mtime_ns=12345))
        await back(server, paths)
        record = server.bucket.record("b")
        assert (record.posix.mode, record.posix.mtime_ns) == (0o600, 12345)
        assert dict(record.xattrs) == {"user.k": b"v"}
        assert record.file_id == file_id
        assert server.bucket.objects["b"].data == b"3"
        stat = await paths.stat("b")
        assert (stat.mode & 0o777, stat.mtime_ns) == (0o600, 12345)
        assert conflicts(tmp_path) == []


async def test_xattrs_are_those_of_the_file_that_was_renamed_there(
    server: DoubleServer, mount: Mount
) -> None:
    """Also where its bytes equal those it replaces, so that nothing but the row is sent."""
    async with mount() as paths:
        await paths.create("f", b"same")
        await paths.setxattr("f", "user.old", b"o")
        server.online = False
        await paths.create("tmp", b"same")
        await paths.setxattr("tmp", "user.new", b"n")
        await paths.rename("tmp", "f")
        await back(server, paths)
        assert dict(server.bucket.record("f").xattrs) == {"user.new": b"n"}


async def test_a_file_that_was_never_sent_costs_no_request(server: DoubleServer, mount: Mount) -> None:
    """Made, renamed and removed while it waits: the bucket never hears of it."""
    async with mount(write_mode="back", write_back_s=3600.0) as paths:
        await paths.ls()
        await paths.create("f", b"1")
        await paths.rename("f", "g")
        await paths.unlink("g")
        await paths.fs.drain(60)
        assert server.counts["put"] == server.counts["remove"] == server.counts["move"] == 0


async def test_a_renamed_file_is_read_from_where_the_bucket_has_it(
    server: DoubleServer, mount: Mount
) -> None:
    """Supabase is back, the rename is not carried out yet, and the bytes were never fetched."""
    data = b"x" * 300_000
    server.bucket.put("a", data)
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.rename("a", "b")
        server.online = True
        server.inject("move", Busy("later"), times=100)
        assert await paths.read("b") == data
        server.clear_faults()


async def test_a_renamed_directory_is_served_from_what_is_known(server: DoubleServer, mount: Mount) -> None:
    """Its rename cannot be carried out yet: it is neither listed again and again, nor a hang."""
    async with mount(freshness_s=0.001) as paths:
        await paths.mkdir("d")
        await paths.create("d/f", b"1")
        await paths.ls("d")
        server.online = False
        await paths.rename("d", "e")
        server.online = True
        server.inject("list_tree", Busy("later"), times=1000)
        server.inject("changes", Unreachable("no feed"), times=1000)
        paths.fs.core.contact.succeeded()
        paths.fs.core.contact.unfollow()
        before = server.counts["list_directory"]
        with trio.fail_after(60):
            assert await paths.ls("e") == ["f"]
        assert server.counts["list_directory"] - before < 10
        server.clear_faults()


async def test_a_name_never_shows_what_it_stood_for_before(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """A directory's rename is carried out, a file's rename over another one in it is not yet."""
    async with mount() as paths:
        await paths.mkdir("d")
        await paths.create("d/x", b"old x")
        await paths.create("d/a", b"source")
        await paths.ls("d")
        server.online = False
        await paths.rename("d", "e")
        await paths.rename("e/a", "e/x")
        server.online = True
        ino = (await paths.stat("e/x")).ino
        with server.hold("stat") as gate:
            paths.fs.writes.sender.hurry()
            await gate.wait_arrived()
            assert await paths.read("e/x") == b"source"
        await back(server, paths)
        assert await paths.read("e/x") == b"source"
        assert (await paths.stat("e/x")).ino == ino
        assert conflicts(tmp_path) == []


@pytest.mark.parametrize("step", ["copy", "carry_row", "remove"])
async def test_a_rename_over_a_file_that_stopped_half_way_is_no_conflict(
    server: DoubleServer, mount: Mount, tmp_path: Path, step: str
) -> None:
    """It is finished later; the copy that it has made already is not another host's."""
    async with mount() as paths:
        await paths.create("a", b"aaa")
        await paths.create("b", b"bbb")
        server.inject(step, Unreachable("cut"))
        await paths.rename("a", "b")
        await back(server, paths)
        assert contents(server) == {"b": b"aaa"}
        assert await paths.ls() == ["b"]
        assert conflicts(tmp_path) == []


async def test_a_target_whose_upload_had_no_answer_is_no_conflict(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """What had arrived of it is ours, and was replaced here."""
    async with mount() as paths:
        await paths.create("a", b"aaa")
        server.inject("put", Unreachable("cut"), after=True)
        await paths.create("b", b"bbb")
        server.online = False
        await paths.rename("a", "b")
        await back(server, paths)
        assert contents(server) == {"b": b"aaa"}
        assert conflicts(tmp_path) == []


async def test_saving_by_rename_leaves_no_changes_behind(server: DoubleServer, mount: Mount) -> None:
    """An editor's temporary name was never sent: whatever it replaces, nothing is to be removed there."""
    async with mount() as paths:
        server.inject("put", Unreachable("cut"), after=True)
        await paths.create("f", b"0")
        server.online = False
        for number in range(1, 5):
            await paths.create("f.tmp", b"%d" % number)
            await paths.rename("f.tmp", "f")
        assert not paths.fs.core.changes.outbox.operations
        await back(server, paths)
        assert {key: stored.data for key, stored in server.bucket.objects.items()} == {"f": b"4"}


async def test_what_was_refused_is_tried_under_its_new_name(server: DoubleServer, mount: Mount) -> None:
    """The server would not take the old one."""
    async with mount() as paths:
        server.inject("put", Rejected("not such a name"))
        with pytest.raises(Rejected):
            await paths.create("f", b"1")
        await paths.rename("f", "g")
        await back(server, paths)
        assert server.bucket.objects["g"].data == b"1"


async def test_one_thing_that_cannot_be_sent_stops_no_other(server: DoubleServer, mount: Mount) -> None:
    """Refused for good: what waits beside it is sent."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.create("large", b"x" * 2000)
        await paths.create("small", b"1")
        await paths.mkdir("d")
        server.bucket.size_limit_bytes = 1000
        server.online = True
        assert await paths.fs.drain(60) == 1
        assert sorted(server.bucket.objects) == ["d/.emptyFolderPlaceholder", "small"]
        assert await paths.read("large") == b"x" * 2000
        assert (await paths.getxattr("large", "user.exai.state")).startswith(b"failed: ")


async def test_the_end_of_an_operation_that_cannot_be_written_is_its_end(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """The cache disk is full when a rename was carried out: its names are not claimed for ever."""
    async with mount() as paths:
        await paths.create("a", b"a")
        await paths.create("b", b"b")
        log = tmp_path / "cache" / "journal" / "log"

        async def rename() -> None:
            with suppress(ExaifsError, sqlite3.Error):
                await paths.rename("a", "b")

        with server.hold("carry_row") as gate:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rename)
                await gate.wait_arrived()
                size_bytes = (await trio.Path(log).stat()).st_size
                with file_size_limit(size_bytes):
                    gate.open()
                    await trio.testing.wait_all_tasks_blocked(0.2)
        await back(server, paths)
        assert await paths.ls() == ["b"]
        assert await paths.read("b") == b"a"
        assert not paths.fs.core.index.is_claimed("a")


async def test_drain_keeps_what_an_upload_without_an_answer_holds(
    server: DoubleServer, mount: Mount
) -> None:
    """A close hangs at the end of the process: its bytes are in the journal within the deadline."""
    async with mount() as paths:
        await paths.create("f", b"old")
        with server.hold("put") as gate:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(paths.overwrite, "f", b"new")
                await gate.wait_arrived()
                with trio.fail_after(60):
                    assert await paths.fs.drain(0.1) == 1
                nursery.cancel_scope.cancel()
        server.online = False
    server.online = True
    async with mount() as paths:
        assert await paths.read("f") == b"new"
        await back(server, paths)
        assert server.bucket.objects["f"].data == b"new"


async def test_an_unlinked_file_that_is_open_goes_on(server: DoubleServer, mount: Mount) -> None:
    """Offline, too: it is read and written until its last close, and then gone for good."""
    async with mount() as paths:
        await paths.create("f", b"12345")
        server.online = False
        async with paths.open("f", os.O_RDWR) as handle:
            await paths.unlink("f")
            await paths.write_all(handle, b"abc")
            assert await paths.read_all(handle) == b"abc45"
        assert await paths.ls() == []
        await back(server, paths)
        assert server.bucket.objects == {}


async def test_a_replaced_name_is_not_brought_back_by_a_retry(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """A file of a renamed directory is moved over another one; only the last step of that fails."""
    async with mount() as paths:
        await paths.mkdir("d")
        await paths.create("d/a", b"aaa")
        await paths.create("d/b", b"bbb")
        await paths.ls("d")
        server.online = False
        await paths.rename("d", "e")
        await paths.rename("e/a", "e/b")
        server.inject("remove", Busy("later"))
        await back(server, paths)
        assert await paths.ls("e") == ["b"]
        assert sorted(server.bucket.objects) == ["e/.emptyFolderPlaceholder", "e/b"]
        assert server.bucket.objects["e/b"].data == b"aaa"
        assert conflicts(tmp_path) == []
