"""A local disk that fails: readers do not notice, and what needs the disk is told."""

import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from exaifs.cache.data.contents import CacheLimits
from exaifs.errors import NoSpace
from tests.cache.bucket import KIB, MIB, Site, random_bytes
from tests.support.disks import small_ext4

pytestmark = pytest.mark.anyio

SMALL = random_bytes(100 * KIB)
LARGE = random_bytes(5 * MIB, 1)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 3 MiB; skip loudly where that is not allowed."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs", str(directory)]
    done = subprocess.run(mount, check=False, capture_output=True, timeout=120)
    if done.returncode != 0:
        pytest.skip(f"NOT TESTED: a full disk; mounting a tmpfs needs root: {done.stderr!r}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True, timeout=120)


@pytest.fixture
def full_site(tiny_disk: Path) -> Site:
    """Return a site whose disk has less room than its limit says."""
    return Site(tiny_disk, CacheLimits(memory_bytes=20 * MIB))


def fill(directory: Path) -> None:
    """Use up all the room."""
    with (directory / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return


def make_room(directory: Path) -> None:
    """Give the room back."""
    (directory / "filler").unlink()


def make_read_only(directory: Path) -> None:
    """Remount the file system."""
    subprocess.run(["mount", "-o", "remount,ro", str(directory)], check=True, timeout=120)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that a thread brings about; the clock is virtual."""
    with trio.fail_after(10_000):
        while not condition():  # noqa: ASYNC110 - a thread sets no event
            await trio.sleep(1)


async def test_a_disk_that_fills_up_under_a_download_is_not_noticed(full_site: Site) -> None:
    """A reader of a file that the disk cannot hold gets all its bytes, from memory and the bucket."""
    site = full_site
    ref = site.bucket.put("a", LARGE)
    async with site.open() as store:
        store.pin(ref)
        pieces = [await store.read(ref, offset, 128 * KIB) for offset in range(0, len(LARGE), 128 * KIB)]
        assert b"".join(pieces) == LARGE
        reason = store.statistics().disk_disabled
        assert reason is not None
        assert "No space left" in reason
        requests = len(site.bucket.requests)
        assert await store.read(ref, 0, len(LARGE)) == LARGE
        assert len(site.bucket.requests) <= requests + 2, "what memory holds is not asked for again"
        with pytest.raises(NoSpace, match="MAX_CACHE_SIZE_MB"):
            await store.materialize(ref)
        store.unpin(ref)


async def test_a_full_disk_is_not_noticed_by_readers_of_small_files(full_site: Site) -> None:
    """With no byte free, not even for the index, small files are read and their hashes known."""
    site = full_site
    ref = site.bucket.put("a", SMALL, with_hash=False)
    async with site.open() as store:
        fill(site.directory)
        for _ in range(2):
            assert await store.read(ref, 0, len(SMALL)) == SMALL
        assert store.sha256_of(ref) is not None
        with pytest.raises(NoSpace):
            await store.materialize(ref)
        assert store.statistics().disk_disabled is not None
        with pytest.raises(NoSpace):
            await store.copy_to(ref, 0)
        await store.adopt(site.directory / "no such file", "0" * 64, 5)
    assert len(site.bucket.requests) == 1
    make_room(site.directory)


async def test_the_disk_is_tried_again_when_something_needs_it(full_site: Site) -> None:
    """Once there is room again the disk tier comes back by itself."""
    site = full_site
    ref = site.bucket.put("a", SMALL)
    async with site.open() as store:
        fill(site.directory)
        store.pin(ref)
        with pytest.raises(NoSpace):
            await store.materialize(ref)
        make_room(site.directory)
        await store.materialize(ref)
        assert store.local_path(ref) is not None
        assert store.statistics().disk_disabled is None


async def test_a_read_only_disk_is_not_noticed(full_site: Site) -> None:
    """When the file system becomes read-only, what is on it is read, and the rest comes from the bucket."""
    site = full_site
    kept, other = site.bucket.put("kept", SMALL), site.bucket.put("other", LARGE)
    async with site.open() as store:
        await store.materialize(kept)
        await store.drop_clean()
        await store.materialize(kept)
    # The index is elsewhere: SQLite cannot open a database in WAL mode on a read-only file system.
    site.index_directory = site.copy_index()
    make_read_only(site.directory)
    site.bucket.requests.clear()
    async with site.open() as store:
        assert await store.read(kept, 0, len(SMALL)) == SMALL
        assert site.bucket.requests == []
        assert await store.read(other, MIB, 1000) == LARGE[MIB:][:1000]
        assert await store.read(other, 0, len(LARGE)) == LARGE
        reason = store.statistics().disk_disabled
        assert reason is not None
        assert "Read-only" in reason


async def test_a_directory_that_vanishes_is_not_noticed(site: Site) -> None:
    """Somebody removes the whole cache directory under a running store: reads go on."""
    small, large = site.bucket.put("small", SMALL), site.bucket.put("large", LARGE)
    async with site.open() as store:
        await store.materialize(small)
        await store.materialize(large)
        await store.read(large, 0, 10)
        for name in ("content", "partial"):
            shutil.rmtree(site.directory / name)
        assert await store.read(small, 0, len(SMALL)) == SMALL
        assert await store.read(large, 0, len(LARGE)) == LARGE
        await store.drop_clean()
        assert await store.read(small, 0, len(SMALL)) == SMALL
        assert await store.read(large, 0, len(LARGE)) == LARGE


async def test_running_out_of_descriptors_is_not_noticed(site: Site) -> None:
    """With no descriptor left, reads come from memory and the bucket; nothing on disk is lost."""
    refs = [site.bucket.put(str(number), random_bytes(2 * MIB, number)) for number in range(3)]
    async with site.open() as store:
        await store.materialize(refs[0])
    async with site.open() as store:
        await store.read(refs[2], 0, 10)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            for number in range(3):
                data = random_bytes(2 * MIB, number)
                assert await store.read(refs[number], 1000, 2 * MIB) == data[1000:]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert store.statistics().disk_disabled is not None
        assert await store.read(refs[0], 0, 2 * MIB) == random_bytes(2 * MIB, 0)
        assert site.content_path(refs[0]) in site.content_files()


def test_a_disk_that_failed_is_left_alone_for_a_minute(full_site: Site) -> None:
    """After a failure nothing is written for a while, then the disk is tried again."""
    site = full_site

    async def scenario() -> None:
        async with site.open() as store:
            first, second, third = [
                site.bucket.put(str(number), random_bytes(50 * KIB, number)) for number in range(3)
            ]
            fill(site.directory)
            await store.read(first, 0, 10)
            # The reader is served before the write is tried.
            await until(lambda: store.statistics().disk_disabled is not None)
            make_room(site.directory)
            await store.read(second, 0, 10)
            await trio.sleep(30)
            assert site.content_files() == []
            await trio.sleep(60)
            await store.read(third, 0, 10)
            # The file has its name before the store has heard so from its thread.
            await until(lambda: bool(site.content_files()) and store.statistics().disk_disabled is None)

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_a_disk_that_stands_still_gets_what_was_read(tmp_path: Path) -> None:
    """A write may take minutes: what was handed out must be there when Supabase is away after a restart."""
    clock = trio.testing.MockClock()
    with small_ext4(tmp_path / "disk", tmp_path / "image", size_mib=16) as disk:
        site = Site(disk.path)
        site.index_directory = tmp_path
        ref = site.bucket.put("a", SMALL)

        async def scenario() -> None:
            async with site.open() as store:
                with standing_still(disk.path):
                    assert await store.read(ref, 0, len(SMALL)) == SMALL
                    await trio.testing.wait_all_tasks_blocked()
                    clock.jump(300)
                    await trio.testing.wait_all_tasks_blocked()
                clock.rate = 1.0
                with trio.fail_after(60):
                    while not site.content_files():  # noqa: ASYNC110 - a thread sets no event
                        await trio.sleep(0.01)

        trio.run(scenario, clock=clock)


@contextmanager
def standing_still(directory: Path) -> Iterator[None]:
    """Have a disk answer nothing that would change it, and all of it at the end."""
    subprocess.run(["fsfreeze", "--freeze", str(directory)], check=True, timeout=120)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", str(directory)], check=True, timeout=120)
