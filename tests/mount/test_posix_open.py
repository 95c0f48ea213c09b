"""open(2) with every combination of flags does on the mount what it does on a local file system."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.mounts import within
from tests.support.twins import Twins, outcome

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

ACCESS = {"RDONLY": os.O_RDONLY, "WRONLY": os.O_WRONLY, "RDWR": os.O_RDWR}
FLAGS = {
    "CREAT": os.O_CREAT,
    "EXCL": os.O_EXCL,
    "TRUNC": os.O_TRUNC,
    "DIRECTORY": os.O_DIRECTORY,
    "NOFOLLOW": os.O_NOFOLLOW,
}
TARGETS = (
    "missing",
    "file",
    "dir",
    "link",
    "dangling",
    "dirlink",
    "file/",
    "missing/",
    "none/file",
    "file/x",
)


def _build(directory: Path) -> None:
    (directory / "file").write_bytes(b"some text")
    (directory / "dir").mkdir()
    (directory / "link").symlink_to("file")
    (directory / "dangling").symlink_to("nothing")
    (directory / "dirlink").symlink_to("dir")


def _state(directory: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.stat().st_size) for path in directory.iterdir() if path.is_file())


def _use(path: str, flags: int) -> tuple[Any, ...]:
    """Open, read, write at the end of what was read, close."""
    fd = os.open(path, flags, 0o640)
    try:
        read = outcome(lambda: os.read(fd, 4))
        written = outcome(lambda: os.write(fd, b"XY"))
        where = os.lseek(fd, 0, os.SEEK_CUR)
        return read, written, where, os.fstat(fd).st_mode
    finally:
        os.close(fd)


def _one(directory: Path, target: str, flags: int) -> tuple[Any, ...]:
    used = outcome(lambda: _use(f"{directory}/{target}", flags))
    state, content = _state(directory), outcome((directory / "file").read_bytes)
    if content != b"some text":
        (directory / "file").write_bytes(b"some text")
    for name, _size in state:
        if name not in {"file", "link"}:
            (directory / name).unlink()
    if not (directory / "dangling").is_symlink():
        (directory / "dangling").symlink_to("nothing")
    return used, state, content


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.slow
def test_every_combination(twins: Twins, access: str) -> None:
    """Errno, bytes read, bytes written, position, mode and what is left behind are the same."""
    twins.both(_build)
    names = list(FLAGS)
    differences = []
    for chosen in itertools.chain.from_iterable(
        itertools.combinations(names, length) for length in range(len(names) + 1)
    ):
        flags = ACCESS[access] | sum(FLAGS[name] for name in chosen)
        for target in TARGETS:
            found, expected = twins.both(lambda d, t=target, f=flags: _one(d, t, f))  # type: ignore[misc]  # bound now
            if found != expected:
                differences.append((access, *chosen, target, found, expected))
    assert differences == []


@pytest.mark.parametrize("name", ["APPEND", "SYNC", "NONBLOCK", "NOATIME", "PATH"])
def test_flags_that_change_little(twins: Twins, name: str) -> None:
    """O_APPEND writes at the end, O_SYNC returns when it is sent; the rest is the kernel's."""
    twins.both(_build)
    extra = getattr(os, f"O_{name}")
    for access, creat, target in itertools.product(
        ACCESS.values(), (0, os.O_CREAT, os.O_CREAT | os.O_TRUNC), ("file", "missing")
    ):
        twins.agree(lambda d, t=target, f=access | creat | extra: _one(d, t, f))  # type: ignore[misc]  # bound now


def test_o_sync_has_sent_what_it_wrote(twins: Twins) -> None:
    """A write through O_SYNC has reached Supabase when it returns: state is clean before close."""

    def write() -> tuple[bytes, bytes]:
        fd = os.open(twins.remote / "log", os.O_WRONLY | os.O_CREAT)
        synced = os.open(twins.remote / "log", os.O_WRONLY | os.O_SYNC)
        try:
            os.write(fd, b"one")
            before = os.getxattr(twins.remote / "log", "user.exai.state")
            os.write(synced, b"two")
            return before, os.getxattr(twins.remote / "log", "user.exai.state")
        finally:
            os.close(fd)
            os.close(synced)

    assert within(120, write) == (b"dirty", b"clean")


def test_o_direct(twins: Twins) -> None:
    """O_DIRECT reads and writes the bytes it names."""
    path = twins.remote / "direct"

    def use() -> bytes:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        try:
            os.pwrite(fd, b"x" * 4096, 0)
            os.pwrite(fd, b"y" * 512, 4096)
            return os.pread(fd, 8192, 0)
        finally:
            os.close(fd)

    assert within(120, use) == b"x" * 4096 + b"y" * 512
    assert within(120, path.read_bytes) == b"x" * 4096 + b"y" * 512


def test_o_tmpfile_is_refused(twins: Twins) -> None:
    """The kernel refuses O_TMPFILE with EOPNOTSUPP, for which programs make a named file."""
    found = within(120, lambda: outcome(lambda: os.open(twins.remote, os.O_TMPFILE | os.O_RDWR, 0o600)))
    assert found == errno.errorcode[errno.EOPNOTSUPP]


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_create_modes_and_umask(twins: Twins, umask: int) -> None:
    """New files, directories and links have the modes the umask leaves; setgid directories pass it on."""

    def make(directory: Path) -> list[int]:
        before = os.umask(umask)
        try:
            modes = (0, 0o400, 0o600, 0o644, 0o666, 0o755, 0o777, 0o2755, 0o4711)
            for mode in modes:
                os.close(os.open(directory / f"f{mode}", os.O_CREAT | os.O_WRONLY | os.O_EXCL, mode))
                (directory / f"d{mode}").mkdir(mode)
            (directory / "setgid").mkdir()
            (directory / "setgid").chmod(0o2775)
            (directory / "setgid" / "below").mkdir()
            (directory / "setgid" / "file").touch()
            (directory / "link").symlink_to("nowhere")
        finally:
            os.umask(before)
        return sorted(path.lstat().st_mode for path in directory.rglob("*"))

    twins.agree(make)


def test_a_running_program_cannot_be_written(twins: Twins) -> None:
    """ETXTBSY, both ways."""
    script = """cp "$(command -v sleep)" prog; ./prog 300 & p=$!
      while [ "$(readlink /proc/$p/exe)" != "$PWD/prog" ]; do :; done
      (printf x >> prog) 2>&1 | grep -o 'Text file busy'; kill $p; wait $p || true
      exec 3>>prog; ./prog 0 2>&1 | grep -o 'Text file busy'; exec 3>&-; rm prog"""
    assert twins.sh(script) == "Text file busy\nText file busy\n"


def test_errors_of_paths(twins: Twins) -> None:
    """ENOTDIR, ELOOP and ENAMETOOLONG as everywhere."""
    twins.both(_build)

    def failures(directory: Path) -> list[Any]:
        (directory / "loop").symlink_to("loop")
        long = "n" * 255
        found = [
            outcome(lambda path=path: os.close(os.open(directory / path, os.O_CREAT | os.O_RDWR)))  # type: ignore[misc]  # bound now
            for path in ("file/below", "loop", "loop/x", long, long + "n", "d" * 256 + "/x", "x" * 5000)
        ]
        found.append(outcome((directory / "file").mkdir))
        found.append(outcome(lambda: (directory / "x").symlink_to("t" * 4096)))
        found.append(outcome(lambda: (directory / "y").symlink_to("")))
        found.append(outcome(lambda: (directory / "z").symlink_to("t" * 4095)))
        found.append(outcome(lambda: len((directory / "z").readlink().name)))
        return found

    assert errno.errorcode[errno.ENAMETOOLONG] in twins.agree(failures)
