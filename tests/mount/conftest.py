from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import MountedDaemon


@pytest.fixture(autouse=True)
def _fuse() -> None:
    """Where there is /dev/fuse, mount tests run or fail; only without it they are left out."""
    if not Path("/dev/fuse").exists():
        pytest.skip("NO /dev/fuse HERE: nothing that mounts is tested")


@pytest.fixture
def memory_mount(tmp_path: Path) -> Iterator[MountedDaemon]:
    """The FUSE adapter on a file system in memory."""
    daemon = MountedDaemon(
        ["-m", "tests.support.mount_memfs", str(tmp_path / "mnt"), str(tmp_path / "lookups")],
        tmp_path / "mnt",
        environment={},
        log_path=tmp_path / "log",
    )
    with daemon:
        yield daemon
