"""The faults of the in-memory double; what it does without faults is what the contract tests say."""

from __future__ import annotations

import random

import anyio
import pytest
import trio.testing

from exaifs.errors import Busy, Unreachable
from exaifs.remote.bodies import BytesBody
from tests.support.double import DoubleServer
from tests.support.world import NotedMemory, cursor_now, find, read, upload_of, write

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024


@pytest.fixture
def server() -> DoubleServer:
    """A server with nothing in it."""
    return DoubleServer(chunk_bytes=10)


async def test_fault_before(server: DoubleServer) -> None:
    """An injected fault happens so many times, before anything was done."""
    remote = server.remote()
    server.inject("put", Busy("later"), times=2)
    for _ in range(2):
        with pytest.raises(Busy):
            await write(remote, "a", b"x")
    assert server.bucket.objects == {}
    await write(remote, "a", b"x")
    assert (server.counts["put"], server.counts["commit"]) == (3, 1)


async def test_fault_after(server: DoubleServer) -> None:
    """A lost answer: the server did it all the same."""
    remote = server.remote()
    await write(remote, "a", b"x")
    server.inject("move", Unreachable("cut"), after=True)
    with pytest.raises(Unreachable):
        await remote.objects.move("a", "b")
    assert set(server.bucket.objects) == {"b"}


async def test_offline(server: DoubleServer) -> None:
    """A server that is away answers nothing, and also cuts what is under way."""
    remote = server.remote()
    record = await write(remote, "a", bytes(100))
    async with remote.objects.get(record.ref) as download:
        chunks = download.chunks()
        assert await anext(chunks) == bytes(10)
        server.online = False
        with pytest.raises(Unreachable):
            await anext(chunks)
    with pytest.raises(Unreachable):
        await find(remote, "a")


async def test_broken_download(server: DoubleServer) -> None:
    """The next download breaks off at the byte that was asked for; the one after does not."""
    remote = server.remote()
    record = await write(remote, "a", bytes(range(100)))
    server.break_download(after_bytes=25)
    got = b""
    async with remote.objects.get(record.ref) as download:
        chunks = download.chunks()
        for _ in range(3):
            got += await anext(chunks)
        with pytest.raises(Unreachable):
            await anext(chunks)
    assert got == bytes(range(25))
    assert await read(remote, record.ref) == bytes(range(100))


async def test_broken_upload(server: DoubleServer) -> None:
    """What arrived before the cut is not sent again by whoever remembers it, and by nobody else."""
    remote, memory = server.remote(), NotedMemory()
    data = random.Random(5).randbytes(20 * MIB)
    upload = upload_of(data)
    server.uploads.break_off(after_bytes=13 * MIB)
    with pytest.raises(Unreachable):
        await remote.objects.put("a", BytesBody(data), upload, memory=memory)
    await remote.objects.put("a", BytesBody(data), upload, memory=memory)
    assert server.bucket.objects["a"].data == data
    assert server.uploads.received_bytes == 20 * MIB
    assert memory.load() is None

    server.uploads.break_off(after_bytes=13 * MIB)
    with pytest.raises(Unreachable):
        await remote.objects.put("a", BytesBody(data), upload, memory=memory)
    server.uploads.expire()
    await remote.objects.put("a", BytesBody(data), upload, memory=memory)
    assert server.uploads.received_bytes == 53 * MIB


async def test_corrupt_download(server: DoubleServer) -> None:
    """A corrupted download has the right length and the wrong bytes, once."""
    remote = server.remote()
    record = await write(remote, "a", b"right")
    server.corrupt_downloads()
    assert await read(remote, record.ref) == b"sight"
    assert await read(remote, record.ref) == b"right"


async def test_gate(server: DoubleServer) -> None:
    """Calls wait at a gate, so that a test can do something in between."""
    remote = server.remote()
    with server.hold("put") as gate:
        async with anyio.create_task_group() as group:
            group.start_soon(write, remote, "a", b"ours", upload_of(b"ours"))
            with anyio.fail_after(60):
                await gate.wait_arrived()
            server.bucket.put("a", b"theirs")
            gate.open()
    assert server.bucket.objects["a"].data == b"ours"


async def test_trimmed_log(server: DoubleServer) -> None:
    """A cursor before what was trimmed is not continuous."""
    remote = server.remote()
    old = await cursor_now(remote)
    await write(remote, "a", b"x")
    server.bucket.trim_log()
    assert not (await remote.catalog.changes(old)).continuous
    assert (await remote.catalog.changes(server.bucket.cursor)).continuous


@pytest.mark.parametrize(
    "anyio_backend", [pytest.param(("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}))]
)
@pytest.mark.usefixtures("anyio_backend")
async def test_latency_is_virtual(server: DoubleServer) -> None:
    """On a clock that jumps, latency takes no time."""
    server.latency_s = 3600
    started_s = anyio.current_time()
    await write(server.remote(), "a", b"x")
    assert anyio.current_time() - started_s == pytest.approx(7200)
