"""Large contents from a server that honours ranges: what is asked for, and when readers get it."""

import anyio
import pytest

from exaifs.cache.data.contents import ContentStore
from exaifs.errors import IntegrityError, Stale, Unreachable
from exaifs.model import ObjectRef
from tests.cache.bucket import KIB, MIB, Fault, Site, random_bytes

pytestmark = pytest.mark.anyio

SIZE = 20 * MIB + 12345
DATA = random_bytes(SIZE)


async def read_all(store: ContentStore, ref: ObjectRef, step: int = 128 * KIB) -> bytes:
    """Read from start to end, as `cat` does."""
    pieces = [await store.read(ref, offset, step) for offset in range(0, ref.size_bytes, step)]
    return b"".join(pieces)


async def test_the_head_of_a_large_file_fetches_little(site: Site) -> None:
    """`head -c 4096` of a large file fetches less than a MiB."""
    ref = site.bucket.put("a", DATA)
    async with site.open() as store:
        store.pin(ref)
        assert await store.read(ref, 0, 4096) == DATA[:4096]
        store.unpin(ref)
    assert site.bucket.bytes_sent <= 128 * KIB


async def test_bytes_are_handed_out_as_they_arrive(site: Site) -> None:
    """A reader gets its block while the rest of the same request is still under way."""
    ref = site.bucket.put("a", DATA)
    site.bucket.stop_at(100 * KIB)
    async with site.open() as store:
        with anyio.fail_after(60):
            assert await store.read(ref, 0, 4096) == DATA[:4096]
        await site.bucket.wait_stopped()


async def test_sequential_reading_takes_few_requests_and_no_byte_twice(site: Site) -> None:
    """A sequential reader is served by windows that grow; each byte crosses once, few at a time."""
    ref = site.bucket.put("a", DATA)
    async with site.open() as store:
        store.pin(ref)
        assert await read_all(store, ref) == DATA
        store.unpin(ref)
        statistics = store.statistics()
    assert site.bucket.bytes_sent == SIZE == statistics.bytes_fetched
    assert len(site.bucket.requests) == statistics.requests <= 14
    assert 2 <= site.bucket.most_running <= 4


async def test_readers_of_one_block_are_one_request(site: Site) -> None:
    """One download for a missing block, however many readers wait for it."""
    ref = site.bucket.put("a", DATA)
    site.bucket.stop_at(0)
    results: list[bytes] = []
    async with site.open() as store, anyio.create_task_group() as tasks:

        async def read(offset: int) -> None:
            results.append(await store.read(ref, offset, 50))

        for offset in range(30):
            tasks.start_soon(read, 5 * MIB + offset)
        await anyio.wait_all_tasks_blocked()
        site.bucket.go_on()
    assert sorted(results) == sorted(DATA[5 * MIB + offset :][:50] for offset in range(30))
    assert len(site.bucket.requests) == 1


async def test_random_readers_fetch_small_aligned_ranges(site: Site) -> None:
    """A read somewhere fetches the 128 KiB around it; what lies between two reads is left alone."""
    ref = site.bucket.put("a", DATA)
    async with site.open() as store:
        store.pin(ref)
        for offset in (7 * MIB + 5, 3 * MIB + 300 * KIB, 12 * MIB + 127 * KIB):
            assert await store.read(ref, offset, 4096) == DATA[offset : offset + 4096]
    ranges = [(request.start, request.stop) for request in site.bucket.requests]
    assert ranges == [
        (7 * MIB, 7 * MIB + 128 * KIB),
        (3 * MIB + 256 * KIB, 3 * MIB + 384 * KIB),
        (12 * MIB, 12 * MIB + 256 * KIB),
    ]


async def test_a_random_reader_gets_the_whole_file_once_that_is_cheaper(site: Site) -> None:
    """When random reads have cost as many requests as the file is worth, the rest is fetched at once."""
    ref = site.bucket.put("a", DATA)
    offsets = [(index * 7919 * KIB) % SIZE for index in range(150)]
    async with site.open() as store:
        store.pin(ref)
        for offset in offsets[:6]:
            assert await store.read(ref, offset, 4096) == DATA[offset : offset + 4096]
        with anyio.fail_after(60):
            # Who does not wait for the rest has requests of his own in between, as many as he likes.
            while not site.content_files():  # noqa: ASYNC110 - nothing tells
                await anyio.sleep(0.001)
        requests = len(site.bucket.requests)
        for offset in offsets:
            assert await store.read(ref, offset, 4096) == DATA[offset : offset + 4096]
    assert site.bucket.bytes_sent <= SIZE + 4 * MIB, "what lies between is fetched along"
    assert requests == len(site.bucket.requests) < 20


async def test_a_small_gap_is_fetched_along(site: Site) -> None:
    """Two missing pieces with little between them are one request."""
    ref = site.bucket.put("a", DATA)
    async with site.open() as store:
        await store.read(ref, 2 * MIB, 128 * KIB)
        await store.read(ref, 2 * MIB - 512 * KIB, 1024 * KIB)
    assert [(request.start, request.stop) for request in site.bucket.requests][1:] == [
        (2 * MIB - 512 * KIB, 2 * MIB + 512 * KIB)
    ]


async def test_the_last_unpin_stops_read_ahead(site: Site) -> None:
    """When the last handle is closed nothing more is fetched for it."""
    ref = site.bucket.put("a", DATA)
    site.bucket.stop_at(4 * MIB)
    async with site.open() as store:
        store.pin(ref)
        store.pin(ref)
        for offset in range(0, 3 * MIB, 128 * KIB):
            await store.read(ref, offset, 128 * KIB)
        await site.bucket.wait_stopped()
        store.unpin(ref)
        await anyio.wait_all_tasks_blocked()
        assert site.bucket.running > 0, "somebody else has it open"
        store.unpin(ref)
        sent = site.bucket.bytes_sent
        site.bucket.go_on()
        await site.bucket.wait_idle()
        assert site.bucket.bytes_sent - sent <= MIB, "only what was nearly here is finished"
        store.pin(ref)
        assert await read_all(store, ref) == DATA


async def test_a_jump_stops_the_read_ahead_behind_it(site: Site) -> None:
    """When the only reader goes elsewhere, what was being fetched for its old place is dropped."""
    ref = site.bucket.put("a", DATA)
    site.bucket.stop_at(4 * MIB)
    async with site.open() as store:
        store.pin(ref)
        for offset in range(0, 3 * MIB, 128 * KIB):
            await store.read(ref, offset, 128 * KIB)
        await site.bucket.wait_stopped()
        sent = site.bucket.bytes_sent
        site.bucket.go_on()
        assert await store.read(ref, 19 * MIB, 4096) == DATA[19 * MIB :][:4096]
        await site.bucket.wait_idle()
        assert site.bucket.bytes_sent - sent <= 2 * MIB


async def test_a_failure_wakes_the_waiting_and_the_next_read_tries_again(site: Site) -> None:
    """Every waiting reader gets the typed error; nothing is remembered of it."""
    ref = site.bucket.put("a", DATA)
    site.bucket.faults = [Fault(on_enter=Unreachable("no answer"))]
    async with site.open() as store:
        errors: list[Exception] = []

        async def read() -> None:
            try:
                await store.read(ref, 0, 10)
            except Unreachable as exc:
                errors.append(exc)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(read)
        assert len(errors) == 3
        assert len(set(map(id, errors))) == 3, "one exception each"
        assert await store.read(ref, 0, 10) == DATA[:10]


async def test_a_broken_connection_is_continued_where_it_broke(site: Site) -> None:
    """As long as there is progress, a download goes on, and what came is not fetched again."""
    ref = site.bucket.put("a", DATA)
    site.bucket.faults = [Fault(break_after=MIB + 5, error=Unreachable("cut")) for _ in range(5)]
    async with site.open() as store:
        assert await store.read(ref, 0, 6 * MIB) == DATA[: 6 * MIB]
    starts = [request.start for request in site.bucket.requests]
    assert starts == [index * MIB for index in range(6)]
    assert site.bucket.bytes_sent < 6 * MIB + 6 * 64 * KIB


async def test_a_download_that_ends_early_is_an_error(site: Site) -> None:
    """A server that sends less than it was asked for gives an error, never a short read."""
    ref = site.bucket.put("a", DATA)
    site.bucket.faults = [Fault(break_after=100)]
    async with site.open() as store:
        with pytest.raises(IntegrityError):
            await store.read(ref, 0, 128 * KIB)
        assert await store.read(ref, 0, 128 * KIB) == DATA[: 128 * KIB]


async def test_a_version_that_is_gone_is_stale_but_what_is_here_is_served(site: Site) -> None:
    """After an overwrite elsewhere, local blocks of the old version are read, others are ESTALE."""
    ref = site.bucket.put("a", DATA)
    async with site.open() as store:
        assert await store.read(ref, 0, 4096) == DATA[:4096]
        site.bucket.put("a", random_bytes(SIZE, 1))
        assert await store.read(ref, 0, 4096) == DATA[:4096]
        with pytest.raises(Stale):
            await store.read(ref, 5 * MIB, 4096)


async def test_a_reader_that_gives_up_harms_nobody(site: Site) -> None:
    """A reader cancelled while waiting leaves the download to the others."""
    ref = site.bucket.put("a", DATA)
    site.bucket.stop_at(0)
    results: list[bytes] = []
    async with site.open() as store, anyio.create_task_group() as tasks:

        async def read(scope: anyio.CancelScope) -> None:
            with scope:
                results.append(await store.read(ref, 0, 100))

        impatient = anyio.CancelScope()
        tasks.start_soon(read, impatient)
        await site.bucket.wait_stopped()
        tasks.start_soon(read, anyio.CancelScope())
        await anyio.wait_all_tasks_blocked()
        impatient.cancel()
        await anyio.wait_all_tasks_blocked()
        site.bucket.go_on()
    assert results == [DATA[:100]]
    assert len(site.bucket.requests) == 1


async def test_downloads_of_all_contents_together_are_limited(site: Site) -> None:
    """However many files are read at once, only so many requests run at a time."""
    refs = [site.bucket.put(str(number), random_bytes(2 * MIB, number)) for number in range(30)]
    site.bucket.stop_at(0)
    async with site.open() as store, anyio.create_task_group() as tasks:
        for ref in refs:
            tasks.start_soon(store.read, ref, 0, 100)
        await anyio.wait_all_tasks_blocked()
        assert site.bucket.running == 12
        site.bucket.go_on()
    assert site.bucket.most_running == 12


async def test_what_a_reader_waits_for_goes_before_read_ahead(site: Site) -> None:
    """A reader elsewhere is not kept waiting by four read-aheads of another."""
    ref = site.bucket.put("a", DATA)
    site.bucket.stop_at(2 * MIB)
    async with site.open() as store:
        store.pin(ref)
        store.pin(ref)
        for offset in range(0, 2 * MIB, 128 * KIB):
            await store.read(ref, offset, 128 * KIB)
        async with anyio.create_task_group() as tasks:
            for offset in range(12, 20):
                tasks.start_soon(store.read, ref, offset * MIB, 100)
                await anyio.wait_all_tasks_blocked()
            assert site.bucket.running == 4
            site.bucket.go_on()


async def test_a_move_of_ours_does_not_fetch_again(site: Site) -> None:
    """After our own rename the download goes on under the new version."""
    old = site.bucket.put("a", DATA)
    async with site.open() as store:
        store.pin(old)
        await store.read(old, 0, 4 * MIB)
        new = site.bucket.move(old, "b")
        store.rekey(old, new)
        assert await read_all(store, new) == DATA
        assert await read_all(store, old) == DATA, "a handle may still hold the old name"
        store.unpin(old)
    assert site.bucket.bytes_sent <= SIZE + 8 * MIB
    assert {request.key for request in site.bucket.requests} == {"a", "b"}


async def test_closing_the_store_sends_waiting_readers_away(site: Site) -> None:
    """Nobody waits for ever, and nothing unfinished is left on disk."""
    ref = site.bucket.put("a", DATA)
    site.bucket.stop_at(MIB)
    async with anyio.create_task_group() as tasks, site.open() as store:
        store.pin(ref)

        async def read() -> None:
            with pytest.raises(Exception, match="was closed"):
                await store.read(ref, 0, 2 * MIB)

        tasks.start_soon(read)
        await site.bucket.wait_stopped()
    assert site.partial_files() == []
    assert site.content_files() == []


async def test_two_readers_at_two_places_both_get_their_windows(site: Site) -> None:
    """Readers of one file at different places do not disturb each other, and share what they fetch."""
    ref = site.bucket.put("a", DATA)
    async with site.open() as store:
        store.pin(ref)
        store.pin(ref)
        half = 10 * MIB
        for offset in range(0, half, 128 * KIB):
            assert await store.read(ref, offset, 128 * KIB) == DATA[offset : offset + 128 * KIB]
            other = half + offset
            assert await store.read(ref, other, 128 * KIB) == DATA[other : other + 128 * KIB]
        await store.materialize(ref)
    assert site.bucket.bytes_sent == SIZE
    assert len(site.bucket.requests) <= 24
