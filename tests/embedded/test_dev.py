from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exaifs import mountpoint
from exaifs.embedded.process import ProcessId
from exaifs.embedded.samples import sample_files
from tests.conftest import LITE_DIR, environment_for

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.mount,
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="/dev/fuse is missing"),
]

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 120.0
EXIT_MOUNT = 4


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One state directory for this module, as a user has one."""
    return tmp_path_factory.mktemp("dev-state")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it mounts."""
    return tmp_path_factory.mktemp("dev") / "files"


@contextmanager
def dev(state_dir: Path, mount: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `exaifs dev` with a mount; everything it started has ended afterwards."""
    flags = ("--state-dir", state_dir, "--env-file", state_dir / "env", "--mount", mount)
    with subprocess.Popen(
        [sys.executable, "-m", "exaifs", "dev", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_for({"EXAIFS_LITE_DIR": str(LITE_DIR)}),
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until(condition: Callable[[], bool], deadline_s: float = READY_TIMEOUT_S) -> None:
    """Poll what other processes do."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)


def wait_ready(process: subprocess.Popen[str]) -> str:
    """Read what it says until the last line of the status; return it."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith("  Stop"):
            return said
    pytest.fail(f"exaifs dev ended before it was ready:\n{said}")


def is_mounted(path: Path) -> bool:
    """Whether exaifs is mounted there; asks only the mount table."""
    found = mountpoint.find(path)
    return found is not None and found.is_ours


def child(state_dir: Path, record: str) -> ProcessId:
    """Return a process that exaifs dev has written down."""
    found = ProcessId.from_json(json.loads((state_dir / record).read_text()))
    assert found is not None
    return found


def key_in(env_file: Path) -> str:
    """Return the key that was handed out."""
    return dict(line.split("=", 1) for line in env_file.read_text().splitlines())[
        "SUPABASE_SERVICE_ROLE_KEY"
    ]


def test_first_run_then_ctrl_c(state_dir: Path, files: Path) -> None:
    """One command gives a mount with sample files; Ctrl-C unmounts and leaves no process; no key leaks."""
    with dev(state_dir, files) as process:
        said = wait_ready(process)
        key = key_in(state_dir / "env")
        assert stat.S_IMODE((state_dir / "env").stat().st_mode) == 0o600
        for name, content in sample_files().items():
            assert (files / name).read_bytes() == content
        assert os.getxattr(files / "README.md", "user.exai.state") == b"clean"
        children = [child(state_dir, record) for record in ("server.json", "mount.json")]
        for pid in (process.pid, *(identity.pid for identity in children)):
            assert key.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        (files / "mine.txt").write_text("kept")
        (files / "README.md").unlink()
        process.send_signal(signal.SIGINT)
        output, more = process.communicate(timeout=STOP_TIMEOUT_S)
    assert process.returncode == 0
    assert not is_mounted(files)
    assert not any(identity.runs() for identity in children)
    assert output == ""
    for text in (said, more, (state_dir / "mount.log").read_text()):
        assert key not in text


def test_second_run_keeps_files_and_umount_stops_it(state_dir: Path, files: Path) -> None:
    """What was saved is there again, a deleted sample is not; `exaifs umount` is a way to stop, too."""
    with dev(state_dir, files) as process:
        wait_ready(process)
        assert (files / "mine.txt").read_text() == "kept"
        assert not (files / "README.md").exists()
        subprocess.run(
            [sys.executable, "-m", "exaifs", "umount", str(files)], check=True, timeout=STOP_TIMEOUT_S
        )
        process.communicate(timeout=STOP_TIMEOUT_S)
    assert process.returncode == 0


def test_what_kill_9_leaves_is_healed_by_the_next_run(state_dir: Path, files: Path) -> None:
    """The orphaned mount is ended, the server is gone already, and everything starts as usual."""
    with dev(state_dir, files) as process:
        wait_ready(process)
        server, daemon = child(state_dir, "server.json"), child(state_dir, "mount.json")
        process.kill()
        process.communicate(timeout=STOP_TIMEOUT_S)
    wait_until(lambda: not server.runs())
    with dev(state_dir, files) as process:
        wait_ready(process)
        assert not daemon.runs()
        assert (files / "mine.txt").read_text() == "kept"
    assert not is_mounted(files)


def test_death_of_the_server_is_reported_and_unmounts(state_dir: Path, files: Path) -> None:
    """One line says that it ended; the mount does not stay behind without it."""
    with dev(state_dir, files) as process:
        wait_ready(process)
        os.kill(child(state_dir, "server.json").pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=STOP_TIMEOUT_S)
    assert process.returncode == 1
    assert "exaifs: the embedded Supabase ended" in errors
    assert not is_mounted(files)


def test_a_full_directory_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """The mount would hide what is there: exit code 4, and no server, no state."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "precious").touch()
    with dev(tmp_path / "state", tmp_path / "files") as process:
        _, errors = process.communicate(timeout=STOP_TIMEOUT_S)
    assert process.returncode == EXIT_MOUNT
    assert "is not empty" in errors
    assert not (tmp_path / "state").exists()
