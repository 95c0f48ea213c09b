"""The hidden status file through the kernel, and `exaifs status`, in every state of a mount."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.mount.conftest import exaifs, exaifs_mount
from tests.support.gate import Gate
from tests.support.mounts import AWAY, REPOSITORY, MountedDaemon, status_of, wait_until, within

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

FILE = ".exaifs/status.json"


def test_any_program_can_read_it(mount: MountedDaemon) -> None:
    """Cat, dd, Python and a copy get the whole snapshot; each open a new one."""
    wait_until(lambda: status_of(mount)["state"] == "online", 120, "the mount is online")
    mount.sh("echo x > a; cat a")
    value = json.loads(mount.sh(f"cat {FILE}"))
    assert value["index"]["entries"] == 1
    assert value["mount"]["mountpoint"] == str(mount.path)
    assert value["mount"]["pid"] == mount.pid
    assert json.loads(mount.sh(f"dd if={FILE} bs=7 status=none"))["format"] == 1
    assert json.loads(mount.sh(f"cp {FILE} ../status && cat ../status"))
    assert int(mount.sh(f"stat -c %s {FILE}")) > 500
    first, second = status_of(mount), status_of(mount)
    assert second["at_unix_s"] > first["at_unix_s"]


def test_it_is_not_listed(mount: MountedDaemon) -> None:
    """Neither ls, find, du, globs nor rm -r meet it; asked by name it is there."""
    mount.sh("mkdir d; echo x > d/a; echo y > .dotfile")
    for _kernel_knows_it in range(2):
        assert mount.sh("ls -A") == ".dotfile\nd\n"
        assert ".exaifs" not in mount.sh("ls -la; find .; du -a .; echo * .*; tar c . | tar t")
        assert mount.sh("ls -A .exaifs; ls -la .exaifs >/dev/null") == "status.json\nsync\n"
    mount.sh(f"rm -rf {mount.path}/* {mount.path}/.dotfile")
    assert mount.sh("ls -A") == ""
    assert status_of(mount)["format"] == 1
    assert mount.sh(f"stat -c '%A %F' .exaifs {FILE}") == (
        "dr-xr-xr-x directory\n-r--r--r-- regular file\n"
    )


def test_nothing_below_it_can_be_changed(mount: MountedDaemon) -> None:
    """Every change is refused as not permitted, or not there, and the file stays."""
    mount.sh("echo x > a")
    file, directory = mount.path / FILE, mount.path / ".exaifs"
    for call in (
        lambda: file.write_text("x"),
        file.unlink,
        directory.rmdir,
        (directory / "new").touch,
        (directory / "d").mkdir,
        lambda: (directory / "link").symlink_to("x"),
        lambda: file.rename(mount.path / "b"),
        lambda: directory.rename(mount.path / "b"),
        lambda: (mount.path / "a").rename(directory / "a"),
        lambda: (mount.path / "a").rename(file),
        lambda: file.chmod(0o777),
        lambda: os.truncate(file, 0),
        lambda: os.setxattr(file, "user.x", b""),
        lambda: os.link(mount.path / "a", directory / "a"),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno follows
            within(120, call)
        assert caught.value.errno in {errno.EPERM, errno.EACCES, errno.EROFS}
    assert mount.sh("ls -A; cat a") == "a\nx\n"
    assert mount.sh(f"rm -rf .exaifs; cat {FILE} | head -c 1", check=False).endswith("{")


def test_the_command_online(mount_environment: dict[str, str], tmp_path: Path) -> None:
    """Words and JSON, exit code 0, and no secret."""
    # A machine that is busy for seconds makes the feed late, which is told, too: so it may be later.
    with exaifs_mount({**mount_environment, "EXAIFS_FRESHNESS_S": "600"}, tmp_path) as mount:
        wait_until(lambda: status_of(mount)["state"] == "online", 120, "the mount is online")
        mount.sh("echo x > a; cat a")
        code, output = exaifs({}, "status", str(mount.path))
        assert code == 0, output
        assert output.splitlines()[0] == "state     online"
        for words in ("unsent    nothing", "1 known", f"process {mount.pid}", "odd keys  none"):
            assert words in output
        code, output = exaifs({}, "status", "--json", str(mount.path))
        assert code == 0
        assert json.loads(output)["state"] == "online"
        assert mount_environment["SUPABASE_SERVICE_ROLE_KEY"] not in output


def test_the_mount_of_the_working_directory_needs_no_name(mount: MountedDaemon) -> None:
    """In a directory of the mount, `exaifs status` and `exaifs sync` are about that mount."""
    mount.sh("mkdir -p d/e")
    python = f"cd d/e && PYTHONPATH={REPOSITORY} {sys.executable} -m exaifs"
    # Its exit code tells how the mount is, which is not the subject.
    assert f"at {mount.path}, " in mount.sh(f"{python} status", check=False)
    assert mount.sh(f"{python} sync") == "everything is in Supabase\n"


def _waiting(mount: MountedDaemon) -> tuple[int, int]:
    """Return how many files and how many changes wait to be sent."""
    queue = status_of(mount)["queue"]
    return queue["waiting"], queue["changes_waiting"]


def test_the_command_offline(gate: Gate, mount_environment: dict[str, str], tmp_path: Path) -> None:
    """State, since when, and what waits to be sent; exit code 1; well again when the server is back."""
    mount_environment["EXAIFS_REQUEST_TIMEOUT_S"] = "10"
    with exaifs_mount(mount_environment, tmp_path) as mount:
        mount.expected |= AWAY
        mount.sh("echo x > a")
        gate.close()
        wait_until(lambda: status_of(mount)["state"] == "offline", 120, "the mount is offline")
        mount.sh("echo unsent > a; mkdir d")
        found = status_of(mount)
        assert (found["queue"]["waiting"], found["queue"]["changes_waiting"]) == (1, 1)
        assert found["queue"]["waiting_bytes"] == len("unsent\n")
        assert 0 <= found["queue"]["oldest_unsent_age_s"] < 60
        code, output = exaifs({}, "status", str(mount.path))
        assert code == 1
        assert output.startswith("state     offline: ")
        assert "1 waiting, 0 open and changed, 1 changes of names or attributes" in output
        gate.open()
        wait_until(lambda: exaifs({}, "status", str(mount.path))[0] == 0, 120, "the mount is well")
        # Well is a mount that can send what waits; it need not have done so yet.
        wait_until(lambda: _waiting(mount) == (0, 0), 120, "all is sent")
        assert mount.sh("cat a; ls -d d") == "unsent\nd\n"


def test_a_mount_that_hangs(mount: MountedDaemon) -> None:
    """The command gives up after five seconds, says so, and leaves nobody hanging."""
    mount.signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        code, output = exaifs({}, "status", str(mount.path), hangs=True)
        assert (code, "does not answer within 5 s" in output) == (4, True), output
        assert time.monotonic() - started < 60
    finally:
        mount.signal(signal.SIGCONT)
    assert status_of(mount)["format"] == 1


def test_a_dead_mount_and_no_mount(mount: MountedDaemon, tmp_path: Path) -> None:
    """Exit code 4 and what to do."""
    mount.kill9()
    code, output = exaifs({}, "status", str(mount.path))
    assert (code, "exaifs umount" in output) == (4, True), output
    mount.start()
    for path in (tmp_path, tmp_path / "missing", Path("/proc")):
        code, output = exaifs({}, "status", str(path))
        assert code == 4, output
        assert output.startswith("exaifs: ")
        assert output.count("\n") == 1
