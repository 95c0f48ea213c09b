"""What POSIX promises of opens, closes and times, without a kernel."""

from __future__ import annotations

import os
import time

import pytest

from exaifs.errors import FileTooLarge, Unreachable
from exaifs.model import AttributeChange
from tests.fs.conftest import Mount
from tests.fs.scenes import requests
from tests.support.double import DoubleServer

pytestmark = pytest.mark.anyio

DAY_NS = 86_400_000_000_000


async def test_a_file_made_without_writing_is_in_the_bucket(server: DoubleServer, mount: Mount) -> None:
    """open(O_CREAT | O_RDONLY) makes a file: after its close it is in Supabase."""
    async with mount() as paths:
        async with paths.open("made", os.O_RDONLY | os.O_CREAT):
            pass
        assert "made" in await server.remote().catalog.stat(["made"])


async def test_a_file_emptied_without_writing_is_empty_in_the_bucket(
    server: DoubleServer, mount: Mount
) -> None:
    """open(O_TRUNC | O_RDONLY) empties a file: after its close it is empty in Supabase."""
    async with mount() as paths:
        await paths.create("file", b"text")
        async with paths.open("file", os.O_RDONLY | os.O_TRUNC):
            pass
        record = (await server.remote().catalog.stat(["file"]))["file"]
        assert record.size_bytes == 0


async def test_unsent_bytes_are_sent_though_a_reader_closes_last(
    server: DoubleServer, mount: Mount
) -> None:
    """A close that failed is made good in the background, also when a reader held the file longest."""
    async with mount(offline_writes="refuse") as paths:
        await paths.create("file", b"old")
        async with paths.open("file"):
            server.inject("put", Unreachable("cable cut"), times=1000)
            with pytest.raises(Unreachable):
                await paths.overwrite("file", b"new")
        async with mount("other") as other:
            assert await other.read("file") == b"old"
        server.clear_faults()
    async with mount("other") as other:
        assert await other.read("file") == b"new"


async def test_a_size_that_no_disk_takes_is_too_large(mount: Mount) -> None:
    """EFBIG from the cache disk is EFBIG here, where the bucket has no limit."""
    async with mount() as paths:
        await paths.create("file", b"text")
        with pytest.raises(FileTooLarge):
            await paths.setattr("file", AttributeChange(size_bytes=1 << 62))
        assert await paths.read("file") == b"text"


async def test_reading_moves_atime_as_relatime_does(server: DoubleServer, mount: Mount) -> None:
    """The first read after a change, or after a day, is noted; no read causes a request."""
    async with mount() as paths, paths.inode(""):
        await paths.create("file", b"text")
        async with paths.inode("file"):
            await paths.setattr("file", AttributeChange(atime_ns=5, mtime_ns=6))
            server.counts.clear()
            before_ns = time.time_ns()
            await paths.read("file")
            first = await paths.stat("file")
            assert first.atime_ns >= before_ns
            assert first.mtime_ns == 6
            await paths.read("file")
            assert (await paths.stat("file")).atime_ns == first.atime_ns
            old_ns = time.time_ns() - DAY_NS
            await paths.setattr("file", AttributeChange(atime_ns=old_ns))
            assert (await paths.stat("file")).atime_ns == old_ns
            await paths.read("file")
            assert (await paths.stat("file")).atime_ns > old_ns
            assert requests(server) == 0


async def test_setting_one_time_leaves_the_other(mount: Mount) -> None:
    """utimensat(2) with UTIME_OMIT; ctime moves either way."""
    async with mount() as paths:
        await paths.create("file", b"text")
        async with paths.inode("file"):
            await paths.setattr("file", AttributeChange(atime_ns=1, mtime_ns=2))
            before = await paths.setattr("file", AttributeChange(mtime_ns=3))
            assert (before.atime_ns, before.mtime_ns) == (1, 3)
            after = await paths.setattr("file", AttributeChange(atime_ns=4))
            assert (after.atime_ns, after.mtime_ns) == (4, 3)
            assert after.ctime_ns > before.ctime_ns
