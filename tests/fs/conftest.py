"""A file system without a kernel, on the in-memory double of Supabase, under trio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from exaifs.config import load
from exaifs.fs.filesystem import FileSystem
from tests.support.double import DoubleServer
from tests.support.paths import Paths

Mount = Callable[..., AbstractAsyncContextManager[Paths]]


@pytest.fixture
def anyio_backend() -> str:
    """Run the coroutines of these tests under trio, as the daemon does."""
    return "trio"


@pytest.fixture
def server() -> DoubleServer:
    """Supabase, in memory."""
    return DoubleServer()


@pytest.fixture
def mount(server: DoubleServer, tmp_path: Path) -> Mount:
    """Open a file system on the server; the same `cache` name again is a restart."""

    @asynccontextmanager
    async def mounted(
        cache: str = "cache", *, drain_s: float = 5.0, **settings: Any
    ) -> AsyncIterator[Paths]:
        directory = tmp_path / cache
        directory.mkdir(exist_ok=True)
        config = load(**{"uid": 1000, "gid": 1000, "freshness_s": 3600.0, **settings})
        remote = server.remote()
        hello = await remote.catalog.hello() if server.online else None
        async with FileSystem.open(config, remote, directory, hello) as fs, trio.open_nursery() as nursery:
            await nursery.start(fs.run)
            if server.online and server.trigger_installed:
                with trio.fail_after(5):
                    await fs.feed.wait_caught_up()
            yield Paths(fs)
            await fs.drain(drain_s)
            nursery.cancel_scope.cancel()

    return mounted
