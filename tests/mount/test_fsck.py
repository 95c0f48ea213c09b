"""`exaifs fsck` beside a real mount, and after one was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import StoredBytes, exaifs, exaifs_mount
from tests.support.mounts import MountedDaemon

pytestmark = [pytest.mark.mount, pytest.mark.embedded]


def fsck(environment: dict[str, str], tmp_path: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    """Run it; return exit code and report."""
    file = tmp_path / "report.json"
    code, output = exaifs(environment, "fsck", "--json", str(file), *flags)
    assert file.exists(), output
    report = json.loads(file.read_text())
    assert isinstance(report, dict)
    return code, report


def problems(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return kind and outcome of all problems."""
    return [(each["kind"], each["outcome"]) for each in report["findings"] if each["severity"] == "problem"]


def cache_directory(mount: MountedDaemon) -> Path:
    """Return what the mount says."""
    return Path(json.loads(mount.sh("cat .exaifs/status.json"))["mount"]["cache_directory"])


def test_a_mount_at_work_is_clean_and_left_alone(
    mount: MountedDaemon, mount_environment: dict[str, str], tmp_path: Path
) -> None:
    """Open, cached and renamed files are in order; damage is found, and repaired only once unmounted."""
    mount.sh("mkdir -p a/b empty; for n in 1 2 3 4 5; do echo $n > a/b/$n; done; mv a c; ln -s c link")
    mount.sh("cat c/b/*; rm c/b/5; setfattr -n user.note -v x c/b/1")
    with (mount.path / "open").open("wb") as file:
        file.write(b"not closed")
        file.flush()
        code, report = fsck(mount_environment, tmp_path, "--repair", "--deep")
    assert (code, problems(report)) == (0, []), report
    assert report["mounted_at"] == str(mount.path)
    contents = [path for path in (cache_directory(mount) / "content").rglob("*") if path.is_file()]
    assert report["checked"]["contents"] >= len(contents) - 1 > 0
    contents[0].write_bytes(b"damaged")
    code, report = fsck(mount_environment, tmp_path, "--repair")
    assert (code, problems(report)) == (1, [("content_damaged", "left")])
    mount.stop()
    code, report = fsck(mount_environment, tmp_path, "--repair")
    assert (code, problems(report)) == (0, [("content_damaged", "repaired")])
    assert fsck(mount_environment, tmp_path)[0] == 0
    mount.start()
    assert mount.sh("cat c/b/1 c/b/2 c/b/3 c/b/4 open") == "1\n2\n3\n4\nnot closed"


def test_after_kill_9(mount_environment: dict[str, str], tmp_path: Path, stored: StoredBytes) -> None:
    """What was acknowledged is in order; what was not is kept as a conflict; the next mount goes on."""
    environment = {**mount_environment, "EXAIFS_WRITE_MODE": "back", "EXAIFS_WRITE_BACK_S": "60"}
    with exaifs_mount(environment, tmp_path) as mount:
        mount.expected |= {"adopted a file that was not sent", "healed a mountpoint"}
        mount.sh("echo closed > closed")
        with (mount.path / "open").open("wb") as file:
            file.write(b"never closed")
            file.flush()
            mount.kill9()
            with pytest.raises(OSError, match=r"not connected|aborted"):
                file.close()
        code, report = fsck(environment, tmp_path)
        assert code == 1
        assert sorted(problems(report)) == [
            ("pending_without_record", "found"),
            ("staged_without_record", "found"),
        ]
        assert fsck(environment, tmp_path, "--repair")[0] == 0
        assert fsck(environment, tmp_path)[0] == 0
        mount.start()
        assert mount.sh("cat closed; ls") == "closed\nclosed\n"
        code, output = exaifs({}, "conflicts", "--json", str(mount.path))
        (conflict,) = json.loads(output)["conflicts"]
        assert Path(conflict["data"]).read_bytes() == b"never closed"
        mount.stop()
    assert stored("closed") == b"closed\n"
