"""One cache directory, several programs: what each may use, and what is never touched."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from exaifs.cache.clients import ClientCache
from exaifs.cache.data.contents import CacheLimits
from exaifs.cache.directory import directory_of, locked_directory
from exaifs.errors import ConfigError
from exaifs.handler.service import FileService
from tests.handler.conftest import Double, Write

pytestmark = pytest.mark.anyio

DATA = os.urandom(1_500_000)


async def cached(service: FileService) -> int:
    """Return how many contents a program has on disk."""
    return (await service.cleanup_cache(9, 9))["kept"]


def path_in(directory: Path, sha256: str) -> Path:
    """Return where a content is below a directory."""
    return directory / "content" / sha256[:2] / sha256


async def test_two_programs(double: Double, local: Write) -> None:
    """What one has the other takes over without a request; each removes only its own."""
    async with double.open() as one, double.open() as two:
        file_id = await one.upload_file(local("a", DATA), None, None)
        assert (await two.download_file(file_id))[0] == DATA
        assert double.server.counts["get"] == 0
        assert await cached(one) == await cached(two) == 1
        counts = await one.cleanup_cache(0, 0)
        assert (counts["expired"] + counts["evicted"], counts["kept"], counts["idle"]) == (1, 0, 0)
        assert counts["freed_bytes"] == len(DATA)
        assert await cached(two) == 1
        assert (await one.download_file(file_id))[0] == DATA
        assert double.server.counts["get"] == 0


async def test_they_take_no_room_twice(double: Double, local: Write) -> None:
    """Taken over as a hard link: one file, two names."""
    async with double.open() as one, double.open() as two:
        file_id = await one.upload_file(local("a", DATA), None, None)
        await two.download_file(file_id)
        files = [path.stat() for path in double.base.glob("cache/*/clients/*/content/*/*")]
    assert len(files) == 2
    assert len({file.st_ino for file in files}) == 1


async def test_damage_next_door(double: Double, local: Write) -> None:
    """A neighbour's damaged content is not taken over: the bucket has the right bytes."""
    async with double.open() as one, double.open() as two:
        file_id = await one.upload_file(local("a", DATA), None, None)
        [path] = double.base.glob("cache/*/clients/0/content/*/*")
        path.write_bytes(b"x" + DATA[1:])
        assert (await two.download_file(file_id))[0] == DATA
    assert double.server.counts["get"] > 0


async def test_beside_a_mount(double: Double, local: Write) -> None:
    """A directory that a mount holds may be shared; its contents serve, and are never removed."""
    async with double.open("elsewhere") as elsewhere:
        file_id = await elsewhere.upload_file(local("a", DATA), None, None)
        sha256 = (await elsewhere.stat(file_id)).sha256
    assert sha256 is not None
    identity = double.server.remote().identity
    with locked_directory(double.base / "cache", identity, Path("/mnt")) as directory:
        theirs = path_in(directory, sha256)
        theirs.parent.mkdir(parents=True)
        theirs.write_bytes(DATA)
        async with double.open() as service:
            assert (await service.download_file(file_id))[0] == DATA
            assert double.server.counts["get"] == 0
            await service.cleanup_cache(0, 0)
            theirs.unlink()
            assert (await service.download_file(file_id))[0] == DATA
        assert double.server.counts["get"] > 0
        assert sorted(path.name for path in directory.iterdir()) == ["clients", "content", "daemon.lock"]


async def test_a_place_outlives_its_program(double: Double, local: Write) -> None:
    """The next program begins with what the last one left; left-overs of a crash go."""
    async with double.open() as one:
        file_id = await one.upload_file(local("a", DATA), None, None)
    [staging] = double.base.glob("cache/*/clients/0/staging")
    (staging / "left").write_bytes(b"x")
    async with double.open() as two:
        assert (await two.download_file(file_id))[0] == DATA
    assert double.server.counts["get"] == 0
    assert list(staging.iterdir()) == []


async def test_what_ended_programs_left(double: Double, local: Write) -> None:
    """Cleaning up empties places that nobody has any more, and no others."""
    async with double.open() as one:
        async with double.open() as two, double.open() as three:
            await two.upload_file(local("a", DATA), None, None)
            await three.upload_file(local("b", DATA[1:]), None, None)
            assert (await one.cleanup_cache(0, 0))["idle"] == 0
        assert (await one.cleanup_cache(0, 0))["idle"] == 2
        async with double.open() as again:
            assert await cached(again) == 0


async def test_many_at_once(double: Double, local: Write) -> None:
    """Ten programs that open, send and read one content at the same time: all right, none in the way."""
    path = local("a", DATA)

    async def run() -> None:
        async with double.open() as service:
            file_id = await service.upload_file(path, {"path": "a"}, None)
            await service.cleanup_cache(0, 0)
            assert (await service.download_file(file_id))[0] == DATA

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(run)
    assert len(double.server.bucket.objects) == 1


async def test_two_programs_send_one_content(double: Double, local: Write) -> None:
    """Twenty uploads by two programs at the same time: each sends it at most once, all get one id."""
    path = local("a", DATA)
    ids: set[str] = set()

    async def upload(service: FileService) -> None:
        ids.add(await service.upload_file(path, {"continuation_id": "c"}, None))

    async with double.open() as one, double.open() as two, anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(upload, one if number % 2 else two)
    assert len(ids) == 1
    assert double.server.counts["put"] <= 2


async def test_a_directory_that_cannot_be(double: Double, tmp_path: Path) -> None:
    """The message names the setting."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="local_cache_dir"):
        async with double.open("file"):
            pass


async def test_a_damaged_database(double: Double, local: Write) -> None:
    """It is set aside; the contents are found again by their names, or fetched."""
    async with double.open() as one:
        file_id = await one.upload_file(local("a", DATA), None, None)
    remote = double.server.remote()
    database = directory_of(double.base / "cache", remote.identity) / "clients/0/contents.sqlite3"
    database.write_bytes(b"no database" * 1000)
    limits = CacheLimits()
    async with ClientCache.open(double.base / "cache", remote.identity, remote.objects, limits) as cache:
        await cache.contents.reconcile()
        assert cache.contents.statistics().disk_items == 1
    async with double.open() as again:
        assert (await again.download_file(file_id))[0] == DATA
    assert double.server.counts["get"] == 0
