"""Names while other changes are under way: here, on another host, and on the way back from the server."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
import trio
import trio.testing

from exaifs.errors import Exists, NotEmpty, NotFound, Stale, Unreachable
from exaifs.fs.upstream.invalidation import StaleName
from exaifs.model import ROOT_INO, AttributeChange
from exaifs.names import PLACEHOLDER
from tests.fs.conftest import Mount
from tests.fs.scenes import replaced_meanwhile, told
from tests.support.double import DoubleServer
from tests.support.paths import Paths, follow

pytestmark = pytest.mark.anyio


async def during_rename(
    server: DoubleServer,
    paths: Paths,
    work: Callable[[], Awaitable[object]],
    old: str = "old",
    new: str = "new",
) -> None:
    """Rename a directory, and do something else while its objects are being moved."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            with server.hold("move") as gate:
                nursery.start_soon(paths.rename, old, new)
                await gate.wait_arrived()
                nursery.start_soon(work)
                await trio.testing.wait_all_tasks_blocked(0.02)


async def check_agreement(server: DoubleServer, paths: Paths, directory: str, names: list[str]) -> None:
    """The mount, once it has heard everything, shows what the bucket has."""
    await follow(paths)
    await follow(paths)
    assert await paths.ls(directory) == names
    in_bucket = {key for key in server.bucket.objects if not key.endswith(PLACEHOLDER)}
    assert in_bucket == {f"{directory}/{name}" for name in names}


async def test_a_write_during_a_directory_rename_is_where_the_file_is(
    server: DoubleServer, mount: Mount
) -> None:
    """close() returned 0: the bytes are under the new name, and nothing is under the old."""
    server.bucket.put("old/f", b"before")
    async with mount() as paths:
        await paths.ls("old")
        await during_rename(server, paths, partial(paths.overwrite, "old/f", b"after"))
        assert server.bucket.objects["new/f"].data == b"after"
        assert await paths.read("new/f") == b"after"
        await check_agreement(server, paths, "new", ["f"])


async def test_a_file_made_during_a_directory_rename_goes_along(server: DoubleServer, mount: Mount) -> None:
    """A file, a directory and a link made meanwhile are in the renamed directory."""
    server.bucket.put("old/f", b"x")
    async with mount() as paths:
        await paths.ls("old")
        await during_rename(server, paths, partial(paths.create, "old/made", b"data"))
        assert await paths.read("new/made") == b"data"
        await check_agreement(server, paths, "new", ["f", "made"])


async def test_a_name_that_another_host_takes_during_a_directory_rename(
    server: DoubleServer, mount: Mount
) -> None:
    """Every object that can be shown is shown: theirs under another name, as one key is not the other."""
    server.bucket.put("old/f", b"ours")
    async with mount() as paths:
        await paths.ls("old")

        async def take_the_name() -> None:
            server.bucket.put("new", b"theirs")
            await follow(paths)

        await during_rename(server, paths, take_the_name)
        with trio.fail_after(60):
            while await paths.ls() != ["new", "new (object)"]:
                await follow(paths)
        assert await paths.read("new (object)") == b"theirs"
        assert await paths.read("new/f") == b"ours"


async def test_a_listing_during_a_rename_that_comes_to_nothing_is_not_the_last(
    server: DoubleServer, mount: Mount
) -> None:
    """Another host takes the directory away; ours leaves it alone while it is claimed, then looks again."""
    server.bucket.put("old/deep/f", b"1")
    server.bucket.put("old/deep/g", b"2")
    async with mount() as paths:
        assert await paths.ls() == ["old"]

        async def take_it_away() -> None:
            for key in ("old/deep/f", "old/deep/g"):
                server.bucket.move(key, f"away/{key}")
            await follow(paths)
            paths.fs.core.index.expire("")
            await paths.ls()

        with suppress(ExceptionGroup):
            await during_rename(server, paths, take_it_away)
        with trio.fail_after(60):
            while await paths.ls() != ["away"]:
                await follow(paths)


async def test_a_directory_made_during_a_directory_rename_goes_along(
    server: DoubleServer, mount: Mount
) -> None:
    """Mkdir inside a directory that is being renamed."""
    server.bucket.put("old/f", b"x")
    async with mount() as paths:
        await paths.ls("old")
        await during_rename(server, paths, partial(paths.mkdir, "old/sub"))
        await follow(paths)
        assert await paths.ls() == ["new"]
        assert await paths.ls("new") == ["f", "sub"]
        assert f"new/sub/{PLACEHOLDER}" in server.bucket.objects


async def test_what_is_removed_during_a_directory_rename_stays_removed(
    server: DoubleServer, mount: Mount
) -> None:
    """unlink(2) returned 0: the file is not back under the directory's new name."""
    server.bucket.put("old/f", b"x")
    server.bucket.put("old/g", b"x")
    async with mount() as paths:
        await paths.ls("old")
        await during_rename(server, paths, partial(paths.unlink, "old/f"))
        await check_agreement(server, paths, "new", ["g"])


async def test_a_full_directory_is_not_removed_while_its_parent_is_renamed(
    server: DoubleServer, mount: Mount
) -> None:
    """Rmdir looks at the directory where it is now."""
    server.bucket.put("old/sub/f", b"x")
    async with mount() as paths:
        await paths.ls("old/sub")

        async def refused() -> None:
            with pytest.raises((NotEmpty, NotFound)):
                await paths.rmdir("old/sub")

        await during_rename(server, paths, refused)
        await follow(paths)
        assert await paths.ls("new/sub") == ["f"]


async def test_attributes_set_during_a_directory_rename_are_kept(
    server: DoubleServer, mount: Mount
) -> None:
    """Chmod of a file and of a directory below."""
    server.bucket.put("old/f", b"x")
    server.bucket.put("old/sub/f", b"x")
    for path in ("f", "sub"):
        async with mount(path) as paths:
            await paths.ls("old/sub")
            await during_rename(
                server, paths, partial(paths.setattr, f"old/{path}", AttributeChange(mode=0o700))
            )
            for _ in range(2):
                await follow(paths)
                assert (await paths.stat(f"new/{path}")).mode & 0o777 == 0o700
            assert await paths.ls() == ["new"]
            await paths.rename("new", "old")


async def test_a_rename_into_a_directory_that_is_renamed(server: DoubleServer, mount: Mount) -> None:
    """The file is in the directory, whatever its name became meanwhile."""
    server.bucket.put("old/f", b"x")
    server.bucket.put("other/g", b"y")
    async with mount() as paths:
        await paths.ls("old")
        await paths.ls("other")
        await during_rename(server, paths, partial(paths.rename, "other/g", "old/g"))
        await follow(paths)
        assert await paths.ls("new") == ["f", "g"]
        assert await paths.ls() == ["new", "other"]


@pytest.mark.parametrize("deep", [False, True])
async def test_a_file_made_while_its_directory_is_first_listed(
    server: DoubleServer, mount: Mount, *, deep: bool
) -> None:
    """The feed tells of it before the listing, which does not have it, is taken in: it is shown."""
    server.bucket.put("d/old", b"1")
    server.bucket.put("d/gone", b"1")
    key = "d/sub/new" if deep else "d/new"
    async with mount() as paths:
        await paths.ls()
        async with trio.open_nursery() as nursery:
            server.answer_late("list_directory")
            with server.hold("late") as gate:
                nursery.start_soon(paths.ls, "d")
                await gate.wait_arrived()
                server.bucket.put(key, b"2")
                server.bucket.remove(["d/gone"])
                server.bucket.put("d/short", b"3")
                server.bucket.remove(["d/short"])
                await follow(paths)
        await follow(paths)
        assert await paths.ls("d") == ["old", "sub"] if deep else ["new", "old"]
        assert await paths.read(key) == b"2"


async def test_what_was_made_and_removed_during_a_listing_stays_removed(
    server: DoubleServer, mount: Mount
) -> None:
    """Listed again after a gap: a name the feed has seen come and go does not appear."""
    server.bucket.put("d/old", b"1")
    async with mount() as paths:
        await paths.ls("d")
        async with trio.open_nursery() as nursery:
            server.bucket.put("d/short", b"3")
            server.answer_late("list_directory")
            with server.hold("late") as gate:
                paths.fs.core.index.expire("d/")
                nursery.start_soon(paths.ls, "d")
                await gate.wait_arrived()
                server.bucket.remove(["d/short"])
                await follow(paths)
        await follow(paths)
        assert await paths.ls("d") == ["old"]


async def test_what_the_feed_left_alone_survives_a_crash(server: DoubleServer, mount: Mount) -> None:
    """Killed before a key was asked for again: the next run does so."""
    async with mount() as paths:
        await paths.create("f", b"1")
        async with replaced_meanwhile(server, paths):
            await follow(paths)
        # No more polls: the daemon is gone now.
    async with mount() as paths:
        await follow(paths)
        assert await paths.read("f") == b"theirs"


async def test_a_foreign_object_under_an_unsent_name_shows_when_that_is_removed(
    server: DoubleServer, mount: Mount
) -> None:
    """The feed told of it while an unsent file had the name; afterwards it is there."""
    async with mount() as paths:
        await paths.ls()
        async with paths.open("f", os.O_WRONLY | os.O_CREAT) as handle:
            await paths.write_all(handle, b"unsent")
            server.bucket.put("f", b"theirs")
            await follow(paths)
            await paths.unlink("f")
        await follow(paths)
        assert await paths.ls() == ["f"]
        assert await paths.read("f") == b"theirs"


async def test_rename_without_replacing_refuses_what_it_had_not_seen(
    server: DoubleServer, mount: Mount
) -> None:
    """RENAME_NOREPLACE: another host's new file is not overwritten."""
    async with mount() as paths:
        await paths.create("f", b"ours")
        server.bucket.put("g", b"theirs")
        with pytest.raises(Exists):
            await paths.rename("f", "g", 1)
        assert server.bucket.objects["g"].data == b"theirs"
        assert server.bucket.objects["f"].data == b"ours"


@pytest.mark.parametrize("directory", [False, True])
async def test_a_file_replaced_just_before_its_rename_is_another_inode(
    server: DoubleServer, mount: Mount, *, directory: bool
) -> None:
    """The kernel's pages of the old bytes must not be shown as the new file's (promise 2)."""
    async with mount() as paths:
        await paths.mkdir("a")
        await paths.create("a/f", b"old bytes")
        before = await paths.stat("a/f")
        server.bucket.put("a/f", b"new bytes")
        if directory:
            await paths.rename("a", "b")
        else:
            await paths.mkdir("b")
            await paths.rename("a/f", "b/f")
        after = await paths.stat("b/f")
        assert after.ino != before.ino
        assert await paths.read("b/f") == b"new bytes"
        parent = (await paths.stat("b")).ino
        assert StaleName(parent, "f") in await told(paths)


async def test_a_gap_during_a_first_listing(server: DoubleServer, mount: Mount) -> None:
    """The listing is older than where the feed goes on: it is not trusted after this once."""
    server.bucket.put("d/old", b"1")
    async with mount() as paths:
        await paths.ls()
        async with trio.open_nursery() as nursery:
            server.answer_late("list_directory")
            with server.hold("late") as gate:
                nursery.start_soon(paths.ls, "d")
                await gate.wait_arrived()
                server.bucket.put("d/new", b"2")
                server.bucket.trim_log()
                await follow(paths)
        assert await paths.ls("d") == ["new", "old"]


async def test_a_gap_is_closed_though_listing_fails_at_first(server: DoubleServer, mount: Mount) -> None:
    """The kernel hears of what the feed missed, also if nobody asks and the first listings fail."""
    server.bucket.put("d/gone", b"1")
    async with mount() as paths:
        await paths.ls("d")
        parent = (await paths.stat("d")).ino
        server.bucket.remove(["d/gone"])
        server.bucket.put("d/new", b"2")
        server.bucket.trim_log()
        server.inject("list_directory", Unreachable("busy"), times=2)
        await follow(paths)
        await trio.testing.wait_all_tasks_blocked(0.02)
        await follow(paths)
        with trio.fail_after(60):
            while StaleName(parent, "gone") not in await told(paths):
                await follow(paths)


async def test_a_change_that_no_log_told_of_heals_when_it_is_met(
    server: DoubleServer, mount: Mount
) -> None:
    """The version is gone: the reader hears so, and the next one gets the file as it is."""
    server.bucket.put("f", b"old")
    async with mount() as paths:
        await paths.ls()
        gone = server.bucket.objects["f"]
        server.bucket.objects["f"] = replace(gone, version="another", data=b"new!")
        with pytest.raises(Stale):
            await paths.read("f")
        assert await paths.read("f") == b"new!"
        assert StaleName(ROOT_INO, "f") in await told(paths)


async def test_a_full_disk_does_not_stop_the_feed(server: DoubleServer, mount: Mount) -> None:
    """The index cannot grow: other hosts' changes appear all the same, and are on the disk when it can."""
    server.bucket.put("d/known", b"1")
    async with mount(freshness_s=0.02) as paths:
        assert await paths.ls("d") == ["known"]
        database = paths.fs.core.index._db
        pages = int(database.execute("PRAGMA page_count").fetchone()[0])
        database.execute(f"PRAGMA max_page_count = {pages}")
        for number in range(500):
            server.bucket.put(f"d/{number:03}{'x' * 100}", b"2")
        with trio.fail_after(60):
            while len(await paths.ls("d")) != 501:  # noqa: ASYNC110  # nobody announces it
                await trio.sleep(0.05)
        assert paths.fs.status().state == "degraded"
        assert await paths.read("d/known") == b"1"
        sqlite3.Connection.execute(database, "PRAGMA max_page_count = 1000000")  # that of the disk
        with trio.fail_after(60):
            while paths.fs.status().state != "online":  # noqa: ASYNC110  # as above
                await trio.sleep(0.05)
    server.online = False
    async with mount(freshness_s=0.02) as paths:
        assert len(await paths.ls("d")) == 501
