"""How long 50 MiB take through the store, without a network: printed (`pytest -s`), not asserted."""

import time
from collections.abc import Awaitable, Callable

import pytest

from exaifs.cache.data.contents import ContentStore
from exaifs.model import ObjectRef
from tests.cache.bucket import KIB, MIB, Site, random_bytes

pytestmark = pytest.mark.anyio

SIZE = 50 * MIB


async def timed(name: str, action: Callable[[], Awaitable[object]]) -> None:
    """Print how long something takes."""
    begin = time.perf_counter()
    await action()
    print(f"\n{name}: {time.perf_counter() - begin:.3f} s", end="")  # noqa: T201 - what this test is for


async def read_all(store: ContentStore, ref: ObjectRef) -> int:
    """Read as the kernel does, in pieces of 128 KiB."""
    count = 0
    for offset in range(0, SIZE, 128 * KIB):
        data = store.read_nowait(ref, offset, 128 * KIB)
        count += len(data if data is not None else await store.read(ref, offset, 128 * KIB))
    return count


async def test_fifty_mib_take_this_long(site: Site) -> None:
    """A file of the bucket's largest size is read cold, warm and after a restart, completely."""
    ref = site.bucket.put("a", random_bytes(SIZE))
    async with site.open() as store:
        store.pin(ref)
        await timed("first 4 KiB, cold", lambda: store.read(ref, 0, 4096))
        await timed("all, cold", lambda: read_all(store, ref))
        await timed("until verified on disk", lambda: store.materialize(ref))
        await timed("all, warm", lambda: read_all(store, ref))
        assert await read_all(store, ref) == SIZE
    async with site.open() as store:
        await timed("first 4 KiB after a restart, verifying all", lambda: store.read(ref, 0, 4096))
        await timed("all after a restart", lambda: read_all(store, ref))
        assert await read_all(store, ref) == SIZE
    assert site.bucket.bytes_sent == SIZE
