"""Test suites of others, where they are given: PJDFSTEST_DIR names a built pjdfstest, FSX an fsx program.

What is left out is listed with its reason in `excluded.json`; everything else must pass.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.mounts import within
from tests.support.twins import Twins

pytestmark = [pytest.mark.mount, pytest.mark.embedded, pytest.mark.timeout(1200)]

GROUPS = (
    "open",
    "mkdir",
    "rmdir",
    "rename",
    "unlink",
    "truncate",
    "ftruncate",
    "symlink",
    "chmod",
    "chown",
    "utimensat",
)
EXCLUDED = json.loads(Path(__file__).with_name("excluded.json").read_text(encoding="utf-8"))
_FILE_DEADLINE_S = 180


@pytest.fixture(scope="module")
def pjdfstest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the suite whose loops leave out the types of files that do not exist here."""
    given = os.environ.get("PJDFSTEST_DIR")
    if not given:
        pytest.skip("PJDFSTEST_DIR names no built pjdfstest")
    if os.geteuid() != 0:
        pytest.skip("pjdfstest changes users: it needs root")
    copy = tmp_path_factory.mktemp("pjdfstest")
    shutil.copy(Path(given) / "pjdfstest", copy)
    shutil.copytree(Path(given) / "tests", copy / "tests")
    types = "|".join(EXCLUDED["types"]["names"])
    for path in (copy / "tests").rglob("*.t"):
        text = path.read_text()
        loops = re.compile(r"^\s*for type\d? in .*$", re.MULTILINE)
        path.write_text(loops.sub(lambda loop: re.sub(rf" (?:{types})\b", "", loop[0]), text))
    configuration = copy / "tests" / "conf"
    # The suite knows gcsfuse as a file system without hard links.
    configuration.write_text(re.sub(r"fs=`df -PT.*`", "fs=FUSE.GCSFUSE", configuration.read_text()))
    return copy


@pytest.mark.parametrize("group", GROUPS)
def test_pjdfstest(pjdfstest: Path, twins: Twins, group: str) -> None:
    """Every case of a group that can hold on a bucket passes, as root and as other users."""
    failures = []
    for path in sorted((pjdfstest / "tests" / group).glob("*.t")):
        name = f"{group}/{path.name}"
        if name in EXCLUDED["files"] or name in EXCLUDED["files_on_the_embedded_server"]:
            continue
        output = twins.mount.sh(
            f"cd {twins.remote.name}; sh {path} 2>/dev/null", timeout_s=_FILE_DEADLINE_S, check=False
        )
        wrong = [line for line in output.splitlines() if line.startswith("not ok") and "TODO" not in line]
        failures += [f"{name}: {line}" for line in wrong]
        if "ok " not in output:
            failures.append(f"{name}: said {output!r}")
    assert failures == []


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_fsx(twins: Twins, seed: int) -> None:
    """Reads, writes, maps and truncations at random, checked byte by byte by fsx itself."""
    fsx = os.environ.get("FSX")
    if not fsx:
        pytest.skip("FSX names no fsx program")

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [fsx, "-q", "-N", "2000", "-S", str(seed), str(twins.remote / "file")],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    finished = within(620, run)
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-4000:]
