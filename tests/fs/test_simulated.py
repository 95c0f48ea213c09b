"""What the simulation found, shrunk: each case failed once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from exaifs.errors import Busy, NotFound, Stale, Unreachable
from exaifs.fs.upstream.invalidation import StaleName
from exaifs.model import ROOT_INO, AttributeChange
from exaifs.names import PLACEHOLDER
from tests.fs.conftest import Mount
from tests.fs.scenes import contents, kept_aside, told
from tests.support.descriptors import open_descriptors
from tests.support.double import DoubleServer
from tests.support.paths import CALLER, Paths, follow

pytestmark = pytest.mark.anyio


async def test_a_folder_that_came_in_a_gap_of_the_feed_is_listed(
    server: DoubleServer, mount: Mount
) -> None:
    """After a gap, the first change seen in a new folder is not all that is in it."""
    async with mount() as paths:
        assert await paths.ls() == []
        server.bucket.put("d/before", b"1")
        server.bucket.trim_log()
        server.inject("list_directory", Unreachable("later"))
        await paths.fs.feed.poll()
        await trio.testing.wait_all_tasks_blocked()
        server.bucket.put("d/after", b"2")
        await paths.fs.feed.poll()
        assert await paths.ls("d") == ["after", "before"]


async def test_a_folder_whose_only_file_was_replaced_by_another_stays(
    server: DoubleServer, mount: Mount
) -> None:
    """One answer of the feed with a file gone and another come: the folder is still there."""
    server.bucket.put("d/old", b"1")
    async with mount() as paths:
        assert await paths.ls() == ["d"]
        assert await paths.ls("d") == ["old"]
        ino = (await paths.stat("d")).ino
        server.bucket.remove(["d/old"])
        server.bucket.put("d/new", b"2")
        await follow(paths)
        assert await paths.ls() == ["d"]
        assert await paths.ls("d") == ["new"]
        assert (await paths.stat("d")).ino == ino


async def test_a_directory_renamed_while_listings_are_renewed_is_not_remembered(
    server: DoubleServer, mount: Mount
) -> None:
    """Renewing listings after a gap waits for the rename, and then leaves the old name alone."""
    async with mount() as paths:
        await paths.mkdir("d")
        index = paths.fs.core.index
        with server.hold("move") as gate:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(paths.rename, "d", "e")
                await gate.wait_arrived()
                server.bucket.put("other", b"1")
                server.bucket.trim_log()
                await paths.fs.feed.poll()
                await trio.testing.wait_all_tasks_blocked()
                gate.open()
        await trio.testing.wait_all_tasks_blocked()
        assert await paths.ls() == ["e", "other"]
        assert [prefix for prefix in index.loaded_prefixes() if index.directory(prefix) is None] == []


async def test_renewing_listings_outlives_a_server_that_goes_away(
    server: DoubleServer, mount: Mount
) -> None:
    """A directory that went and came back before its turn comes does not end the mount."""
    async with mount() as paths:
        await paths.mkdir("d")
        index = paths.fs.core.index
        server.bucket.put("other", b"1")
        server.bucket.trim_log()
        with server.hold("list_directory") as gate:
            await paths.fs.feed.poll()
            await gate.wait_arrived()
            gone = index.directory("d/")
            assert gone is not None
            index.remove(gone)
            index.put(gone)
            server.online = False
        await trio.testing.wait_all_tasks_blocked()
        server.online = True
        await paths.fs.feed.poll()
        assert await paths.ls() == ["d", "other"]


@pytest.mark.parametrize("away", ["renamed", "removed"])
async def test_a_file_whose_upload_had_no_answer_leaves_nothing_behind(
    server: DoubleServer, mount: Mount, away: str
) -> None:
    """Close failed, but the bytes had arrived: when the name goes, the object goes, too."""
    async with mount() as paths:
        server.inject("put", Unreachable("the answer was lost"), after=True)
        await paths.create("f", b"bytes")
        if away == "renamed":
            await paths.rename("f", "g")
        else:
            await paths.unlink("f")
        assert await paths.fs.drain(60) == 0
        await follow(paths)
        assert await paths.ls() == (["g"] if away == "renamed" else [])
        assert list(server.bucket.objects) == await paths.ls()


async def test_a_mount_that_is_cut_off_leaves_no_descriptor(server: DoubleServer, mount: Mount) -> None:
    """Cancelled in the middle, the content store closes the files that it has open."""
    data = b"x" * 2_000_000
    server.bucket.put("f", data)
    before = open_descriptors()
    with trio.CancelScope() as scope:
        async with mount() as paths:
            await paths.fs.core.contents.materialize(server.bucket.record("f").ref)
            assert await paths.read("f") == data
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert open_descriptors() <= before


async def test_a_name_that_was_gone_does_not_come_along_with_its_directory(
    server: DoubleServer, mount: Mount
) -> None:
    """Removed by another host, not heard of yet: a rename of the directory does not keep it for ever."""
    async with mount() as paths:
        await paths.mkdir("d")
        await paths.mkdir("d/sub")
        await paths.create("d/gone", b"1")
        await paths.create("d/left", b"2")
        server.bucket.remove(["d/gone", "d/sub/" + PLACEHOLDER])
        await paths.rename("d", "e")
        await follow(paths)
        assert await paths.ls("e") == ["left"]


async def test_an_upload_whose_answer_was_lost_is_known_as_ours(server: DoubleServer, mount: Mount) -> None:
    """What was written after it is sent, and not kept aside as if another host had been quicker."""
    async with mount() as paths:
        server.inject("put", Unreachable("the answer was lost"), times=2, after=True)
        await paths.create("f", b"first")
        server.inject("put", Unreachable("later"))
        await paths.overwrite("f", b"second")
        assert await paths.fs.drain(60) == 0
        assert server.bucket.objects["f"].data == b"second"
        assert await paths.read("f") == b"second"


async def test_a_file_kept_aside_is_not_written_any_more(server: DoubleServer, mount: Mount) -> None:
    """The kernel still has the name of a file that another host's replaced: it must look again."""
    async with mount() as paths:
        server.inject("put", Unreachable("away"), times=1000)
        await paths.create("f", b"ours")
        async with paths.inode("f") as ino:
            server.bucket.put("f", b"theirs")
            server.clear_faults()
            await paths.fs.drain(60)
            with pytest.raises(Stale):
                await paths.fs.files.open(ino, os.O_RDWR, CALLER)
            with pytest.raises(Stale):
                await paths.fs.namespace.setattr(ino, AttributeChange(size_bytes=1), None)
        await paths.overwrite("f", b"ours again")
        assert server.bucket.objects["f"].data == b"ours again"


@pytest.mark.parametrize("away", ["renamed", "removed"])
async def test_unsent_bytes_do_not_bring_a_name_back(server: DoubleServer, mount: Mount, away: str) -> None:
    """Close failed, another host's file took the name, and that left: nothing is sent there later."""
    async with mount(offline_writes="refuse") as paths:
        await paths.create("f", b"1")
        server.inject("put", Unreachable("away"), times=2)
        with pytest.raises(Unreachable):
            await paths.overwrite("f", b"ours")
        server.bucket.put("f", b"theirs")
        await follow(paths)
        if away == "renamed":
            await paths.rename("f", "g")
        else:
            await paths.unlink("f")
        await paths.fs.drain(60)
        await follow(paths)
        assert await paths.ls() == (["g"] if away == "renamed" else [])
        assert sorted(server.bucket.objects) == await paths.ls()


async def rename_unheard(server: DoubleServer, paths: Paths) -> None:
    """Rename d to e: its objects move, and the listing after that fails."""
    with server.hold("move") as gate:
        async with trio.open_nursery() as nursery:

            async def rename() -> None:
                with pytest.raises(Unreachable):
                    await paths.rename("d", "e")

            nursery.start_soon(rename)
            await gate.wait_arrived()
            server.inject("list_tree", Unreachable("lost"))
            gate.open()


async def test_a_directory_renamed_without_hearing_what_is_in_it_is_listed_again(
    server: DoubleServer, mount: Mount
) -> None:
    """The objects moved, the listing after that failed: a name that was gone is not kept for ever."""
    async with mount() as paths:
        await paths.mkdir("d")
        await paths.create("d/gone", b"1")
        server.bucket.remove(["d/gone"])
        await rename_unheard(server, paths)
        # It had an error, and would go on finding the directory under the name that it had.
        assert StaleName(ROOT_INO, "d") in await told(paths)
        await follow(paths)
        assert await paths.ls("e") == []


async def test_a_directory_that_was_to_be_replaced_leaves_its_name(
    server: DoubleServer, mount: Mount
) -> None:
    """It was removed before what was to be renamed turned out to be gone: the object has its name then."""
    server.bucket.put("a", b"object")
    for directory in ("a", "d"):
        server.bucket.put(f"{directory}/{PLACEHOLDER}", b"")
    async with mount() as paths:
        assert await paths.ls() == ["a", "a (object)", "d"]
        assert await paths.ls("a") == await paths.ls("d") == []
        server.bucket.remove([f"d/{PLACEHOLDER}"])
        with pytest.raises(NotFound):
            await paths.rename("d", "a")
        assert StaleName(ROOT_INO, "a") in await told(paths)
        await follow(paths)
        assert await paths.ls() == ["a"]
        assert await paths.read("a") == b"object"


async def test_a_directory_that_another_host_emptied_can_be_removed(
    server: DoubleServer, mount: Mount
) -> None:
    """Its marker was put when its last file went, which the listing says that rmdir asks for."""
    server.bucket.put("d/f", b"1")
    async with mount() as paths:
        assert await paths.ls() == ["d"]
        server.bucket.remove(["d/f"])
        server.bucket.put(f"d/{PLACEHOLDER}", b"")
        await paths.rmdir("d")
        assert contents(server) == {}
        await follow(paths)
        assert await paths.ls() == []


async def test_a_directory_whose_making_had_no_answer_is_found_by_the_listing(
    server: DoubleServer, mount: Mount
) -> None:
    """A listing that was under way when mkdir failed knows better, and is not passed over."""
    async with mount(offline_writes="refuse") as paths:
        assert await paths.ls() == []

        async def mkdir() -> None:
            with pytest.raises(Unreachable):
                await paths.mkdir("d")

        async with trio.open_nursery() as nursery:
            with server.hold("commit") as commit, server.hold("list_directory") as listing:
                nursery.start_soon(mkdir)
                await commit.wait_arrived()
                server.bucket.put("other", b"1")
                server.bucket.trim_log()
                await paths.fs.feed.poll()
                await listing.wait_arrived()
                server.inject("commit", Unreachable("the answer was lost"))
                commit.open()
                await trio.testing.wait_all_tasks_blocked()
        await follow(paths)
        assert await paths.ls() == ["d", "other"]


async def test_an_unsent_file_replaces_one_whose_upload_had_no_answer(
    server: DoubleServer, mount: Mount
) -> None:
    """Renamed over it: what had arrived of the target is ours, not another host's."""
    async with mount() as paths:
        server.inject("put", Unreachable("the answer was lost"), times=4, after=True)
        for name in ("target", "source"):
            await paths.create(name, name.encode())
        await paths.rename("source", "target")
        assert await paths.fs.drain(60) == 0
        await follow(paths)
        assert await paths.read("target") == b"source"
        assert server.bucket.objects["target"].data == b"source"


async def test_a_folder_that_a_listing_finds_empty_is_gone(server: DoubleServer, mount: Mount) -> None:
    """The feed told of its marker; that its last file had gone, only the folder's listing says."""
    async with mount() as paths:
        await paths.mkdir("d")
        await paths.create("d/f", b"1")
        assert await paths.ls("d") == ["f"]
        await follow(paths)
        del server.bucket.objects["d/f"]  # as in a gap of the log
        server.bucket.remove([f"d/{PLACEHOLDER}"])
        await follow(paths)
        paths.fs.core.index.expire("d/")
        assert await paths.ls("d") == []
        assert await paths.ls() == []


async def test_a_rename_of_a_file_whose_upload_had_no_answer_leaves_nothing_behind(
    server: DoubleServer, mount: Mount
) -> None:
    """Cut off before it removed the source, it is finished: what is there are bytes of ours."""
    async with mount() as paths:
        await paths.create("a", b"old")
        await paths.create("b", b"replaced")
        async with trio.open_nursery() as nursery:
            with server.hold("commit") as gate:
                nursery.start_soon(paths.overwrite, "a", b"newer")
                await gate.wait_arrived()
                server.online = False
        await paths.rename("a", "b")
        assert server.bucket.objects["a"].data == b"newer"
        server.inject("remove", Unreachable("lost"))
        server.inject("remove", Unreachable("lost again"))
        server.online = True
        assert await paths.fs.drain(60) == 0
        await follow(paths)
        assert await paths.ls() == ["b"]
        assert list(server.bucket.objects) == ["b"]
        assert await paths.read("b") == b"newer"


async def test_attributes_that_change_while_a_directory_is_moved_stay(
    server: DoubleServer, mount: Mount
) -> None:
    """What the listing after the move says of a row is older than a change that began to wait meanwhile."""
    async with mount() as paths:
        await paths.mkdir("d")
        await paths.create("d/f", b"1")
        server.online = False
        await paths.rename("d", "e")
        with server.hold("move") as move, server.hold("patch") as patch:
            server.online = True
            paths.fs.writes.sender.hurry()
            await move.wait_arrived()
            with server.hold("list_tree") as listing:
                move.open()
                await listing.wait_arrived()
                await paths.setattr("e/f", AttributeChange(mode=0o600))
            await patch.wait_arrived()
            assert (await paths.stat("e/f")).mode & 0o777 == 0o600
            async with paths.open("e/f", os.O_WRONLY | os.O_APPEND) as handle:
                await paths.fs.files.write(handle, 1, b"2")
        assert await paths.fs.drain(60) == 0
        assert server.bucket.record("e/f").posix.mode == 0o600
        assert server.bucket.objects["e/f"].data == b"12"


async def _doubted(paths: Paths) -> None:
    """Have the root listed once more, as after a gap of the feed."""
    paths.fs.core.index.expire("")
    await paths.fs.directories.ensure("")


async def test_a_listing_leaves_a_directory_alone_whose_attributes_wait(
    server: DoubleServer, mount: Mount
) -> None:
    """It has those that were acknowledged, whatever its marker says until it has them, too."""
    async with mount() as paths:
        await paths.mkdir("d")
        server.inject("patch", Busy("later"), times=1000)
        await paths.setattr("d", AttributeChange(mode=0o700))
        await paths.setxattr("d", "user.k", b"1")
        await _doubted(paths)
        assert (await paths.stat("d")).mode & 0o777 == 0o700
        assert await paths.getxattr("d", "user.k") == b"1"
        server.clear_faults()
        assert await paths.fs.drain(60) == 0
        await follow(paths)
        assert (await paths.stat("d")).mode & 0o777 == 0o700


async def test_a_listing_does_not_bring_back_a_directory_whose_removal_waits(
    server: DoubleServer, mount: Mount
) -> None:
    """Its marker is there still; another host's file in it shows once the removal is over."""
    async with mount() as paths:
        await paths.mkdir("d")
        await paths.mkdir("e")
        server.inject("remove", Busy("later"), times=1000)
        await paths.rmdir("d")
        await paths.rmdir("e")
        server.bucket.put("e/theirs", b"1")
        server.bucket.trim_log()
        await _doubted(paths)
        assert "d" not in await paths.ls()
        server.clear_faults()
        assert await paths.fs.drain(60) == 0
        await follow(paths)
        assert await paths.ls() == ["e"]
        assert await paths.ls("e") == ["theirs"]


async def test_a_listing_does_not_take_away_a_directory_whose_marker_waits(
    server: DoubleServer, mount: Mount
) -> None:
    """Its last file was removed, and its marker is not there yet."""
    server.bucket.put("d/f", b"1")
    async with mount() as paths:
        assert await paths.ls("d") == ["f"]
        ino = (await paths.stat("d")).ino
        server.inject("put", Busy("later"), times=1000)
        await paths.unlink("d/f")
        assert list(server.bucket.objects) == []
        await _doubted(paths)
        assert (await paths.stat("d")).ino == ino
        server.clear_faults()
        assert await paths.fs.drain(60) == 0
        await follow(paths)
        assert (await paths.stat("d")).ino == ino


@pytest.mark.parametrize("keeps_metadata", [True, False])
async def test_what_arrived_of_an_upload_without_an_answer_is_not_another_hosts_file(
    server: DoubleServer, mount: Mount, *, keeps_metadata: bool
) -> None:
    """The feed tells of it before it is sent again: the inode stays, and what is changed of it since."""
    server.bucket.keeps_metadata = keeps_metadata
    async with mount() as paths:
        await paths.create("f", b"old")
        ino = (await paths.stat("f")).ino
        server.inject("put", Unreachable("the answer was lost"), after=True)
        await paths.overwrite("f", b"newer")
        await paths.fs.feed.poll()
        assert server.bucket.objects["f"].data == b"newer"
        assert (await paths.stat("f")).ino == ino
        await paths.setattr("f", AttributeChange(mode=0o600))
        await paths.setxattr("f", "user.k", b"1")
        assert await paths.fs.drain(60) == 0
        await follow(paths)
        assert (await paths.stat("f")).ino == ino
        assert (await paths.stat("f")).mode & 0o777 == 0o600
        assert await paths.getxattr("f", "user.k") == b"1"
        assert server.bucket.record("f").posix.mode == 0o600
        assert server.bucket.record("f").xattrs == {"user.k": b"1"}


async def test_a_rename_that_fails_after_all_was_moved_leaves_its_name_to_the_object(
    server: DoubleServer, mount: Mount
) -> None:
    """The directory has gone, only what is in it could not be asked: nobody has its plain name any more."""
    server.bucket.put("d", b"object")
    server.bucket.put("d/f", b"1")
    async with mount() as paths:
        assert await paths.ls() == ["d", "d (object)"]
        await rename_unheard(server, paths)
        assert await paths.ls() == ["d", "e"]
        assert await paths.read("d") == b"object"


async def test_another_clients_file_of_the_same_size_is_none_of_ours(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """Our uploads were answered: what has no hash and the size of one of them replaces the name at once."""
    async with mount() as paths:
        async with paths.open("f", os.O_RDWR | os.O_CREAT | os.O_EXCL) as handle:
            await paths.fs.files.write(handle, 0, b"first")
            await paths.fs.files.flush(handle)
            await paths.fs.files.write(handle, 0, b"again")
            server.bucket.put("f", b"their")
            await follow(paths)
            assert await paths.read("f") == b"their"
        assert await paths.read("f") == b"again"
        assert server.bucket.objects["f"].data == b"again"
    assert kept_aside(tmp_path / "cache") == [b"their"]


async def test_another_clients_file_that_may_be_ours_is_compared_before_it_is_replaced(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """An upload had no answer, and then somebody put a file of its size there: its bytes are kept."""
    async with mount() as paths:
        await paths.create("f", b"old")
        server.inject("put", Unreachable("lost"), times=1000)
        await paths.overwrite("f", b"first")
        server.bucket.put("f", b"their")
        server.clear_faults()
        await paths.fs.feed.poll()
        assert await paths.fs.drain(60) == 0
        await follow(paths)
    kept = kept_aside(tmp_path / "cache")
    assert {server.bucket.objects["f"].data, *kept} == {b"first", b"their"}
