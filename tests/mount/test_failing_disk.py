"""The cache disk fails, or becomes read-only, under a running mount: real programs on a real daemon."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from exaifs.cache.unsent.journalfile import read_journal
from tests.mount.conftest import StoredBytes, exaifs_mount
from tests.support.disks import THOROUGH
from tests.support.faulty import FaultyDisk
from tests.support.gate import Gate
from tests.support.mounts import AWAY, MountedDaemon, status_of, wait_until, within

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

MIB = 1 << 20

SAID = AWAY | {
    "disk cache off for a while, going on from memory and Supabase",
    "the local index goes on in memory: the disk refuses it",
    "the local index cannot be read: directories are listed anew",
    "the local index cannot be written",
    "unsent file would not survive a restart: the cache disk fails",
    "adopted a file that was not sent",
    "sent, but the journal cannot say so: a next run may look at it once more",
}
"""What a daemon says whose disk fails."""


@pytest.fixture
def faulty(tmp_path: Path) -> FaultyDisk:
    """The disk of the cache directory."""
    return FaultyDisk(tmp_path / "cache", tmp_path)


@pytest.fixture
def mount(
    mount_environment: dict[str, str],
    gate: Gate,  # noqa: ARG001 - opened before
    faulty: FaultyDisk,
    tmp_path: Path,
) -> Iterator[MountedDaemon]:
    """`exaifs mount` with its cache on that disk."""
    with exaifs_mount({**mount_environment, **faulty.environment}, tmp_path) as daemon:
        daemon.expected |= SAID
        yield daemon


def errno_of_write(path: Path, data: bytes) -> int:
    """Write a file as a program does; return the errno of the first call that fails, 0 if none does."""
    try:
        within(120, lambda: path.write_bytes(data))
    except OSError as exc:
        return exc.errno or 0
    return 0


def recovered(mount: MountedDaemon) -> bool:
    """Whether all is well again."""
    return bool(status_of(mount)["state"] == "online")


CODES = [errno.EROFS, errno.ENOSPC, errno.EIO] if THOROUGH else [errno.EROFS]


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_writes_to_the_disk_fail(
    mount: MountedDaemon,
    faulty: FaultyDisk,
    stored: StoredBytes,
    code: int,
) -> None:
    """New bytes are refused, everything else goes on: reads, names, other hosts; then all is well again."""
    mount.sh(
        "mkdir d; for i in 1 2 3; do head -c 300000 /dev/urandom >d/$i; done; cat d/* | sha256sum >../sums"
    )
    mount.sh("head -c 5000000 /dev/urandom >large; sha256sum large >../large.sum")
    within(120, (mount.path / "renamed-later").touch)
    mount.drop_kernel_caches()
    with (mount.path / "open").open("wb", buffering=0) as opened:
        opened.write(b"before")
        faulty.fail(writes=code)
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno follows
            within(120, lambda: opened.write(b"x" * 100_000))
        assert caught.value.errno == (errno.ENOSPC if code == errno.ENOSPC else errno.EIO)
        refused = errno_of_write(mount.path / "new", b"new")
        assert refused == (errno.ENOSPC if code == errno.ENOSPC else errno.EIO)
        assert mount.sh(
            "cat d/* | sha256sum | cmp - ../sums && sha256sum -c --quiet ../large.sum; ls d"
        ) == ("1\n2\n3\n")
        mount.sh(
            "mv renamed-later renamed; rm d/3; mkdir e; mv d/2 e; ln -s x link; ls -lR >/dev/null",
            check=False,
        )
        assert mount.sh("ls d e") == "d:\n1\n\ne:\n2\n"
        assert stored("e/2") is not None
        status = status_of(mount)
        assert status["state"] == "degraded"
        assert any(word in status["reason"] for word in (os.strerror(code), "full", "index"))
        faulty.fail()
        within(120, lambda: opened.write(b" and after"))
    assert stored("open") == b"before and after"
    wait_until(lambda: recovered(mount), 120, "the mount has recovered")
    mount.sh("echo good >new && cat new d/1 >copy")
    assert stored("new") == b"good\n"
    mount.restart()
    mount.sh("rm -f link")  # it has bytes of its own, so it may or may not have been refused
    assert mount.sh("ls; ls d e; cat renamed new") == (
        "copy\nd\ne\nlarge\nnew\nopen\nrenamed\nd:\n1\n\ne:\n2\ngood\n"
    )


def test_nothing_can_be_read_either(
    mount: MountedDaemon,
    faulty: FaultyDisk,
    stored: StoredBytes,
) -> None:
    """A disk that is gone altogether: files come from Supabase, names from memory or anew."""
    mount.sh(
        "mkdir d; for i in 1 2 3; do head -c 300000 /dev/urandom >d/$i; done; cat d/* | sha256sum >../sums"
    )
    mount.restart()
    faulty.fail(reads=errno.EIO, writes=errno.EIO)
    assert mount.sh("cat d/* | sha256sum | cmp - ../sums; ls; cat d/1 | wc -c") == "d\n300000\n"
    assert errno_of_write(mount.path / "new", b"new") == errno.EIO
    mount.sh("rm d/2; mv d/3 d/4")
    assert mount.sh("ls d") == "1\n4\n"
    assert status_of(mount)["state"] == "degraded"
    faulty.fail()
    wait_until(lambda: recovered(mount), 120, "the mount has recovered")
    mount.sh("echo good >new; cat d/4 >/dev/null")
    assert stored("new") == b"good\n"
    mount.restart()
    assert mount.sh("ls d; cat new") == "1\n4\ngood\n"


def test_what_was_acknowledged_is_sent_from_a_disk_that_takes_nothing(
    mount: MountedDaemon,
    faulty: FaultyDisk,
    gate: Gate,
    tmp_path: Path,
    stored: StoredBytes,
) -> None:
    """Kept while Supabase was away, sent while the disk fails: once, and good after a crash, too."""
    mount.sh("ls; echo old >changed")
    gate.close()
    mount.sh("for i in $(seq 20); do echo $i >$i; done; echo new >changed", timeout_s=240)
    journal = next((tmp_path / "cache").glob("*/journal"))
    assert len(read_journal(journal).records) == 21
    faulty.fail(writes=errno.EIO)
    gate.open()
    kept = {"changed": b"new\n", **{f"{i}": b"%d\n" % i for i in range(1, 21)}}
    wait_until(lambda: {name: stored(name) for name in kept} == kept, 120, "all of it is sent")
    assert mount.sh("cat $(seq 20) changed | tail -2") == "20\nnew\n"
    mount.kill9()
    faulty.fail()
    mount.start()
    wait_until(
        lambda: recovered(mount) and not read_journal(journal).records, 120, "all of it is known to be done"
    )
    assert mount.sh("cat $(seq 20) changed | tail -2; ls | wc -l") == "20\nnew\n21\n"
    assert mount.sh("cat .exaifs/status.json | grep -c '\"failed\": 0'") == "1\n"
    assert list(journal.parent.glob("conflicts/*")) == []
