"""Reads the status of a mount, and judges it. What it says is described by `fs.status.Status`."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from exaifs import mountpoint
from exaifs.errors import MountError
from exaifs.names import RESERVED_NAME
from exaifs.processes import ask_child

DEADLINE_S: Final = 5.0
_FORMAT: Final = 1
_GOOD: Final = frozenset({"online", "catching-up"})

_READ: Final = """
import json, os, sys
try:
    with open(sys.argv[1], "rb") as file:
        data = file.read()
except OSError as exc:
    data = json.dumps({"errno": exc.errno}).encode()
sys.stdout.buffer.write(data)
"""


def mount_above(path: Path | None) -> tuple[Path, str]:
    """Return the exaifs mount that holds a path, and the path in it; '' for the whole mount.

    Args:
        path: None: the only exaifs mount there is, or the one of the working directory.

    Raises:
        MountError: there is none.
    """
    absolute = mountpoint.resolved(Path.cwd() if path is None else path)
    ours = {mount.path for mount in mountpoint.mounts() if mount.is_ours}
    found = _above(absolute, ours)
    if found is not None:
        return found[0], "" if path is None else found[1]
    if path is None and len(ours) == 1:
        return ours.pop(), ""
    known = f"Mounted are: {', '.join(sorted(map(str, ours)))}." if ours else "Nothing is mounted here."
    where = f"the working directory {absolute}" if path is None else str(path)
    raise MountError(f"{where} is in no exaifs mount. {known}")


def links_above(path: Path) -> tuple[Path, list[str]]:
    """Do as `mount_above` with a path that may be a symbolic link in a mount, and not only lead to one.

    Returns:
        The exaifs mount that it leads to, or else the last that it passes; and every path in that on the
        way, a link before what it leads to.

    Raises:
        MountError: there is none.
    """
    ours = {mount.path for mount in mountpoint.mounts() if mount.is_ours}
    found = [place for place in (_above(step, ours) for step in mountpoint.followed(path)) if place]
    if not found:
        return mount_above(path)[0], []
    directory = found[-1][0]
    return directory, [inside for above, inside in found if above == directory]


def _above(absolute: Path, ours: Collection[Path]) -> tuple[Path, str] | None:
    """Return which of these mounts holds a path, and the path in it; '' for the mountpoint itself."""
    for above in (absolute, *absolute.parents):
        if above in ours:
            inside = os.path.relpath(absolute, above)
            return above, "" if inside == "." else inside
    return None


def read_hidden(directory: Path, name: str, deadline_s: float = DEADLINE_S) -> bytes:
    """Return the content of a hidden file of the mount at a directory.

    Args:
        directory: the mountpoint itself.
        name: of the file in `.exaifs/`.
        deadline_s: how long the daemon may take to answer; a mount that hangs cannot hold this up.

    Raises:
        MountError: not an exaifs mount, its daemon is gone, or it does not answer; says what to do.
    """
    mount = mountpoint.find(directory)
    if mount is None:
        raise MountError(f"nothing is mounted at {directory}. Name the directory of an exaifs mount.")
    if not mount.is_ours:
        raise MountError(f"{directory} is not an exaifs mount but {mount.source} ({mount.fstype})")
    data = ask_child(_READ, mount.path / RESERVED_NAME / name, deadline_s)
    if data is None:
        raise MountError(
            f"the mount at {directory} does not answer within {deadline_s:g} s. Look at its log; to take "
            f"it away: exaifs umount --lazy {directory}"
        )
    if data.startswith(b'{"errno"'):
        raise _unreadable(directory, int(json.loads(data)["errno"]))
    return data


def read_status(directory: Path, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
    """Return the snapshot of the mount at a directory.

    Args:
        directory: the mountpoint itself.
        deadline_s: how long the daemon may take to answer; a mount that hangs cannot hold this up.

    Raises:
        MountError: not an exaifs mount, its daemon is gone, or it does not answer; says what to do.
    """
    data = read_hidden(directory, "status.json", deadline_s)
    try:
        status = json.loads(data)
    except ValueError:
        status = None
    if not isinstance(status, dict):
        raise MountError(
            f"the mount at {directory} gave no readable status: run the same version of exaifs"
        )
    if status.get("format") != _FORMAT:
        raise MountError(
            f"the status of the mount at {directory} has format {status.get('format')}, not {_FORMAT}: its "
            "daemon is of another version of exaifs. Mount again, or use that version."
        )
    return status


def _unreadable(directory: Path, code: int) -> MountError:
    if code in (errno.ENOTCONN, errno.ECONNABORTED):
        return MountError(
            f"the daemon of the mount at {directory} is gone. Mount again, which replaces it, or take it "
            f"away: exaifs umount {directory}"
        )
    if code == errno.EACCES:
        return MountError(
            f"no permission to look into {directory}: ask as the user who mounted it, or root"
        )
    return MountError(f"cannot read the status of the mount at {directory}: {os.strerror(code)}")


def is_well(status: dict[str, Any]) -> bool:
    """Tell whether nothing is wrong: online or catching up, and nothing that could not be sent or done."""
    queue = status["queue"]
    return status["state"] in _GOOD and not (queue["failed"] or queue.get("changes_failing"))
