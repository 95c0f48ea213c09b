"""A Supabase that takes connections and answers nothing: who reads is told in time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.conftest import exaifs_mount
from tests.support.gate import Gate
from tests.support.mounts import AWAY, status_of, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

LIMIT_S = 20.0
SLACK_S = 19.0
"""For shells that start, on a machine that stands still for a while; less than a second wait would take."""

COMMANDS = ("cat d/a", "ls e", "cat d/b")


def test_reads_and_listings_fail_in_time(
    gate: Gate, mount_environment: dict[str, str], tmp_path: Path
) -> None:
    """What is not cached fails with EIO within the limit, what is cached is served; later all is well."""
    mount_environment["EXAIFS_READ_TIMEOUT_S"] = str(LIMIT_S)
    with exaifs_mount(mount_environment, tmp_path) as mount:
        mount.sh(
            "mkdir d e; head -c 300000 /dev/urandom > d/a; cp d/a d/b; echo known > d/known; cp d/a e/c"
        )
    mount_environment["FILE_CACHE_DIR"] = str(tmp_path / "cold")
    with exaifs_mount(mount_environment, tmp_path) as mount:
        mount.expected |= AWAY
        mount.sh("ls d; cat d/known")
        gate.hang()
        begun = time.monotonic()
        # Beside each other: nobody waits for another one's time, and then for its own.
        with ThreadPoolExecutor(len(COMMANDS)) as threads:
            outputs = list(threads.map(lambda command: mount.sh(command, check=False), COMMANDS))
        assert time.monotonic() - begun < LIMIT_S + SLACK_S
        for command, output in zip(COMMANDS, outputs, strict=True):
            assert "Input/output error" in output, (command, output)
        assert mount.sh("cat d/known") == "known\n"
        gate.open()
        # A directory is asked for again after five seconds.
        compare = "cmp d/a d/b && cmp d/a e/c && echo same"
        wait_until(lambda: mount.sh(compare, check=False) == "same\n", 120, "the server to be asked again")


def test_many_files_do_not_add_up(gate: Gate, mount_environment: dict[str, str], tmp_path: Path) -> None:
    """A program that reads twenty files which are not cached does not wait twenty times as long."""
    mount_environment["EXAIFS_READ_TIMEOUT_S"] = str(LIMIT_S)
    with exaifs_mount(mount_environment, tmp_path) as mount:
        mount.sh("for i in $(seq 20); do echo $i > $i; done; echo known > known")
    mount_environment["FILE_CACHE_DIR"] = str(tmp_path / "cold")
    with exaifs_mount(mount_environment, tmp_path) as mount:
        mount.expected |= AWAY
        mount.sh("ls; cat known")
        gate.hang()
        wait_until(lambda: status_of(mount)["state"] == "offline", 120, "the mount is offline")
        begun = time.monotonic()
        output = mount.sh("cat $(seq 20) known", check=False)
        assert time.monotonic() - begun < 20 * LIMIT_S / 3
        assert (output.count("Input/output error"), output[-6:]) == (20, "known\n")
        gate.open()
        wait_until(lambda: mount.sh("cat 7", check=False) == "7\n", 120, "the server to be asked again")
