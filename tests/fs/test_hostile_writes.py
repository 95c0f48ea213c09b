"""Writing when things go wrong: other hosts in between, full disks, a daemon that is killed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import trio

from exaifs.errors import ExaifsError, NotFound, Unreachable
from exaifs.fs.staged.staging import Staged
from exaifs.fs.upstream.invalidation import StaleName
from exaifs.model import ROOT_INO, AttributeChange, Posix
from exaifs.remote.interface import Upload
from tests.fs.conftest import Mount
from tests.fs.scenes import file_size_limit, told
from tests.support.double import DoubleServer
from tests.support.paths import follow

pytestmark = pytest.mark.anyio


async def test_anothers_bytes_are_not_taken_for_ours(server: DoubleServer, mount: Mount) -> None:
    """Overwritten by another host before our answer came: its hash is not put on our bytes (promise 2)."""
    theirs = b"theirs!!"
    upload = Upload(
        hashlib.sha256(theirs).hexdigest(), "text/plain", Posix(), "their-write", size_bytes=len(theirs)
    )
    async with mount() as paths:
        await paths.create("f", b"old")
        ours = (await paths.stat("f")).ino
        async with trio.open_nursery() as nursery:
            with server.hold("commit") as gate:
                nursery.start_soon(paths.overwrite, "f", b"ours....")
                await gate.wait_arrived()
                server.bucket.put("f", theirs, upload=upload)
        await follow(paths)
        assert (await paths.stat("f")).ino != ours
        assert await paths.read("f") == theirs


async def test_the_kernel_hears_of_a_name_that_is_ours_again(server: DoubleServer, mount: Mount) -> None:
    """Replaced by another host while open here, then closed here: the name has another inode once more."""
    async with mount() as paths:
        await paths.create("f", b"old")
        async with paths.open("f", os.O_WRONLY) as handle:
            await paths.write_all(handle, b"ours")
            server.bucket.put("f", b"theirs")
            await follow(paths)
            await paths.stat("f")
            await told(paths)
        assert StaleName(ROOT_INO, "f") in await told(paths)
        assert await paths.read("f") == b"ours"


async def test_a_failed_create_leaves_no_name(mount: Mount, tmp_path: Path) -> None:
    """ENOSPC at create: the name does not appear."""
    async with mount() as paths:
        staging = tmp_path / "cache" / "staging"
        staging.rename(tmp_path / "away")
        with pytest.raises(ExaifsError):
            await paths.create("f", b"")
        with pytest.raises(ExaifsError):
            await paths.symlink("target", "link")
        (tmp_path / "away").rename(staging)
        assert await paths.ls() == []
        with pytest.raises(NotFound):
            await paths.stat("f")


async def test_a_write_that_fails_in_the_middle_changes_nothing_beyond(tmp_path: Path) -> None:
    """A partial write is not counted, not read back, and the digest is that of the bytes there are."""
    staged = Staged.create(tmp_path)
    staged.write_at(0, b"a" * 1000)
    with file_size_limit(1500), pytest.raises(ExaifsError):
        staged.write_at(1000, b"b" * 1000)
    assert staged.read_at(0, 4000) == b"a" * 1000
    staged.truncate(1800)
    assert staged.read_at(1000, 4000) == bytes(800)
    again = Staged.create(tmp_path)
    again.write_at(0, staged.read_at(0, 4000))
    assert await staged.sha256() == await again.sha256()
    with file_size_limit(900), pytest.raises(ExaifsError):
        staged.write_at(100, b"c" * 1000)
    fresh = Staged.create(tmp_path)
    fresh.write_at(0, staged.read_at(0, 4000))
    assert await staged.sha256() == await fresh.sha256()
    for one in (staged, again, fresh):
        one.close()


async def test_unsent_bytes_do_not_overwrite_a_later_close(server: DoubleServer, mount: Mount) -> None:
    """close() failed here, then another host's succeeded: what is sent later must not replace that."""
    server.bucket.put("f", b"old")
    async with mount(offline_writes="refuse", drain_s=0.5) as paths:
        await paths.ls()
        server.inject("put", Unreachable("away"), times=2)
        with pytest.raises(Unreachable):
            await paths.overwrite("f", b"ours, not acknowledged")
        server.bucket.put("f", b"theirs, acknowledged")
        await paths.fs.drain(60)
        assert server.bucket.objects["f"].data == b"theirs, acknowledged"
        await follow(paths)
        assert await paths.read("f") == b"theirs, acknowledged"


async def test_leftovers_do_not_overwrite_a_later_close(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """The same across a restart; the bytes that lost are kept beside, and tried no more."""
    server.bucket.put("f", b"old")
    async with mount(offline_writes="refuse", drain_s=0.1) as paths:
        await paths.ls()
        server.inject("put", Unreachable("away"), times=100)
        with pytest.raises(Unreachable):
            await paths.overwrite("f", b"ours, not acknowledged")
        with pytest.raises(Unreachable):
            await paths.create("new", b"ours, not acknowledged")
    server.clear_faults()
    server.bucket.put("f", b"theirs, acknowledged")
    server.bucket.put("new", b"theirs, acknowledged")
    for _ in range(2):
        async with mount(offline_writes="refuse") as paths:
            await paths.fs.drain(60)
            for key in ("f", "new"):
                assert server.bucket.objects[key].data == b"theirs, acknowledged"
                assert await paths.read(key) == b"theirs, acknowledged"
    kept = [path.read_bytes() for path in (tmp_path / "cache" / "conflicts").glob("*.data")]
    assert kept == [b"ours, not acknowledged"] * 2


async def test_what_a_reader_outlives_is_sent(server: DoubleServer, mount: Mount) -> None:
    """close() of the writer failed while a reader had the file open: it is still sent later."""
    async with mount(offline_writes="refuse", drain_s=0.1) as paths:
        await paths.create("f", b"old")
        async with paths.open("f"):
            server.inject("put", Unreachable("away"), times=1)
            with pytest.raises(Unreachable):
                await paths.overwrite("f", b"new")
        with trio.fail_after(60):
            # Sent by a task of the mount, which tells nobody.
            while server.bucket.objects["f"].data != b"new":  # noqa: ASYNC110
                await trio.sleep(0.05)


async def test_truncate_beside_a_reader_is_published(server: DoubleServer, mount: Mount) -> None:
    """truncate(2) returned: the new size is in the bucket, whoever reads the file meanwhile."""
    async with mount() as paths:
        await paths.create("f", b"0123456789")
        async with paths.open("f"):
            await paths.setattr("f", AttributeChange(size_bytes=4))
            assert server.bucket.objects["f"].data == b"0123"


async def test_a_pending_file_over_another_can_be_removed(server: DoubleServer, mount: Mount) -> None:
    """Renamed over a file before its first close, then unlinked: the replaced file does not return."""
    async with mount() as paths:
        await paths.create("f", b"old")
        async with paths.open("tmp", os.O_WRONLY | os.O_CREAT) as handle:
            await paths.write_all(handle, b"new")
            await paths.rename("tmp", "f")
            await paths.unlink("f")
        assert server.bucket.objects == {}
        assert await paths.ls() == []


async def test_a_copy_from_a_changed_source_is_not_believed(server: DoubleServer, mount: Mount) -> None:
    """The source of a server-side copy was replaced meanwhile: our bytes are sent."""
    data = os.urandom(200_000)
    async with mount() as paths:
        await paths.create("source", data)
        server.bucket.keeps_metadata = False
        server.bucket.put("source", bytes(200_000), "application/octet-stream")
        await paths.create("target", data)
        assert server.bucket.objects["target"].data == data
