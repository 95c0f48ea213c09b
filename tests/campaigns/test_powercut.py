"""The model of a disk: a program's own writes, traced, and what a power cut leaves of them."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaigns.powercut import Disk, calls, trace_command
from tests.support.mounts import wait_until

SCRIPT = """
import os, sys
root = sys.argv[1]
def sync(path):
    fd = os.open(path, os.O_RDONLY); os.fsync(fd); os.close(fd)
def create(name):
    return os.open(f"{root}/{name}", os.O_RDWR | os.O_CREAT)
fd = create("a")
os.write(fd, b"one"); os.fsync(fd); sync(root)
os.pwrite(fd, b"TWO", 3)
os.pwritev(fd, [b"x" * 5000, b"y"], 6)
os.mkdir(f"{root}/d")
other = create("d/b.tmp")
os.write(other, b"safe"); os.fdatasync(other)
os.rename(f"{root}/d/b.tmp", f"{root}/d/b"); sync(f"{root}/d"); sync(root)
os.write(other, b", not safe")
os.rename(f"{root}/old", f"{root}/new")
os.unlink(f"{root}/gone")
lost = create("lost"); os.write(lost, b"x"); os.fsync(lost)
os.ftruncate(fd, 1)
"""


def traced(tmp_path: Path) -> tuple[Path, Path, Disk]:
    """Run the script under strace; return the directory, the trace, and a model of before."""
    if shutil.which("strace") is None:
        pytest.skip("NO strace HERE: power cuts are not tested")
    root, log = tmp_path / "root", tmp_path / "trace"
    root.mkdir()
    for name in ("old", "gone"):
        (root / name).write_text(name)
    disk = Disk(root)
    subprocess.run(
        [*trace_command(log), sys.executable, "-c", SCRIPT, str(root)], check=True, timeout=120, cwd="/"
    )
    wait_until(lambda: "+++ exited" in log.read_text(), 120, "the trace is whole")
    return root, log, disk


def test_nothing_that_was_not_synced_is_left(tmp_path: Path) -> None:
    """Bytes need their file's fsync, names their directory's; what went without one is still there."""
    _root, log, disk = traced(tmp_path)
    for call in calls(log):
        disk.play(call)
    disk.rebuild(tmp_path / "after")
    found = {path.name: path.read_text() for path in (tmp_path / "after").rglob("*") if path.is_file()}
    assert found == {"a": "one", "b": "safe", "old": "old", "gone": "gone"}


def test_some_of_it_may_be_left(tmp_path: Path) -> None:
    """By chance more is there, never less, and if everything is, it is the directory itself."""
    root, log, disk = traced(tmp_path)
    for call in calls(log):
        disk.play(call)

    class Lucky(random.Random):
        """All of it."""

        def random(self) -> float:
            return 0.0

        def randint(self, _low: int, high: int) -> int:
            return high

    disk.rebuild(tmp_path / "all", Lucky())
    for path in root.rglob("*"):
        if path.is_file():
            assert (tmp_path / "all" / path.relative_to(root)).read_bytes() == path.read_bytes(), path
    assert not (tmp_path / "all/old").exists()
    for seed in range(20):
        disk.rebuild(tmp_path / f"some-{seed}", random.Random(seed))
        assert (tmp_path / f"some-{seed}/d/b").read_text().startswith("safe")
        assert (tmp_path / f"some-{seed}/a").read_bytes()[:1] == b"o"


def test_a_cut_in_the_middle(tmp_path: Path) -> None:
    """Only what was durable by then counts."""
    _root, log, disk = traced(tmp_path)
    found = calls(log)
    first_sync = next(call for call in found if call.name == "fsync")
    for call in found:
        if call.ended_s < first_sync.began_s:
            disk.play(call)
    disk.rebuild(tmp_path / "early")
    assert sorted(path.name for path in (tmp_path / "early").iterdir()) == ["gone", "old"]
