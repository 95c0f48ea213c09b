"""Promise 2: right bytes or an error, for contents too large to be verified before they are streamed."""

from dataclasses import replace

import anyio
import pytest

from exaifs.errors import IntegrityError
from tests.cache.bucket import KIB, MIB, Site, random_bytes

pytestmark = pytest.mark.anyio

SIZE = 9 * MIB + 777
DATA = random_bytes(SIZE)


async def test_a_wrong_copy_is_never_kept(site: Site) -> None:
    """A content that fails its check is dropped whole and fetched again; what is kept is right."""
    ref = site.bucket.put("a", DATA)
    site.bucket.flips = {200 * KIB: [True]}
    async with site.open() as store:
        store.pin(ref)
        await store.materialize(ref)
        assert await store.read(ref, 0, SIZE) == DATA
        path = store.local_path(ref)
        assert path is not None
        assert path.read_bytes() == DATA
    assert site.bucket.bytes_sent >= 2 * SIZE


async def test_what_one_request_brings_whole_is_verified_first(site: Site) -> None:
    """Three MiB that are fetched in one piece: a reader never sees the byte that was wrong."""
    data = DATA[: 3 * MIB]
    ref = site.bucket.put("a", data)
    site.bucket.flips = {2 * MIB: [True]}
    site.bucket.stop_at(0)
    async with site.open() as store, anyio.create_task_group() as tasks:
        tasks.start_soon(store.materialize, ref)
        await site.bucket.wait_stopped()
        site.bucket.go_on()
        assert await store.read(ref, 2 * MIB - 4096, 8192) == data[2 * MIB - 4096 : 2 * MIB + 4096]
    assert site.bucket.bytes_sent == 2 * len(data)


async def test_after_a_wrong_copy_nothing_unverified_is_handed_out(site: Site) -> None:
    """Once a copy was wrong, readers of the next one wait until it is verified."""
    ref = site.bucket.put("a", DATA)
    site.bucket.flips = {5 * MIB: [True], 6 * MIB: [False, True], 0: [False, False, True]}
    async with site.open() as store:
        with pytest.raises(IntegrityError):
            await store.materialize(ref)
        with pytest.raises(IntegrityError):
            await store.read(ref, 0, 4096)
        assert await store.read(ref, 0, 4096) == DATA[:4096]


async def test_a_wrong_hash_in_the_row_is_an_error_for_good(site: Site) -> None:
    """Two equal complete copies prove the row wrong: it is said, and never served or fetched again."""
    ref = replace(site.bucket.put("a", DATA), sha256="0" * 64)
    async with site.open() as store:
        store.pin(ref)
        with pytest.raises(IntegrityError, match="its row says 0000"):
            await store.materialize(ref)
        requests = len(site.bucket.requests)
        for offset in (0, 5 * MIB):
            with pytest.raises(IntegrityError):
                await store.read(ref, offset, 10)
        with pytest.raises(IntegrityError):
            await store.materialize(ref)
        assert len(site.bucket.requests) == requests
        assert site.bucket.bytes_sent == 2 * SIZE
        right = replace(ref, sha256=site.content_path(ref).name)
        assert await store.read(right, 0, SIZE) == DATA, "a corrected row is believed"


async def test_the_hash_of_a_foreign_object_is_found_by_reading(site: Site) -> None:
    """Without a hash in the row the content is kept under the one found, also for the next process."""
    ref = site.bucket.put("a", DATA, with_hash=False)
    async with site.open() as store:
        await store.materialize(ref)
        assert store.sha256_of(ref) == site.content_path(ref).name
    site.bucket.requests.clear()
    async with site.open() as store:
        assert await store.read(ref, 0, SIZE) == DATA
    assert site.bucket.requests == []


@pytest.mark.parametrize("size_bytes", [100 * KIB, SIZE], ids=["small", "large"])
async def test_a_bit_that_flips_on_disk_between_two_runs_is_found(site: Site, size_bytes: int) -> None:
    """The first use in a process verifies; damage is fetched again and reaches nobody."""
    data = DATA[:size_bytes]
    ref = site.bucket.put("a", data)
    async with site.open() as store:
        await store.materialize(ref)
    site.spoil(ref, lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    async with site.open() as store:
        assert store.local_path(ref) is None
        assert await store.read(ref, 0, size_bytes) == data
        await store.materialize(ref)
    assert len(site.bucket.requests) > 1
    async with site.open() as store:
        requests = len(site.bucket.requests)
        assert await store.read(ref, 0, size_bytes) == data
        assert len(site.bucket.requests) == requests


@pytest.mark.parametrize("size_bytes", [100 * KIB, SIZE], ids=["small", "large"])
async def test_a_file_cut_short_under_the_store_is_fetched_again(site: Site, size_bytes: int) -> None:
    """A file that somebody truncates or removes while it is in use costs a request, not an error."""
    data = DATA[:size_bytes]
    ref = site.bucket.put("a", data)
    site.limits = replace(site.limits, memory_bytes=0)
    async with site.open() as store:
        await store.materialize(ref)
        site.content_path(ref).write_bytes(data[:-10])
        assert await store.read(ref, 0, size_bytes) == data
        assert await store.read(ref, size_bytes - 5, 5) == data[-5:]


@pytest.mark.parametrize("size_bytes", [100 * KIB, SIZE], ids=["small", "large"])
async def test_a_file_removed_under_the_store_is_made_again(site: Site, size_bytes: int) -> None:
    """Whoever needs the file on disk gets one, even when only its descriptor was left."""
    data = DATA[:size_bytes]
    ref = site.bucket.put("a", data)
    async with site.open() as store:
        store.pin(ref)
        await store.materialize(ref)
        assert await store.read(ref, 0, size_bytes) == data
        site.spoil(ref, lambda _: None)
        await store.materialize(ref)
        assert store.local_path(ref) in site.content_files()


@pytest.mark.parametrize("size_bytes", [100 * KIB, SIZE], ids=["small", "large"])
async def test_complete_contents_survive_a_restart_without_a_request(site: Site, size_bytes: int) -> None:
    """What was read whole is there for the next process, with Supabase away."""
    data = DATA[:size_bytes]
    ref = site.bucket.put("a", data)
    async with site.open() as store:
        store.pin(ref)
        for offset in range(0, size_bytes, 128 * KIB):
            await store.read(ref, offset, 128 * KIB)
        store.unpin(ref)
    site.bucket.requests.clear()
    async with site.open() as store:
        assert await store.read(ref, 0, size_bytes) == data
        assert store.local_path(ref) == site.content_path(ref)
    assert site.bucket.requests == []
