"""Mountpoints: find, check, heal and unmount them.

Nothing here may hang on a mount that does not answer: the mount table is read from /proc, and paths
are looked at by a child process that is given up after a deadline. Calls block and are meant for the
command line, before the daemon's event loop starts, or for a thread.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from exaifs.errors import MountError
from exaifs.processes import ask_child, daemon_of, holders, wait_for_exit

_log = structlog.get_logger(__name__)

FSTYPE = "fuse.exaifs"
"""What the mount table shows; the part after the dot is the `subtype` option."""

FUSE_CONF = Path("/etc/fuse.conf")

_PROBE_DEADLINE_S = 5.0
_MAX_LINKS = 40
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_CAP_SYS_ADMIN = 21
"""Number of the capability, see capabilities(7)."""

_DEAD = {errno.ENOTCONN, errno.ECONNABORTED}
"""What stat(2) on a FUSE mount says whose daemon is gone."""

_PROBE = """
import json, os, sys
try:
    status = os.stat(sys.argv[1])
    names = os.listdir(sys.argv[1])[:3] if status.st_mode & 0o170000 == 0o040000 else []
    print(json.dumps({"mode": status.st_mode, "names": [ascii(name) for name in names],
                      "writable": os.access(sys.argv[1], os.W_OK)}))
except OSError as exc:
    print(json.dumps({"errno": exc.errno}))
"""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    device: str
    """As `major:minor`."""
    path: Path
    fstype: str
    source: str

    @property
    def is_ours(self) -> bool:
        """Whether exaifs made it."""
        return self.fstype == FSTYPE


@dataclass(frozen=True, slots=True)
class _Look:
    """What a probe saw; `error` is an errno, or None when there was an answer."""

    error: int | None = None
    mode: int = 0
    names: tuple[str, ...] = ()
    writable: bool = False


def parse_mountinfo(text: str) -> list[Mount]:
    """Read the mount table's lines, see proc_pid_mountinfo(5)."""
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, details = before.split(" "), after.split(" ")
        if separator and len(fields) > 4 and len(details) > 1:  # noqa: PLR2004 - columns of the table
            path = Path(_unescape(fields[4]))
            mounts.append(Mount(fields[2], path, details[0], _unescape(details[1])))
    return mounts


def _unescape(field: str) -> str:
    """Undo the octal escapes of space, tab, newline and backslash."""
    raw = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), os.fsencode(field))
    return os.fsdecode(raw)


def mounts() -> list[Mount]:
    """Return all mounts of this mount namespace, oldest first."""
    text = Path("/proc/self/mountinfo").read_bytes().decode("utf-8", "surrogateescape")
    return parse_mountinfo(text)


def find(path: Path) -> Mount | None:
    """Return the topmost mount at exactly this path, without touching what is mounted there."""
    wanted = resolved(path)
    return next((mount for mount in reversed(mounts()) if mount.path == wanted), None)


def around(path: Path) -> Mount | None:
    """Return the mount that a path is in, without touching what is mounted there.

    Args:
        path: absolute; symbolic links are not followed.
    """
    holding = [mount for mount in mounts() if path.is_relative_to(mount.path)]
    return max(reversed(holding), key=lambda mount: len(mount.path.parts), default=None)


def resolved(path: Path) -> Path:
    """Return the absolute path as the mount table spells it, without stat(2) on the mountpoint itself.

    Reading a symbolic link asks only the directory it is in, so a link to a mountpoint may be given.
    """
    return followed(path)[-1]


def followed(path: Path) -> list[Path]:
    """Return where a path leads, symbolic link by symbolic link; the last is what `resolved` returns."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would stat the mountpoint
    known = {mount.path for mount in mounts()}
    steps: list[Path] = []
    while len(steps) < _MAX_LINKS:
        if absolute in known:
            return [*steps, absolute]
        candidate = Path(os.path.realpath(absolute.parent)) / absolute.name
        steps.append(candidate)
        try:
            target = candidate.readlink()
        except OSError:
            return steps
        absolute = Path(os.path.abspath(candidate.parent / target))  # noqa: PTH100 - as above
    raise MountError(f"cannot use {path} as a mountpoint: {os.strerror(errno.ELOOP)}")


def check(path: Path, *, nonempty: bool = False, allow_other: bool = False) -> None:
    """Refuse a mount that could not work, saying what to do; heals a stale exaifs mount first.

    Raises:
        MountError: with one sentence for the user.
    """
    _check_fuse(allow_other=allow_other)
    heal(path)
    mount = find(path)
    if mount is not None:
        _refuse_busy(path, mount)
    look = _probe(path)
    if look.error == errno.ENOENT:
        raise MountError(f"the mountpoint {path} does not exist. Create it: mkdir -p {path}")
    if look.error == errno.EACCES:
        raise MountError(f"no permission to look at {path}. Choose a directory of yours, or use sudo.")
    if look.error is not None:
        raise MountError(f"cannot use {path} as a mountpoint: {os.strerror(look.error)}")
    if not stat.S_ISDIR(look.mode):
        raise MountError(f"{path} is not a directory. Name an empty directory to mount on.")
    if look.names and not nonempty:
        raise MountError(
            f"{path} is not empty (it holds {', '.join(look.names)}). The mount would hide what is there: "
            "move it away, choose another directory, or pass --nonempty."
        )
    if not look.writable and os.geteuid() != 0:
        raise MountError(f"no permission to mount on {path}: it must be writable for you, or use sudo.")


def _refuse_busy(path: Path, mount: Mount) -> None:
    """Say why a path that is a mountpoint cannot be mounted on. An ordinary file system is no obstacle.

    A container's volume, for example, is a mount of its own and may be mounted over when empty.
    """
    if mount.is_ours:
        pid = daemon_of(mount.path)
        who = f" by process {pid}" if pid else ""
        raise MountError(
            f"exaifs is already mounted at {path}{who}. Use it, or end it first: exaifs umount {path}"
        )
    if mount.fstype.startswith("fuse"):
        raise MountError(
            f"another file system is mounted at {path}: {mount.source} ({mount.fstype}). "
            f"Unmount it first (umount {path}), or choose another directory."
        )


def _check_fuse(*, allow_other: bool) -> None:
    root = os.geteuid() == 0
    device = Path("/dev/fuse")
    if not device.exists():
        raise MountError(
            "/dev/fuse is missing. On a host: modprobe fuse. In a container: start it with "
            "--device /dev/fuse --cap-add SYS_ADMIN."
        )
    if root:
        _check_root(device)
        return
    if shutil.which("fusermount3") is None:
        raise MountError("fusermount3 is missing, and only root can mount without it: apt install fuse3")
    if not os.access(device, os.R_OK | os.W_OK):
        raise MountError(
            "no permission to open /dev/fuse, which every user may on most systems. As root: "
            "chmod 666 /dev/fuse; or mount with sudo."
        )
    if allow_other and not lets_users_allow_others(FUSE_CONF):
        raise MountError(
            "--allow-other needs the line `user_allow_other` in /etc/fuse.conf unless root mounts. "
            "Add it, or drop the flag."
        )


def _check_root(device: Path) -> None:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        raise MountError(
            f"cannot open /dev/fuse: {exc.strerror}. In a container: start it with --device /dev/fuse "
            "--cap-add SYS_ADMIN. On a host: modprobe fuse."
        ) from exc
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    if not may_mount(status):
        raise MountError(
            "this root may not mount (CAP_SYS_ADMIN is missing). Start the container with "
            "--device /dev/fuse --cap-add SYS_ADMIN."
        )


def may_mount(process_status: str) -> bool:
    """Tell from the text of /proc/self/status whether CAP_SYS_ADMIN is in effect; in doubt, yes."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", process_status, re.MULTILINE)
    return found is None or bool(int(found[1], 16) >> _CAP_SYS_ADMIN & 1)


def lets_users_allow_others(path: Path) -> bool:
    """Tell whether a fuse.conf has the line `user_allow_other`; see mount.fuse3(8)."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.split("#", 1)[0].strip() == "user_allow_other" for line in lines)


def heal(path: Path) -> bool:
    """Take away exaifs mounts at `path` whose daemon is gone; tell whether there were any.

    Raises:
        MountError: there is one that does not answer although its daemon lives, or that cannot be
            taken away.
    """
    healed = False
    while (mount := find(path)) is not None and mount.is_ours:
        look = _probe(mount.path)
        if look.error == errno.ETIMEDOUT:
            raise MountError(
                f"exaifs is mounted at {path} but does not answer. Take it away first: "
                f"exaifs umount --lazy {path}"
            )
        if look.error not in _DEAD or daemon_of(mount.path) is not None:
            return healed
        detach(mount.path, lazy=True)
        _log.info("took away a mount left by a crash", mountpoint=str(mount.path))
        healed = True
    return healed


def unmount(
    path: Path,
    *,
    lazy: bool = False,
    deadline_s: float = 60.0,
    progress: Callable[[str], None] = lambda _text: None,
) -> None:
    """Unmount, then wait until the daemon has sent what it still holds.

    Args:
        path: the mountpoint.
        lazy: detach even while files are open; they stay usable until closed or the daemon ends.
        deadline_s: how long to wait for the daemon.
        progress: called about once a second while waiting, with a line for the user.

    Raises:
        MountError: not mounted, not ours, busy, not permitted, or the daemon is still at work at the
            deadline (the unmount itself has happened then).
    """
    mount = find(path)
    if mount is None:
        raise MountError(f"nothing is mounted at {path}")
    if not mount.is_ours:
        raise MountError(f"{path} is not an exaifs mount but {mount.source} ({mount.fstype})")
    pid = daemon_of(mount.path)
    # A mount without daemon has nothing left that could be interrupted.
    crashed = pid is None and _probe(mount.path).error in _DEAD
    detach(mount.path, lazy=lazy or crashed)
    if pid is not None and not wait_for_exit(pid, deadline_s, progress):
        busy = "still sending files, or programs have some open," if lazy else "still sending files"
        raise MountError(
            f"unmounted, but the daemon (process {pid}) is {busy} after {deadline_s:.0f} s. "
            "Let it finish; what it cannot send is kept in the cache directory for the next mount."
        )


def detach(path: Path, *, lazy: bool) -> None:
    """Unmount the topmost file system at `path`.

    Raises:
        MountError: busy (naming who holds it), or not permitted.
    """
    code = _umount_as_root(path, lazy=lazy) if os.geteuid() == 0 else _umount_as_user(path, lazy=lazy)
    if code == 0:
        return
    if code == errno.EBUSY:
        who = ", ".join(holders(path)) or "processes of other users"
        raise MountError(
            f"{path} is in use by {who}. Close those first, or detach it at once: "
            f"exaifs umount --lazy {path}"
        )
    if code == errno.EINVAL:
        raise MountError(f"nothing is mounted at {path}")
    raise MountError(f"cannot unmount {path}: {os.strerror(code)}")


def _umount_as_root(path: Path, *, lazy: bool) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    return 0 if libc.umount2(os.fsencode(path), flags) == 0 else ctypes.get_errno()


def _umount_as_user(path: Path, *, lazy: bool) -> int:
    program = shutil.which("fusermount3")
    if program is None:
        raise MountError("fusermount3 is missing: apt install fuse3, or unmount as root")
    result = subprocess.run(
        [program, "-u", *(["-z"] if lazy else []), "--", str(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={"LC_ALL": "C"},
        timeout=30,
        check=False,
    )
    if result.returncode == 0:
        return 0
    return errno.EBUSY if "busy" in result.stderr else errno.EPERM


def _probe(path: Path, deadline_s: float = _PROBE_DEADLINE_S) -> _Look:
    """Look at a path from a child process, because stat(2) on a mount that hangs cannot be killed."""
    data = ask_child(_PROBE, path, deadline_s)
    if data is None:
        return _Look(error=errno.ETIMEDOUT)
    try:
        value = json.loads(data)
    except ValueError:
        return _Look(error=errno.EIO)
    if "errno" in value:
        return _Look(error=value["errno"])
    return _Look(None, value["mode"], tuple(value["names"]), value["writable"])
