"""The disk tier alone: a directory, a table, and what happens when they disagree."""

import hashlib
import os
import sqlite3
from pathlib import Path

import pytest

from exaifs.cache.data.disk import DiskTier
from exaifs.cache.health import DiskHealth
from exaifs.cache.localfile import LocalFile, Threads
from exaifs.cache.names.database import open_database

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """One event loop will do: the tier only uses threads."""
    return "trio"


class Tier:
    """A tier over a directory, opened again as a new process would."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("content", "partial"):
            (directory / name).mkdir(exist_ok=True)
        self.database = open_database(directory / "index.sqlite", "test")
        self.health = DiskHealth()
        self.disk = DiskTier(directory, self.database, Threads(), self.health)

    def restart(self) -> "Tier":
        self.disk.close()
        self.database.close()
        return Tier(self.directory)

    async def place(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.disk.new_partial()
        path.write_bytes(data)
        await self.disk.place(path, sha256, len(data))
        return sha256

    async def read(self, sha256: str) -> bytes | None:
        file = await self.disk.open(sha256)
        return None if file is None else await file.read(self.disk.threads, 0, 1 << 20)


@pytest.fixture
def tier(tmp_path: Path) -> Tier:
    """Return a tier over an empty directory."""
    return Tier(tmp_path)


def open_descriptors() -> int:
    """Return how many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_placed_content_is_there_after_a_restart(tier: Tier) -> None:
    """A content survives in one file of its name; totals are known without looking at files."""
    sha256 = await tier.place(b"some bytes")
    assert await tier.read(sha256) == b"some bytes"
    again = tier.restart()
    assert (again.disk.items, again.disk.total_bytes) == (1, 10)
    assert not again.disk.is_verified(sha256)
    assert await again.read(sha256) == b"some bytes"
    assert again.disk.is_verified(sha256)
    assert list((tier.directory / "partial").iterdir()) == []
    again.restart()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"somE bytes"),
        lambda path: path.write_bytes(b"some"),
        lambda path: path.write_bytes(b"some bytes and more"),
        lambda path: path.unlink(),
    ],
    ids=["flipped", "truncated", "longer", "gone"],
)
async def test_damage_found_after_a_restart_is_dropped(tier: Tier, damage: object) -> None:
    """A file that is not what its name says is not served; file, row and totals go."""
    sha256 = await tier.place(b"some bytes")
    tier = tier.restart()
    assert callable(damage)
    damage(tier.disk.path(sha256))
    assert await tier.read(sha256) is None
    assert not tier.disk.path(sha256).exists()
    assert (tier.disk.items, tier.disk.total_bytes, tier.disk.size_of(sha256)) == (0, 0, None)
    tier.restart()


async def test_eviction_takes_the_least_recently_used_and_spares_the_open(tier: Tier) -> None:
    """Victims leave in the order of use, never one that is open, and only as many as needed."""
    names = [await tier.place(bytes([number]) * 10) for number in range(4)]
    tier.disk.touch(names[0])
    victims = tier.disk.evict({names[1]}, keep_bytes=20)
    assert victims == [names[2], names[3]]
    await tier.disk.unlink(victims)
    assert [tier.disk.path(name).exists() for name in names] == [True, True, False, False]
    assert (tier.disk.items, tier.disk.total_bytes) == (2, 20)
    tier.restart()


async def test_a_file_that_is_evicted_under_a_reader_stays_readable(tier: Tier) -> None:
    """A descriptor is closed when its last user is done, never before."""
    sha256 = await tier.place(b"some bytes")
    file = await tier.disk.open(sha256)
    assert file is not None
    with file.used() as fd:
        await tier.disk.discard(sha256)
        assert os.pread(fd, 4, 0) == b"some"
    assert file.fd == -1
    tier.restart()


async def test_uses_are_written_in_batches(tier: Tier) -> None:
    """A use is no write; the order of use is right all the same, also after a clean end."""
    first, second = await tier.place(b"first"), await tier.place(b"second")
    before = tier.database.total_changes
    for _ in range(50):
        tier.disk.touch(first)
    assert tier.database.total_changes == before
    tier = tier.restart()
    assert tier.disk.evict(set(), keep_bytes=5) == [second]
    tier.restart()


async def test_what_came_back_is_not_unlinked(tier: Tier) -> None:
    """A content placed again between its eviction and the unlink keeps its file."""
    sha256 = await tier.place(b"some bytes")
    victims = tier.disk.evict(set(), keep_bytes=0)
    await tier.place(b"some bytes")
    await tier.disk.unlink(victims)
    assert await tier.read(sha256) == b"some bytes"
    tier.restart()


async def test_an_index_that_fails_is_a_miss(tier: Tier) -> None:
    """A table that cannot be read is trouble to be reported, never an error for a reader."""
    sha256 = await tier.place(b"some bytes")
    tier.database.execute("DROP TABLE contents")
    assert tier.disk.size_of(sha256) is None
    assert tier.disk.rows() == {}
    assert tier.disk.evict(set(), keep_bytes=0) == []
    tier.disk.touch(sha256)
    tier.disk.flush_uses()
    assert tier.health.reason is not None
    with pytest.raises(OSError, match="index cannot be written"):
        await tier.place(b"other bytes")
    tier.disk.close()
    tier.database.close()


async def test_more_contents_than_descriptors(tier: Tier) -> None:
    """Only so many files are open, however many are read."""
    names = [await tier.place(b"%d" % number) for number in range(200)]
    before = open_descriptors()
    for name in names:
        assert await tier.read(name) is not None
    assert open_descriptors() <= before + 128
    tier.restart()


async def test_nowait_never_reads_a_disk(tmp_path: Path) -> None:
    """What is not in the page cache, or where the kernel cannot tell, is left to a thread."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 8192)
    file = LocalFile(os.open(path, os.O_RDONLY))
    assert file.read_nowait(0, 8192) in {b"x" * 8192, None}  # None on file systems without RWF_NOWAIT
    assert file.read_nowait(4096, 8192) is None, "not short: the waiting read decides"
    assert await file.read(Threads(), 4096, 8192) == b"x" * 4096
    file.retire()
    assert file.fd == -1


def test_the_database_is_the_only_memory(tmp_path: Path) -> None:
    """Opening a tier over a directory of files without rows looks at none of them."""
    (tmp_path / "content" / "ab").mkdir(parents=True)
    (tmp_path / "content" / "ab" / ("ab" + "0" * 62)).write_bytes(b"x")
    database = open_database(tmp_path / "index.sqlite", "test")
    assert isinstance(database, sqlite3.Connection)
    tier = DiskTier(tmp_path, database, Threads(), DiskHealth())
    assert tier.items == 0
    database.close()
