"""Files that are used by several programs at once, or in unusual ways, as on a local file system."""

# These tests are about system calls, under the names that they have.
# ruff: noqa: PTH104, PTH115, PTH116, PTH208, PTH211
from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import StoredBytes
from tests.support.mounts import MountedDaemon, within
from tests.support.twins import Twins, outcome

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

_LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


def _renameat2(old: Path, new: Path, flags: int) -> None:
    failed = _LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)
    if failed:
        raise OSError(ctypes.get_errno(), "renameat2")


def _python(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE)


def _all_end(processes: list[subprocess.Popen[bytes]], deadline_s: float) -> list[bytes]:
    try:
        return [process.communicate(timeout=deadline_s)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_append_from_several_processes(twins: Twins) -> None:
    """O_APPEND: no record of any writer is lost or torn."""
    script = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for number in range(100):
    os.write(fd, f"{sys.argv[2]} {number:04d}\\n".encode())
os.close(fd)
"""
    path = twins.remote / "log"
    writers = [_python(script, str(path), str(number)) for number in range(4)]
    within(120, lambda: _all_end(writers, 110))
    lines = within(120, path.read_bytes).decode().splitlines()
    assert sorted(lines) == sorted(f"{w} {n:04d}" for w in range(4) for n in range(100))


def test_shared_memory_map(twins: Twins) -> None:
    """A shared map is written, msynced and closed; the bytes are there, and stay after a remount."""
    path = twins.remote / "map"

    def write() -> bytes:
        path.write_bytes(b"." * 10_000)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 10_000) as memory:
            memory[4000:4005] = b"hello"
            memory.flush()
            seen = path.read_bytes()[4000:4005]
            memory[9000:9005] = b"later"
        return seen

    assert within(120, write) == b"hello"
    expected = b"." * 4000 + b"hello" + b"." * 4995 + b"later" + b"." * 995
    assert within(120, path.read_bytes) == expected
    twins.mount.restart()
    assert within(120, path.read_bytes) == expected


def test_private_map_and_readers(twins: Twins) -> None:
    """A map for reading shows what write(2) changes; a private one changes nothing."""

    def use(directory: Path) -> tuple[bytes, bytes]:
        path = directory / "file"
        path.write_bytes(b"a" * 8192)
        with (
            path.open("r+b", buffering=0) as file,
            mmap.mmap(file.fileno(), 8192, prot=mmap.PROT_READ) as shared,
        ):
            os.pwrite(file.fileno(), b"new", 5000)
            with mmap.mmap(file.fileno(), 8192, access=mmap.ACCESS_COPY) as private:
                private[:3] = b"mine"[:3]
            return shared[4998:5005], path.read_bytes()[:4]

    twins.agree(use)


def test_unlinked_and_replaced_while_open(twins: Twins) -> None:
    """Whoever has a removed or replaced file open goes on reading, writing and asking about it."""

    def use(directory: Path) -> list[Any]:
        found: list[Any] = []
        for how in ("unlink", "replace"):
            path = directory / how
            path.write_bytes(b"first")
            with path.open("r+b", buffering=0) as file:
                if how == "unlink":
                    path.unlink()
                else:
                    (directory / "other").write_bytes(b"other")
                    (directory / "other").rename(path)
                status = os.fstat(file.fileno())
                found.append((status.st_nlink, status.st_size, file.read()))
                file.write(b" and more")
                os.fchmod(file.fileno(), 0o600)
                os.ftruncate(file.fileno(), 12)
                os.fsync(file.fileno())
                status = os.fstat(file.fileno())
                found.append((status.st_nlink, status.st_size, status.st_mode))
                found.append(os.pread(file.fileno(), 100, 0))
            found.append(outcome(path.read_bytes))
        found.append(sorted(os.listdir(directory)))
        return found

    twins.agree(use)


def test_a_removed_directory_that_is_open(twins: Twins) -> None:
    """It is empty, has no links, and takes no new names."""

    def use(directory: Path) -> list[Any]:
        (directory / "dir").mkdir()
        fd = os.open(directory / "dir", os.O_RDONLY | os.O_DIRECTORY)
        try:
            (directory / "dir").rmdir()
            return [
                os.fstat(fd).st_nlink,
                os.listdir(fd),
                outcome(lambda: os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)),
                outcome(lambda: os.mkdir("new", dir_fd=fd)),
            ]
        finally:
            os.close(fd)

    twins.agree(use)


def test_rename_of_what_is_open(twins: Twins) -> None:
    """Bytes written before and after a rename of an open file arrive under its last name."""

    def use(directory: Path) -> list[Any]:
        (directory / "target").write_bytes(b"old")
        os.setxattr(directory / "target", "user.old", b"x")
        with (directory / "source").open("wb", buffering=0) as file:
            file.write(b"one ")
            (directory / "source").rename(directory / "middle")
            file.write(b"two ")
            (directory / "middle").rename(directory / "target")
            file.write(b"three")
            middle = (directory / "target").read_bytes()
        attributes = [name for name in os.listxattr(directory / "target") if name == "user.old"]
        return [middle, (directory / "target").read_bytes(), attributes, sorted(os.listdir(directory))]

    assert twins.agree(use)[1] == b"one two three"
    twins.mount.restart()
    assert within(120, (twins.remote / "target").read_bytes) == b"one two three"
    assert "user.old" not in within(120, lambda: os.listxattr(twins.remote / "target"))


def test_rename_flags(twins: Twins) -> None:
    """RENAME_NOREPLACE keeps the target; EXCHANGE and WHITEOUT are refused with EINVAL."""

    def use(directory: Path) -> list[Any]:
        (directory / "a").write_bytes(b"a")
        (directory / "b").write_bytes(b"b")
        (directory / "d").mkdir()
        (directory / "e").mkdir()
        return [
            outcome(lambda: _renameat2(directory / "a", directory / "b", NOREPLACE)),
            outcome(lambda: _renameat2(directory / "d", directory / "e", NOREPLACE)),
            outcome(lambda: _renameat2(directory / "a", directory / "c", NOREPLACE)),
            outcome(lambda: _renameat2(directory / "d", directory / "f", NOREPLACE)),
            outcome(lambda: _renameat2(directory / "a", directory / "b", NOREPLACE | EXCHANGE)),
            outcome(lambda: (directory / "f").rename(directory / "f" / "g")),
            outcome(lambda: (directory / "b").rename(directory / "e")),
            outcome(lambda: (directory / "e").rename(directory / "b")),
            outcome(lambda: os.rename(directory / "b", directory / "b")),
            sorted(os.listdir(directory)),
        ]

    twins.agree(use)
    for flags in (EXCHANGE, WHITEOUT):
        found = within(
            30,
            lambda f=flags: outcome(lambda: _renameat2(twins.remote / "b", twins.remote / "c", f)),  # type: ignore[misc]  # bound now
        )
        assert found == "EINVAL"
    assert within(120, (twins.remote / "b").read_bytes) == b"b"


def test_links_and_devices_are_refused(twins: Twins) -> None:
    """What a bucket cannot hold is EPERM, and leaves nothing behind."""

    def use() -> list[Any]:
        (twins.remote / "file").touch()
        return [
            outcome(lambda: os.link(twins.remote / "file", twins.remote / "hard")),
            outcome(lambda: os.mkfifo(twins.remote / "fifo")),
            os.listdir(twins.remote),
        ]

    assert within(120, use) == ["EPERM", "EPERM", ["file"]]


def test_sparse_files_and_sizes(twins: Twins) -> None:
    """Growing makes zeros, shrinking forgets, holes read as zeros; st_size is right at every step."""

    def use(directory: Path) -> list[Any]:
        path = directory / "file"
        found: list[Any] = []
        with path.open("w+b", buffering=0) as file:
            for step in (
                lambda: os.pwrite(file.fileno(), b"x", 100_000),
                lambda: os.ftruncate(file.fileno(), 50),
                lambda: os.ftruncate(file.fileno(), 200),
                lambda: os.pwrite(file.fileno(), b"abc", 198),
                lambda: os.truncate(path, 199),
                lambda: os.pread(file.fileno(), 500, 190),
                lambda: os.pread(file.fileno(), 500, 199),
                lambda: os.lseek(file.fileno(), 0, os.SEEK_END),
            ):
                result = outcome(step)
                found.append((result, path.stat().st_size, os.fstat(file.fileno()).st_size))
        return [*found, path.read_bytes()]

    twins.agree(use)


def test_calls_that_need_help_from_the_file_system(twins: Twins) -> None:
    """copy_file_range copies, fallocate is refused as programs expect it, SEEK_DATA sees all data."""

    def use() -> list[Any]:
        (twins.remote / "a").write_bytes(b"0123456789" * 1000)
        with (twins.remote / "a").open("r+b") as a, (twins.remote / "b").open("w+b") as b:
            copied = os.copy_file_range(a.fileno(), b.fileno(), 10_000)
            spliced = os.sendfile(b.fileno(), a.fileno(), 0, 5000)
            return [
                copied,
                spliced,
                _LIBC.fallocate(a.fileno(), 0, ctypes.c_long(0), ctypes.c_long(100)) and ctypes.get_errno(),
                os.lseek(a.fileno(), 5, os.SEEK_DATA),
                os.lseek(a.fileno(), 5, os.SEEK_HOLE),
                outcome(lambda: os.lseek(a.fileno(), 20_000, os.SEEK_DATA)),
                outcome(lambda: os.posix_fallocate(b.fileno(), 0, 20_000)),
                os.fstat(b.fileno()).st_size,
            ]

    assert within(120, use) == [10_000, 5000, errno.EOPNOTSUPP, 5, 10_000, "ENXIO", None, 20_000]
    assert within(120, (twins.remote / "b").read_bytes)[:15_000] == b"0123456789" * 1500


def test_locks_between_processes(twins: Twins) -> None:
    """flock(2) and fcntl(2) locks of one process are seen by another on this host."""
    script = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    for name in ("flock", "lockf"):
        try:
            getattr(fcntl, name)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            print("free", flush=True)
        except BlockingIOError:
            print("locked", flush=True)
"""
    path = twins.remote / "file"

    def use() -> list[bytes]:
        path.write_bytes(b"x" * 100)
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            fcntl.lockf(file, fcntl.LOCK_EX)
            held = _all_end([_python(script, str(path))], 55)
        return [*held, *_all_end([_python(script, str(path))], 55)]

    assert within(120, use) == [b"locked\nlocked\n", b"free\nfree\n"]


def test_listing_while_names_come_and_go(twins: Twins) -> None:
    """Names that stay are listed exactly once, though a third is deleted and as many made meanwhile."""
    stays = {f"stay{number}" for number in range(60)}

    def use() -> list[str]:
        for name in [*stays, *(f"goes{number}" for number in range(20))]:
            (twins.remote / name).symlink_to("x")
        seen = []
        with os.scandir(twins.remote) as entries:
            for position, entry in enumerate(entries):
                seen.append(entry.name)
                if entry.name.startswith("goes"):
                    (twins.remote / entry.name).unlink()
                if position % 10 == 0:
                    (twins.remote / f"new{position}").symlink_to("x")
        return seen

    seen = within(300, use)
    assert len(seen) == len(set(seen))
    assert stays <= set(seen)
    assert len([name for name in seen if name.startswith("goes")]) == 20


def test_seekdir_goes_back_to_where_telldir_was(twins: Twins) -> None:
    """A cookie stays good while the directory changes."""
    names = {f"n{number:04d}" for number in range(90)}
    _LIBC.opendir.restype = ctypes.c_void_p
    _LIBC.readdir.restype = ctypes.c_void_p
    _LIBC.telldir.restype = ctypes.c_long

    def read(stream: ctypes.c_void_p) -> str | None:
        entry = _LIBC.readdir(stream)
        return None if entry is None else os.fsdecode(ctypes.string_at(entry + 19))

    def use() -> tuple[list[str], list[str]]:
        for name in names:
            (twins.remote / name).mkdir()
        stream = ctypes.c_void_p(_LIBC.opendir(os.fsencode(twins.remote)))
        try:
            for _ in range(30):
                read(stream)
            position = ctypes.c_long(_LIBC.telldir(stream))
            first = [name for name in iter(lambda: read(stream), None) if name not in {".", ".."}]
            (twins.remote / "a-new-one").mkdir()
            (twins.remote / first[-1]).rmdir()
            _LIBC.seekdir(stream, position)
            again = [name for name in iter(lambda: read(stream), None) if name not in {".", ".."}]
        finally:
            _LIBC.closedir(stream)
        return first, again

    first, again = within(300, use)
    assert len(again) >= 50
    assert set(first[:-1]) <= set(again) | {first[-1]}
    assert len(again) == len(set(again))


def test_extended_attributes(twins: Twins) -> None:
    """Create, replace, remove, sizes and errnos as on a local file system; values are bytes."""

    def use(directory: Path) -> list[Any]:
        path = directory / "file"
        path.touch()

        def put(name: str, value: bytes, flags: int = 0) -> Any:
            return outcome(lambda: os.setxattr(path, name, value, flags))

        return [
            put("user.a", b"1", os.XATTR_REPLACE),
            put("user.a", b"1", os.XATTR_CREATE),
            put("user.a", b"2", os.XATTR_CREATE),
            put("user.a", b"\0\xff", os.XATTR_REPLACE),
            os.getxattr(path, "user.a"),
            put("user.empty", b""),
            os.getxattr(path, "user.empty"),
            outcome(lambda: os.getxattr(path, "user.none")),
            outcome(lambda: os.removexattr(path, "user.none")),
            outcome(lambda: os.removexattr(path, "user.a")),
            put("user." + "n" * 250, b"x"),
            put("user." + "n" * 251, b"x"),
            put("user.", b"x"),
            put("none.a", b"x"),
            put("user.big", b"x" * 3000),
            put("user.huge", b"x" * 65537),
            sorted(
                name
                for name in os.listxattr(path)
                if not name.startswith(("user.exai", "user.c", "user.m"))
            ),
            outcome(lambda: os.setxattr(directory, "user.dir", b"y")),
            os.getxattr(directory, "user.dir"),
        ]

    twins.agree(use)


def test_large_attribute_values(twins: Twins) -> None:
    """64 KiB, the limit of Linux, goes in and comes out, also from Supabase."""
    path, value = twins.remote / "file", os.urandom(65536)

    def put() -> None:
        path.touch()
        os.setxattr(path, "user.big", value)

    within(120, put)
    twins.mount.restart()
    assert within(120, lambda: os.getxattr(path, "user.big")) == value


def test_statfs(twins: Twins) -> None:
    """What df shows: room, the right name limit, and what is stored as used."""
    within(120, lambda: (twins.remote / "file").write_bytes(b"x" * 1_000_000))
    found = within(120, lambda: os.statvfs(twins.remote))
    assert found.f_namemax == 255
    assert found.f_bavail > 0
    assert found.f_ffree > 0
    assert (found.f_blocks - found.f_bfree) * found.f_frsize >= 1_000_000 - found.f_frsize


def test_links_of_directories(twins: Twins) -> None:
    """A directory has two links and one for each directory in it, as find(1) expects."""

    def use(directory: Path) -> list[Any]:
        (directory / "a" / "b").mkdir(parents=True)
        (directory / "a" / "c").mkdir()
        (directory / "a" / "f").touch()
        before = (directory / "a").stat().st_nlink
        (directory / "a" / "b").rename(directory / "b")
        (directory / "a" / "c").rmdir()
        inodes = [
            os.stat(p).st_ino
            for p in (directory / "a" / ".", directory / "a", directory / "b" / ".." / "a")
        ]
        return [before, (directory / "a").stat().st_nlink, len(set(inodes)), directory.stat().st_nlink]

    twins.agree(use)


@pytest.mark.slow
def test_a_large_directory(mount: MountedDaemon, stored: StoredBytes) -> None:
    """Hundreds of names (thousands in the campaign) are listed and renamed with their directory."""
    count = int(os.environ.get("EXAIFS_TEST_NAMES", "80"))

    def fill() -> None:
        (mount.path / "old" / "sub").mkdir(parents=True)
        for number in range(count):
            os.symlink(str(number), mount.path / "old" / ("sub" if number % 2 else ".") / f"n{number:05d}")

    def listed(name: str) -> int:
        return sum(len(names) for _at, _dirs, names in os.walk(mount.path / name))

    within(max(5 * count, 400), fill)
    assert within(120, lambda: listed("old")) == count
    within(max(5 * count, 400), lambda: (mount.path / "old").rename(mount.path / "new"))
    assert within(120, lambda: (listed("old"), listed("new"))) == (0, count)
    assert within(120, lambda: os.readlink(mount.path / "new" / "sub" / "n00077")) == "77"
    assert stored("old/sub/n00077") is None
    assert stored("new/sub/n00077") == b"77"
