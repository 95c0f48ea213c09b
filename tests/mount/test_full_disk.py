"""The cache disk of a real mount is full when its daemon dies, and still is when the next one starts."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from exaifs.cache.unsent.journalfile import read_journal
from tests.mount.conftest import StoredBytes, exaifs_mount
from tests.support.disks import KINDS, SmallDisk, disk_of
from tests.support.gate import Gate
from tests.support.mounts import AWAY, MountedDaemon, status_of, wait_until, within

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

SAID = AWAY | {
    "the disk of the cache directory is full",
    "disk cache off for a while, going on from memory and Supabase",
    "the local index goes on in memory: the disk refuses it",
    "adopted a file that was not sent",
}


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 32 MiB."""
    with disk_of(request.param, tmp_path, size_mib=32) as disk:
        yield disk


@pytest.fixture
def mount(
    mount_environment: dict[str, str],
    gate: Gate,  # noqa: ARG001 - opened before
    disk: SmallDisk,
    tmp_path: Path,
) -> Iterator[MountedDaemon]:
    """`exaifs mount` with its cache on that disk."""
    environment = {**mount_environment, "FILE_CACHE_DIR": str(disk.path / "cache")}
    with exaifs_mount(environment, tmp_path) as daemon:
        daemon.expected |= SAID
        yield daemon


def test_killed_and_started_again_on_a_full_disk(
    mount: MountedDaemon, gate: Gate, disk: SmallDisk, stored: StoredBytes
) -> None:
    """Nothing acknowledged is lost: what waited is sent without any room, and then room is all it takes."""
    mount.sh(
        "ls; echo old >changed; head -c 5000 /dev/urandom >seen; sha256sum seen >../sum; echo x >removed"
    )
    gate.close()
    mount.sh(
        "for i in $(seq 10); do echo $i >f$i; done; echo new >changed; mv seen moved; rm removed",
        timeout_s=240,
    )
    disk.fill()
    mount.sh("cat changed; head -c 3000000 /dev/zero >big", check=False)
    assert mount.sh("cat changed f10") == "new\n10\n"
    mount.kill9()
    disk.fill()
    mount.start()
    assert mount.sh("cat changed f10; ls -d removed 2>&1 | wc -l") == "new\n10\n1\n"
    gate.open()
    kept = {"changed": b"new\n", **{f"f{i}": b"%d\n" % i for i in range(1, 11)}}
    wait_until(lambda: {name: stored(name) for name in kept} == kept, 120, "all of it is sent")
    wait_until(lambda: stored("moved") is not None and stored("removed") is None, 120, "names, too")
    assert mount.sh("sed s/seen/moved/ ../sum | sha256sum -c --quiet && echo same") == "same\n"
    refused = 0
    try:
        within(120, lambda: (mount.path / "too-big").write_bytes(bytes(30 << 20)))
    except OSError as exc:
        refused = exc.errno or 0
    assert refused == errno.ENOSPC
    assert status_of(mount)["state"] == "degraded"
    within(120, (mount.path / "too-big").unlink)
    disk.make_room()
    wait_until(lambda: status_of(mount)["state"] == "online", 120, "the mount has recovered")
    mount.sh("rm -f big; echo after >after")
    assert stored("after") == b"after\n"
    journal = next((disk.path / "cache").glob("*/journal"))
    wait_until(lambda: not read_journal(journal).records, 120, "all of it is known to be done")
    mount.restart()
    assert mount.sh("ls; cat after changed") == (
        "after\nchanged\n"
        + "".join(f"{name}\n" for name in sorted(f"f{i}" for i in range(1, 11)))
        + "moved\n"
        "after\nnew\n"
    )
