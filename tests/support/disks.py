"""Small real file systems that a test may fill, take away and break. They need root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

THOROUGH = os.environ.get("EXAIFS_THOROUGH", "") != ""
"""Whether every combination is tested (`make resources`), and not only those that differ most."""

KINDS = ["ext4", "tmpfs"] if THOROUGH else ["ext4"]
"""File systems to test on: what most hosts have, and one in memory."""

_DEADLINE_S = 120


class SmallDisk:
    """A mounted file system of its own.

    Args:
        path: where it is mounted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    @property
    def free_bytes(self) -> int:
        """Room that is left."""
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Use up the room, but for so much."""
        with suppress(OSError), self._filler.open("ab", buffering=0) as file:
            while self.free_bytes - 65536 >= leave_bytes:
                file.write(b"x" * 65536)
            while self.free_bytes - 4096 >= leave_bytes and file.write(b"x" * 4096):
                pass

    def make_room(self) -> None:
        """Give it back."""
        self._filler.unlink()

    def use_up_inodes(self) -> None:
        """Make files until no more can be made."""
        directory = self.path / "fillers"
        with suppress(OSError):
            directory.mkdir()
            for number in range(1_000_000):
                (directory / str(number)).touch()

    def give_inodes_back(self) -> None:
        """Remove those."""
        directory = self.path / "fillers"
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()

    def remount(self, mode: str) -> None:
        """Make it `ro` or `rw`."""
        _run("mount", "-o", f"remount,{mode}", str(self.path))

    def used_bytes(self) -> int:
        """Return what du(1) counts."""
        return int(_run("du", "-s", "--block-size=1", str(self.path)).split()[0])


@contextmanager
def disk_of(kind: str, scratch: Path, *, size_mib: int) -> Iterator[SmallDisk]:
    """Mount a disk of one of `KINDS` at `scratch/disk`; skip loudly where that is not allowed."""
    path = scratch / "disk"
    with (
        small_ext4(path, scratch / "image", size_mib=size_mib)
        if kind == "ext4"
        else small_disk(path, size_mib=size_mib)
    ) as disk:
        yield disk


@contextmanager
def small_disk(path: Path, *, size_mib: int, inodes: int = 0) -> Iterator[SmallDisk]:
    """Mount a tmpfs; skip loudly where that is not allowed.

    Args:
        path: a directory; made if it is missing.
        size_mib: its size.
        inodes: how many it has; 0: enough.
    """
    path.mkdir(exist_ok=True)
    options = f"size={size_mib}m,mode=0700" + (f",nr_inodes={inodes}" if inodes else "")
    _mount(["-t", "tmpfs", "-o", options, "tmpfs", str(path)])
    try:
        yield SmallDisk(path)
    finally:
        _unmount(path)


@contextmanager
def small_ext4(path: Path, image: Path, *, size_mib: int) -> Iterator[SmallDisk]:
    """Mount an ext4 in a file, which behaves as the disks of most hosts do; skip loudly if not allowed.

    Args:
        path: a directory; made if it is missing.
        image: the file; made here.
        size_mib: its size.
    """
    path.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    # Users have no sbin on their path, and small images do not have the program at all.
    mkfs = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if mkfs is None:
        pytest.skip("NOT TESTED: a small ext4; there is no mkfs.ext4 (Debian's package e2fsprogs)")
    _run(mkfs, "-q", "-m", "0", "-F", str(image))
    _mount(["-o", "loop", str(image), str(path)])
    try:
        yield SmallDisk(path)
    finally:
        _unmount(path)


def _mount(arguments: list[str]) -> None:
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, timeout=_DEADLINE_S)
    if done.returncode != 0:
        pytest.skip(f"NOT TESTED: a small disk; mounting one needs root: {done.stderr!r}")


def _unmount(path: Path) -> None:
    done = subprocess.run(["umount", str(path)], check=False, capture_output=True, timeout=_DEADLINE_S)
    if done.returncode != 0:
        _run("umount", "-l", str(path))


def _run(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, timeout=_DEADLINE_S, text=True)
    return done.stdout
