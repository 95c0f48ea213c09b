from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from exaifs import mountpoint as mountpoints, processes
from exaifs.cache.directory import directory_of, locked_directory
from exaifs.errors import MountError
from exaifs.mountpoint import Mount
from exaifs.systemd import notify

FUSE = Path("/dev/fuse").exists()
needs_fuse = pytest.mark.skipif(not FUSE, reason="NO /dev/fuse HERE")


def test_mount_table() -> None:
    """Optional fields vary in number, and paths are escaped in octal."""
    text = (
        "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:3 - ext3 /dev/root rw,errors=continue\n"
        "42 27 0:39 / /a\\040b\\134c\\011d rw,nosuid - fuse.exaifs exaifs:user-files rw,user_id=0\n"
        "a line of another kind\n"
    )
    assert mountpoints.parse_mountinfo(text) == [
        Mount("98:0", Path("/mnt2"), "ext3", "/dev/root"),
        Mount("0:39", Path("/a b\\c\td"), "fuse.exaifs", "exaifs:user-files"),
    ]
    assert [mount.is_ours for mount in mountpoints.parse_mountinfo(text)] == [False, True]


def test_the_real_mount_table() -> None:
    """The table of this system is readable and holds the root."""
    assert Path("/") in {mount.path for mount in mountpoints.mounts()}
    assert mountpoints.find(Path("/proc")) is not None
    assert mountpoints.find(Path("/proc/self")) is None


def test_the_mount_around_a_path() -> None:
    """The innermost mount that a path is in, whether or not the path exists."""
    for path, fstype in (("/proc/self/nowhere", "proc"), ("/proc", "proc"), ("/dev/pts/9999", "devpts")):
        found = mountpoints.around(Path(path))
        assert found is not None
        assert found.fstype == fstype
    assert mountpoints.around(Path("relative")) is None


def test_links_lead_to_the_mountpoint(tmp_path: Path) -> None:
    """A symbolic link to a mountpoint names the mount."""
    link = tmp_path / "link"
    link.symlink_to("/proc")
    found = mountpoints.find(link)
    assert found is not None
    assert found.fstype == "proc"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(MountError, match="loop"):
        mountpoints.find(tmp_path / "loop")


@needs_fuse
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _path: None, "does not exist. Create it: mkdir -p"),
        (lambda path: path.touch(), "is not a directory"),
        (lambda path: (path.mkdir(), (path / "x").touch()), "is not empty .it holds 'x'.*--nonempty"),
    ],
)
def test_a_mountpoint_that_will_not_do(tmp_path: Path, make: object, message: str) -> None:
    """Each error says what is wrong and what to do."""
    assert callable(make)
    path = tmp_path / "mnt"
    make(path)
    with pytest.raises(MountError, match=message):
        mountpoints.check(path)


@needs_fuse
def test_a_mountpoint_that_will_do(tmp_path: Path) -> None:
    """An empty directory passes, and a full one on request."""
    mountpoints.check(tmp_path)
    (tmp_path / "x").touch()
    mountpoints.check(tmp_path, nonempty=True)


def test_unmounting_what_is_not_mounted(tmp_path: Path) -> None:
    """The error tells 'nothing there' from 'not ours'; neither is touched."""
    with pytest.raises(MountError, match="nothing is mounted"):
        mountpoints.unmount(tmp_path)
    with pytest.raises(MountError, match="not an exaifs mount but proc"):
        mountpoints.unmount(Path("/proc"))
    assert not mountpoints.heal(Path("/proc"))


def test_holders_are_named(tmp_path: Path) -> None:
    """Who has a file open, or a working directory, below a path is found by name and number."""
    opened = (tmp_path / "file").open("w")
    with opened, subprocess.Popen(["sleep", "60"], cwd=tmp_path) as child:
        try:
            found = processes.holders(tmp_path)
        finally:
            child.kill()
    assert f"sleep ({child.pid})" in found
    assert any(name.endswith(f"({os.getpid()})") for name in found)


def test_a_child_looks_at_a_path(tmp_path: Path) -> None:
    """Its answer is all that it wrote; one that hangs is given up, also if it has begun to answer."""
    answer = processes.ask_child("import sys; print(sys.argv[1], end='')", tmp_path, 60)
    assert answer == os.fsencode(tmp_path)
    assert processes.ask_child("", tmp_path, 60) == b""
    os.mkfifo(tmp_path / "fifo")
    hangs = "import sys; print('half', flush=True); open(sys.argv[1])"
    assert processes.ask_child(hangs, tmp_path / "fifo", 0.2) is None


def test_waiting_for_a_process() -> None:
    """The wait ends with the process, and reports while it lasts."""
    reports: list[str] = []
    with subprocess.Popen(["sleep", "60"]) as child:
        assert not processes.wait_for_exit(child.pid, 0.05, reports.append)
        assert "still" not in reports[0]
        child.kill()
        assert processes.wait_for_exit(child.pid, 60, reports.append)


def test_a_cache_directory_is_for_one_daemon(tmp_path: Path) -> None:
    """A second daemon is refused and told who holds it; the lock ends with the process that had it."""
    mountpoint = tmp_path / "mnt"
    program = (
        "import sys; from pathlib import Path; from exaifs.cache.directory import locked_directory as d\n"
        "with d(Path(sys.argv[1]), 'https://x.supabase.co/b', Path(sys.argv[2])):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", program, str(tmp_path / "cache"), str(mountpoint)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert processes.daemon_of(mountpoint) == other.pid
        with (
            pytest.raises(MountError, match=f"process {other.pid}, mounted at {mountpoint}"),
            locked_directory(tmp_path / "cache", "https://x.supabase.co/b", mountpoint),
        ):
            pass
        other.kill()
    with locked_directory(tmp_path / "cache", "https://x.supabase.co/b", mountpoint) as directory:
        assert directory.stat().st_mode & 0o777 == 0o700
        assert processes.daemon_of(mountpoint) == os.getpid()
        assert processes.cache_directory_of(mountpoint) == directory
    assert processes.daemon_of(mountpoint) is None
    assert processes.cache_directory_of(mountpoint) is None


def test_cache_directories_are_apart() -> None:
    """Buckets and projects never share one, even where only punctuation tells them apart."""
    identities = ["https://a.b/c", "https://a-b/c", "http://a.b/c", "https://a.b/c-"]
    assert len({directory_of(Path("/c"), identity) for identity in identities}) == 4
    assert directory_of(Path("/c"), "https://abc.supabase.co/user-files").name.startswith(
        "abc-supabase-co-user-files-"
    )


def test_a_cache_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in the way, or a place inside the mount, is one clear error."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(MountError, match=r"cannot write to the cache directory .*FILE_CACHE_DIR"),
        locked_directory(tmp_path / "file", "i", Path("/mnt")),
    ):
        pass
    with (
        pytest.raises(MountError, match="inside the mountpoint"),
        locked_directory(tmp_path / "mnt" / "cache", "i", tmp_path / "mnt"),
    ):
        pass


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, abstract: bool
) -> None:
    """State lines arrive in one datagram, at a path or an abstract socket."""
    name = f"exaifs-test-{os.getpid()}"
    address = "\0" + name if abstract else str(tmp_path / "socket")
    monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        receiver.settimeout(60)
        notify("READY=1", "STATUS=serving")
        assert receiver.recv(100) == b"READY=1\nSTATUS=serving"
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")
