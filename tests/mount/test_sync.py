"""`exaifs sync` and `.exaifs/sync`: waiting until what was written is in Supabase."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import StoredBytes, exaifs, exaifs_mount
from tests.support.gate import Gate
from tests.support.mounts import AWAY, MountedDaemon, status_of, within

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

HOLD = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
os.write(descriptor, b"x")
print("ready", flush=True)
sys.stdin.read()
"""
"""Opens a file, writes to it, and keeps it open until its standard input ends."""

NEVER_S = "3600"
"""A rest after close that no test sees the end of."""


@pytest.fixture
def mount(gate: Gate, mount_environment: dict[str, str], tmp_path: Path) -> Iterator[MountedDaemon]:
    """A mount that sends nothing by itself for an hour after a close."""
    assert gate.url == mount_environment["SUPABASE_URL"]
    mount_environment |= {"EXAIFS_WRITE_MODE": "back", "EXAIFS_WRITE_BACK_S": NEVER_S}
    with exaifs_mount(mount_environment, tmp_path) as daemon:
        yield daemon


def waiting(mount: MountedDaemon) -> list[dict[str, Any]]:
    """Return the lines of the hidden file; reading it has everything tried."""
    text = within(120, (mount.path / ".exaifs" / "sync").read_text)
    return [json.loads(line) for line in text.splitlines()]


def test_everything_is_sent(mount: MountedDaemon, stored: StoredBytes) -> None:
    """It returns once all of it is in Supabase; until then files are pending, after that clean."""
    mount.sh("mkdir d; for n in 1 2 3; do echo $n > d/$n; done; ln -s 1 d/link")
    assert stored("d/1") is None
    assert "pending" in mount.sh("getfattr --only-values -n user.exai.state d/2")
    code, output = exaifs({}, "sync", str(mount.path))
    assert (code, output) == (0, "everything is in Supabase\n")
    assert [stored(f"d/{number}") for number in (1, 2, 3)] == [b"1\n", b"2\n", b"3\n"]
    assert stored("d/link") == b"1"
    assert "clean" in mount.sh("getfattr --only-values -n user.exai.state d/2")
    assert waiting(mount) == []


def test_what_is_left_is_named(mount: MountedDaemon, gate: Gate, stored: StoredBytes) -> None:
    """Exit code 1 when the time is up, with the names at and below the path only; later it goes on."""
    mount.expected |= AWAY
    mount.sh("mkdir a b; echo old > b/old; ls a b")
    assert exaifs({}, "sync", str(mount.path))[0] == 0
    gate.close()
    mount.sh("echo 1 > a/1; echo 2 > b/2; mv b/old b/new")
    code, output = exaifs({}, "sync", "--timeout", "1", str(mount.path / "b"))
    assert code == 1
    assert ("b/2" in output, "b/new" in output, "a/1" in output) == (True, True, False), output
    assert {(line["what"], line["path"], line["source"]) for line in waiting(mount)} == {
        ("file", "a/1", None),
        ("file", "b/2", None),
        ("move", "b/new", "b/old"),
    }
    gate.open()
    assert exaifs({}, "sync", "--timeout", "60", str(mount.path))[0] == 0
    assert (stored("a/1"), stored("b/2"), stored("b/new")) == (b"1\n", b"2\n", b"old\n")
    assert stored("b/old") is None


def test_what_is_open_is_not_waited_for(mount: MountedDaemon, stored: StoredBytes) -> None:
    """Nobody was told that it is safe: it is named, and the rest is in Supabase."""
    # A process of its own: a fork of this one closes its copy of the descriptor, and a close is a close.
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(mount.path / "open")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            assert within(120, holder.stdout.readline) == b"ready\n"
            mount.sh("echo y > closed")
            code, output = exaifs({}, "sync", str(mount.path))
            assert code == 0
            assert "open and changed, not waited for: open" in output
            assert (stored("closed"), stored("open")) == (b"y\n", None)
        finally:
            holder.stdin.close()
            holder.wait(120)
    assert exaifs({}, "sync", str(mount.path))[0] == 0
    assert stored("open") == b"x"


def test_what_is_set_aside_meanwhile_is_not_called_sent(mount: MountedDaemon, stored: StoredBytes) -> None:
    """Unsent bytes that the disk damaged become a conflict: exit code 1, with its id."""
    mount.expected |= {"conflict: bytes are kept aside; see `exaifs conflicts`", "not sent yet"}
    mount.sh("mkdir d e; echo whole > e/f; echo damaged > d/f")
    cache = Path(status_of(mount)["mount"]["cache_directory"])
    (staged,) = (path for path in (cache / "staging").glob("*.data") if path.read_bytes() == b"damaged\n")
    staged.write_bytes(b"d_maged\n")
    code, output = exaifs({}, "sync", str(mount.path / "d"))
    assert (code, "not in Supabase: d/f" in output, "1 will not be sent" in output) == (1, True, True), (
        output
    )
    assert "everything is in Supabase" not in output
    (conflict,) = json.loads(exaifs({}, "conflicts", "--json", str(mount.path))[1])["conflicts"]
    assert conflict["id"] in output
    assert exaifs({}, "sync", str(mount.path))[0] == 0
    assert (stored("d/f"), stored("e/f")) == (None, b"whole\n")


def test_a_link_is_waited_for_as_well_as_what_it_leads_to(
    mount: MountedDaemon, gate: Gate, stored: StoredBytes, tmp_path: Path
) -> None:
    """That the file is in Supabase says nothing of a link to it; one that leads out of the mount counts."""
    mount.expected |= AWAY
    mount.sh("mkdir d; echo x > d/f; ls d")
    assert exaifs({}, "sync", str(mount.path))[0] == 0
    gate.close()
    mount.sh(
        f"ln -s d/f link; ln -s nowhere dangling; ln -s {tmp_path} out; echo y > d/f; ln -s link second"
    )
    for name, waits in [
        ("link", ["link", "d/f"]),
        ("second", ["second", "link", "d/f"]),
        ("dangling", ["dangling"]),
        ("out", ["out"]),
    ]:
        code, output = exaifs({}, "sync", "--timeout", "1", str(mount.path / name))
        assert (code, f"{len(waits)} not in Supabase yet" in output) == (1, True), output
    (tmp_path / "outside").symlink_to(mount.path / "link")
    code, output = exaifs({}, "sync", "--timeout", "1", str(tmp_path / "outside"))
    assert (code, "2 not in Supabase yet" in output) == (1, True), output
    gate.open()
    for name in ("second", "dangling", "out"):
        assert exaifs({}, "sync", "--timeout", "60", str(mount.path / name))[0] == 0
    assert (stored("link"), stored("dangling"), stored("d/f")) == (b"d/f", b"nowhere", b"y\n")


def test_a_path_that_is_not_there_is_an_error(mount: MountedDaemon) -> None:
    """Else a slip of the pen reads as "everything is in Supabase"; a removal that waits is waited for."""
    mount.sh("mkdir d; echo x > d/f; rm d/f")
    code, output = exaifs({}, "sync", str(mount.path / "d/g"))
    assert (code, "no such file" in output) == (1, True)
    assert exaifs({}, "sync", str(mount.path / "d"))[0] == 0


def test_a_path_outside_is_refused(mount: MountedDaemon, tmp_path: Path) -> None:
    """Exit code 4, saying so, and what is mounted."""
    code, output = exaifs({}, "sync", str(tmp_path))
    assert (code, "is in no exaifs mount" in output) == (4, True)
    assert str(mount.path) in output
