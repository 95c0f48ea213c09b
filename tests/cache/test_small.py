"""Small contents: one request, verified before any byte is handed out."""

from dataclasses import replace

import anyio
import pytest

from exaifs.errors import Busy, IntegrityError, Stale, Unreachable
from tests.cache.bucket import KIB, Bucket, Fault, Request, Site, random_bytes

pytestmark = pytest.mark.anyio

DATA = random_bytes(300 * KIB)


async def test_a_small_file_is_one_get_without_range(site: Site) -> None:
    """Reading a small file in pieces costs one request for the whole; later reads cost none."""
    ref = site.bucket.put("a", DATA)
    async with site.open() as store:
        pieces = [await store.read(ref, offset, 7 * KIB) for offset in range(0, len(DATA), 7 * KIB)]
        assert b"".join(pieces) == DATA
        assert store.read_nowait(ref, 5, 10) == DATA[5:15]
    assert site.bucket.requests == [Request("a", 0, None)]


async def test_reads_are_short_only_at_the_end(site: Site) -> None:
    """A read that passes the end is cut there; one behind it is empty and asks nobody."""
    ref = site.bucket.put("a", b"0123456789")
    async with site.open() as store:
        assert await store.read(ref, 10, 5) == b""
        assert store.read_nowait(ref, 99, 5) == b""
        assert site.bucket.requests == []
        assert await store.read(ref, 7, 5) == b"789"
        assert await store.read(ref, 0, 100) == b"0123456789"


async def test_an_empty_file_needs_no_request(site: Site) -> None:
    """Zero bytes are known without asking, also on the local disk."""
    ref = site.bucket.put("a", b"", with_hash=False)
    async with site.open() as store:
        assert await store.read(ref, 0, 10) == b""
        store.pin(ref)
        await store.materialize(ref)
        path = store.local_path(ref)
        assert path is not None
        assert path in site.content_files()
        assert store.sha256_of(ref) == path.name
    assert site.bucket.requests == []


async def test_many_readers_of_one_file_are_one_request(site: Site) -> None:
    """However many readers wait for a small file, it is fetched once."""
    ref = site.bucket.put("a", DATA)
    results: list[bytes] = []
    async with site.open() as store:

        async def read(offset: int) -> None:
            results.append(await store.read(ref, offset, 1000))

        async with anyio.create_task_group() as tasks:
            for offset in range(20):
                tasks.start_soon(read, offset)
    assert sorted(results) == sorted(DATA[offset : offset + 1000] for offset in range(20))
    assert len(site.bucket.requests) == 1


async def test_a_reader_that_gives_up_harms_nobody(site: Site) -> None:
    """Cancelling the reader that began a download leaves it to the others."""
    ref = site.bucket.put("a", DATA)
    site.bucket.stop_at(64 * KIB)
    results: list[bytes] = []
    async with site.open() as store, anyio.create_task_group() as tasks:

        async def read(scope: anyio.CancelScope) -> None:
            with scope:
                results.append(await store.read(ref, 0, 100))

        impatient = anyio.CancelScope()
        tasks.start_soon(read, impatient)
        await site.bucket.wait_stopped()
        tasks.start_soon(read, anyio.CancelScope())
        await anyio.lowlevel.checkpoint()
        impatient.cancel()
        await anyio.lowlevel.checkpoint()
        site.bucket.go_on()
    assert results == [DATA[:100]]
    assert len(site.bucket.requests) == 1


async def test_wrong_bytes_are_fetched_again_and_never_seen(site: Site) -> None:
    """Bytes whose hash is not the row's reach nobody; the second copy is right and is kept."""
    ref = site.bucket.put("a", DATA)
    site.bucket.flips = {1000: [True]}
    async with site.open() as store:
        assert await store.read(ref, 0, len(DATA)) == DATA
        assert len(site.bucket.requests) == 2


async def test_a_wrong_hash_in_the_row_is_an_error_for_good(site: Site) -> None:
    """Two equal copies prove the row wrong: an error at once, and no further request."""
    ref = replace(site.bucket.put("a", DATA), sha256="0" * 64)
    async with site.open() as store:
        for _ in range(3):
            with pytest.raises(IntegrityError, match="its row says 0000"):
                await store.read(ref, 0, 10)
        assert store.local_path(ref) is None
    assert len(site.bucket.requests) == 2
    assert site.content_files() == []


async def test_two_different_wrong_copies_are_no_verdict(site: Site) -> None:
    """A line that damages twice gives an error; when it is repaired the file is read."""
    ref = site.bucket.put("a", DATA)
    site.bucket.flips = {1: [True], 2: [False, True]}
    async with site.open() as store:
        with pytest.raises(IntegrityError):
            await store.read(ref, 0, 10)
        assert await store.read(ref, 0, 10) == DATA[:10]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(on_enter=Stale("gone")), Stale),
        (Fault(on_enter=Busy("later", 3.0)), Busy),
        (Fault(on_enter=Unreachable("no answer")), Unreachable),
        (Fault(break_after=0, error=Unreachable("cut")), Unreachable),
        (Fault(break_after=1000), IntegrityError),
        (Fault(extra=b"more"), IntegrityError),
    ],
    ids=["stale", "busy", "unreachable", "cut", "short", "long"],
)
async def test_errors_reach_the_reader_and_are_not_remembered(
    site: Site, fault: Fault, error: type[Exception]
) -> None:
    """A failing download gives its own error to whoever waits; the next read tries again."""
    ref = site.bucket.put("a", DATA)
    site.bucket.faults = [fault]
    async with site.open() as store:
        with pytest.raises(error) as caught:
            await store.read(ref, 0, 10)
        if isinstance(caught.value, Busy):
            assert caught.value.retry_after_s == 3.0
        assert await store.read(ref, 0, 10) == DATA[:10]


async def test_a_connection_that_breaks_on_the_way_is_tried_again(site: Site) -> None:
    """A download that had begun is repeated once before the reader hears of it."""
    ref = site.bucket.put("a", DATA)
    site.bucket.faults = [Fault(break_after=100 * KIB, error=Unreachable("cut"))]
    async with site.open() as store:
        assert await store.read(ref, 0, 10) == DATA[:10]


async def test_the_hash_of_a_foreign_object_is_found_by_reading(site: Site) -> None:
    """Without a hash in the row, the one found is known from then on, also after a restart."""
    ref = site.bucket.put("a", DATA, with_hash=False)
    async with site.open() as store:
        assert store.sha256_of(ref) is None
        await store.read(ref, 0, 1)
        found = store.sha256_of(ref)
        assert found == site.content_path(ref).name
        await store.materialize(ref)
    async with site.open() as store:
        assert store.sha256_of(ref) == found
        assert await store.read(ref, 0, len(DATA)) == DATA
    assert len(site.bucket.requests) == 1


async def test_one_copy_serves_every_object_of_that_content(site: Site) -> None:
    """Two objects with the same bytes are one content: one download, one file."""
    first, second = site.bucket.put("a", DATA), site.bucket.put("b", DATA)
    async with site.open() as store:
        await store.read(first, 0, 1)
        await store.materialize(first)
        assert await store.read(second, 0, len(DATA)) == DATA
    assert len(site.bucket.requests) == 1
    assert len(site.content_files()) == 1


async def test_a_move_of_ours_while_it_is_fetched_is_followed(site: Site) -> None:
    """The old name of an open file leads to the bytes after our own rename."""
    old = site.bucket.put("a", DATA)
    async with site.open() as store:
        store.pin(old)
        new = site.bucket.move(old, "b")
        store.rekey(old, new)
        assert await store.read(old, 0, 10) == DATA[:10]
        assert await store.read(new, 0, 10) == DATA[:10]
        store.unpin(old)
    assert site.bucket.requests == [Request("b", 0, None)]


async def test_closing_the_store_sends_waiting_readers_away(site: Site) -> None:
    """Nobody waits for ever for a download that the end of the store has stopped."""
    ref = site.bucket.put("a", DATA)
    site.bucket.stop_at(0)
    async with anyio.create_task_group() as tasks, site.open() as store:

        async def read() -> None:
            with pytest.raises(Exception, match="was closed"):
                await store.read(ref, 0, 10)

        tasks.start_soon(read)
        await site.bucket.wait_stopped()


def test_the_bucket_of_these_tests_is_honest() -> None:
    """Versions change with every put; the old one is gone."""
    bucket = Bucket()
    first, second = bucket.put("a", b"1"), bucket.put("a", b"1")
    assert first.version != second.version
    assert bucket.bytes_of(first) == b"1"
