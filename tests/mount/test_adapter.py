"""The FUSE adapter through the kernel, on a file system in memory."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from exaifs import mountpoint as mountpoints
from exaifs.processes import holders
from tests.support.mounts import MountedDaemon, wait_until, within

pytestmark = pytest.mark.mount

FAILED = "bug or local fault"


def _errno(mount: MountedDaemon, call: object) -> str:
    assert callable(call)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is returned
        within(120, call)
    assert mount.mount is not None
    return errno.errorcode[caught.value.errno or 0]


def test_files_directories_and_links(memory_mount: MountedDaemon) -> None:
    """Ordinary programs see what they wrote, with the attributes they set."""
    mount = memory_mount
    assert mount.sh("echo hello > a; cat a; stat -c '%s %a %F' a") == "hello\n6 644 regular file\n"
    assert mount.sh("mkdir -m 750 d; mv a d/b; ln -s d/b l; cat l; readlink l; ls -A d") == (
        "hello\nd/b\nb\n"
    )
    mount.sh("chmod 600 d/b; touch -d @1234.5 d/b; truncate -s 3 d/b")
    assert mount.sh("stat -c '%a %.9Y %s' d/b; cat d/b") == "600 1234.500000000 3\nhel"
    mount.sh("rm -r d l")
    assert mount.sh("ls -A") == ""


def test_a_large_file_is_whole(memory_mount: MountedDaemon) -> None:
    """Many large requests in parallel make one file, written and read back past the page cache."""
    mount = memory_mount
    mount.sh("head -c 50000000 /dev/urandom > ../large; cp ../large big; cmp ../large big; rm ../large")
    first = mount.sh("sha256sum < big")
    mount.drop_kernel_caches()
    assert mount.sh("sha256sum < big") == first


def test_listing_a_large_directory(memory_mount: MountedDaemon) -> None:
    """A directory of many buffers is listed whole, each name once."""
    mount = memory_mount
    mount.sh("mkdir d; cd d; touch $(seq -f 'name-of-a-file-%g' 3000)")
    mount.drop_kernel_caches()
    names = mount.sh("ls -f d | grep -v '^\\.'").split()
    assert len(names) == 3000
    assert len(set(names)) == 3000


def test_lookup_counts_return_to_zero(memory_mount: MountedDaemon, tmp_path: Path) -> None:
    """What the kernel looked up, by name or by listing, it forgets; the counts agree at the end."""
    mount = memory_mount
    mount.sh("mkdir d; touch d/1 d/2 d/3; ls -l d >/dev/null; find . >/dev/null; mv d/1 e; rm d/2")
    report = tmp_path / "lookups"

    def forgotten() -> bool:
        mount.drop_kernel_caches()
        return report.exists() and report.read_text() == ""

    wait_until(forgotten, 120, "the kernel forgets every inode")


def test_errors_reach_the_caller(memory_mount: MountedDaemon) -> None:
    """Every error of ours arrives as its errno, also out of a nursery's group, and the mount lives on."""
    mount = memory_mount
    mount.expected |= {FAILED, "request failed"}
    mount.sh("for w in bug remote group full; do echo raise $w > $w; done; echo fine > good")
    path = mount.path
    assert _errno(mount, (path / "bug").read_bytes) == "EIO"
    assert _errno(mount, (path / "remote").read_bytes) == "EIO"
    assert _errno(mount, (path / "group").read_bytes) == "ENOENT"
    assert _errno(mount, (path / "full").read_bytes) == "ENOSPC"
    assert _errno(mount, (path / "missing").stat) == "ENOENT"
    assert _errno(mount, (path / "bug").mkdir) == "EEXIST"
    assert mount.sh("cat good") == "fine\n"


def test_a_bug_is_logged_once_with_its_traceback(memory_mount: MountedDaemon) -> None:
    """An exception nobody foresaw is EIO for the caller and one traceback in the log."""
    mount = memory_mount
    mount.expected.add(FAILED)
    mount.sh("echo raise bug > bug")
    # One byte past the first page, so that the kernel does not try a second time.
    mount.sh("dd if=bug iflag=direct bs=512 count=1", check=False)
    records = [record for record in mount.records() if record["event"] == FAILED]
    assert records
    assert all("KeyError: 'a bug'" in record["exception"] for record in records)
    assert records[0]["operation"] == "read"


def test_what_a_bucket_cannot_hold_is_refused(memory_mount: MountedDaemon) -> None:
    """Hard links, fifos and device nodes are EPERM (promise 7)."""
    mount = memory_mount
    mount.sh("touch a")
    path = mount.path
    assert _errno(mount, lambda: os.link(path / "a", path / "b")) == "EPERM"
    assert _errno(mount, lambda: os.mkfifo(path / "f")) == "EPERM"
    assert _errno(mount, lambda: os.mknod(path / "n", 0o20666, 0x0103)) == "EPERM"


def test_extended_attributes(memory_mount: MountedDaemon) -> None:
    """user.* is kept; create and replace are told apart; other namespaces do not exist."""
    mount = memory_mount
    mount.sh("touch a")
    path = mount.path / "a"
    within(120, lambda: os.setxattr(path, "user.x", b"1", os.XATTR_CREATE))
    assert _errno(mount, lambda: os.setxattr(path, "user.x", b"1", os.XATTR_CREATE)) == "EEXIST"
    assert _errno(mount, lambda: os.setxattr(path, "user.y", b"1", os.XATTR_REPLACE)) == "ENODATA"
    within(120, lambda: os.setxattr(path, "user.x", b"22", os.XATTR_REPLACE))
    assert within(120, lambda: os.getxattr(path, "user.x")) == b"22"
    assert within(120, lambda: os.listxattr(path)) == ["user.x"]
    within(120, lambda: os.removexattr(path, "user.x"))
    assert within(120, lambda: os.listxattr(path)) == []
    assert _errno(mount, lambda: os.getxattr(path, "user.x")) == "ENODATA"
    for name in ("trusted.x", "security.selinux", "system.posix_acl_access"):
        assert _errno(mount, lambda name=name: os.getxattr(path, name)) == "ENOTSUP"


def test_ls_asks_other_namespaces_once(memory_mount: MountedDaemon) -> None:
    """`ls -l` of many files asks for an ACL once, not once a file: EOPNOTSUPP, never ENODATA."""
    mount = memory_mount
    mount.sh("mkdir d; touch d/{1..200}")
    before = mount.log().count("getxattr")
    mount.sh("ls -l d >/dev/null")
    assert mount.log().count("getxattr") - before < 10


def test_names_that_are_not_utf8(memory_mount: MountedDaemon) -> None:
    """A name of any bytes survives, also in the log."""
    mount = memory_mount
    odd = b"\xff\xfe \xf0\x9f\x8d\x8b"
    within(120, lambda: (mount.path / os.fsdecode(odd)).write_bytes(b"x"))
    found = within(120, lambda: [entry.name for entry in mount.path.iterdir()])
    assert [os.fsencode(name) for name in found] == [odd]


def test_changes_by_another_host(memory_mount: MountedDaemon) -> None:
    """The kernel forgets names and attributes when told, long before they expire (promise 4)."""
    mount = memory_mount
    mount.sh("touch a b c; stat a b c >/dev/null")
    path = mount.path
    within(120, lambda: os.setxattr(path / "c", "user.another-host", b"rm a"))
    wait_until(lambda: not within(120, (path / "a").exists), 120, "the name is gone")
    within(120, lambda: os.setxattr(path / "c", "user.another-host", b"chmod b"))
    wait_until(lambda: within(120, (path / "b").stat).st_mode & 0o777 == 0o600, 120, "the mode is new")


def test_changes_the_kernel_never_saw(memory_mount: MountedDaemon) -> None:
    """Telling the kernel of names it does not hold is no error; many at once keep the mount responsive."""
    mount = memory_mount
    mount.sh("touch $(seq 300)")
    mount.drop_kernel_caches()
    path = mount.path

    def remove_all() -> None:
        for number in range(2, 301):
            os.setxattr(path / "1", "user.another-host", b"rm %d" % number)

    within(120, remove_all)
    assert mount.sh("ls") == "1\n"


def test_statfs(memory_mount: MountedDaemon) -> None:
    """Df and programs that check for room get figures."""
    status = within(120, lambda: os.statvfs(memory_mount.path))
    assert (status.f_blocks, status.f_bfree, status.f_namemax) == (1 << 20, 1 << 19, 255)


def test_the_mount_table_names_the_bucket(memory_mount: MountedDaemon) -> None:
    """The mount is recognisable, and reads ahead more than the kernel's default."""
    mount = memory_mount.mount
    assert mount is not None
    assert mount.is_ours
    assert mount.source == "exaifs:memory"
    knob = Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb")
    if os.access(knob, os.W_OK):
        assert knob.read_text().strip() == "1024"


def test_unmounting_from_outside_is_a_clean_end(memory_mount: MountedDaemon) -> None:
    """`umount` ends the daemon with 0."""
    mountpoints.detach(memory_mount.path, lazy=False)
    assert memory_mount.wait(120) == 0


def test_a_stop_while_a_file_is_open(memory_mount: MountedDaemon) -> None:
    """SIGTERM unmounts although a program holds a file; a warning says so."""
    mount = memory_mount
    mount.expected.add("unmounted while files were open")
    mount.sh("echo x > a")
    descriptor = within(120, lambda: os.open(mount.path / "a", os.O_RDONLY))
    mount.signal(signal.SIGTERM)
    assert mount.wait(120) == 0
    assert mount.mount is None
    with pytest.raises(OSError, match="not connected"):
        os.close(descriptor)


def test_a_stop_while_a_request_hangs(memory_mount: MountedDaemon) -> None:
    """A read that never returns does not keep the daemon from stopping; the reader gets an error."""
    mount = memory_mount
    mount.expected |= {
        "unmounted while files were open",
        "requests still unanswered at unmount are given up",
    }
    status = mount.path.parent / "status"
    mount.sh(f"echo raise hang > a; (cat a >/dev/null 2>&1; echo $? > {status}) >/dev/null 2>&1 &")
    wait_until(lambda: any("cat " in name for name in holders(mount.path)), 120, "cat has opened the file")
    mount.signal(signal.SIGTERM)
    assert mount.wait(120) == 0
    wait_until(status.exists, 120, "cat returns")
    wait_until(status.read_text, 120, "cat's exit code is written")
    assert status.read_text().strip() == "1"


def test_a_crash_leaves_the_mountpoint_failing(memory_mount: MountedDaemon) -> None:
    """After kill -9 the mountpoint answers ENOTCONN, never an empty directory; a restart heals it."""
    mount = memory_mount
    mount.sh("touch a")
    mount.kill9()
    assert _errno(mount, lambda: list(mount.path.iterdir())) == "ENOTCONN"
    assert mountpoints.heal(mount.path)
    assert mount.mount is None
    mount.start()
    assert mount.sh("ls -A") == ""


def test_a_failing_background_task_leaves_the_mountpoint_failing(memory_mount: MountedDaemon) -> None:
    """A daemon that dies of an exception does not unmount: ENOTCONN, never an empty directory."""
    mount = memory_mount
    mount.expected.add("uncaught exception")
    mount.sh("touch a; setfattr -n user.another-host -v 'crash it' a")
    assert mount.wait(120) == 1
    assert _errno(mount, lambda: list(mount.path.iterdir())) == "ENOTCONN"


def test_an_aborted_connection_is_no_clean_end(memory_mount: MountedDaemon) -> None:
    """When the kernel cuts the connection the daemon fails; the mountpoint stays, and does not answer."""
    mount = memory_mount
    mount.expected.add("uncaught exception")
    descriptor = within(120, lambda: os.open(mount.path / "open", os.O_CREAT | os.O_WRONLY))
    # The open file keeps the mount in place, so that only the connection is cut.
    subprocess.run(["umount", "-f", "-i", "-c", str(mount.path)], check=False, capture_output=True)
    assert mount.wait(120) == 1
    with pytest.raises(OSError, match="not connected"):
        os.close(descriptor)
    assert _errno(mount, mount.path.stat) == "ENOTCONN"
