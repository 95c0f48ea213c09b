"""Programs that are ended while they wait for Supabase: the daemon and every other file stay well."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.conftest import exaifs_mount
from tests.support.gate import Gate
from tests.support.mounts import AWAY, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

_CLOSE = "import sys\nf = open(sys.argv[1], 'wb')\nf.write(b'bytes of the program')\nf.close()\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_program_that_is_ended_in_close(
    gate: Gate, mount_environment: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    """A hanging upload blocks no other file; who waits for it can be ended, and the bytes are sent."""
    mount_environment["EXAIFS_REQUEST_TIMEOUT_S"] = "3"
    with exaifs_mount(mount_environment, tmp_path) as mount:
        mount.expected |= AWAY
        mount.sh("mkdir d; echo known > d/known; cat d/known")
        gate.hang()
        command = [sys.executable, "-c", _CLOSE, str(mount.path / "d" / "stuck")]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as program:
            try:
                wait_until(lambda: "stuck" in mount.sh("ls d"), 120, "the new name")
                program.send_signal(number)
                assert mount.sh("cat d/known; ls d", timeout_s=240).split() == ["known", "known", "stuck"]
                gate.open()
                program.wait(120)
            finally:
                program.kill()
        state = "getfattr --only-values -n user.exai.state d/stuck"
        wait_until(lambda: mount.sh(state, check=False).strip() == "clean", 120, "the file to be sent")
        content = mount.sh("cat d/stuck")
        assert content in {"", "bytes of the program"}
        mount.sh("echo after > d/after; cat d/after")
