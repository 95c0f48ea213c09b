"""Files through the file system, without a kernel."""

from __future__ import annotations

import hashlib
import os
import random

import pytest
import trio
import trio.testing

from exaifs.errors import BadHandle, Busy, FileTooLarge, IsADirectory, ReadOnly, Unreachable
from exaifs.model import AttributeChange
from tests.fs.conftest import Mount
from tests.support.double import DoubleServer

pytestmark = pytest.mark.anyio

SIZES = [0, 1, 4095, 4096, 128 * 1024, 128 * 1024 + 1, 3 * 1024 * 1024 + 7]


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_a_closed_file_is_in_the_bucket_with_its_row(
    server: DoubleServer, mount: Mount, size_bytes: int
) -> None:
    """Nothing acknowledged is lost: close() returned 0, so bytes and complete row are in Supabase."""
    data = random.Random(size_bytes).randbytes(size_bytes)
    async with mount() as paths:
        await paths.create("file.bin", data, mode=0o640)
        record = (await server.remote().catalog.stat(["file.bin"]))["file.bin"]
        assert record.size_bytes == size_bytes
        assert record.sha256 == hashlib.sha256(data).hexdigest()
        assert record.posix.mode == 0o640
        assert (record.posix.uid, record.posix.gid) == (1000, 1000)
        assert record.posix.mtime_ns is not None
        assert record.file_id is not None
        assert await paths.read("file.bin") == data


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_another_host_reads_what_was_closed(mount: Mount, size_bytes: int) -> None:
    """Another mount, with a cache of its own, reads the same bytes."""
    data = random.Random(size_bytes).randbytes(size_bytes)
    async with mount("one") as one, mount("two") as two:
        await one.create("file.bin", data)
        assert await two.read("file.bin") == data


async def test_a_restart_reads_from_the_cache(server: DoubleServer, mount: Mount) -> None:
    """Content written here is cached: after a restart it costs no download."""
    data = os.urandom(2_000_000)
    async with mount() as paths:
        await paths.create("file.bin", data)
    server.counts.clear()
    async with mount() as paths:
        assert await paths.read("file.bin") == data
    assert server.counts["get"] == 0


async def test_the_same_bytes_are_not_sent_again(server: DoubleServer, mount: Mount) -> None:
    """An identical rewrite uploads nothing, and takes the new modification time."""
    async with mount() as paths:
        await paths.create("note.txt", b"same")
        before = await paths.stat("note.txt")
        server.counts.clear()
        await paths.overwrite("note.txt", b"same")
        after = await paths.stat("note.txt")
    assert server.counts["put"] == 0
    assert after.mtime_ns > before.mtime_ns


async def test_a_copy_is_made_on_the_server(server: DoubleServer, mount: Mount) -> None:
    """Content the bucket has under another name is copied there, with attributes of its own."""
    data = os.urandom(500_000)
    async with mount() as paths:
        await paths.create("a.bin", data, mode=0o600)
        await paths.setxattr("a.bin", "user.note", b"mine")
        server.counts.clear()
        await paths.create("b.bin", data, mode=0o644)
        assert server.counts["put"] == 0
        assert server.counts["copy"] == 1
        assert (await paths.stat("b.bin")).mode & 0o777 == 0o644
        assert "user.note" not in await paths.listxattr("b.bin")
    async with mount("other") as other:
        assert await other.read("b.bin") == data


async def test_random_writes_give_what_a_local_file_would(mount: Mount) -> None:
    """Overwrite, append, sparse write and truncate, in any order, on one open file."""
    rng = random.Random(7)
    model = bytearray(rng.randbytes(300_000))
    async with mount() as paths:
        await paths.create("file", bytes(model))
        async with paths.open("file", os.O_RDWR) as handle:
            for _ in range(200):
                offset = rng.randrange(0, 400_000)
                data = rng.randbytes(rng.randrange(1, 5000))
                if len(model) < offset:
                    model.extend(bytes(offset - len(model)))
                model[offset : offset + len(data)] = data
                await paths.fs.files.write(handle, offset, data)
                position = rng.randrange(0, len(model))
                assert (
                    await paths.fs.files.read(handle, position, 1000) == model[position : position + 1000]
                )
    async with mount("other") as other:
        assert await other.read("file") == bytes(model)


async def test_truncate_without_a_handle_is_published(server: DoubleServer, mount: Mount) -> None:
    """truncate(2) has no close: the new size is in the bucket when it returns."""
    async with mount() as paths:
        await paths.create("file", b"0123456789")
        await paths.setattr("file", AttributeChange(size_bytes=4))
        assert (await server.remote().catalog.stat(["file"]))["file"].size_bytes == 4
        await paths.setattr("file", AttributeChange(size_bytes=6))
        assert await paths.read("file") == b"0123\0\0"


async def test_close_reports_failure_and_keeps_the_bytes(server: DoubleServer, mount: Mount) -> None:
    """close() fails when the upload does; the bytes stay and are sent later."""
    async with mount(offline_writes="refuse") as paths:
        server.inject("put", Unreachable("cable cut"), times=1000)
        with pytest.raises(Unreachable):
            await paths.create("file", b"precious")
        assert await paths.read("file") == b"precious"
        assert (await paths.getxattr("file", "user.exai.state")).startswith(b"failed: ")
        server.clear_faults()
    async with mount("other") as other:
        assert await other.read("file") == b"precious"


async def test_what_cannot_be_sent_survives_the_end(server: DoubleServer, mount: Mount) -> None:
    """Bytes that a failed close left behind are sent by the next mount."""
    async with mount(offline_writes="refuse", drain_s=0.5) as paths:
        await paths.mkdir("d")
        server.online = False
        with pytest.raises(Unreachable):
            await paths.create("d/file", b"precious", mode=0o600)
    server.online = True
    async with mount(offline_writes="refuse") as paths:
        assert await paths.read("d/file") == b"precious"
        assert (await paths.stat("d/file")).mode & 0o777 == 0o600
        assert await paths.fs.drain(60) == 0
        assert await paths.getxattr("d/file", "user.exai.state") == b"clean"
    async with mount("other") as other:
        assert await other.read("d/file") == b"precious"


async def test_a_file_over_the_limit_is_refused_while_written(server: DoubleServer, mount: Mount) -> None:
    """What cannot be kept is refused: EFBIG at write, not at close; what was there stays."""
    server.bucket.size_limit_bytes = 1000
    async with mount() as paths:
        await paths.create("file", b"x" * 1000)
        async with paths.open("file", os.O_RDWR) as handle:
            with pytest.raises(FileTooLarge):
                await paths.fs.files.write(handle, 1000, b"y")
        with pytest.raises(FileTooLarge):
            await paths.setattr("file", AttributeChange(size_bytes=1001))
        assert await paths.read("file") == b"x" * 1000


async def test_an_unlinked_open_file_keeps_its_bytes(server: DoubleServer, mount: Mount) -> None:
    """Who has it open reads on after the name and the object are gone."""
    data = os.urandom(1_500_000)
    server.bucket.put("file", data)
    async with mount() as paths:
        async with paths.open("file") as handle:
            await paths.unlink("file")
            assert await paths.read_all(handle) == data
        assert await paths.ls() == []
        assert await server.remote().catalog.stat(["file"]) == {}


async def test_an_unlinked_dirty_file_is_not_published(server: DoubleServer, mount: Mount) -> None:
    """A temporary file that is removed before it is closed never reaches the bucket."""
    async with mount() as paths:
        async with paths.open("tmp", os.O_RDWR | os.O_CREAT) as handle:
            await paths.fs.files.write(handle, 0, b"scratch")
            await paths.unlink("tmp")
            assert await paths.fs.files.read(handle, 0, 100) == b"scratch"
        assert server.counts["put"] == 0
        assert await paths.ls() == []


async def test_handles_are_checked(mount: Mount) -> None:
    """EBADF for the wrong direction, EISDIR for directories, EROFS on a read-only mount."""
    async with mount() as paths:
        await paths.create("file", b"x")
        await paths.mkdir("d")
        async with paths.open("file", os.O_RDONLY) as handle:
            with pytest.raises(BadHandle):
                await paths.fs.files.write(handle, 0, b"y")
        async with paths.open("file", os.O_WRONLY) as handle:
            with pytest.raises(BadHandle):
                await paths.fs.files.read(handle, 0, 1)
        with pytest.raises(IsADirectory):
            await paths.read("d")
    async with mount(read_only=True) as paths:
        assert await paths.read("file") == b"x"
        for refused in (
            paths.create("new", b""),
            paths.overwrite("file", b""),
            paths.mkdir("e"),
            paths.unlink("file"),
            paths.rename("file", "g"),
            paths.setattr("file", AttributeChange(mode=0o600)),
            paths.setxattr("file", "user.a", b""),
        ):
            with pytest.raises(ReadOnly):
                await refused


async def test_a_busy_server_is_not_an_empty_file(server: DoubleServer, mount: Mount) -> None:
    """A read that cannot be answered is an error, never short bytes."""
    server.bucket.put("file", b"z" * 5000)
    async with mount() as paths:
        server.inject("get", Busy("later"))
        with pytest.raises(Busy):
            await paths.read("file")
        assert await paths.read("file") == b"z" * 5000


async def test_the_end_sends_several_files_at_a_time(server: DoubleServer, mount: Mount) -> None:
    """A drain overlaps its uploads: what a failed server left is sent before the deadline."""
    async with mount() as paths:
        server.inject("put", Busy("later"), times=100_000)
        for number in range(20):
            await paths.create(f"f{number}", b"%d" % number)
        server.clear_faults()
        server.counts.clear()
        with server.hold("put") as gate:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(paths.fs.drain, 60)
                await gate.wait_arrived()
                with trio.fail_after(60):
                    while server.counts["put"] < 8:  # noqa: ASYNC110 - until all wait at the gate at once
                        await trio.sleep(0.01)
                gate.open()
        assert await paths.fs.drain(60) == 0
    assert len(server.bucket.objects) == 20


async def test_uploads_that_fail_together_are_one_try(server: DoubleServer, mount: Mount) -> None:
    """While Supabase is away a drain asks a few times: a cut of a moment leaves nothing unsent."""
    async with mount() as paths:
        server.inject("put", Busy("later"), times=100_000)
        for number in range(20):
            await paths.create(f"f{number}", b"%d" % number)
        server.clear_faults()
        server.counts.clear()
        left: list[int] = []

        async def drain() -> None:
            left.append(await paths.fs.drain(60))

        async with trio.open_nursery() as nursery:
            with server.hold("put") as gate:
                nursery.start_soon(drain)
                await gate.wait_arrived()
                with trio.fail_after(60):
                    while server.counts["put"] < 8:  # noqa: ASYNC110 - until all wait at the gate at once
                        await trio.sleep(0.01)
                server.online = False
            with trio.fail_after(60):
                while not paths.fs.core.contact.offline:  # noqa: ASYNC110 - nothing announces it
                    await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked(0.1)
            server.online = True
        assert left == [0]


async def test_attributes_of_what_waits_to_be_sent_survive(server: DoubleServer, mount: Mount) -> None:
    """A chmod and an attribute set while the bytes wait are sent with them, after a restart too."""
    async with mount(offline_writes="refuse", drain_s=0.2) as paths:
        await paths.ls()
        server.online = False
        with pytest.raises(Unreachable):
            await paths.create("file", b"bytes")
        await paths.setattr("file", AttributeChange(mode=0o600))
        await paths.setxattr("file", "user.note", b"n")
    server.online = True
    async with mount(offline_writes="refuse") as paths:
        assert await paths.fs.drain(60) == 0
    async with mount("other") as other:
        assert (await other.stat("file")).mode & 0o777 == 0o600
        assert await other.getxattr("file", "user.note") == b"n"
