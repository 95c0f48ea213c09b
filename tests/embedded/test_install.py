from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from exaifs.embedded.install import cli_script, install, lock_hash
from tests.conftest import LITE_DIR, STOP_TIMEOUT_S

pytestmark = pytest.mark.embedded

DEAD_REGISTRY = {"npm_config_registry": "http://127.0.0.1:9/", "npm_config_fetch_retries": "0"}
"""Nothing listens on port 9 (discard), so npm fails at once: whoever calls it by mistake is noticed."""


@pytest.fixture(scope="module", autouse=True)
def installed() -> Path:
    """Make sure that the shared install is there."""
    return anyio.run(install, LITE_DIR)


def install_process(install_dir: Path) -> subprocess.Popen[str]:
    """Start an installer that has no registry."""
    return subprocess.Popen(
        [sys.executable, "-m", "exaifs.embedded", "--install-only"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **DEAD_REGISTRY, "EXAIFS_LITE_DIR": str(install_dir)},
    )


def test_an_installed_tree_is_used_without_npm(installed: Path) -> None:
    """The second call asks no registry."""
    with install_process(LITE_DIR) as process:
        _, errors = process.communicate(timeout=STOP_TIMEOUT_S)
    assert (process.returncode, errors) == (0, "")
    assert cli_script(installed).is_file()


def test_failure_of_npm_is_one_line_with_the_log(tmp_path: Path) -> None:
    """The line says why, what to check and where the log is; nothing half installed stays."""
    with install_process(tmp_path) as process:
        _, errors = process.communicate(timeout=STOP_TIMEOUT_S)
    assert process.returncode == 1
    lines = [line for line in errors.splitlines() if line.startswith("exaifs: ")]
    assert len(lines) == 1
    assert "npm could not install the embedded Supabase" in lines[0]
    assert "Check the network" in lines[0]
    assert str(tmp_path / "npm.log") in lines[0]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "npm.log"]


def test_a_second_installer_waits_and_uses_what_the_first_made(tmp_path: Path, installed: Path) -> None:
    """Two at once: one works, the other one finds the work done."""
    with (tmp_path / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with install_process(tmp_path) as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)
            (tmp_path / lock_hash()).symlink_to(installed)
            fcntl.flock(lock, fcntl.LOCK_UN)
            _, errors = process.communicate(timeout=STOP_TIMEOUT_S)
    assert (process.returncode, errors) == (0, "")


def test_the_lock_names_no_server() -> None:
    """Where packages come from is the user's npm setting; what they must be is the lock's."""
    package_dir = Path(sys.modules[install.__module__].__file__ or "").parent
    lock = (package_dir / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert "registry" not in lock
    assert lock.count('"integrity"') > 50
