"""Room on a full disk: two who need it at once, and what is evicted for one of them."""

from collections.abc import Awaitable, Callable, Iterator
from hashlib import sha256
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from exaifs.cache.data.shelf import CacheLimits, Shelf
from exaifs.cache.health import DiskHealth
from exaifs.cache.names.database import open_database
from exaifs.errors import NoSpace

pytestmark = pytest.mark.anyio

COUNT = 30


@pytest.fixture
def anyio_backend() -> str:
    """One event loop will do: the shelf only uses threads."""
    return "trio"


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    """Return the shelf of an empty cache directory."""
    for name in ("content", "partial"):
        (tmp_path / name).mkdir()
    database = open_database(tmp_path / "index.sqlite", "test")
    shelf = Shelf(tmp_path, database, CacheLimits(memory_bytes=0), {}, DiskHealth())
    yield shelf
    shelf.disk.close()
    database.close()


def files_in(directory: Path) -> list[Path]:
    """Return the cached contents, as the disk has them."""
    return [path for path in (directory / "content").rglob("*") if path.is_file()]


def disk_for(directory: Path, files: int) -> Callable[[], Awaitable[None]]:
    """Return an attempt that a disk with so many inodes for contents would refuse."""

    async def attempt() -> None:
        await anyio.lowlevel.checkpoint()
        if len(files_in(directory)) >= files:
            raise NoSpace("no inode is left")

    return attempt


@pytest.mark.parametrize("askers", [1, 2, 9])
async def test_what_one_evicts_is_room_for_all(shelf: Shelf, tmp_path: Path, askers: int) -> None:
    """Who asks while another's evictions are under way waits for them, and is not told of a full disk."""
    for number in range(COUNT):
        data = b"%d" % number
        await shelf.keep_bytes(sha256(data).hexdigest(), data)
    assert len(files_in(tmp_path)) == COUNT
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(askers):
                tasks.start_soon(shelf.with_room, 0, disk_for(tmp_path, COUNT))
    assert len(files_in(tmp_path)) < COUNT


@pytest.mark.parametrize("askers", [1, 2])
async def test_nothing_left_to_evict(shelf: Shelf, tmp_path: Path, askers: int) -> None:
    """A disk that stays full is an error for each who asks, and soon."""
    await shelf.keep_bytes(sha256(b"one").hexdigest(), b"one")
    told = 0

    async def ask() -> None:
        nonlocal told
        with pytest.raises(NoSpace):
            await shelf.with_room(0, disk_for(tmp_path, 0))
        told += 1

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(askers):
                tasks.start_soon(ask)
    assert told == askers
    assert files_in(tmp_path) == []
