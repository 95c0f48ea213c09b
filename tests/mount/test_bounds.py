"""Caches of next to nothing, and few descriptors: everything works, and stays within its bounds."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest

from tests.mount.conftest import StoredBytes, exaifs_mount
from tests.support.disks import THOROUGH
from tests.support.gate import Gate
from tests.support.mounts import AWAY, MountedDaemon, status_of, wait_until, within

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

MIB = 1 << 20


def used_bytes(directory: Path) -> int:
    """Return what du(1) counts of contents, complete and not: all but the index, journal and reserve."""
    places = [
        str(path) for name in ("content", "partial", "staging") for path in directory.glob(f"*/{name}")
    ]
    done = subprocess.run(
        ["du", "-s", "-c", "--block-size=1", *places],
        check=False,  # files come and go while it looks
        capture_output=True,
        text=True,
        timeout=120,
    )
    return int(done.stdout.splitlines()[-1].split()[0])


READERS = """
for i in 1 2 3; do
    { cmp <(tail -c +$((i * 3000000)) large) <(tail -c +$((i * 3000000)) ../large) && cmp large ../large ||
        touch ../differs; } &
done
wait
test ! -e ../differs
"""
"""Three at once, which begin at different places."""


class Watch:
    """Looks at a directory's size all the while."""

    def __init__(self, directory: Path) -> None:
        self.most_bytes = 0
        self._directory = directory
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._ended.wait(0.1):
            self.most_bytes = max(self.most_bytes, used_bytes(self._directory))


SIZES = [(100 * MIB, 1), (0, 0)]
MORE_SIZES = [(100 * MIB, 0), (0, 1000), (MIB, 1)]


@pytest.mark.parametrize(("memory_bytes", "disk_mb"), SIZES + (MORE_SIZES if THOROUGH else []))
def test_a_cache_of_next_to_nothing(
    mount_environment: dict[str, str],
    tmp_path: Path,
    stored: StoredBytes,
    memory_bytes: int,
    disk_mb: int,
) -> None:
    """Large and small files, several readers at once, writes in part: the same bytes, within the bounds."""
    environment = {
        **mount_environment,
        "MAX_MEMORY_CACHE_SIZE": str(memory_bytes),
        "MAX_CACHE_SIZE_MB": str(disk_mb),
    }
    cache = tmp_path / "cache"
    with exaifs_mount(environment, tmp_path) as mount:
        mount.sh(
            "head -c 12000000 /dev/urandom >../large;"
            " for i in $(seq 30); do head -c $((i * 3000)) ../large >../s$i; done"
        )
        mount.sh("cp ../large large; mkdir d; for i in $(seq 30); do cp ../s$i d/; done", timeout_s=240)
        with Watch(cache) as watch:
            for _twice in range(2):
                mount.drop_kernel_caches()
                mount.sh("cmp large ../large; for i in $(seq 30); do cmp d/s$i ../s$i; done", timeout_s=240)
                mount.drop_kernel_caches()
                mount.sh(READERS, timeout_s=240)
        # A file that somebody has open is kept as far as it has arrived; nothing else is over the limit.
        assert watch.most_bytes <= disk_mb * MIB + 14 * MIB
        wait_until(
            lambda: used_bytes(cache) <= disk_mb * MIB + MIB // 2, 120, "the cache is within its bound"
        )
        wait_until(
            lambda: status_of(mount)["cache"]["disk"]["size_bytes"] <= disk_mb * MIB, 120, "and says so"
        )
        wait_until(lambda: status_of(mount)["state"] == "online", 120, "all is well")
        status = status_of(mount)
        assert status["cache"]["memory"]["size_bytes"] <= memory_bytes
        assert status["cache"]["memory"]["limit_bytes"] <= memory_bytes
        assert status["cache"]["disk"]["limit_bytes"] == disk_mb * MIB
        # Writing in part, where a copy of the whole must be made first.
        mount.sh(
            "printf patched | dd of=d/s30 bs=1 seek=50000 conv=notrunc status=none; truncate -s 40000 d/s29"
        )
        mount.sh("printf patched | dd of=../s30 bs=1 seek=50000 conv=notrunc status=none")
        mount.sh("truncate -s 40000 ../s29")
        mount.sh("cmp d/s30 ../s30; cmp d/s29 ../s29; mv d/s30 d/moved; cmp d/moved ../s30")
        assert stored("d/moved") == (tmp_path / "s30").read_bytes()
        mount.sh("printf patched | dd of=large bs=1 seek=6000000 conv=notrunc status=none", timeout_s=240)
        mount.sh(
            "printf patched | dd of=../large bs=1 seek=6000000 conv=notrunc status=none; cmp large ../large"
        )


def test_a_file_of_sixty_times_the_cache(mount_environment: dict[str, str], tmp_path: Path) -> None:
    """Unsent bytes are beyond every limit; once they are sent, they are not."""
    # Over the limit of the test bucket: two files that together are sixty times the cache.
    with exaifs_mount({**mount_environment, "MAX_CACHE_SIZE_MB": "1"}, tmp_path) as mount:
        mount.sh("head -c 30000000 /dev/urandom >../a; head -c 30000000 /dev/urandom >../b")
        mount.sh("cp ../a ../b .", timeout_s=240)
        cache = tmp_path / "cache"
        wait_until(lambda: used_bytes(cache) <= 3 * MIB // 2, 120, "what was sent is gone from the cache")
        mount.drop_kernel_caches()
        readers = "(cmp a ../a && echo a >../one) & (cmp b ../b && echo b >../two) & wait"
        mount.sh(f"{readers}; cat ../one ../two", timeout_s=240)
        wait_until(lambda: used_bytes(cache) <= 3 * MIB // 2, 120, "what was read is gone from the cache")
        wait_until(lambda: status_of(mount)["state"] == "online", 120, "all is well")


# -- descriptors -----------------------------------------------------------------------------------

LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = ["exaifs", *sys.argv[2:]]
runpy.run_module("exaifs", run_name="__main__")
"""


@pytest.fixture
def few_descriptors(
    mount_environment: dict[str, str],
    gate: Gate,  # noqa: ARG001 - opened before
    tmp_path: Path,
) -> Iterator[MountedDaemon]:
    """`exaifs mount` that may have 100 descriptors."""
    path = tmp_path / "mnt"
    with MountedDaemon(
        ["-c", LIMITED, "100", "mount", str(path)],
        path,
        environment=mount_environment,
        log_path=tmp_path / "log",
        secrets=[mount_environment["SUPABASE_SERVICE_ROLE_KEY"]],
    ) as daemon:
        yield daemon


def descriptors(mount: MountedDaemon) -> int:
    """Count those of the daemon."""
    return len(os.listdir(f"/proc/{mount.pid}/fd"))  # noqa: PTH208 - names, not paths


def test_many_files_are_written_at_once(few_descriptors: MountedDaemon, stored: StoredBytes) -> None:
    """Those for which no descriptor is left are refused, others go on; nothing is lost; later it works."""
    mount = few_descriptors
    mount.sh("head -c 3000000 /dev/urandom >large; sha256sum large >../sum", timeout_s=240)
    mount.sh("for i in $(seq 20); do echo $i >r$i; done", timeout_s=240)
    mount.drop_kernel_caches()
    refused = 0
    with ExitStack() as stack:
        opened = []
        for number in range(90):
            try:
                file = within(120, (mount.path / f"w{number}").open("wb", buffering=0).__enter__)
            except OSError as exc:
                assert exc.errno in {errno.ENFILE, errno.EIO}  # noqa: PT017 - most are not refused
                refused += 1
            else:
                opened.append((number, stack.enter_context(file)))
        assert refused > 5
        assert len(opened) > 30
        assert mount.sh("sha256sum -c --quiet ../sum; cat $(printf 'r%s ' $(seq 20)) | tail -1") == "20\n"
        mount.sh("mkdir d; mv r1 d; rm r2; ls >/dev/null")
        for number, file in opened:
            within(120, lambda file=file, number=number: file.write(b"%d" % number))  # type: ignore[misc]
    assert all(stored(f"w{number}") == b"%d" % number for number, _file in opened)
    assert mount.sh("ls | grep -c ^w") == f"{len(opened)}\n"
    mount.sh("for i in $(seq 200 205); do echo $i >w$i; done; cat w200 w205", timeout_s=240)
    assert stored("w205") == b"205\n"
    mount.expected |= {"request refused", "request failed"}


def test_unsent_files_hold_no_descriptors(
    few_descriptors: MountedDaemon, gate: Gate, stored: StoredBytes
) -> None:
    """While Supabase is away many are written and read again with a few; all are sent afterwards."""
    mount = few_descriptors
    mount.sh("ls; echo x >x")
    gate.close()
    mount.expected |= AWAY
    mount.sh("for i in $(seq 120); do echo $i >f$i; done", timeout_s=240)
    assert mount.sh("cat $(printf 'f%s ' $(seq 120)) | cmp - <(seq 120) && echo same") == "same\n"
    # The kernel tells of a file's last close after close(2) has returned.
    wait_until(lambda: descriptors(mount) < 80, 120, "the files are let go")
    gate.open()
    wait_until(lambda: status_of(mount)["queue"]["waiting"] == 0, 120, "everything is sent")
    assert [stored(f"f{i}") for i in (1, 80, 120)] == [b"1\n", b"80\n", b"120\n"]
    wait_until(lambda: descriptors(mount) < 80, 120, "the files are let go again")
