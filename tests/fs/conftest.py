"""A file system without a kernel, on the in-memory double of Supabase, under trio."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.support.double import DoubleServer
from tests.support.paths import Paths, mounted

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

    def open_on(cache: str = "cache", **settings: Any) -> AbstractAsyncContextManager[Paths]:
        return mounted(server, tmp_path / cache, **settings)

    return open_on
