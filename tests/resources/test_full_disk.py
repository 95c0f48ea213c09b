"""The cache disk is full, or has no inode left: who needs it is told, everybody else goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from exaifs.cache.unsent.journalfile import read_journal
from exaifs.errors import NoSpace
from tests.resources.conftest import Mount
from tests.support.disks import SmallDisk, small_disk
from tests.support.double import DoubleServer
from tests.support.paths import Paths, mounted

pytestmark = pytest.mark.anyio

MIB = 1 << 20


def some_bytes(size_bytes: int, seed: int = 0) -> bytes:
    """Return bytes in which no two places look alike."""
    return random.Random(seed).randbytes(size_bytes)


async def until(condition: Callable[[], bool], deadline_s: float = 60.0) -> None:
    """Wait for something that threads and other tasks bring about."""
    with trio.fail_after(deadline_s):
        while not condition():  # noqa: ASYNC110 - a condition of several parts
            await trio.sleep(0.01)


def state_of(paths: Paths) -> tuple[str, str | None]:
    """Return what the status says, as whoever reads the file gets it."""
    status = json.loads(paths.fs.status().to_bytes())
    return status["state"], status["reason"]


async def refuse_to_write(paths: Paths, name: str, data: bytes) -> None:
    """Make a file and write to it, which fails; the name goes again, as cp(1) would leave none either."""
    with pytest.raises(NoSpace):
        await paths.create(name, data)
    await paths.unlink(name)


async def test_other_files_go_on(server: DoubleServer, disk: SmallDisk, mount: Mount) -> None:
    """Nothing acknowledged is lost: on a full disk the write that finds no room says so, no other."""
    small, large, listed = some_bytes(100_000, 1), some_bytes(5 * MIB, 2), some_bytes(1000, 3)
    server.bucket.put("small", small)
    server.bucket.put("large", large)
    server.bucket.put("d/e/listed", listed)
    async with mount() as paths:
        assert await paths.read("small") == small
        await paths.create("before", b"before")
        disk.fill()
        async with paths.open("small"):  # what is open does not give way
            await refuse_to_write(paths, "new", some_bytes(MIB))
        assert state_of(paths)[0] == "degraded"
        assert "No space left" in str(state_of(paths)[1]) or "full" in str(state_of(paths)[1])
        # Reads, from the cache and from the bucket; a directory that nobody has listed yet.
        assert await paths.read("small") == small
        assert await paths.read("large") == large
        assert await paths.ls("d/e") == ["listed"]
        assert await paths.read("d/e/listed") == listed
        # Names.
        await paths.mkdir("made")
        await paths.rename("before", "made/after")
        assert await paths.ls("made") == ["after"]
        await paths.unlink("small")
        assert "small" not in await paths.ls()
        # What other hosts do.
        server.bucket.put("theirs", b"theirs")
        with trio.fail_after(60):
            while await paths.fs.feed.poll():
                pass
        assert await paths.read("theirs") == b"theirs"
        disk.make_room()
        await until(lambda: state_of(paths)[0] == "online")
        await paths.create("new", small)
    assert server.bucket.objects["made/after"].data == b"before"
    assert server.bucket.objects["new"].data == small
    async with mount() as paths:
        assert await paths.ls() == ["d", "large", "made", "new", "theirs"]
        assert await paths.read("made/after") == b"before"


async def test_a_file_that_is_half_written(server: DoubleServer, disk: SmallDisk, mount: Mount) -> None:
    """ENOSPC counts nothing as written; what was written before is sent, and more when there is room."""
    data = some_bytes(20 * MIB)
    async with mount() as paths:
        async with paths.open("a", 0o101) as handle:  # O_WRONLY | O_CREAT
            written = 0
            try:
                while True:
                    piece = data[written : written + MIB]
                    written += await paths.fs.files.write(handle, written, piece)
                    disk.fill(leave_bytes=4 * MIB)
            except NoSpace:
                assert written < 12 * MIB
            disk.make_room()
            await paths.write_all(handle, data[written : 12 * MIB], written)
        assert server.bucket.objects["a"].data == data[: 12 * MIB]


@pytest.mark.parametrize("ends", ["while it is full", "with the process"])
async def test_what_was_acknowledged_is_sent(
    server: DoubleServer, disk: SmallDisk, mount: Mount, ends: str
) -> None:
    """A full disk does not keep what is in the journal from being sent, nor that from being noted."""
    files = {f"file {number}": some_bytes(20_000 + number, number) for number in range(30)}
    async with mount(drain_s=0) as paths:
        await paths.create("file 0", b"before")
        server.online = False
        await paths.overwrite("file 0", files["file 0"])
        for name in list(files)[1:]:
            await paths.create(name, files[name])
        disk.fill()
        if ends == "while it is full":
            server.online = True
            assert await paths.fs.drain(60) == 0
            assert read_journal(disk.path / "cache" / "journal").records == {}
            for name, data in files.items():
                assert await paths.read(name) == data
    server.online = True
    async with mount() as paths:
        if ends == "with the process":
            assert await paths.fs.drain(60) == 0
        assert sorted(await paths.ls()) == sorted(files)
        for name, data in files.items():
            assert await paths.read(name) == data
    assert {key: stored.data for key, stored in server.bucket.objects.items()} == files
    assert list((disk.path / "cache" / "staging").iterdir()) == []
    assert list((disk.path / "cache" / "conflicts").iterdir()) == []


async def test_a_close_that_could_not_be_kept(server: DoubleServer, disk: SmallDisk, mount: Mount) -> None:
    """Supabase is away and the journal has no room: close fails, the bytes stay, and are sent later."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.create("kept", b"kept")
        journal = disk.path / "cache" / "journal"
        disk.fill()
        failed: list[str] = []
        for number in range(1000):
            name = f"file {number}"
            try:
                await paths.create(name, b"")
            except NoSpace:
                failed.append(name)
            if len(failed) == 3:
                break
        assert len(failed) == 3
        assert (journal / "reserve").stat().st_size > 0, "room for what is done"
        assert "unsent" in str(state_of(paths)[1]) or state_of(paths)[0] == "offline"
        server.online = True
        assert await paths.fs.drain(60) == 0
        # A create that failed has left no name; of a close that failed, the file is there.
        assert set(await paths.ls()) == set(server.bucket.objects)
        assert server.bucket.objects["kept"].data == b"kept"
        assert read_journal(journal).records == {}


async def test_what_is_only_cached_gives_way(server: DoubleServer, disk: SmallDisk, mount: Mount) -> None:
    """A disk smaller than the cache's limit: old contents leave for new ones, and for what is written."""
    contents = {f"c{number}": some_bytes(4 * MIB, number) for number in range(8)}
    for name, data in contents.items():
        server.bucket.put(name, data)
    async with mount() as paths:
        for name, data in contents.items():
            assert await paths.read(name) == data
        written = some_bytes(16 * MIB, 100)
        await paths.create("written", written)
        await until(lambda: state_of(paths)[0] == "online")
        assert server.bucket.objects["written"].data == written
        small = some_bytes(1000, 101)
        disk.fill()
        await paths.create("and more", small)
        assert await paths.read("and more") == small


async def test_no_inode_is_left(server: DoubleServer, tmp_path: Path) -> None:
    """A new file is refused; reads, and writes to open files, go on; with inodes again all is well."""
    server.bucket.put("there", b"there")
    server.bucket.put("cached", b"cached")
    with small_disk(tmp_path / "disk", size_mib=24, inodes=300) as disk:
        async with mounted(server, disk.path / "cache") as paths:
            async with paths.open("open", 0o101) as handle:
                disk.use_up_inodes()
                with pytest.raises(NoSpace):
                    await paths.create("new", b"new")
                assert "new" not in await paths.ls()
                assert await paths.read("there") == b"there"
                await paths.write_all(handle, b"written")
            assert server.bucket.objects["open"].data == b"written"
            assert state_of(paths)[0] == "degraded"
            await paths.rename("open", "renamed")
            disk.give_inodes_back()
            await until(lambda: state_of(paths)[0] == "online")
            await paths.create("new", b"new")
        assert server.bucket.objects["new"].data == b"new"


async def test_cached_files_give_their_inodes(server: DoubleServer, tmp_path: Path) -> None:
    """Many small contents use the inodes up; they give way to a new file."""
    for number in range(120):
        server.bucket.put(f"small {number}", b"%d" % number)
    with small_disk(tmp_path / "disk", size_mib=24, inodes=150) as disk:
        async with mounted(server, disk.path / "cache") as paths:
            for number in range(120):
                assert await paths.read(f"small {number}") == b"%d" % number
            for number in range(20):
                await paths.create(f"new {number}", b"new")
        assert server.bucket.objects["new 19"].data == b"new"


async def test_a_start_on_a_full_disk(server: DoubleServer, disk: SmallDisk, mount: Mount) -> None:
    """What an earlier run acknowledged is sent by one that begins with no room at all."""
    async with mount(drain_s=0) as paths:
        await paths.ls()
        server.online = False
        await paths.create("unsent", b"unsent")
        await paths.create("removed", b"")
        await paths.unlink("removed")
    disk.fill()
    server.online = True
    async with mount() as paths:
        assert await paths.fs.drain(60) == 0
        assert await paths.read("unsent") == b"unsent"
        disk.make_room()
        await until(lambda: state_of(paths)[0] == "online")
    assert server.bucket.objects["unsent"].data == b"unsent"
    async with mount() as paths:
        assert await paths.ls() == ["unsent"]


async def test_a_conflict_that_cannot_be_kept_leaves_nothing_behind(
    server: DoubleServer, disk: SmallDisk, mount: Mount
) -> None:
    """It is tried again until there is room, and then there are its bytes, once."""
    async with mount() as paths:
        await paths.create("f", b"old")
        server.online = False
        await paths.overwrite("f", b"ours")
        server.bucket.put("f", b"theirs")
        disk.use_up_inodes()  # a second name of the bytes needs none, their description does
        server.online = True
        for _attempt in range(3):
            assert await paths.fs.drain(1.0) == 1
        disk.give_inodes_back()
        assert await paths.fs.drain(60) == 0
    kept = sorted((disk.path / "cache" / "conflicts").iterdir())
    assert [path.suffix for path in kept] == [".data", ".json"]
    assert kept[0].read_bytes() == b"ours"
