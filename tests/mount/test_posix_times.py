"""mtime, ctime and atime after each operation, as on a local file system."""

# These tests are about system calls, under the names that they have.
# ruff: noqa: PTH208
from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from exaifs.model import MAX_TIME_NS
from tests.support.mounts import within
from tests.support.twins import Twins

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

OLD_NS = 1_000_000_000 * 10**9 + 123_456_789


def _write(path: Path, data: bytes, offset: int = 0) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


OPERATIONS: dict[str, Callable[[Path], object]] = {
    "write": lambda d: _write(d / "file", b"new"),
    "append": lambda d: _write(d / "file", b"more", 4),
    "write nothing": lambda d: _write(d / "file", b""),
    "open and close for writing": lambda d: os.close(os.open(d / "file", os.O_RDWR)),
    "O_TRUNC": lambda d: os.close(os.open(d / "file", os.O_WRONLY | os.O_TRUNC)),
    "O_TRUNC of an empty file": lambda d: os.close(os.open(d / "empty", os.O_WRONLY | os.O_TRUNC)),
    "O_CREAT of what exists": lambda d: os.close(os.open(d / "file", os.O_WRONLY | os.O_CREAT)),
    "truncate shorter": lambda d: os.truncate(d / "file", 1),
    "truncate longer": lambda d: os.truncate(d / "file", 9),
    "chmod": lambda d: (d / "file").chmod(0o600),
    "chmod to the same": lambda d: (d / "file").chmod(0o644),
    "chmod of a directory": lambda d: (d / "dir").chmod(0o700),
    "chown": lambda d: os.chown(d / "file", os.getuid(), os.getgid()),
    "utime": lambda d: os.utime(d / "file", ns=(OLD_NS + 1, OLD_NS + 2)),
    "utime of a directory": lambda d: os.utime(d / "dir", ns=(OLD_NS + 1, OLD_NS + 2)),
    "utime now": lambda d: os.utime(d / "file"),
    "setxattr": lambda d: os.setxattr(d / "file", "user.note", b"text"),
    "create": lambda d: (d / "dir" / "new").touch(),
    "mkdir": lambda d: (d / "dir" / "new").mkdir(),
    "symlink": lambda d: (d / "dir" / "new").symlink_to("x"),
    "unlink": lambda d: (d / "dir" / "inner").unlink(),
    "rmdir": lambda d: (d / "dir" / "sub").rmdir(),
    "rename within": lambda d: (d / "dir" / "inner").rename(d / "dir" / "other"),
    "rename away": lambda d: (d / "dir" / "inner").rename(d / "other"),
    "rename over": lambda d: (d / "file").rename(d / "dir" / "inner"),
    "rename a directory": lambda d: (d / "dir" / "sub").rename(d / "sub"),
    "read a directory": lambda d: os.listdir(d / "dir"),
    "read a file": lambda d: (d / "file").read_bytes(),
    "read a link": lambda d: (d / "link").readlink(),
    "stat": lambda d: (d / "file").stat(),
}


def _build(directory: Path) -> None:
    (directory / "file").write_bytes(b"text")
    (directory / "empty").touch()
    (directory / "dir" / "sub").mkdir(parents=True)
    (directory / "dir" / "inner").write_bytes(b"in")
    (directory / "link").symlink_to("file")
    for path in [directory / "file", directory / "empty", *directory.rglob("*"), directory]:
        os.utime(path, ns=(OLD_NS, OLD_NS), follow_symlinks=False)


def _times(directory: Path) -> dict[str, tuple[int, int]]:
    paths = [directory, *directory.rglob("*")]
    return {str(p.relative_to(directory)): (p.lstat().st_mtime_ns, p.lstat().st_ctime_ns) for p in paths}


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_an_operation_does_to_times(twins: Twins, name: str) -> None:
    """The same names get a new mtime, and the same a new ctime, as on a local file system."""

    def changed(directory: Path) -> dict[str, tuple[bool, bool]]:
        _build(directory)
        before = _times(directory)
        time.sleep(0.02)  # ext4 takes times from the kernel's tick
        OPERATIONS[name](directory)
        return {
            path: (now[0] != before[path][0], now[1] != before[path][1])
            for path, now in _times(directory).items()
            if path in before
        }

    twins.agree(changed)


def test_times_are_exact_and_kept(twins: Twins) -> None:
    """Nanoseconds set are nanoseconds shown, beyond 2038 too, and after a restart."""
    moments = [OLD_NS, 1, 0, 2**32 * 10**9 + 7]

    def set_all() -> None:
        for number, moment in enumerate(moments):
            path = twins.remote / str(number)
            path.touch()
            os.utime(path, ns=(moment, moment))
            (twins.remote / f"d{number}").mkdir()
            os.utime(twins.remote / f"d{number}", ns=(moment, moment))

    def shown() -> list[int]:
        return [
            (twins.remote / f"{kind}{n}").stat().st_mtime_ns
            for kind in ("", "d")
            for n in range(len(moments))
        ]

    within(120, set_all)
    assert within(120, shown) == moments * 2
    twins.mount.restart()
    assert within(120, shown) == moments * 2


def test_times_that_cannot_be_kept(twins: Twins) -> None:
    """Before 1970 and after 2116 the nearest time that can be kept is taken, as other file systems do."""
    path = twins.remote / "file"

    def set_time(moment_ns: int) -> int:
        path.touch()
        os.utime(path, ns=(moment_ns, moment_ns))
        return path.stat().st_mtime_ns

    assert within(120, lambda: set_time(253402300799 * 10**9)) == MAX_TIME_NS
    assert within(120, lambda: set_time(-5 * 10**9)) == 0


def test_the_order_of_mtimes_is_the_order_of_writes(twins: Twins) -> None:
    """make(1) and rsync go by it: a later write never has an earlier mtime, by one clock."""

    def write() -> list[int]:
        times = []
        for number in range(20):
            (twins.remote / str(number)).write_bytes(b"x")
            times.append((twins.remote / str(number)).stat().st_mtime_ns)
        return times

    before = time.time_ns()
    times = within(120, write)
    assert times == sorted(times)
    assert before <= times[0]
    assert times[-1] <= time.time_ns()


def test_atime_is_relatime_like(twins: Twins) -> None:
    """A first read after a change is noted, an explicit atime is shown, and reading moves nothing else."""
    path = twins.remote / "file"

    def use() -> list[bool]:
        path.write_bytes(b"text")
        os.utime(path, ns=(OLD_NS, OLD_NS + 5))
        explicit = path.stat()
        twins.mount.drop_kernel_caches()
        path.read_bytes()
        read = path.stat()
        return [
            (explicit.st_atime_ns, explicit.st_mtime_ns) == (OLD_NS, OLD_NS + 5),
            read.st_atime_ns > OLD_NS,
            (read.st_mtime_ns, read.st_ctime_ns) == (explicit.st_mtime_ns, explicit.st_ctime_ns),
        ]

    if os.geteuid() != 0:
        pytest.skip("only root can drop the kernel's caches")
    assert within(120, use) == [True, True, True]
