"""What stays on this host: limits, order of eviction, pins, age, and the tidying of the directory."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from exaifs.cache.data.contents import CacheLimits, ContentStore
from exaifs.errors import Unreachable
from exaifs.model import ObjectRef
from tests.cache.bucket import KIB, MIB, Fault, Site, random_bytes

pytestmark = pytest.mark.anyio

DAY_NS = 24 * 3600 * 10**9


@pytest.fixture
def refs(site: Site) -> list[ObjectRef]:
    """Return ten objects of 100 KiB."""
    return [site.bucket.put(str(number), random_bytes(100 * KIB, number)) for number in range(10)]


async def keep(store: ContentStore, *refs: ObjectRef) -> None:
    """Have contents on disk, used in this order."""
    for ref in refs:
        await store.materialize(ref)


def here(store: ContentStore, refs: list[ObjectRef]) -> list[int]:
    """Return which of the objects are on disk."""
    return [index for index, ref in enumerate(refs) if store.local_path(ref) is not None]


async def test_the_disk_limit_holds_and_the_least_recently_used_goes(
    site: Site, refs: list[ObjectRef]
) -> None:
    """At any time the complete contents fit the limit; the one not used for longest has gone."""
    site.limits = CacheLimits(memory_bytes=0, disk_bytes=350 * KIB)
    async with site.open() as store:
        await keep(store, *refs[:3])
        await store.read(refs[0], 0, 10)
        await keep(store, refs[3])
        assert here(store, refs) == [0, 2, 3]
        await keep(store, *refs)
        assert here(store, refs) == [7, 8, 9]
        assert store.statistics().disk_bytes <= 350 * KIB
        assert store.statistics().evictions == 10
    assert len(site.content_files()) == 3


async def test_what_is_open_is_never_evicted(site: Site, refs: list[ObjectRef]) -> None:
    """A pinned content stays, over the limit if need be, and goes when its last handle closes."""
    site.limits = CacheLimits(memory_bytes=0, disk_bytes=250 * KIB)
    async with site.open() as store:
        for ref in refs[:4]:
            store.pin(ref)
        store.pin(refs[0])
        await keep(store, *refs[:4])
        await store.sweep(time.time_ns() + 365 * DAY_NS)
        await store.drop_clean()
        assert here(store, refs) == [0, 1, 2, 3]
        store.unpin(refs[0])
        await store.sweep(time.time_ns())
        assert here(store, refs) == [0, 1, 2, 3], "it is still open once"
        store.unpin(refs[0])
        store.unpin(refs[1])
        await store.sweep(time.time_ns())
        assert here(store, refs) == [2, 3]


async def test_what_was_not_used_for_too_long_goes(site: Site, refs: list[ObjectRef]) -> None:
    """The janitor drops what nobody used for the configured age, and nothing younger."""
    site.limits = replace(site.limits, max_age_s=30 * 24 * 3600)
    async with site.open() as store:
        await keep(store, *refs[:2])
        assert (await store.sweep(time.time_ns() + 29 * DAY_NS)).expired == 0
        assert here(store, refs) == [0, 1]
        store.pin(refs[1])
        assert (await store.sweep(time.time_ns() + 31 * DAY_NS)).expired == 1
        assert here(store, refs) == [1]
    assert len(site.content_files()) == 1


async def test_the_memory_limit_holds(site: Site, refs: list[ObjectRef]) -> None:
    """Memory never holds more than its limit; what it lost comes from disk, without a request."""
    site.limits = replace(site.limits, memory_bytes=200 * KIB)
    async with site.open() as store:
        for ref in refs:
            await store.read(ref, 0, 100 * KIB)
            assert 0 < store.statistics().memory_bytes <= 200 * KIB
        await keep(store, *refs)
        for number, ref in enumerate(refs):
            assert await store.read(ref, 0, 100 * KIB) == random_bytes(100 * KIB, number)
    assert len(site.bucket.requests) == 10


async def test_the_statistics_tell_which_tier_answered(site: Site, refs: list[ObjectRef]) -> None:
    """Hits are counted where they happened."""
    large = site.bucket.put("large", random_bytes(2 * MIB))
    async with site.open() as store:
        await store.read(refs[0], 0, 10)
        await store.read(refs[0], 0, 10)
        await keep(store, large)
        await store.read(large, 0, 10)
        statistics = store.statistics()
    assert (statistics.remote_reads, statistics.memory_hits, statistics.disk_hits) == (1, 1, 1)
    assert (statistics.requests, statistics.bytes_fetched) == (2, 2 * MIB + 100 * KIB)
    assert (statistics.memory_bytes, statistics.memory_items) == (100 * KIB, 2)
    assert statistics.disk_disabled is None


@pytest.mark.parametrize("size_bytes", [100 * KIB, 3 * MIB], ids=["small", "large"])
@pytest.mark.parametrize("memory_bytes", [0, 100 * MIB], ids=["no-memory", "memory"])
async def test_without_a_disk_tier_everything_still_works(
    site: Site, size_bytes: int, memory_bytes: int
) -> None:
    """With a disk limit of 0 reads are right, and a file is there for as long as it is open."""
    data = random_bytes(size_bytes)
    ref = site.bucket.put("a", data)
    site.limits = CacheLimits(memory_bytes=memory_bytes, disk_bytes=0)
    async with site.open() as store:
        assert await store.read(ref, size_bytes - 1000, 2000) == data[-1000:]
        assert await store.read(ref, 0, size_bytes) == data
        assert site.content_files() == site.partial_files() == []
        store.pin(ref)
        await store.materialize(ref)
        assert store.local_path(ref) == site.content_path(ref)
        assert await store.read(ref, 0, size_bytes) == data
        store.unpin(ref)
        await store.sweep(time.time_ns())
        assert store.local_path(ref) is None
        assert await store.read(ref, 5, 5) == data[5:10]
    assert site.content_files() == []


async def test_a_file_larger_than_the_disk_tier_is_read_through_memory(site: Site) -> None:
    """What cannot be kept is still read, sequentially and at random, and pushes nothing out."""
    data = random_bytes(6 * MIB)
    small, large = site.bucket.put("small", data[:1000]), site.bucket.put("large", data)
    site.limits = CacheLimits(memory_bytes=2 * MIB, disk_bytes=5 * MIB)
    async with site.open() as store:
        await keep(store, small)
        store.pin(large)
        pieces = [await store.read(large, offset, 100_000) for offset in range(0, 6 * MIB, 100_000)]
        assert b"".join(pieces) == data
        assert await store.read(large, 4_000_000, 10) == data[4_000_000:4_000_010]
        assert store.local_path(small) is not None
        assert store.statistics().memory_bytes <= 2 * MIB
        assert store.statistics().disk_bytes == 1000
        store.unpin(large)


async def test_unfinished_contents_make_room_first(site: Site, refs: list[ObjectRef]) -> None:
    """Pieces of a file that nobody has open any more go before complete contents."""
    large = site.bucket.put("large", random_bytes(3 * MIB))
    site.limits = CacheLimits(memory_bytes=0, disk_bytes=4 * MIB)
    async with site.open() as store:
        store.pin(large)
        await store.read(large, 0, 2 * MIB)
        store.unpin(large)
        await site.bucket.wait_idle()
        await keep(store, *refs)
        another = site.bucket.put("another", random_bytes(2 * MIB))
        await keep(store, another)
        assert here(store, refs) == list(range(10))
        assert store.statistics().disk_bytes == 3048 * KIB


async def test_copy_to_gives_the_whole_content(site: Site, tmp_path: Path) -> None:
    """A copy-on-write gets all bytes, fetched or not, and leaves no handle behind."""
    data = random_bytes(3 * MIB)
    for size_bytes in (0, 1000, 3 * MIB):
        ref = site.bucket.put(str(size_bytes), data[:size_bytes])
        async with site.open() as store:
            fd = os.open(tmp_path / str(size_bytes), os.O_RDWR | os.O_CREAT)
            await store.copy_to(ref, fd)
            assert os.pread(fd, 4 * MIB, 0) == data[:size_bytes]
            os.close(fd)
            await store.drop_clean()
            assert store.local_path(ref) is None


async def test_a_staged_file_becomes_cached_content(site: Site) -> None:
    """What was written here is read back without a request, also after a restart, from one file."""
    data = random_bytes(2 * MIB)
    async with site.open() as store:
        ref = site.bucket.put("a", data)
        assert ref.sha256 is not None
        first, second = site.stage("first", data), site.stage("second", data)
        await store.adopt(first, ref.sha256, len(data))
        assert await store.read(ref, 0, len(data)) == data
        await store.adopt(second, ref.sha256, len(data))
        assert site.staged_files() == []
    async with site.open() as store:
        assert await store.read(ref, 0, len(data)) == data
    assert site.bucket.requests == []
    assert len(site.content_files()) == 1


async def test_adopting_evicts_what_is_too_much(site: Site, refs: list[ObjectRef]) -> None:
    """The limit holds right after a file was written, not only when the janitor comes."""
    site.limits = CacheLimits(memory_bytes=0, disk_bytes=250 * KIB)
    async with site.open() as store:
        for number, ref in enumerate(refs[:4]):
            assert ref.sha256 is not None
            await store.adopt(site.stage("a", random_bytes(100 * KIB, number)), ref.sha256, 100 * KIB)
        assert here(store, refs) == [2, 3]


async def test_our_own_move_keeps_the_content(site: Site) -> None:
    """After a rename here nothing is fetched again, with or without a hash in the row."""
    for with_hash in (True, False):
        old = site.bucket.put("old", random_bytes(2 * MIB, with_hash), with_hash=with_hash)
        async with site.open() as store:
            await keep(store, old)
            new = site.bucket.move(old, "new")
            store.rekey(old, new)
            site.bucket.requests.clear()
            assert await store.read(new, 0, 2 * MIB) == random_bytes(2 * MIB, with_hash)
        async with site.open() as store:
            assert await store.read(new, 0, 2 * MIB) == random_bytes(2 * MIB, with_hash)
        assert site.bucket.requests == []


async def test_pins_follow_a_move(site: Site, refs: list[ObjectRef]) -> None:
    """A handle opened before a rename protects the content, and lets it go when it closes."""
    old = refs[0]
    async with site.open() as store:
        store.pin(old)
        store.pin(old)
        await keep(store, old)
        new = site.bucket.move(old, "new")
        store.rekey(old, new)
        store.unpin(new)
        await store.drop_clean()
        assert store.local_path(new) is not None
        store.unpin(old)
        await store.drop_clean()
        assert store.local_path(new) is None
        store.unpin(old)  # one too many does no harm


async def test_drop_clean_forgets_everything_that_nobody_has_open(
    site: Site, refs: list[ObjectRef]
) -> None:
    """After dropping the cache, memory and disk are empty and reads ask the bucket again."""
    large = site.bucket.put("large", random_bytes(3 * MIB))
    async with site.open() as store:
        await keep(store, *refs)
        await store.read(large, MIB, 10)
        await store.drop_clean()
        statistics = store.statistics()
        assert (statistics.memory_bytes, statistics.disk_bytes, statistics.disk_items) == (0, 0, 0)
        site.bucket.faults = [Fault(on_enter=Unreachable("away"))]
        with pytest.raises(Unreachable):
            await store.read(refs[0], 0, 10)
    assert site.content_files() == []
    assert site.partial_files() == []


async def test_the_janitor_settles_what_a_crash_left(site: Site, refs: list[ObjectRef]) -> None:
    """Leftovers go, contents without a row are taken in and verified, rows without a file go."""
    async with site.open() as store:
        await keep(store, *refs[:4])
    with site.database() as database:
        database.execute("DELETE FROM contents WHERE sha256 = ?", (refs[0].sha256,))
        database.execute("DELETE FROM contents WHERE sha256 = ?", (refs[1].sha256,))
    database.close()
    site.spoil(refs[1], lambda data: data[:-1] + b"!")
    site.spoil(refs[2], lambda _: None)
    site.leave("partial/1234-5", b"unfinished")
    site.leave("content/zz/not a hash", b"?")
    site.bucket.requests.clear()
    async with site.open() as store:
        report = await store.reconcile()
        assert report.leftovers <= 2  # the janitor in the background may have been here first
        assert report.found <= 2
        assert report.lost <= 1
        assert site.partial_files() == []
        assert len(site.content_files()) == 3
        assert store.statistics().disk_items == 3
        assert await store.read(refs[0], 0, 10) == random_bytes(100 * KIB, 0)[:10]
        assert site.bucket.requests == []
        assert await store.read(refs[1], 0, 10) == random_bytes(100 * KIB, 1)[:10]
        assert await store.read(refs[2], 0, 10) == random_bytes(100 * KIB, 2)[:10]
        assert len(site.bucket.requests) == 2


async def test_rows_and_files_that_disagree_are_settled_when_touched(
    site: Site, refs: list[ObjectRef]
) -> None:
    """A row without a file is a miss; nobody need have looked before."""
    async with site.open() as store:
        await keep(store, *refs[:2])
        site.spoil(refs[0], lambda _: None)
        await store.drop_clean()
        assert await store.read(refs[0], 0, 10) == random_bytes(100 * KIB, 0)[:10]
        assert await store.read(refs[1], 0, 10) == random_bytes(100 * KIB, 1)[:10]


async def test_a_lost_index_costs_nothing_but_a_look(site: Site, refs: list[ObjectRef]) -> None:
    """When the database is rebuilt, contents are found again instead of being fetched."""
    async with site.open() as store:
        await keep(store, *refs)
    site.lose_index()
    site.bucket.requests.clear()
    async with site.open() as store:
        await store.reconcile()
        for number, ref in enumerate(refs):
            assert await store.read(ref, 0, 10) == random_bytes(100 * KIB, number)[:10]
    assert site.bucket.requests == []
