"""A directory that was never listed to its end is renamed while Supabase is away: its prefix is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio
import trio.testing

from exaifs.errors import Busy, Unreachable
from exaifs.model import AttributeChange
from tests.fs.conftest import Mount
from tests.fs.scenes import back, kept_aside
from tests.support.double import DoubleServer

pytestmark = pytest.mark.anyio

TREE = {"d/x": b"x", "d/y": b"y", "d/sub/z": b"z", "d/sub/deep/w": b"w", "other/o": b"o"}


@pytest.fixture(autouse=True)
def tree(server: DoubleServer) -> None:
    """Have another host's files there."""
    for key, data in TREE.items():
        server.bucket.put(key, data)


def contents(server: DoubleServer) -> dict[str, bytes]:
    """Return what the bucket holds, but for folder markers."""
    return {key: stored.data for key, stored in server.bucket.objects.items() if stored.data}


RENAMED = {"e/x": b"x", "e/y": b"y", "e/sub/z": b"z", "e/sub/deep/w": b"w", "other/o": b"o"}


async def test_it_has_its_new_name_and_is_listed_later(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """Nothing of it is known here but its name: it moves as a whole, and listing it fails until then."""
    async with mount() as paths:
        assert await paths.ls() == ["d", "other"]
        server.online = False
        await paths.rename("d", "e")
        assert await paths.ls() == ["e", "other"]
        with pytest.raises(Unreachable, match="never listed"):
            await paths.ls("e")
        with pytest.raises(Unreachable):
            await paths.read("e/x")
        with pytest.raises(Unreachable):
            await paths.create("e/new", b"may be there")
        await back(server, paths)
        assert contents(server) == RENAMED
        assert await paths.ls() == ["e", "other"]
        assert await paths.ls("e") == ["sub", "x", "y"]
        assert await paths.ls("e/sub/deep") == ["w"]
        assert await paths.read("e/sub/deep/w") == b"w"
        assert kept_aside(tmp_path / "cache") == []


async def test_what_is_known_of_it_is_shown_and_changed(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """Its own names are known, those of a directory in it are not."""
    async with mount() as paths:
        assert await paths.ls("d") == ["sub", "x", "y"]
        assert await paths.read("d/x") == b"x"
        server.online = False
        await paths.rename("d", "e")
        assert await paths.ls("e") == ["sub", "x", "y"]
        assert await paths.read("e/x") == b"x"
        await paths.overwrite("e/x", b"x2")
        await paths.create("e/new", b"new")
        await paths.unlink("e/y")
        await paths.setattr("e/sub", AttributeChange(mode=0o700))
        await paths.rename("e/sub", "sub")
        with pytest.raises(Unreachable):
            await paths.ls("sub")
        await back(server, paths)
        assert contents(server) == {
            "e/x": b"x2",
            "e/new": b"new",
            "sub/z": b"z",
            "sub/deep/w": b"w",
            "other/o": b"o",
        }
        assert await paths.ls() == ["e", "other", "sub"]
        assert await paths.ls("sub") == ["deep", "z"]
        assert (await paths.stat("sub")).mode & 0o777 == 0o700
        assert kept_aside(tmp_path / "cache") == []


async def test_its_old_name_is_free_for_another(server: DoubleServer, mount: Mount) -> None:
    """A new directory of that name, with a file of a name that nobody here knew: both are there."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.rename("d", "e")
        await paths.mkdir("d")
        await paths.create("d/x", b"new x")
        assert await paths.ls("d") == ["x"]
        await back(server, paths)
        assert contents(server) == RENAMED | {"d/x": b"new x"}
        assert await paths.ls("d") == ["x"]
        assert await paths.read("e/x") == b"x"


async def test_names_go_round(server: DoubleServer, mount: Mount, tmp_path: Path) -> None:
    """Two such directories swapped, and one moved into a third."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.rename("d", "t")
        await paths.rename("other", "d")
        await paths.rename("t", "other")
        await paths.mkdir("box")
        await paths.rename("other", "box/in")
        assert await paths.ls("box") == ["in"]
        await back(server, paths)
        assert contents(server) == {
            "d/o": b"o",
            "box/in/x": b"x",
            "box/in/y": b"y",
            "box/in/sub/z": b"z",
            "box/in/sub/deep/w": b"w",
        }
        assert await paths.ls() == ["box", "d"]
        assert await paths.ls("box/in") == ["sub", "x", "y"]
        assert kept_aside(tmp_path / "cache") == []


async def test_what_is_not_known_to_be_empty_is_not_replaced(server: DoubleServer, mount: Mount) -> None:
    """Nor is anything moved into a directory whose names are not known."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.mkdir("new")
        with pytest.raises(Unreachable):
            await paths.rename("new", "d")
        with pytest.raises(Unreachable):
            await paths.rename("other", "d/other")
        await back(server, paths)
        assert contents(server) == TREE


async def test_another_host_is_met_by_the_same_rules(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """What it puts into the directory goes along; what it puts in the way is kept aside."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.rename("d", "e")
        server.bucket.put("d/sub/late", b"late")
        server.bucket.put("e/sub/z", b"theirs")
        server.bucket.put("e/own", b"own")
        server.bucket.remove(["d/y"])
        await back(server, paths)
        assert contents(server) == {
            "e/x": b"x",
            "e/sub/z": b"z",
            "e/sub/deep/w": b"w",
            "e/sub/late": b"late",
            "e/own": b"own",
            "other/o": b"o",
        }
        assert await paths.ls("e") == ["own", "sub", "x"]
        assert await paths.ls("e/sub") == ["deep", "late", "z"]
        assert kept_aside(tmp_path / "cache") == [b"theirs"]


@pytest.mark.parametrize("ours_is_later", [True, False])
async def test_what_a_rename_takes_along_is_not_closed_by_it(
    server: DoubleServer, mount: Mount, tmp_path: Path, *, ours_is_later: bool
) -> None:
    """Last close wins, by when each was closed: what a rename moves only looks newer since."""
    async with mount() as paths:
        assert await paths.ls("d") == ["sub", "x", "y"]
        server.online = False
        if ours_is_later:
            server.bucket.put("d/new", b"theirs")
        await paths.rename("d", "e")
        await paths.create("e/new", b"ours")
        await paths.rename("e", "f")
        if not ours_is_later:
            server.bucket.put("d/new", b"theirs")
        await back(server, paths)
        winner, loser = (b"ours", b"theirs") if ours_is_later else (b"theirs", b"ours")
        assert contents(server)["f/new"] == winner
        assert await paths.read("f/new") == winner
    assert kept_aside(tmp_path / "cache") == [loser]


async def test_one_that_another_host_removed_is_gone(server: DoubleServer, mount: Mount) -> None:
    """There is nothing to move, and no directory without anything in it."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.rename("d", "e")
        server.bucket.remove([key for key in TREE if key.startswith("d/")])
        await back(server, paths)
        assert contents(server) == {"other/o": b"o"}
        assert await paths.ls() == ["other"]


@pytest.mark.parametrize("index", ["here", "gone"])
async def test_the_next_run_finishes_it(
    server: DoubleServer, mount: Mount, tmp_path: Path, index: str
) -> None:
    """Killed while it waited: the journal says what is to move, with or without the index."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.rename("d", "e")
        shutil.copytree(tmp_path / "cache", tmp_path / "killed", ignore=shutil.ignore_patterns("*-shm"))
    if index == "gone":
        for path in (tmp_path / "killed").glob("index.db*"):
            path.unlink()
    async with mount("killed") as paths:
        if index == "here":
            assert await paths.ls() == ["e", "other"]
        await back(server, paths)
        assert contents(server) == RENAMED
        assert await paths.ls() == ["e", "other"]
        assert await paths.ls("e/sub") == ["deep", "z"]
        assert kept_aside(tmp_path / "killed") == []


async def test_who_lists_it_waits_while_supabase_answers(server: DoubleServer, mount: Mount) -> None:
    """Its rename is about to be carried out: no error for a moment's sake."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.rename("d", "e")
        server.online = True
        listed: list[str] = []

        async def ls() -> None:
            listed.extend(await paths.ls("e"))

        with server.hold("move") as gate, trio.fail_after(60):
            paths.fs.core.contact.succeeded()
            await gate.wait_arrived()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ls)
                await trio.testing.wait_all_tasks_blocked()
                assert listed == []
                gate.open()
        assert listed == ["sub", "x", "y"]


async def test_who_lists_it_waits_not_for_long(server: DoubleServer, mount: Mount) -> None:
    """The rename cannot be carried out for now: that is said."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.rename("d", "e")
        server.online = True
        server.inject("list_tree", Busy("later"), times=1000)
        paths.fs.core.contact.succeeded()
        with trio.fail_after(60), pytest.raises(Unreachable, match="never listed"):
            await paths.ls("e")
        server.clear_faults()
        await back(server, paths)
        assert await paths.ls("e") == ["sub", "x", "y"]
