"""Two hosts write one file: the last close wins, and the bytes that lose are kept in `conflicts/`."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from exaifs.errors import Busy, ExaifsError, Rejected, Stale, Unreachable
from exaifs.model import Handle
from exaifs.names import PLACEHOLDER
from tests.fs.conftest import Mount
from tests.fs.scenes import back, contents, kept_aside, sent
from tests.support.double import DoubleServer
from tests.support.paths import CALLER, Paths, follow

pytestmark = pytest.mark.anyio


async def overtaken(server: DoubleServer, paths: Paths, path: str) -> None:
    """Write a file while Supabase is away; another host's takes its name, which this one has just heard."""
    server.online = False
    await paths.overwrite(path, b"ours")
    server.bucket.put(path, b"theirs")
    server.online = True
    await paths.fs.feed.poll()


async def test_what_waited_wins_if_it_was_closed_last(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """Another host wrote while this one was offline, and this one closed later: theirs is kept aside."""
    async with mount() as paths:
        await paths.create("f", b"old")
        server.online = False
        server.bucket.put("f", b"theirs")
        await paths.overwrite("f", b"ours")
        server.online = True
        await paths.fs.feed.poll()
        await sent(paths)
        assert server.bucket.objects["f"].data == b"ours"
        assert kept_aside(tmp_path / "cache") == [b"theirs"]


async def test_what_waited_loses_if_another_host_closed_later(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """Theirs stands, ours is kept aside, and the name shows theirs."""
    async with mount() as paths:
        await paths.create("f", b"old")
        await overtaken(server, paths, "f")
        await sent(paths)
        assert await paths.read("f") == server.bucket.objects["f"].data == b"theirs"
        assert kept_aside(tmp_path / "cache") == [b"ours"]


@pytest.mark.parametrize("leaves", ["renamed", "removed", "replaces"])
async def test_what_waited_is_kept_when_the_name_that_shows_theirs_leaves(
    server: DoubleServer, mount: Mount, tmp_path: Path, leaves: str
) -> None:
    """Acknowledged offline, then another host's file took the name, which is renamed or removed here."""
    async with mount() as paths:
        await paths.create("f", b"old")
        await paths.create("g", b"replaced")
        await overtaken(server, paths, "f")
        match leaves:
            case "renamed":
                await paths.rename("f", "h")
            case "replaces":
                await paths.rename("f", "g")
            case _:
                await paths.unlink("f")
        await sent(paths)
        await follow(paths)
        left = {"renamed": {"g": b"replaced", "h": b"theirs"}, "replaces": {"g": b"theirs"}}
        assert contents(server) == left.get(leaves, {"g": b"replaced"})
        assert await paths.ls() == sorted(contents(server))
        assert kept_aside(tmp_path / "cache") == [b"ours"]
    async with mount() as paths:
        await paths.fs.drain(5.0)
        assert await paths.ls() == sorted(contents(server))
        assert kept_aside(tmp_path / "cache") == [b"ours"]


@pytest.mark.parametrize("leaves", ["renamed", "removed"])
async def test_a_name_does_not_leave_while_what_waited_cannot_be_kept(
    server: DoubleServer, mount: Mount, tmp_path: Path, leaves: str
) -> None:
    """The disk refuses: so does rename or unlink, with an error that says why; nothing is lost."""
    conflicts = tmp_path / "cache" / "conflicts"
    async with mount() as paths:
        await paths.create("f", b"old")
        await overtaken(server, paths, "f")
        server.online = False
        conflicts.rmdir()
        conflicts.write_bytes(b"in the way")
        with pytest.raises(ExaifsError, match="cannot be kept"):
            await (paths.rename("f", "g") if leaves == "renamed" else paths.unlink("f"))
        assert await paths.ls() == ["f"]
        conflicts.unlink()
        await back(server, paths)
        assert contents(server) == {"f": b"theirs"}
        assert kept_aside(tmp_path / "cache") == [b"ours"]


@pytest.mark.parametrize("leaves", ["renamed", "removed"])
async def test_what_failed_to_close_goes_with_the_name_that_shows_theirs(
    server: DoubleServer, mount: Mount, tmp_path: Path, leaves: str
) -> None:
    """Nobody was told that those bytes are safe; they must not take room until the mount ends."""
    async with mount() as paths:
        await paths.create("f", b"old")
        server.inject("put", Rejected("no"), times=1000)
        with pytest.raises(Rejected):
            await paths.overwrite("f", b"refused")
        server.bucket.put("f", b"theirs")
        await follow(paths)
        assert await paths.read("f") == b"theirs"
        if leaves == "renamed":
            await paths.rename("f", "g")
        else:
            await paths.unlink("f")
        assert list((tmp_path / "cache" / "staging").iterdir()) == []
        await follow(paths)
        assert contents(server) == ({"g": b"theirs"} if leaves == "renamed" else {})
    assert kept_aside(tmp_path / "cache") == []


@pytest.mark.parametrize("away", [False, True], ids=["at-once", "waits"])
async def test_what_waited_goes_along_when_the_directory_is_renamed(
    server: DoubleServer, mount: Mount, tmp_path: Path, *, away: bool
) -> None:
    """Acknowledged offline, then another host's file took the name: both are below the new one."""
    async with mount() as paths:
        await paths.mkdir("d")
        await paths.create("d/f", b"old")
        await overtaken(server, paths, "d/f")
        server.online = not away
        await paths.rename("d", "e")
        await back(server, paths)
        # Sent to where it was, the directory would come back.
        assert contents(server) == {"e/f": b"theirs", f"e/{PLACEHOLDER}": b""}
        assert kept_aside(tmp_path / "cache") == [b"ours"]
        assert (await paths.ls(), await paths.ls("e")) == (["e"], ["f"])


async def test_conflict_refuse_lets_the_other_host_win(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """`EXAIFS_CONFLICT=refuse`: close answers ESTALE, and our bytes are kept aside."""
    async with mount(conflict="refuse") as paths:
        await paths.create("f", b"old")
        handle = await _opened(paths, "f")
        await paths.write_all(handle, b"ours")
        server.bucket.put("f", b"theirs")
        await follow(paths)
        with pytest.raises(Stale):
            await paths.fs.files.flush(handle)
        await paths.fs.files.release(handle)
        assert await paths.read("f") == b"theirs"
        assert kept_aside(tmp_path / "cache") == [b"ours"]


async def test_another_clients_bytes_of_the_same_length_are_kept(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """The dashboard records no digest: equal lengths do not make its file ours."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        server.bucket.put("f", b"theirs")
        await paths.create("f", b"ours 6")
        server.online = True
        await paths.fs.feed.poll()
        await sent(paths)
        assert server.bucket.objects["f"].data == b"ours 6"
        assert kept_aside(tmp_path / "cache") == [b"theirs"]


async def test_a_file_made_on_both_hosts_at_once_is_a_conflict(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """While a new file is open here, another host makes one of that name: our close does not lose it."""
    async with mount() as paths:
        await paths.ls()
        async with paths.open("f", os.O_WRONLY | os.O_CREAT) as handle:
            await paths.write_all(handle, b"ours")
            server.bucket.put("f", b"theirs")
            await follow(paths)
        assert server.bucket.objects["f"].data == b"ours"
        assert kept_aside(tmp_path / "cache") == [b"theirs"]


async def test_a_close_sees_what_the_feed_has_not_told_yet(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """Another host closes the file a moment before we do: its bytes are kept aside."""
    async with mount() as paths:
        await paths.create("f", b"old")
        async with paths.open("f", os.O_WRONLY | os.O_TRUNC) as handle:
            await paths.write_all(handle, b"ours")
            server.bucket.put("f", b"theirs")
        assert server.bucket.objects["f"].data == b"ours"
        assert kept_aside(tmp_path / "cache") == [b"theirs"]


async def test_a_close_that_could_not_look_leaves_that_to_the_next_one(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """Of a name made on both hosts the feed tells once: a close that fails must not forget it."""
    async with mount(offline_writes="refuse") as paths:
        await paths.ls()
        async with paths.open("f", os.O_WRONLY | os.O_CREAT) as handle:
            await paths.write_all(handle, b"ours")
            server.bucket.put("f", b"theirs")
            await follow(paths)
            server.inject("stat", Unreachable("cut"))
            with pytest.raises(Unreachable):
                await paths.fs.files.flush(handle)
            paths.fs.core.contact.succeeded()
        assert contents(server) == {"f": b"ours"}
        assert kept_aside(tmp_path / "cache") == [b"theirs"]


async def test_what_is_replaced_is_kept_once_however_often_that_is_tried(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """Uploads fail again and again: each looks first, and finds the same file of another host."""
    async with mount() as paths:
        await paths.create("f", b"old")
        server.bucket.put("f", b"theirs")
        server.inject("put", Busy("later"), times=5)
        await paths.overwrite("f", b"ours")
        with trio.fail_after(60):
            while contents(server)["f"] != b"ours":
                paths.fs.writes.sender.hurry()
                await trio.sleep(0.01)
        assert kept_aside(tmp_path / "cache") == [b"theirs"]


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "overwritten"])
async def test_bytes_that_another_host_replaces_before_the_answer_are_kept(
    server: DoubleServer, mount: Mount, tmp_path: Path, *, is_new: bool
) -> None:
    """It did not see ours, so nobody else has them; close says 0, as it was the last but one."""
    async with mount() as paths:
        await paths.ls()
        if not is_new:
            await paths.create("f", b"old")
        async with trio.open_nursery() as nursery:
            with server.hold("commit") as gate:
                nursery.start_soon(paths.create if is_new else paths.overwrite, "f", b"ours")
                await gate.wait_arrived()
                server.bucket.put("f", b"theirs")
        await follow(paths)
        assert await paths.read("f") == server.bucket.objects["f"].data == b"theirs"
        assert kept_aside(tmp_path / "cache") == [b"ours"]
        (kept,) = (tmp_path / "cache" / "conflicts").glob("*.data")
        assert kept.stat().st_mode & 0o777 == 0o600


async def test_a_close_looks_before_it_sends_what_had_waited(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """Kept while offline, written again and closed online, before the sender came to it."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.create("f", b"ours, first")
        handle = await _opened(paths, "f")
        await paths.write_all(handle, b"ours, again")
        server.bucket.put("f", b"theirs")
        server.online = True
        paths.fs.core.contact.succeeded()
        await paths.fs.files.flush(handle)
        await paths.fs.files.release(handle)
        assert server.bucket.objects["f"].data == b"ours, again"
        assert kept_aside(tmp_path / "cache") == [b"theirs"]


async def test_an_fsync_that_lost_does_not_cost_an_open_file_its_bytes(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """Another host wrote after our fsync: the close that is still to come decides, and ours is whole."""
    async with mount(write_back_s=0.0) as paths:
        await paths.ls()
        with server.hold("stat") as gate:
            async with paths.open("f", os.O_RDWR | os.O_CREAT) as handle:
                await paths.write_all(handle, b"first ")
                await paths.fs.files.fsync(handle, _datasync=False)
                await gate.wait_arrived()
                server.bucket.put("f", b"theirs")
                gate.open()
                await trio.testing.wait_all_tasks_blocked()
                await paths.write_all(handle, b"second", 6)
                assert await paths.read_all(handle) == b"first second"
        await sent(paths)
        assert await paths.read("f") == server.bucket.objects["f"].data == b"first second"
        assert kept_aside(tmp_path / "cache") == [b"theirs"]


async def test_our_own_upload_without_an_answer_is_no_conflict(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """The bytes had arrived; what is written after them is sent, and nothing is kept aside."""
    async with mount() as paths:
        server.inject("put", Unreachable("the answer was lost"), after=True)
        await paths.create("f", b"first")
        await paths.overwrite("f", b"second")
        await sent(paths)
        assert server.bucket.objects["f"].data == b"second"
        assert kept_aside(tmp_path / "cache") == []


async def _opened(paths: Paths, path: str) -> Handle:
    async with paths.inode(path) as ino:
        opened = await paths.fs.files.open(ino, os.O_WRONLY | os.O_TRUNC, CALLER)
    return opened.handle


@pytest.mark.parametrize("offline_writes", ["journal", "refuse"])
async def test_a_rename_over_our_own_upload_without_an_answer_is_no_conflict(
    server: DoubleServer, mount: Mount, tmp_path: Path, *, offline_writes: str
) -> None:
    """On a server that drops metadata, where only its bytes say whose it is."""
    server.bucket.keeps_metadata = False
    async with mount(offline_writes=offline_writes) as paths:
        await paths.create("tmp", b"newer")
        server.inject("commit", Unreachable("cut"))
        with suppress(Unreachable):
            await paths.create("f", b"ours")
        paths.fs.core.contact.succeeded()
        await paths.rename("tmp", "f")
        await sent(paths)
        assert contents(server) == {"f": b"newer"}
        assert kept_aside(tmp_path / "cache") == []


async def test_an_older_close_does_not_come_back_over_a_newer_one(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """An upload without an answer had arrived when the file was written again, as it was before."""
    async with mount() as paths:
        await paths.create("f", b"")
        server.online = False
        await paths.overwrite("f", b"between")
        server.inject("commit", Busy("later"))
        server.online = True
        paths.fs.core.contact.succeeded()
        with trio.fail_after(60):
            while server.bucket.objects["f"].data != b"between":  # noqa: ASYNC110 - no event tells
                await trio.sleep(0.01)
        await follow(paths)
        await paths.overwrite("f", b"")
        assert server.bucket.objects["f"].data == b""
        paths.fs.writes.sender.hurry()
        await sent(paths)
        assert server.bucket.objects["f"].data == b""
        assert await paths.read("f") == b""
        assert kept_aside(tmp_path / "cache") == []


_RENAMES = [("d/f", "d/g", "d/g"), ("d", "e", "e/f")]


@pytest.mark.parametrize(("old", "new", "path"), _RENAMES, ids=["file", "directory"])
@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("ours_is_later", [False, True], ids=["theirs later", "ours later"])
async def test_a_rename_that_waits_hides_no_conflict(
    server: DoubleServer,
    mount: Mount,
    tmp_path: Path,
    *,
    old: str,
    new: str,
    path: str,
    restarted: bool,
    ours_is_later: bool,
) -> None:
    """Written here while offline, and renamed; written elsewhere by the old name: what loses is kept."""
    async with mount() as paths:
        await paths.mkdir("d")
        await paths.create("d/f", b"old")
        server.online = False
        if ours_is_later:
            server.bucket.put("d/f", b"theirs")
        await paths.overwrite("d/f", b"ours")
        await paths.rename(old, new)
        if not ours_is_later:
            server.bucket.put("d/f", b"theirs")
        if not restarted:
            await back(server, paths)
            assert await paths.read(path) == server.bucket.objects[path].data
    if restarted:
        server.online = True
        async with mount() as paths:
            await back(server, paths)
            assert await paths.read(path) == server.bucket.objects[path].data
    both = [server.bucket.objects[path].data, *kept_aside(tmp_path / "cache")]
    assert both == ([b"ours", b"theirs"] if ours_is_later else [b"theirs", b"ours"])


@pytest.mark.parametrize("kind", ["to a free name", "over a file", "of its directory"])
@pytest.mark.parametrize("ours_is_later", [False, True], ids=["theirs later", "ours later"])
async def test_a_rename_makes_no_close_of_another_host_later(
    server: DoubleServer, mount: Mount, tmp_path: Path, *, ours_is_later: bool, kind: str
) -> None:
    """Closed here, not sent yet, and renamed, with what another host wrote under the old name."""
    async with mount(write_mode="back", write_back_s=1000.0) as paths:
        await paths.mkdir("d")
        await paths.create("d/f", b"old")
        if kind == "over a file":
            await paths.create("g", b"goes")
        await sent(paths)
        if ours_is_later:
            server.bucket.put("d/f", b"theirs")
        await paths.overwrite("d/f", b"ours")
        if not ours_is_later:
            server.bucket.put("d/f", b"theirs")
        old, new, path = ("d", "e", "e/f") if kind == "of its directory" else ("d/f", "g", "g")
        await paths.rename(old, new)
        await back(server, paths)
        assert await paths.read(path) == server.bucket.objects[path].data
    both = [server.bucket.objects[path].data, *kept_aside(tmp_path / "cache")]
    assert both == ([b"ours", b"theirs"] if ours_is_later else [b"theirs", b"ours"])


@pytest.mark.parametrize(("old", "new", "path"), _RENAMES, ids=["file", "directory"])
async def test_a_rename_of_an_open_file_hides_no_conflict(
    server: DoubleServer, mount: Mount, tmp_path: Path, *, old: str, new: str, path: str
) -> None:
    """Another host wrote a moment before what is being written here is renamed: theirs is kept aside."""
    async with mount() as paths:
        await paths.mkdir("d")
        await paths.create("d/f", b"old")
        handle = await _opened(paths, "d/f")
        await paths.write_all(handle, b"ours")
        server.bucket.put("d/f", b"theirs")
        await paths.rename(old, new)
        await paths.fs.files.flush(handle)
        await paths.fs.files.release(handle)
        assert server.bucket.objects[path].data == await paths.read(path) == b"ours"
        assert kept_aside(tmp_path / "cache") == [b"theirs"]


@pytest.mark.parametrize("is_free", [True, False], ids=["free name", "over a file"])
async def test_a_rename_keeps_what_the_feed_has_not_told_yet(
    server: DoubleServer, mount: Mount, tmp_path: Path, *, is_free: bool
) -> None:
    """Another host writes a file a moment before one of ours is renamed there, as editors save."""
    async with mount() as paths:
        await paths.create("tmp", b"ours")
        if not is_free:
            await paths.create("f", b"old")
        server.bucket.put("f", b"theirs")
        await paths.rename("tmp", "f")
        assert contents(server) == {"f": b"ours"}
        assert await paths.read("f") == b"ours"
        assert kept_aside(tmp_path / "cache") == [b"theirs"]


async def test_what_a_rename_replaces_is_kept_once_over_a_restart(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """The first run kept it and got no further; the next one looks again, and finds the same."""
    async with mount(drain_s=0.0) as paths:
        await paths.create("tmp", b"ours")
        await paths.create("f", b"old")
        server.bucket.put("f", b"theirs")
        server.inject("copy", Unreachable("cut"))
        await paths.rename("tmp", "f")
        server.online = False
    server.online = True
    async with mount() as paths:
        await sent(paths)
        assert contents(server) == {"f": b"ours"}
        assert kept_aside(tmp_path / "cache") == [b"theirs"]


async def test_what_was_renamed_and_removed_here_stays_if_another_host_wrote_it(
    server: DoubleServer, mount: Mount
) -> None:
    """While offline; the removal is of what was there before, not of what the rename takes along."""
    async with mount() as paths:
        await paths.create("f", b"old")
        server.online = False
        await paths.rename("f", "g")
        await paths.unlink("g")
        server.bucket.put("f", b"theirs")
        await back(server, paths)
        assert contents(server) == {"g": b"theirs"}
        assert await paths.read("g") == b"theirs"


async def test_after_a_refused_close_the_name_shows_what_won(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """Also where the feed has not told of it yet."""
    async with mount(conflict="refuse") as paths:
        await paths.create("f", b"old")
        with server.hold("changes"):
            server.bucket.put("f", b"theirs")
            with pytest.raises(Stale):
                await paths.overwrite("f", b"ours")
            assert await paths.read("f") == b"theirs"
        assert kept_aside(tmp_path / "cache") == [b"ours"]
