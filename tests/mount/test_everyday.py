"""What people do with a mount: real programs on the embedded Supabase."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sysconfig
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mount.conftest import StoredBytes, exaifs_mount
from tests.support.gate import Gate
from tests.support.mounts import AWAY, MountedDaemon, wait_until, within

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

MIB = 1 << 20
SUMS = "find . -type f -print0 | sort -z | xargs -0 sha256sum"


def _real_tree(target: Path, files: int) -> None:
    """Copy real files: the beginning of Python's own library, in its directories."""
    library = Path(sysconfig.get_path("stdlib"))
    found = 0
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if "site-packages" in relative.parts or "test" in relative.parts or found == files:
            continue
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / relative)
        found += 1
    assert found == files


@pytest.mark.slow
def test_a_tree_of_real_files(mount: MountedDaemon, tmp_path: Path) -> None:
    """300 files copied in are the same files from the page cache, from disk and from the server."""
    source = tmp_path / "source"
    _real_tree(source, 300)
    mount.sh(f"cp -r {source} tree", timeout_s=240)
    expected = mount.sh(f"cd {source}; {SUMS}")
    assert expected.count("\n") == 300
    assert mount.sh(f"cd tree; {SUMS}") == expected
    mount.drop_kernel_caches()
    assert mount.sh(f"cd tree; {SUMS}") == expected
    mount.restart()
    assert mount.sh(f"cd tree; {SUMS}") == expected
    mount.stop()
    shutil.rmtree(tmp_path / "cache")
    mount.start()
    assert mount.sh(f"cd tree; {SUMS}", timeout_s=240) == expected
    assert mount.sh(f"diff -r {source} tree && echo same") == "same\n"
    listed = mount.sh("ls -lR tree | grep -c '^-'; find tree | wc -l").split()
    assert listed == ["300", mount.sh(f"find {source} | wc -l").strip()]


def test_every_way_of_writing(mount: MountedDaemon, stored: StoredBytes) -> None:
    """Create, append, truncate, overwrite inside: after close the server has the bytes (promise 1)."""
    mount.sh("printf one > a")
    assert stored("a") == b"one"
    mount.sh("printf two >> a")
    assert stored("a") == b"onetwo"
    mount.sh("printf X | dd of=a bs=1 seek=2 conv=notrunc status=none")
    assert stored("a") == b"onXtwo"
    mount.sh("truncate -s 4 a; printf '' > empty; cp a b; mkdir d; mv b d/c")
    assert (stored("a"), stored("empty"), stored("b"), stored("d/c")) == (b"onXt", b"", None, b"onXt")
    mount.sh("rm a; rm -r d")
    assert (stored("a"), stored("d/c")) == (None, None)
    assert mount.sh("ls -A") == "empty\n"


def test_programs_that_replace_files(mount: MountedDaemon, stored: StoredBytes) -> None:
    """Editors and sed write a new file and rename it over the old one."""
    mount.sh("printf 'hello world\\n' > a; sed -i s/world/there/ a; cat a")
    assert stored("a") == b"hello there\n"
    mount.sh("printf new > a.tmp; mv a.tmp a")
    assert stored("a") == b"new"
    assert mount.sh("ls -A; cat a") == "a\nnew"


@pytest.mark.parametrize(
    "name",
    ["two words", "häßlich 🍋.pdf", "a#b?c%20d", "noextension", "-dash", "quo'te\"", "tab\tname", "[x]{y}"],
)
def test_any_name(mount: MountedDaemon, name: str) -> None:
    """Every name comes back as it was written, also from the server (promise 5)."""
    within(120, lambda: (mount.path / name).write_bytes(name.encode()))
    mount.restart()
    assert within(120, lambda: [entry.name for entry in mount.path.iterdir()]) == [name]
    assert within(120, (mount.path / name).read_bytes) == name.encode()


@pytest.mark.slow
def test_fifty_mebibytes(mount_environment: dict[str, str], tmp_path: Path) -> None:
    """A file of the bucket's limit goes in and comes out; its beginning does not wait for the rest."""
    source = tmp_path / "source"
    source.write_bytes(os.urandom(50 * MIB))
    with (
        _Narrow(mount_environment["SUPABASE_URL"]) as gate,
        exaifs_mount({**mount_environment, "SUPABASE_URL": gate.url}, tmp_path) as mount,
    ):
        mount.sh(f"cp {source} big && cmp big {source}", timeout_s=240)
        mount.stop()
        shutil.rmtree(tmp_path / "cache")
        mount.start()
        mount.expected |= AWAY  # on a machine that is too slow for what follows
        mount.sh("ls")
        gate.narrow(4 * MIB)
        first = mount.sh("head -c 4096 big | sha256sum")
        gate.widen()
        assert first == mount.sh(f"head -c 4096 {source} | sha256sum")
        compare = f"cmp big {source} && echo same"
        wait_until(lambda: mount.sh(compare, timeout_s=240, check=False) == "same\n", 240, "all of it")
        assert mount.sh(compare) == "same\n"


class _Narrow(Gate):
    """A gate through which a connection carries so many bytes, and the others once all may pass."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._limit_bytes = 0
        self._wide = threading.Event()
        self._wide.set()

    def narrow(self, limit_bytes: int) -> None:
        """Hold every connection after so many bytes."""
        self._limit_bytes = limit_bytes
        self._wide.clear()

    def widen(self) -> None:
        """Let all of it pass."""
        self._wide.set()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        passed_bytes = 0
        with suppress(OSError):
            while data := source.recv(65536):
                passed_bytes = 0 if self._wide.is_set() else passed_bytes + len(data)
                if passed_bytes > self._limit_bytes:
                    self._wide.wait()
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def test_a_file_over_the_limit(mount: MountedDaemon, stored: StoredBytes) -> None:
    """Over the bucket's limit is EFBIG at write, not at close (promise 7)."""
    mount.expected.add("file too large for the bucket")

    def write() -> None:
        with (mount.path / "big").open("wb", buffering=0) as file:
            file.seek(50 * MIB)
            file.write(b"x")

    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno follows
        within(120, write)
    assert caught.value.errno == errno.EFBIG
    assert stored("big") in (None, b"")


def test_extended_attributes(mount: MountedDaemon) -> None:
    """The file's own attributes are there, the user's are kept with the row."""
    digest = mount.sh("printf hello > a.txt; sha256sum a.txt | cut -d' ' -f1").strip()
    mount.sh("setfattr -n user.note -v kept a.txt")

    def attributes() -> dict[str, bytes]:
        path = mount.path / "a.txt"
        return {name: os.getxattr(path, name) for name in os.listxattr(path)}

    for _run in range(2):
        found = within(120, attributes)
        assert found["user.checksum.sha256"] == digest.encode()
        assert found["user.note"] == b"kept"
        assert found["user.mime_type"] == b"text/plain"
        assert found["user.exai.state"] == b"clean"
        assert found["user.exai.file_id"]
        mount.restart()


def test_read_only(mount_environment: dict[str, str], tmp_path: Path) -> None:
    """A read-only mount shows everything and changes nothing: EROFS."""
    with exaifs_mount(mount_environment, tmp_path) as writer:
        writer.sh("echo text > a; mkdir d")
    with exaifs_mount(mount_environment, tmp_path, "--read-only") as mount:
        assert mount.sh("cat a; ls") == "text\na\nd\n"
        for call in (
            lambda: (mount.path / "a").write_text("x"),
            (mount.path / "b").touch,
            (mount.path / "a").unlink,
            (mount.path / "d").rmdir,
            (mount.path / "e").mkdir,
            lambda: (mount.path / "a").rename(mount.path / "c"),
            lambda: os.setxattr(mount.path / "a", "user.x", b""),
        ):
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno follows
                within(120, call)
            assert caught.value.errno == errno.EROFS
