"""A file that is sixty times as large as the cache, and memory alone."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
import trio

from tests.support.double import DoubleServer
from tests.support.paths import Paths, mounted

pytestmark = pytest.mark.anyio

MIB = 1 << 20


@pytest.mark.parametrize(("memory_bytes", "disk_mb"), [(100 * MIB, 1), (0, 1), (0, 0)])
async def test_sixty_megabytes(
    server: DoubleServer, tmp_path: Path, memory_bytes: int, disk_mb: int
) -> None:
    """Written, read by two at once and in pieces, changed in the middle: right, and gone from the disk."""
    server.bucket.size_limit_bytes = 100 * MIB
    data = bytearray(random.Random(1).randbytes(60 * MIB))
    cache = tmp_path / "cache"
    settings = {"memory_cache_bytes": memory_bytes, "disk_cache_mb": disk_mb}
    async with mounted(server, cache, **settings) as paths:
        await paths.create("large", bytes(data))
        assert _size(cache) <= disk_mb * MIB
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(_check, paths, bytes(data))
        async with paths.open("large", 2) as handle:  # O_RDWR
            assert await paths.fs.files.read(handle, 50 * MIB - 5, 10) == data[50 * MIB - 5 : 50 * MIB + 5]
            await paths.write_all(handle, b"changed", 30 * MIB)
            data[30 * MIB : 30 * MIB + 7] = b"changed"
        assert bytes(server.bucket.objects["large"].data) == data
        await _check(paths, bytes(data))
        assert _size(cache) <= disk_mb * MIB
        assert paths.fs.status().state == "online"


async def _check(paths: Paths, data: bytes) -> None:
    """Compare without holding a second copy."""
    digest = hashlib.sha256()
    async with paths.open("large") as handle:
        offset = 0
        while piece := await paths.fs.files.read(handle, offset, MIB):
            digest.update(piece)
            offset += len(piece)
    assert digest.digest() == hashlib.sha256(data).digest()


def _size(cache: Path) -> int:
    """Return what contents take, whole, in part and staged."""
    return sum(
        path.stat().st_size
        for name in ("content", "partial", "staging")
        for path in (cache / name).rglob("*")
        if path.is_file()
    )
