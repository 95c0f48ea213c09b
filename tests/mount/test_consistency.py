"""`--consistency open` through the kernel: two hosts agree at open, without the change feed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mount.conftest import exaifs_mount
from tests.support.counting import CountingGate
from tests.support.mounts import MountedDaemon, status_of, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

IN_THE_BACKGROUND = ("exaifs_changes", "exaifs_hello", "exaifs_touch")


def host(environment: dict[str, str], directory: Path, *flags: str) -> MountedDaemon:
    """Return a host of its own."""
    directory.mkdir()
    return exaifs_mount({**environment, "FILE_CACHE_DIR": str(directory / "cache")}, directory, *flags)


def test_every_open_sees_the_newest_version(mount_environment: dict[str, str], tmp_path: Path) -> None:
    """What one host has closed, another opens, though its feed looks only once an hour."""
    slow = {**mount_environment, "EXAIFS_FRESHNESS_S": "3600"}
    with host(mount_environment, tmp_path / "one") as one:
        one.sh("echo first > a; echo stays > b; mkdir d; echo x > d/c")
        with (
            CountingGate(mount_environment["SUPABASE_URL"]) as gate,
            host({**slow, "SUPABASE_URL": gate.url}, tmp_path / "two", "--consistency", "open") as two,
            host(slow, tmp_path / "three") as three,
        ):
            for mount in (two, three):
                assert mount.sh("cat a b d/c") == "first\nstays\nx\n"
                # Its feed has looked once, and what was listed before that has been listed anew.
                wait_until(lambda at=mount: status_of(at)["state"] == "online", 120, "it has begun")  # type: ignore[misc]  # bound
            # Same size, so that only content tells; and pages of the old one are in the kernel.
            one.sh("echo other > a; rm d/c")
            assert two.sh("cat a") == "other\n"
            assert "No such file" in two.sh("cat d/c", check=False)
            assert two.sh("ls d; cat b; echo more >> a; cat a") == "stays\nother\nmore\n"
            wait_until(lambda: one.sh("cat a") == "other\nmore\n", 120, "the first host's feed")
            one.sh("echo third > a")
            assert two.sh("python3 -c 'print(open(\"a\").read())'") == "third\n\n"
            # The test means something: a host that relies on the feed does not know yet.
            assert three.sh("cat a") == "first\n"
            gate.reset()
            assert two.sh("cat b; stat b >/dev/null; ls -l >/dev/null; cat b") == "stays\nstays\n"
            assert gate.traffic.besides(*IN_THE_BACKGROUND) == ["exaifs_stat"] * 2
