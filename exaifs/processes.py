"""Other processes, as /proc shows them: who uses a mount, who serves it, when that one ends.

Reading these links asks no file system, so nothing here hangs on a mount that does not answer.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LOCK_NAME = "daemon.lock"
"""The file in the cache directory that a running daemon holds open; names its process and mountpoint."""

_MAX_HOLDERS = 5

_START_S = 60.0
"""How long an interpreter may take to start on a machine that is busy with other things."""
_STARTED = b"!"


def holders(path: Path) -> list[str]:
    """Name up to five processes that have something open below `path`, as `name (pid)`."""
    found = []
    for pid in _processes():
        if any(_is_below(target, path) for target in _open_paths(pid)):
            name = _read_text(Path(f"/proc/{pid}/comm")).strip() or "?"
            found.append(f"{name} ({pid})")
            if len(found) == _MAX_HOLDERS:
                break
    return found


def _is_below(target: str, path: Path) -> bool:
    return target == str(path) or target.startswith(f"{path}/")


def _processes() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _open_paths(pid: int) -> Iterator[str]:
    """Yield what /proc shows of a process; reading these links asks no file system."""
    base = Path(f"/proc/{pid}")
    for link in (base / "cwd", base / "root", base / "exe"):
        try:
            yield os.readlink(link)  # noqa: PTH115 - plain text
        except OSError:
            continue
    for target, _link in _descriptors(pid):
        yield target


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def daemon_of(mountpoint: Path) -> int | None:
    """Return the process that serves the mount at this absolute path, by the lock file it holds open.

    None when there is none, or when it is another user's and may not be looked at.
    """
    return next((pid for pid, _lock in _served(mountpoint)), None)


def cache_directory_of(mountpoint: Path) -> Path | None:
    """Return the cache directory of the mount at this absolute path: its daemon is not asked, and may hang.

    None as for `daemon_of`.
    """
    return next((lock.parent for _pid, lock in _served(mountpoint)), None)


def _served(mountpoint: Path) -> Iterator[tuple[int, Path]]:
    """Yield the process that serves a mount, and its lock file."""
    for pid in _processes():
        for target, link in _descriptors(pid):
            if target.endswith(f"/{LOCK_NAME}") and read_lock(link).get("mountpoint") == str(mountpoint):
                yield pid, Path(target)


def _descriptors(pid: int) -> Iterator[tuple[str, Path]]:
    try:
        links = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return
    for link in links:
        try:
            yield os.readlink(link), link  # noqa: PTH115 - plain text
        except OSError:
            continue


def read_lock(path: Path) -> dict[str, Any]:
    """Return what a daemon wrote into its lock file; empty when there is nothing readable."""
    try:
        value = json.loads(_read_text(path))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def holder_of(lock: Path) -> int | None:
    """Return the daemon that a lock file names, if it runs and has the file open; takes no lock.

    None also where it is another user's and may not be looked at.
    """
    pid = read_lock(lock).get("pid")
    if isinstance(pid, int) and any(target == str(lock) for target, _link in _descriptors(pid)):
        return pid
    return None


def wait_for_exit(pid: int, deadline_s: float, progress: Callable[[str], None]) -> bool:
    """Wait until a process has ended; tell whether it has. Reports about once a second."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        end = time.monotonic() + deadline_s
        while (left := end - time.monotonic()) > 0:
            if poll.poll(min(left, 1.0) * 1000):
                return True
            progress(f"waiting for the daemon (process {pid}) to send what it holds ({left:.0f} s left)")
    finally:
        os.close(descriptor)
    return False


def ask_child(script: str, path: Path, deadline_s: float) -> bytes | None:
    """Have a child process look at a path, because a mount that hangs may hang whoever looks, for ever.

    Args:
        script: Python, standard library only; finds the path in `sys.argv[1]`, and writes its answer to
            standard output.
        path: what to look at.
        deadline_s: how long to wait once the child looks. How long a busy machine takes to start one says
            nothing about the path.

    Returns:
        What it wrote; None when it was given up.
    """
    program = f"import os\nos.write(1, {_STARTED!r})\n{script}"
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    with open(read_end, "rb", buffering=0) as answer:  # noqa: PTH123 - a descriptor, not a path
        try:
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", program, os.fspath(path)],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, write_end, 1),
                    # Of a child that outlives its parent nobody wants to hear.
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
            )
        finally:
            os.close(write_end)
        data = _read_answer(answer.fileno(), deadline_s)
    if data is None:
        os.kill(pid, signal.SIGKILL)
        # A child that hangs in the kernel dies only when the mount is gone: nobody waits for it.
        threading.Thread(target=os.waitpid, args=(pid, 0), daemon=True).start()
        return None
    os.waitpid(pid, 0)
    return data


def _read_answer(descriptor: int, deadline_s: float) -> bytes | None:
    """Read what follows the word that the child has started; None when a deadline passes first."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    data = b""
    end = time.monotonic() + _START_S
    while poll.poll(max(0.0, end - time.monotonic()) * 1000):
        chunk = os.read(descriptor, 65536)
        if not chunk:
            return data.removeprefix(_STARTED)
        if not data:
            end = time.monotonic() + deadline_s
        data += chunk
    return None
