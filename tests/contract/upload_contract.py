"""Rules of large uploads, run on every implementation as a part of `ObjectContract`."""

from __future__ import annotations

import random
from functools import partial

import anyio
import pytest

from exaifs.remote.bodies import BytesBody
from tests.support.world import CountedBody, NotedMemory, World, find, read, upload_of, write

MIB = 1024 * 1024


class UploadContract:
    """Every test states a rule of `exaifs.remote.interface.ObjectStore.put` for bodies of many MiB."""

    async def test_large_upload_is_taken_up_again(self, world: World) -> None:
        """With a memory, what had arrived of a large upload is not sent again, where a server keeps it."""
        key, memory = f"{world.prefix}resumed.bin", NotedMemory()
        data = random.Random(6).randbytes(20 * MIB)
        upload = upload_of(data)
        cut = CountedBody(data, stall_at=15 * MIB)
        async with anyio.create_task_group() as group:
            group.start_soon(partial(world.remote.objects.put, key, cut, upload, memory=memory))
            with anyio.fail_after(60):
                await cut.stalled.wait()
            group.cancel_scope.cancel()
        assert await find(world.remote, key) is None

        rest = CountedBody(data)
        await world.remote.objects.put(key, rest, upload, memory=memory)
        # Two pieces were whole. One more may be refused, while the server still takes in what the first
        # connection had carried.
        assert rest.taken_bytes <= (8 + 6 if world.resumes else 20) * MIB
        assert memory.load() is None
        record = await world.remote.catalog.commit(key, upload)
        assert (record.size_bytes, record.sha256) == (len(data), upload.sha256)
        assert (record.write_id, record.posix) == (upload.write_id, upload.posix)
        assert record.mime_type == "text/plain" or not world.is_real
        assert await read(world.remote, record.ref) == data

    @pytest.mark.parametrize("text", ["", "nonsense", "[]", '{"upload": "bm8/c3VjaA"}', "\x00"])
    async def test_memory_that_is_none(self, world: World, text: str) -> None:
        """A memory with something else in it is as good as none."""
        key, memory = f"{world.prefix}memory.bin", NotedMemory(text)
        data = random.Random(7).randbytes(7 * MIB)
        upload = upload_of(data)
        await world.remote.objects.put(key, BytesBody(data), upload, memory=memory)
        assert memory.load() is None
        record = await world.remote.catalog.commit(key, upload)
        assert await read(world.remote, record.ref) == data

    async def test_memory_of_another_upload(self, world: World) -> None:
        """What was remembered for other bytes is not mixed into these."""
        key, memory = f"{world.prefix}other.bin", NotedMemory()
        old, new = random.Random(8).randbytes(14 * MIB), random.Random(9).randbytes(14 * MIB)
        cut = CountedBody(old, stall_at=13 * MIB)
        async with anyio.create_task_group() as group:
            group.start_soon(partial(world.remote.objects.put, key, cut, upload_of(old), memory=memory))
            with anyio.fail_after(60):
                await cut.stalled.wait()
            group.cancel_scope.cancel()
        upload = upload_of(new)
        await world.remote.objects.put(key, BytesBody(new), upload, memory=memory)
        record = await world.remote.catalog.commit(key, upload)
        assert await read(world.remote, record.ref) == new

    async def test_large_upload_replaces(self, world: World) -> None:
        """A large upload over an object keeps the file's id and creation time, as a small one does."""
        key = f"{world.prefix}grown.bin"
        small = await write(world.remote, key, b"small")
        data = random.Random(10).randbytes(7 * MIB + 1)
        large = await write(world.remote, key, data)
        assert large.version != small.version
        assert (large.file_id, large.created_ns) == (small.file_id, small.created_ns)
        assert await read(world.remote, large.ref) == data
