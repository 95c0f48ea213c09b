"""A change of ours gets no answer: what it may have changed is looked at before it is trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from exaifs.errors import Busy, HalfDone, NotFound, RemoteError, Unreachable
from exaifs.model import AttributeChange
from tests.fs.conftest import Mount
from tests.fs.scenes import contents, in_no_time, kept_aside, sent
from tests.support.double import DoubleServer
from tests.support.paths import Paths, follow

pytestmark = pytest.mark.anyio

LOST = [Busy("500, and done"), Unreachable("cut, and done")]


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
async def test_a_directory_whose_mkdir_got_no_answer_shows(
    server: DoubleServer, mount: Mount, error: RemoteError
) -> None:
    """`rm -r` right after a mkdir that failed, and happened, sees what it must remove."""
    async with mount(offline_writes="refuse") as paths:
        await paths.mkdir("d")
        assert await paths.ls("d") == []
        server.inject("put", error, after=True)
        with pytest.raises(type(error)):
            await paths.mkdir("d/e")
        assert "d/e/.emptyFolderPlaceholder" in contents(server)
        with server.hold("changes"):
            paths.fs.core.contact.succeeded()  # somebody else had an answer
            assert await paths.ls("d") == ["e"]
        await paths.rmdir("d/e")
        await paths.rmdir("d")
        assert contents(server) == {}


async def test_a_symbolic_link_that_got_no_answer_shows(server: DoubleServer, mount: Mount) -> None:
    """`ln -s` failed, and happened: as with mkdir."""
    async with mount(offline_writes="refuse") as paths:
        await paths.mkdir("d")
        assert await paths.ls("d") == []
        server.inject("put", Busy("500, and done"), after=True)
        with pytest.raises(Busy):
            await paths.symlink("target", "d/link")
        assert await paths.ls("d") == ["link"]
        assert await paths.readlink("d/link") == "target"


async def test_an_upload_that_is_tried_again_leaves_no_doubt(server: DoubleServer, mount: Mount) -> None:
    """What is kept here and sent again needs no listing: its directory may be large."""
    async with mount(offline_writes="refuse") as paths:
        await paths.mkdir("d")
        assert await paths.ls("d") == []
        server.inject("put", Busy("500"))
        with pytest.raises(Busy):
            await paths.create("d/f", b"1")
        assert paths.fs.core.index.expired_prefixes() == []


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
async def test_a_file_whose_removal_got_no_answer_is_gone(
    server: DoubleServer, mount: Mount, error: RemoteError
) -> None:
    """The name does not stay until the feed comes to it."""
    async with mount(offline_writes="refuse") as paths:
        await paths.mkdir("d")
        await paths.create("d/f", b"1")
        assert await paths.ls("d") == ["f"]
        server.inject("remove", error, after=True)
        with pytest.raises(type(error)):
            await paths.unlink("d/f")
        with server.hold("changes"):
            paths.fs.core.contact.succeeded()
            assert await paths.ls("d") == []
        await paths.rmdir("d")


async def test_a_rename_that_got_no_answer_is_looked_up(server: DoubleServer, mount: Mount) -> None:
    """Of a directory: whatever was moved shows where it is."""
    async with mount(offline_writes="refuse") as paths:
        await paths.mkdir("old")
        for name in ("a", "b", "sub"):
            await (paths.mkdir if name == "sub" else paths.create)(f"old/{name}")
        assert await paths.ls("old/sub") == []
        server.inject("move", Busy("500, and done"), times=4, after=True)
        with pytest.raises(Busy):
            await paths.rename("old", "new")
        moved = sorted(key for key in contents(server) if key.startswith("new/"))
        assert moved
        shown = [f"{top}/{name}" for top in await paths.ls() for name in await paths.ls(top)]
        keys = {key.removesuffix("/.emptyFolderPlaceholder") for key in contents(server)}
        assert sorted(shown) == sorted(key for key in keys if "/" in key)


@pytest.mark.parametrize("step", ["carry_row", "remove"])
@pytest.mark.parametrize("after", [True, False], ids=["done", "not done"])
@pytest.mark.parametrize("restarted", [False, True], ids=["goes on", "restarted"])
async def test_a_rename_over_a_file_is_never_left_half_done(
    server: DoubleServer, mount: Mount, step: str, *, after: bool, restarted: bool
) -> None:
    """Its row goes first: left there, the old name would have the bytes, but neither attributes nor id.

    Whoever asked for it gets the error; it is finished as soon as Supabase answers, or by the next run.
    """
    async with mount(offline_writes="refuse", drain_s=0.0 if restarted else 60.0) as paths:
        await paths.create("new", b"what comes")
        await paths.setattr("new", AttributeChange(mode=0o600))
        await paths.setxattr("new", "user.k", b"v")
        await paths.create("old", b"what goes")
        file_id = server.bucket.record("new").file_id
        ino = (await paths.stat("new")).ino
        server.inject(step, Unreachable("cut"), after=after)
        with pytest.raises(HalfDone):
            await paths.rename("new", "old")
        assert await paths.ls() == ["old"]
        assert await paths.read("old") == b"what comes"
        if restarted:
            server.online = False
        else:
            await sent(paths)
    server.online = True
    async with mount(offline_writes="refuse") as paths:
        await sent(paths)
        await follow(paths)
        assert await paths.ls() == ["old"]
        found = await paths.stat("old")
        assert (found.ino, found.mode & 0o777) == (ino, 0o600)
        assert await paths.getxattr("old", "user.k") == b"v"
        assert await paths.read("old") == b"what comes"
    assert contents(server) == {"old": b"what comes"}
    assert set(server.bucket.rows) == {"old"}
    assert server.bucket.record("old").file_id == file_id


async def _changed(paths: Paths, path: str, change: str) -> None:
    match change:
        case "overwrite":
            await paths.overwrite(path, b"again")
        case "unlink":
            await paths.unlink(path)
        case "chmod":
            await paths.setattr(path, AttributeChange(mode=0o600))
        case _:
            await paths.rename(path, "other")


@pytest.mark.parametrize("change", ["overwrite", "unlink", "chmod", "rename"])
async def test_nothing_is_acknowledged_behind_what_is_half_done(
    server: DoubleServer, mount: Mount, change: str
) -> None:
    """`EXAIFS_OFFLINE_WRITES=refuse`: who tries again before it is finished is told the same."""
    async with mount(offline_writes="refuse") as paths:
        await paths.create("new", b"what comes")
        await paths.create("old", b"what goes")
        server.inject("carry_row", Unreachable("cut"))
        with pytest.raises(HalfDone):
            await paths.rename("new", "old")
        with server.hold("stat"):
            paths.fs.core.contact.succeeded()  # the sender looks, and has no answer yet
            with pytest.raises(Busy):
                await _changed(paths, "old", change)
        await sent(paths)
        await follow(paths)
        assert contents(server) == {"old": b"again" if change == "overwrite" else b"what comes"}


@pytest.mark.parametrize("step", ["carry_row", "remove"])
async def test_a_rename_over_a_file_not_known_here_is_never_left_half_done(
    server: DoubleServer, mount: Mount, tmp_path: Path, step: str
) -> None:
    """Another host put it there a moment before: what is one move else takes several steps, too."""
    async with mount(offline_writes="refuse") as paths:
        await paths.create("new", b"ours")
        server.bucket.put("old", b"theirs")
        server.inject(step, Unreachable("cut"))
        with pytest.raises(HalfDone):
            await paths.rename("new", "old")
        await sent(paths)
        await follow(paths)
        assert await paths.ls() == ["old"]
        assert contents(server) == {"old": b"ours"}
        assert set(server.bucket.rows) == {"old"}
        assert kept_aside(tmp_path / "cache") == [b"theirs"]


async def test_a_move_that_arrives_twice_is_done(server: DoubleServer, mount: Mount) -> None:
    """The second answer says that there is nothing to move: the file is known by its id where it went."""
    async with mount() as paths:
        await paths.create("old", b"1")
        ino = (await paths.stat("old")).ino
        server.inject("move", NotFound("no object old"), after=True)
        await paths.rename("old", "new")
        assert await paths.ls() == ["new"]
        assert (await paths.stat("new")).ino == ino
        assert contents(server) == {"new": b"1"}


async def test_a_file_that_is_gone_is_not_taken_for_another_one(server: DoubleServer, mount: Mount) -> None:
    """What another client put where a file should go, and removed where it was, is no move."""
    async with mount() as paths:
        await paths.create("old", b"1")
        server.bucket.remove(["old"])
        server.bucket.put("new", b"1")
        with pytest.raises(NotFound):
            await paths.rename("old", "new")
        await follow(paths)
        assert await paths.ls() == ["new"]


def test_what_was_refused_unasked_leaves_no_doubt(server: DoubleServer, mount: Mount) -> None:
    """`EXAIFS_OFFLINE_WRITES=refuse`: nothing was sent, so all that is known is served as before."""

    async def play() -> None:
        async with mount(offline_writes="refuse") as paths:
            await paths.mkdir("d")
            await paths.create("d/f", b"1")
            assert await paths.ls("d") == ["f"]
            server.online = False
            paths.fs.core.contact.failed(Unreachable("found by somebody else"))
            for change in (
                paths.mkdir("e"),
                paths.unlink("d/f"),
                paths.rename("d/f", "g"),
                paths.rename("d", "e"),
            ):
                with pytest.raises(Unreachable):
                    await change
            assert paths.fs.core.index.expired_prefixes() == []
            assert await paths.ls() == ["d"]
            assert await paths.ls("d") == ["f"]
            server.online = True

    in_no_time(play)


@pytest.mark.parametrize("keeps_metadata", [True, False])
@pytest.mark.parametrize("arrived", [True, False])
@pytest.mark.parametrize("new_name", [None, "g"])
async def test_what_another_host_put_where_an_unanswered_upload_was_stays(
    server: DoubleServer, mount: Mount, new_name: str | None, *, arrived: bool, keeps_metadata: bool
) -> None:
    """A file, whose upload may have arrived, is removed or renamed within the second of the feed."""
    server.bucket.keeps_metadata = keeps_metadata
    async with mount(offline_writes="refuse") as paths:
        assert await paths.ls() == []
        with server.hold("changes"):
            server.inject("put", Busy("500"), after=arrived)
            with pytest.raises(Busy):
                await paths.create("f", b"ours")
            server.bucket.put("f", b"their bytes")
            paths.fs.core.contact.succeeded()
            if new_name is None:
                await paths.unlink("f")
            else:
                await paths.rename("f", new_name)
        assert await paths.fs.drain(60) == 0
        await follow(paths)
        wanted = {"f": b"their bytes"} | ({} if new_name is None else {new_name: b"ours"})
        assert {key: stored.data for key, stored in server.bucket.objects.items()} == wanted
        assert {name: await paths.read(name) for name in await paths.ls()} == wanted
