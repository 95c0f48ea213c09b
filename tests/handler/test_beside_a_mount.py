"""A handler on the cache directory of a mount that runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from exaifs import UnifiedFileHandler, file_id_for
from exaifs.errors import ConfigError
from tests.handler.conftest import Write
from tests.mount.conftest import exaifs_mount
from tests.support.mounts import MountedDaemon, wait_until, within

pytestmark = [pytest.mark.mount, pytest.mark.embedded, pytest.mark.anyio]

Make = Callable[[], UnifiedFileHandler]
DATA = os.urandom(2_000_000)


@pytest.fixture
def anyio_backend() -> str:
    """One event loop is enough here."""
    return "asyncio"


def mount_of(bucket: dict[str, str], tmp_path: Path) -> MountedDaemon:
    """Return a mount on the handlers' cache directory, not started yet."""
    if not Path("/dev/fuse").exists():
        pytest.skip("NO /dev/fuse HERE: nothing that mounts is tested")
    return exaifs_mount(
        {**bucket, "FILE_CACHE_DIR": str(tmp_path / "cache"), "EXAIFS_LOG_FORMAT": "json"}, tmp_path
    )


def contents_of(tmp_path: Path) -> set[Path]:
    """Return what the mount has on disk."""
    return set((tmp_path / "cache").glob("*/content/*/*"))


def staged_in(tmp_path: Path) -> list[Path]:
    """Return what the mount has on disk and not taken in as content."""
    return list((tmp_path / "cache").glob("*/staging/*"))


async def test_one_directory(
    fresh_bucket: dict[str, str], make_handler: Make, tmp_path: Path, local: Write
) -> None:
    """The handler uses what the mount has and takes nothing away; each sees the other's files."""
    with mount_of(fresh_bucket, tmp_path) as mount:
        async with make_handler() as handler:
            source = local("big.bin", DATA)
            mount.sh(f"cp {source} big.bin && mkdir d && cp {source} d/other.bin")
            # After the last close, of which the kernel tells when it likes.
            wait_until(lambda: not staged_in(tmp_path), 120, "what was written is cached content")
            before = contents_of(tmp_path)
            assert len(before) == 1
            inode = before.copy().pop().stat().st_ino
            info = await handler.stat("big.bin")
            assert (await handler.download_file(info.file_id))[0] == DATA
            [ours] = (tmp_path / "cache").glob("*/clients/0/content/*/*")
            assert ours.stat().st_ino == inode
            await handler.cleanup_cache(0, 0)
            assert contents_of(tmp_path) == before
            await handler.upload_file(local("new.txt", b"new"), {"path": "d/new.txt"})
            wait_until(lambda: "new.txt" in mount.sh("ls d"), 120, "the mount shows an upload")
            assert mount.sh("cat d/new.txt") == "new"
            attribute = within(120, lambda: os.getxattr(mount.path / "d/new.txt", "user.exai.file_id"))
            assert attribute.decode() == (await handler.stat("d/new.txt")).file_id
            await handler.delete_file(info.file_id)
            wait_until(lambda: "big.bin" not in mount.sh("ls"), 120, "the mount shows a deletion")
            assert mount.sh("sha256sum < d/other.bin").split()[0] == info.sha256
        # The mount may be started while a handler runs, and the other way round.
        async with make_handler() as handler:
            mount.restart()
            assert (await handler.download_file((await handler.stat("d/other.bin")).file_id))[0] == DATA
            assert mount.sh("cat d/new.txt") == "new"


async def test_reference_to_a_mounted_file(
    fresh_bucket: dict[str, str], make_handler: Make, tmp_path: Path
) -> None:
    """A file in the mount has an id: it is linked, not uploaded. A copy elsewhere is another file."""
    with mount_of(fresh_bucket, tmp_path) as mount:
        mount.sh("echo hello > a.txt")
        async with make_handler() as handler:
            reference = await file_id_for(mount.path / "a.txt", "c1", handler=handler)
            info = await handler.stat("a.txt")
            assert (reference.path, reference.file_id) == (mount.path / "a.txt", info.file_id)
            assert (await handler.stat("a.txt")).metadata["continuation_id"] == "c1"
            assert len((await handler.list_files()).files) == 1
            copy = tmp_path / "copy.txt"
            copy.write_bytes(b"other bytes")
            try:
                os.setxattr(copy, "user.exai.file_id", info.file_id.encode())
            except OSError:
                return  # this disk takes no attributes, so no copy can bring one along
            assert (await file_id_for(copy, "c1", handler=handler)).file_id != info.file_id


async def test_a_cache_in_a_mount(fresh_bucket: dict[str, str], unconfigured: None, tmp_path: Path) -> None:
    """It is refused: what a program caches would be stored in the bucket."""
    assert unconfigured is None
    with mount_of(fresh_bucket, tmp_path) as mount:
        (tmp_path / "link").symlink_to(mount.path)
        for place in (mount.path, mount.path / "cache", tmp_path / "link/cache"):
            with pytest.raises(ConfigError, match="local_cache_dir, to a directory outside"):
                async with UnifiedFileHandler(
                    fresh_bucket["SUPABASE_URL"],
                    fresh_bucket["SUPABASE_SERVICE_ROLE_KEY"],
                    place,
                    fresh_bucket["FILE_STORAGE_BUCKET"],
                ):
                    pass
        assert mount.sh("ls -A") == ""
