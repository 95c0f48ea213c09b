"""Promise 2 for what is streamed: who reads all of a content has what was written, or hears of it."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from hashlib import sha256

import anyio
import pytest

from exaifs.cache.data.blocks import BLOCK_BYTES
from exaifs.cache.data.contents import ContentStore
from exaifs.cache.data.memory import MemoryTier
from exaifs.cache.data.memoryspool import MemorySpool
from exaifs.cache.localfile import Threads
from exaifs.errors import IntegrityError
from exaifs.model import ObjectRef
from exaifs.providers.source import CachedContents
from tests.cache.bucket import KIB, MIB, Site, random_bytes

pytestmark = pytest.mark.anyio

SIZE = 20 * MIB + 777
STEP = 128 * KIB
DATA = random_bytes(SIZE)
OFFSETS = range(0, SIZE, STEP)


class Reader:
    """An open file, as the mount treats one."""

    def __init__(self, store: ContentStore, ref: ObjectRef) -> None:
        self._store = store
        self.ref = ref
        self._moment = store.damage.found

    async def read(self, offset: int) -> bytes:
        """Return a piece, unless something read before was wrong."""
        data = await self._store.read(self.ref, offset, STEP)
        if self._store.damage.since(self.ref, self._moment):
            raise IntegrityError("what was read before was damaged")
        return data


async def read_all(store: ContentStore, ref: ObjectRef, offsets: Iterable[int] = OFFSETS) -> bytes:
    """Open, read every piece in some order, close."""
    reader = Reader(store, ref)
    store.pin(ref)
    try:
        pieces = {offset: await reader.read(offset) for offset in offsets}
    finally:
        store.unpin(ref)
    return b"".join(pieces[offset] for offset in OFFSETS)


@pytest.mark.parametrize("order", [iter, reversed, lambda offsets: [*offsets[1::2], *offsets[::2]]])
@pytest.mark.parametrize("flip", [0, 200 * KIB, SIZE - 1])
async def test_a_damaged_copy_is_never_read_to_its_end(
    site: Site, flip: int, order: Callable[[range], Iterable[int]]
) -> None:
    """Wherever the wrong byte is, in whatever order: an error before the last piece; then it is right."""
    ref = site.bucket.put("a", DATA)
    site.bucket.flips = {flip: [True]}
    async with site.open() as store:
        try:
            data = await read_all(store, ref, order(OFFSETS))
        except IntegrityError:
            data = await read_all(store, ref, order(OFFSETS))
        assert data == DATA
        assert site.bucket.flips == {flip: []}, "the wrong byte was sent"
        assert store.local_path(ref) == site.content_path(ref)


@pytest.mark.parametrize("memory_bytes", [0, 4 * MIB, 64 * MIB])
async def test_without_a_disk(site: Site, memory_bytes: int) -> None:
    """The blocks may have left memory when the last one comes: they were hashed as they came."""
    site.limits = replace(site.limits, memory_bytes=memory_bytes, disk_bytes=0)
    ref = site.bucket.put("a", DATA)
    site.bucket.flips = {3 * MIB: [True]}
    async with site.open() as store:
        store.pin(ref)  # a victim that keeps its file open is in nobody's way
        with pytest.raises(IntegrityError):
            await read_all(store, ref)
        assert await read_all(store, ref) == DATA
        store.unpin(ref)


async def test_nothing_is_lost_of_a_hash_that_was_cancelled() -> None:
    """A reader who leaves may end the hashing of what came; the digest is right all the same."""
    tier = MemoryTier(64 * MIB)
    spool = MemorySpool(tier, "v-1", len(DATA), Threads())
    for number in range(0, len(DATA), BLOCK_BYTES):
        spool.put(number // BLOCK_BYTES, DATA[number : number + BLOCK_BYTES])
        if number % (3 * BLOCK_BYTES) == 0:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await spool.flush()
    assert spool.is_whole
    assert await spool.digest() == sha256(DATA).hexdigest()


async def test_bytes_of_an_upload_that_were_wrong_end_it(site: Site) -> None:
    """What a provider gets comes as it arrives: it breaks off before the last piece."""
    ref = site.bucket.put("a", DATA)
    site.bucket.flips = {200 * KIB: [True]}
    async with site.open() as store:
        body = CachedContents(store).body(ref)
        with pytest.raises(IntegrityError):
            async for _ in body.chunks():
                pass
        assert b"".join([chunk async for chunk in body.chunks()]) == DATA


async def test_a_file_opened_anew_is_read_again(site: Site) -> None:
    """Only those are told who may have had wrong bytes, also after our own rename; others go on."""
    ref, other = site.bucket.put("a", DATA), site.bucket.put("b", DATA[::-1])
    site.bucket.flips = {200 * KIB: [True]}
    async with site.open() as store:
        store.pin(ref)
        victim, bystander = Reader(store, ref), Reader(store, other)
        await victim.read(0)
        await store.materialize(ref)
        moved = site.bucket.move(ref, "c")
        store.rekey(ref, moved)
        for reader in (victim, Reader(store, moved)):
            reader.ref = moved
        with pytest.raises(IntegrityError):
            await victim.read(STEP)
        assert await Reader(store, moved).read(STEP) == DATA[STEP : 2 * STEP]
        await bystander.read(0)


async def test_what_was_never_compared_is_doubted_once(site: Site) -> None:
    """Some of a copy was read, and it is given up: whoever kept that must not go on with it."""
    ref, whole = site.bucket.put("a", DATA), site.bucket.put("b", DATA[::-1])
    async with site.open() as store:
        await store.read(ref, 0, STEP)
        assert not store.damage.take_doubt(ref), "the rest of this copy may still come"
        await store.drop_clean()
        assert store.damage.take_doubt(ref)
        assert not store.damage.take_doubt(ref)
        await read_all(store, whole)
        await store.drop_clean()
        assert not store.damage.take_doubt(whole)
