"""The bucket's size limit: refused at write whenever it is known (promise 7), and heard of soon."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from exaifs.errors import FileTooLarge
from tests.fs.conftest import Mount
from tests.support.double import DoubleServer
from tests.support.paths import Paths, mounted

pytestmark = pytest.mark.anyio


async def refused(paths: Paths, name: str, size_bytes: int) -> None:
    """Assert that the first write of so much is refused; the name stays, empty."""
    await paths.create(name)
    with pytest.raises(FileTooLarge):
        await paths.overwrite(name, b"x" * size_bytes)


async def test_it_is_known_to_a_mount_that_begins_offline(server: DoubleServer, mount: Mount) -> None:
    """As an earlier run was told: what the bucket would never take is not acknowledged."""
    server.bucket.size_limit_bytes = 1000
    async with mount() as paths:
        await paths.ls()
    server.online = False
    async with mount() as paths:
        await refused(paths, "large", 1001)
        await paths.create("small", b"x" * 1000)
        server.online = True
        assert await paths.fs.drain(60) == 0


def test_it_follows_the_bucket(server: DoubleServer, tmp_path: Path) -> None:
    """A mount hears within minutes of another limit, and sends what only the old one refused."""
    clock = MockClock(rate=1.0)

    async def main() -> None:
        async with mounted(server, tmp_path / "cache") as paths:
            server.bucket.size_limit_bytes = 1000
            with pytest.raises(FileTooLarge):
                await paths.create("file", b"x" * 1001)
            clock.jump(100)
            await paths.fs.feed.poll()
            await refused(paths, "other", 1001)
            assert await paths.fs.drain(1.0) == 1
            server.bucket.size_limit_bytes = None
            clock.jump(100)
            await paths.fs.feed.poll()
            assert await paths.fs.drain(60) == 0
            assert server.bucket.objects["file"].data == b"x" * 1001

    trio.run(main, clock=clock)
