"""A file system without a kernel whose cache directory is on a small disk of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.support.disks import KINDS, SmallDisk, disk_of
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


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 24 MiB."""
    with disk_of(request.param, tmp_path, size_mib=24) as disk:
        yield disk


@pytest.fixture
def mount(server: DoubleServer, disk: SmallDisk) -> Mount:
    """Open a file system with its cache on the disk; again is a restart."""

    def open_on(**settings: Any) -> AbstractAsyncContextManager[Paths]:
        return mounted(server, disk.path / "cache", **settings)

    return open_on
