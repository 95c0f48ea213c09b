"""The change feed: what other hosts do appears without a listing. Polls are made by hand here."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing

from exaifs.errors import Busy, NotFound, Stale, Unreachable
from exaifs.fs.upstream.invalidation import StaleAttributes, StaleName
from exaifs.model import AttributeChange
from exaifs.names import PLACEHOLDER
from tests.fs.conftest import Mount
from tests.fs.scenes import back, contents, replaced_meanwhile, requests, sent, told
from tests.support.double import DoubleServer
from tests.support.paths import CALLER, Paths, follow

pytestmark = pytest.mark.anyio


async def test_what_one_mount_does_the_other_sees(server: DoubleServer, mount: Mount) -> None:
    """Fresh: create, overwrite, chmod, xattr, rename, delete are seen by the other without a listing."""
    async with mount("one") as one, mount("two") as two:
        await one.mkdir("d")
        await one.create("d/a", b"1")
        await one.create("d/b", b"2")
        await follow(two)
        assert await two.ls("d") == ["a", "b"]
        server.counts.clear()
        await one.overwrite("d/a", b"9")
        await one.setattr("d/b", AttributeChange(mode=0o600))
        await one.setxattr("d/b", "user.k", b"v")
        await one.create("d/c", b"3")
        await one.mkdir("d/sub")
        await follow(two)
        assert await two.ls("d") == ["a", "b", "c", "sub"]
        assert await two.read("d/a") == b"9"
        assert (await two.stat("d/b")).mode & 0o777 == 0o600
        assert await two.getxattr("d/b", "user.k") == b"v"
        await one.rename("d/c", "d/moved")
        await one.unlink("d/a")
        await one.rmdir("d/sub")
        await follow(two)
        assert await two.ls("d") == ["b", "moved"]
        assert server.counts["list_directory"] == 0


async def test_names_and_attributes_cost_nothing(server: DoubleServer, mount: Mount) -> None:
    """A file seen once costs what a local file costs: a loaded directory is never listed again."""
    for number in range(1000):
        server.bucket.put(f"d/{number}", b"x")
    async with mount() as paths:
        names = await paths.ls("d")
        server.counts.clear()
        for name in names:
            await paths.stat(f"d/{name}")
        assert await paths.ls("d") == names
        with pytest.raises(NotFound):
            await paths.stat("d/absent")
        assert requests(server) == 0


async def test_a_restart_catches_up_without_listing(server: DoubleServer, mount: Mount) -> None:
    """What happened while the mount was away comes from the log."""
    server.bucket.put("d/old", b"1")
    server.bucket.put("d/gone", b"1")
    async with mount() as paths:
        assert await paths.ls("d") == ["gone", "old"]
        ino = (await paths.stat("d/old")).ino
    server.bucket.put("d/new", b"2")
    server.bucket.remove(["d/gone"])
    server.counts.clear()
    async with mount() as paths:
        assert await paths.ls("d") == ["new", "old"]
        assert (await paths.stat("d/old")).ino == ino
        assert server.counts["list_directory"] == 0


async def test_a_trimmed_log_means_listing_once_more(server: DoubleServer, mount: Mount) -> None:
    """When the log does not reach back to the cursor, everything loaded is listed once."""
    server.bucket.put("d/old", b"1")
    async with mount() as paths:
        assert await paths.ls("d") == ["old"]
    server.bucket.put("d/new", b"2")
    server.bucket.remove(["d/old"])
    server.bucket.trim_log()
    async with mount() as paths:
        assert await paths.ls("d") == ["new"]
        server.counts.clear()
        assert await paths.ls("d") == ["new"]
        assert server.counts["list_directory"] == 0


async def test_folders_come_and_go_with_their_files(server: DoubleServer, mount: Mount) -> None:
    """A folder of other clients exists while something is in it, at any depth."""
    server.bucket.put("top", b"x")
    async with mount() as paths:
        assert await paths.ls() == ["top"]
        server.bucket.put("a/b/c/file", b"1")
        await follow(paths)
        assert await paths.ls() == ["a", "top"]
        assert await paths.ls("a/b/c") == ["file"]
        server.bucket.remove(["a/b/c/file"])
        await follow(paths)
        assert await paths.ls() == ["top"]


async def test_the_kernel_is_told(server: DoubleServer, mount: Mount) -> None:
    """Replaced names, changed attributes and their directories are queued for invalidation."""
    server.bucket.put("d/a", b"1")
    async with mount("one") as one, mount("two") as two:
        attributes = await two.stat("d/a")
        parent = await two.stat("d")
        await one.overwrite("d/a", b"2")
        await follow(two)
        assert {StaleName(parent.ino, "a"), StaleAttributes(parent.ino)} <= await told(two)
        current = await two.stat("d/a")
        assert current.ino != attributes.ino
        await one.setattr("d/a", AttributeChange(mode=0o600))
        await follow(two)
        assert StaleAttributes(current.ino) in await told(two)


async def test_opening_a_replaced_inode_makes_the_kernel_look_again(
    server: DoubleServer, mount: Mount
) -> None:
    """ESTALE on open: the kernel then looks the name up anew and opens the new file."""
    server.bucket.put("f", b"old")
    async with mount() as paths, paths.inode("f") as ino:
        server.bucket.put("f", b"new!")
        await follow(paths)
        with pytest.raises(Stale):
            await paths.fs.files.open(ino, os.O_RDONLY, CALLER)
        assert await paths.read("f") == b"new!"


async def test_our_own_upload_is_not_taken_for_anothers(server: DoubleServer, mount: Mount) -> None:
    """The feed that sees our object before its answer is processed leaves the inode alone."""
    async with mount() as paths:
        await paths.create("f", b"1")
        ino = (await paths.stat("f")).ino
        async with trio.open_nursery() as nursery:
            with server.hold("commit") as gate:
                nursery.start_soon(paths.overwrite, "f", b"22")
                await gate.wait_arrived()
                await follow(paths)
                assert (await paths.stat("f")).ino == ino
        await follow(paths)
        after = await paths.stat("f")
        assert (after.ino, after.size_bytes) == (ino, 2)


async def test_a_change_during_our_own_is_not_lost(server: DoubleServer, mount: Mount) -> None:
    """What the feed had to leave alone is asked for again: the last writer's bytes are shown."""
    async with mount() as paths:
        await paths.create("f", b"1")
        async with replaced_meanwhile(server, paths):
            await follow(paths)
        await follow(paths)
        assert await paths.read("f") == b"theirs"


async def listed_after_a_gap(server: DoubleServer, paths: Paths) -> None:
    """Have the log not reach back to the cursor, and all that was listed be listed again."""
    server.bucket.trim_log()
    await follow(paths)
    with trio.fail_after(60):
        while paths.fs.core.index.expired_prefixes():  # noqa: ASYNC110 - what the host believes
            await trio.sleep(0.01)


@pytest.mark.parametrize("restart", [False, True], ids=["same-run", "next-run"])
@pytest.mark.parametrize("leaves", ["renamed", "removed"])
async def test_what_a_listing_found_under_an_unsent_name_shows_when_that_leaves(
    server: DoubleServer, mount: Mount, leaves: str, *, restart: bool
) -> None:
    """After a gap no log tells of another host's file under a name that was made here and not sent."""
    async with mount(write_mode="back", write_back_s=1000.0) as paths:
        await paths.ls()
        await paths.create("f", b"ours")
        server.bucket.put("f", b"theirs")
        await listed_after_a_gap(server, paths)
        if leaves == "renamed":
            await paths.rename("f", "g")
        else:
            await paths.unlink("f")
        if not restart:
            await follow(paths)
            await follow(paths)
            assert await paths.read("f") == b"theirs"
    async with mount() as paths:
        assert await paths.ls() == (["f", "g"] if leaves == "renamed" else ["f"])
        assert await paths.read("f") == b"theirs"


async def test_what_a_listing_left_alone_is_not_lost(server: DoubleServer, mount: Mount) -> None:
    """After a gap no log tells of what was changed before the listing: it is asked for again."""
    async with mount() as paths:
        await paths.create("f", b"1")
        async with replaced_meanwhile(server, paths):
            await listed_after_a_gap(server, paths)
        await follow(paths)
        assert await paths.read("f") == b"theirs"


async def test_what_a_listing_left_alone_is_not_lost_by_a_restart(
    server: DoubleServer, mount: Mount
) -> None:
    """The same where a change waited, and the next run is the one that finds it was carried out."""
    async with mount(drain_s=0.0) as paths:
        await paths.create("old", b"1")
        server.inject("move", Unreachable("lost"), after=True)
        server.inject("stat", Unreachable("away"), times=1000)
        await paths.rename("old", "new")
        server.bucket.put("old", b"theirs")
        await listed_after_a_gap(server, paths)
        assert await paths.ls() == ["new"]
    server.clear_faults()
    async with mount() as paths:
        await sent(paths)
        # The feed asks again while the listings of a start are on their way.
        with trio.fail_after(60):
            while await paths.ls() != ["new", "old"]:
                await follow(paths)
                await trio.sleep(0.01)
        assert await paths.read("old") == b"theirs"


async def test_a_directory_that_went_but_for_what_is_unsent(server: DoubleServer, mount: Mount) -> None:
    """Another host's rmdir is found by a listing: what is made here again stays when the file goes."""
    async with mount() as paths:
        await paths.mkdir("d")
        async with paths.inode("d") as directory:
            handle, _made = await paths.fs.files.create(directory, "f", 0o644, os.O_WRONLY, CALLER)
            server.bucket.remove([f"d/{PLACEHOLDER}"])
            await listed_after_a_gap(server, paths)
            await paths.unlink("d/f")
            await paths.fs.files.release(handle)
        assert await paths.ls() == ["d"]
        assert f"d/{PLACEHOLDER}" in server.bucket.objects


@pytest.mark.parametrize("online", [True, False])
async def test_a_directory_that_is_renamed_without_its_marker(
    server: DoubleServer, mount: Mount, *, online: bool
) -> None:
    """Another host removed the marker, and this one has not heard of it: the directory stays."""
    async with mount() as paths:
        await paths.mkdir("d")
        await paths.mkdir("d/e")
        await paths.create("d/e/f", b"1")
        server.bucket.remove([f"d/{PLACEHOLDER}", f"d/e/{PLACEHOLDER}"])
        server.online = online
        await paths.rename("d", "g")
        await back(server, paths)
        await paths.unlink("g/e/f")
        await paths.rmdir("g/e")
        assert await paths.ls() == ["g"]
        assert set(contents(server)) == {f"g/{PLACEHOLDER}"}


async def test_a_directory_that_another_host_has_taken_cannot_be_renamed(mount: Mount) -> None:
    """Names have one winner, also where the loser has not heard of it yet; its attempt leaves nothing."""
    async with mount("one") as one, mount("two") as two:
        await one.mkdir("d")
        await one.mkdir("d/e")
        await follow(two)
        assert await two.ls("d") == ["e"]
        await one.rename("d", "theirs")
        with pytest.raises(NotFound):
            await two.rename("d", "ours")
        assert await two.ls() == ["theirs"]
        await two.rename("theirs/e", "ours")
        assert await two.ls() == ["ours", "theirs"]


async def test_a_directory_rename_seen_half_way(server: DoubleServer, mount: Mount) -> None:
    """The feed sees objects move one by one; nothing is lost from either listing."""
    for number in range(20):
        server.bucket.put(f"old/{number:02}", b"%d" % number)
    async with mount() as paths:
        names = await paths.ls("old")
        async with trio.open_nursery() as nursery:
            with server.hold("list_tree") as gate:
                nursery.start_soon(paths.rename, "old", "new")
                await gate.wait_arrived()
                await follow(paths)
        await follow(paths)
        await follow(paths)
        assert await paths.ls() == ["new"]
        assert await paths.ls("new") == names


async def test_without_a_trigger_listings_age(server: DoubleServer, mount: Mount) -> None:
    """No change log: directories are listed again as they age, and the state says why."""
    server.trigger_installed = False
    server.bucket.put("a", b"1")
    async with mount(freshness_s=1e-6) as paths:
        assert await paths.ls() == ["a"]
        server.bucket.put("b", b"2")
        assert await paths.ls() == ["a", "b"]
        assert not paths.fs.core.contact.followed
        assert paths.fs.feed.problem is not None
        assert "exaifs init" in paths.fs.feed.problem


async def test_what_was_never_logged_is_listed_once_the_log_is_written_again(
    server: DoubleServer, mount: Mount
) -> None:
    """The trigger was gone for a while: the log goes on without a gap, and lacks what happened then."""
    server.bucket.put("a", b"1")
    async with mount(freshness_s=0.01) as paths:
        assert await paths.ls() == ["a"]
        server.trigger_installed = False
        server.inject("changes", Unreachable("the database restarts"))
        with trio.fail_after(60):
            while "exaifs init" not in (paths.fs.feed.problem or ""):  # noqa: ASYNC110 - no event tells
                await trio.sleep(0.01)
        del server.bucket.objects["a"]
        server.trigger_installed = True
        with trio.fail_after(60):
            await paths.fs.feed.wait_caught_up()
        assert await paths.ls() == []


async def test_a_hanging_server_does_not_hang_a_known_directory(server: DoubleServer, mount: Mount) -> None:
    """Unreachable is served from what is known, after a short wait, also if nothing answers at all."""
    server.trigger_installed = False
    server.bucket.put("a", b"1")
    async with mount(freshness_s=1e-6) as paths:
        assert await paths.ls() == ["a"]
        with server.hold("list_directory"), trio.fail_after(60):
            assert await paths.ls() == ["a"]
            assert await paths.ls() == ["a"]


async def test_a_slow_server_is_not_away(server: DoubleServer, mount: Mount) -> None:
    """Who looks is soon served from what is known; what is closed meanwhile is sent, and not refused."""
    server.trigger_installed = False
    server.bucket.put("a", b"1")
    async with mount(freshness_s=1e-6, offline_writes="refuse") as paths:
        assert await paths.ls() == ["a"]
        with server.hold("list_directory") as gate:
            assert await paths.ls() == ["a"]
            await gate.wait_arrived()
            assert not paths.fs.core.contact.offline
            await paths.create("b", b"2")
            assert server.bucket.objects["b"].data == b"2"


async def test_a_directory_that_was_never_listed_goes_with_its_last_file(
    server: DoubleServer, mount: Mount
) -> None:
    """However deep that was, and of whatever else is known only that it is there."""
    server.bucket.put("d/e/deep/f", b"1")
    server.bucket.put("o/e/deep/f", b"2")
    async with mount() as paths:
        assert await paths.ls() == ["d", "o"]
        server.bucket.remove(["d/e/deep/f"])
        await follow(paths)
        assert await paths.ls() == ["o"]
        server.bucket.remove(["o/e/deep/f"])
        await follow(paths)
        server.online = False
        assert await paths.ls() == ["o"]  # served from what is known


async def test_a_directory_that_was_never_listed_goes_with_its_last_folder(
    server: DoubleServer, mount: Mount
) -> None:
    """Another host's rmdir leaves nothing of it either, however deep what was removed."""
    server.bucket.put(f"d/e/{PLACEHOLDER}", b"")
    async with mount() as paths:
        assert await paths.ls() == ["d"]
        server.bucket.remove([f"d/e/{PLACEHOLDER}"])
        await follow(paths)
        assert await paths.ls() == []


async def test_a_directory_in_doubt_does_not_go_with_its_last_known_file(
    server: DoubleServer, mount: Mount
) -> None:
    """After a gap there may be more in it than is known: absent only when proven absent."""
    server.bucket.put("d/known", b"1")
    async with mount() as paths:
        assert await paths.ls("d") == ["known"]
        server.bucket.put("d/unheard", b"2")
        server.bucket.trim_log()
        server.inject("list_directory", Busy("later"), times=1000)
        await follow(paths)
        await trio.testing.wait_all_tasks_blocked(0.1)
        server.bucket.remove(["d/known"])
        await follow(paths)
        assert paths.fs.core.index.directory("d/") is not None
        server.clear_faults()
        assert await paths.ls("d") == ["unheard"]


async def test_a_directory_in_doubt_is_listed_again_though_nobody_asks(mount: Mount) -> None:
    """The kernel holds names for long; also of a run that ended before it came to that."""
    async with mount() as paths:
        await paths.mkdir("d")
        await paths.ls("d")
        paths.fs.core.index.expire("d/")
        assert paths.fs.status().state == "catching-up"
        await until_online(paths)
        paths.fs.core.index.expire("d/")
    async with mount() as paths:
        await until_online(paths)


async def until_online(paths: Paths) -> None:
    """Return once the status says so."""
    with trio.fail_after(60):
        while paths.fs.status().state != "online":  # noqa: ASYNC110 - what the status says
            await trio.sleep(0.05)
