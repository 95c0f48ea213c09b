"""Bytes that the network changed, in files too large to be verified before they are read."""

from __future__ import annotations

import os

import pytest

from exaifs.errors import IntegrityError
from exaifs.fs.upstream.invalidation import StalePages
from tests.fs.conftest import Mount
from tests.fs.scenes import told
from tests.support.double import DoubleServer
from tests.support.paths import CALLER

pytestmark = pytest.mark.anyio

STEP = 128 * 1024
DATA = os.urandom(12 * 1024 * 1024 + 5)


async def test_nobody_reads_a_damaged_copy_to_its_end(server: DoubleServer, mount: Mount) -> None:
    """EIO for who had wrong bytes; the kernel forgets them; opened again the file is right."""
    async with mount("writer") as paths:
        await paths.create("f", DATA)
        await paths.create("other", b"other")
    async with mount("reader") as paths:
        server.corrupt_downloads()
        async with paths.open("f") as first, paths.open("f") as second, paths.open("other") as other:
            assert await paths.fs.files.read(first, 0, STEP) != DATA[:STEP]
            with pytest.raises(IntegrityError, match="open it again"):
                await paths.read_all(first)
            with pytest.raises(IntegrityError):
                await paths.fs.files.read(second, STEP, STEP)
            assert await paths.read_all(other) == b"other"
            assert StalePages((await paths.stat("f")).ino) in await told(paths)
            assert await paths.read("f") == DATA
        async with paths.inode("f") as ino:
            opened = await paths.fs.files.open(ino, os.O_RDONLY, CALLER)
            assert not opened.keep_cache, "what the kernel has of it may be wrong"
            await paths.fs.files.release(opened.handle)


async def test_the_kernel_keeps_no_bytes_of_a_copy_that_was_given_up(
    server: DoubleServer, mount: Mount
) -> None:
    """Half of one copy in the kernel and the rest from the next would be compared by nobody."""
    async with mount("writer") as paths:
        await paths.create("f", DATA)
    async with mount("reader") as paths:
        server.corrupt_downloads()
        async with paths.open("f") as handle:
            await paths.fs.files.read(handle, 0, STEP)
        await paths.fs.core.contents.drop_clean()
        async with paths.inode("f") as ino:
            kept = []
            for _ in range(2):
                opened = await paths.fs.files.open(ino, os.O_RDONLY, CALLER)
                kept.append(opened.keep_cache)
                await paths.fs.files.release(opened.handle)
        assert kept == [False, True]
        assert await paths.read("f") == DATA


async def test_what_was_read_damaged_is_not_written_back(server: DoubleServer, mount: Mount) -> None:
    """mmap(2) writes the page around a changed byte: it would be published under a hash of its own."""
    async with mount("writer") as paths:
        await paths.create("f", DATA)
    async with mount("reader") as paths:
        server.corrupt_downloads()
        async with paths.open("f", os.O_RDWR) as handle:
            page = await paths.fs.files.read(handle, 0, 4096)
            assert page != DATA[:4096]
            with pytest.raises(IntegrityError):
                await paths.fs.files.write(handle, 0, page[:100] + b"!" + page[101:])
        assert await paths.fs.drain(60) == 0
        assert await paths.read("f") == DATA
    assert server.bucket.objects["f"].data == DATA


async def test_a_reader_is_told_also_after_a_write(server: DoubleServer, mount: Mount) -> None:
    """What another handle writes and publishes hides nothing from who had wrong bytes before."""
    async with mount("writer") as paths:
        await paths.create("f", DATA)
    async with mount("reader") as paths:
        server.corrupt_downloads()
        async with paths.open("f") as reader:
            assert await paths.fs.files.read(reader, 0, STEP) != DATA[:STEP]
            entry = paths.fs.core.index.file("", "f")
            assert entry is not None
            await paths.fs.core.contents.materialize(entry.ref)
            async with paths.open("f", os.O_WRONLY) as writer:
                await paths.write_all(writer, b"more", len(DATA))
                with pytest.raises(IntegrityError):
                    await paths.fs.files.read(reader, STEP, STEP)
            with pytest.raises(IntegrityError):
                await paths.fs.files.read(reader, STEP, STEP)
        assert await paths.read("f") == DATA + b"more"
