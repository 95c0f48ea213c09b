"""Large contents from a server that ignores Range and sends everything, as the embedded one does."""

import anyio
import pytest

from exaifs.errors import Unreachable
from tests.cache.bucket import KIB, MIB, Fault, Site, random_bytes

pytestmark = pytest.mark.anyio

SIZE = 20 * MIB + 12345
DATA = random_bytes(SIZE)


@pytest.fixture(autouse=True)
def no_ranges(site: Site) -> None:
    """Make the server ignore Range."""
    site.bucket.honours_ranges = False


async def test_the_first_bytes_do_not_wait_for_the_rest(site: Site) -> None:
    """`head -c 4096` is answered while the server still sends; all that arrives is kept."""
    ref = site.bucket.put("a", DATA)
    site.bucket.stop_at(MIB)
    async with site.open() as store:
        store.pin(ref)
        with anyio.fail_after(60):
            assert await store.read(ref, 0, 4096) == DATA[:4096]
            assert await store.read(ref, 512 * KIB, 4096) == DATA[512 * KIB :][:4096]
        site.bucket.go_on()
        await store.materialize(ref)
        assert await store.read(ref, 0, SIZE) == DATA
    assert len(site.bucket.requests) == 1
    assert site.bucket.bytes_sent == SIZE


async def test_all_readers_share_the_one_stream(site: Site) -> None:
    """Readers at any place wait for the same stream; nobody asks again."""
    ref = site.bucket.put("a", DATA)
    site.bucket.stop_at(0)
    results: dict[int, bytes] = {}
    async with site.open() as store, anyio.create_task_group() as tasks:
        for _ in range(8):
            store.pin(ref)

        async def read(offset: int) -> None:
            results[offset] = await store.read(ref, offset, 1000)

        for index in range(8):
            tasks.start_soon(read, (7 - index) * 2 * MIB)
        await anyio.wait_all_tasks_blocked()
        site.bucket.go_on()
    assert results == {offset: DATA[offset : offset + 1000] for offset in range(0, 16 * MIB, 2 * MIB)}
    assert site.bucket.bytes_sent <= SIZE + 4 * 64 * KIB, "the other answers are left at once"


async def test_what_was_learnt_holds_for_the_next_file(site: Site) -> None:
    """Once known to ignore ranges, the server is asked once a file, however it is read."""
    first, second = site.bucket.put("a", DATA), site.bucket.put("b", DATA[:-1])
    async with site.open() as store:
        await store.materialize(first)
        before = len(site.bucket.requests)
        async with anyio.create_task_group() as tasks:
            for offset in range(0, SIZE - MIB, 3 * MIB):
                tasks.start_soon(store.read, second, offset, 1000)
        assert len(site.bucket.requests) == before + 1
        site.bucket.honours_ranges = True
        third = site.bucket.put("c", DATA[:-2])
        assert await store.read(third, 5 * MIB, 10) == DATA[5 * MIB :][:10]
        assert await store.read(third, 9 * MIB, 10) == DATA[9 * MIB :][:10]
    assert len(site.bucket.requests) == before + 3, "a server that learnt it is believed again"


async def test_the_stream_is_dropped_when_the_last_handle_closes_early(site: Site) -> None:
    """Closing the file after its head stops the download; a later reader begins another."""
    ref = site.bucket.put("a", DATA)
    site.bucket.stop_at(MIB)
    async with site.open() as store:
        store.pin(ref)
        await store.read(ref, 0, 4096)
        await site.bucket.wait_stopped()
        store.unpin(ref)
        await anyio.wait_all_tasks_blocked()
        assert site.bucket.running == 0
        site.bucket.go_on()
        assert await store.read(ref, 15 * MIB, 10) == DATA[15 * MIB :][:10]


async def test_the_stream_is_finished_when_little_is_left(site: Site) -> None:
    """Closing the file near its end lets the rest arrive: the next reader needs no request."""
    ref = site.bucket.put("a", DATA)
    site.bucket.stop_at(15 * MIB)
    async with site.open() as store:
        store.pin(ref)
        await store.read(ref, 14 * MIB, 4096)
        await site.bucket.wait_stopped()
        store.unpin(ref)
        site.bucket.go_on()
        await store.materialize(ref)
        assert await store.read(ref, 0, SIZE) == DATA
    assert len(site.bucket.requests) == 1


async def test_a_broken_stream_is_tried_again_as_long_as_there_is_progress(site: Site) -> None:
    """A stream that breaks begins anew and must come further; one that does not is an error."""
    ref = site.bucket.put("a", DATA)
    cut = Unreachable("cut")
    site.bucket.faults = [Fault(break_after=size * MIB, error=cut) for size in (5, 10, 15)]
    async with site.open() as store:
        store.pin(ref)
        assert await store.read(ref, 19 * MIB, 100) == DATA[19 * MIB :][:100]
        assert len(site.bucket.requests) == 4

    site.bucket.faults = [Fault(break_after=5 * MIB, error=cut) for _ in range(2)]
    other = site.bucket.put("b", DATA[:-1])
    async with site.open() as store:
        with pytest.raises(Unreachable):
            await store.read(other, 19 * MIB, 100)
        assert await store.read(other, 0, MIB) == DATA[:MIB], "what came is kept"
