"""A process that works in a mount and writes down, outside of it, what it wanted and what it was told.

    python -m tests.campaigns.workload MANIFEST < PLAN

The plan is one JSON object; see `Plan`. Each line of the manifest is fsynced before anything else happens:
`{"n": 7, "want": ACTION}` before an action, `{"n": 7, "synced": 2}` after an fsync that succeeded (so many
pieces are safe), `{"n": 7, "got": ERRNO or null, "at_s": WHEN}` after it, with `"sha256"` for a read. So
whatever ends the daemon or this process, each name has a known set of states that are allowed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tests.campaigns.actions import Action, Belief, Chooser

DEAD = {errno.ENOTCONN, errno.ECONNABORTED}
"""What calls say on a mount whose daemon is gone."""


DEFINITE = {
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOTEMPTY,
    errno.EINVAL,
}
"""Answers that say: nothing was done, and why. All others leave open whether it was."""


def is_unknown(number: int | None) -> bool:
    """Tell whether an errno leaves open what happened."""
    return number is not None and number not in DEFINITE


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do."""

    root: str
    seed: int
    files: list[str]
    directories: list[str]
    first_number: int
    actions: int
    """End after so many."""
    seconds: float
    """Begin none after so long."""
    failures: int
    """End after so many actions whose outcome is not known."""
    kill_pid: int = 0
    """End this process with SIGKILL; 0 for none."""
    kill_at: int = 0
    """When this action begins."""
    kill_delay_s: float = 0.0
    """So long after that; less than 0: right after it was acknowledged."""
    reads: float = 0.1
    watched: str = ""
    """A file whose size is noted with each answer, as `watched_bytes`."""


class Manifest:
    """The file; every line is on disk when `say` returns."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def say(self, **fields: Any) -> None:
        """Append one line."""
        os.write(self._fd, json.dumps(fields).encode() + b"\n")
        os.fsync(self._fd)


def _write(root: str, action: Action, flags: int, synced: Callable[[int], None]) -> None:
    fd = os.open(f"{root}/{action.path}", flags | os.O_CLOEXEC, 0o644)
    try:
        offset = action.offset
        for count, piece in enumerate(action.pieces, start=1):
            data = piece.data()
            # A write may be cut short; what follows must come to the same bytes.
            while data:
                done = os.pwrite(fd, data, offset) if action.kind == "patch" else os.write(fd, data)
                data, offset = data[done:], offset + done
            if action.synced:
                os.fsync(fd)
                synced(count)
    finally:
        os.close(fd)


def _carry_out(root: str, action: Action, synced: Callable[[int], None]) -> str | None:
    """Do it; return the digest of what was read.

    Raises:
        OSError: it failed.
    """
    path = f"{root}/{action.path}"
    writing = {"put": os.O_CREAT | os.O_TRUNC, "append": os.O_CREAT | os.O_APPEND, "patch": 0}
    if action.kind == "read":
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            return hashlib.sha256(file.readall()).hexdigest()
    if action.kind in writing:
        _write(root, action, os.O_WRONLY | writing[action.kind], synced)
    elif action.kind == "truncate":
        os.truncate(path, action.offset)
    elif action.kind == "rename":
        os.rename(path, f"{root}/{action.target}")  # noqa: PTH104 - the system call itself
    elif action.kind == "unlink":
        os.unlink(path)  # noqa: PTH108
    elif action.kind == "mkdir":
        os.mkdir(path, 0o755)  # noqa: PTH102
    elif action.kind == "rmdir":
        os.rmdir(path)  # noqa: PTH106
    elif action.kind == "chmod":
        os.chmod(path, action.mode)  # noqa: PTH101
    elif action.kind == "setxattr":
        os.setxattr(path, action.name, action.pieces[0].data())
    return None


def run(plan: Plan, manifest: Manifest) -> None:
    """Work until the plan is done or the daemon is gone."""
    os.umask(0o022)
    belief = Belief(set(plan.files), set(plan.directories))
    chooser = Chooser(random.Random(plan.seed), belief, plan.first_number, plan.reads)
    failures = 0
    end = time.monotonic() + plan.seconds
    for number in range(plan.actions):
        if time.monotonic() > end:
            return
        action = chooser.choose()
        manifest.say(n=number, want=asdict(action))
        doomed = plan.kill_pid and number == plan.kill_at
        if doomed and plan.kill_delay_s >= 0:
            threading.Timer(plan.kill_delay_s, os.kill, (plan.kill_pid, signal.SIGKILL)).start()
        got, digest = None, None
        try:
            digest = _carry_out(plan.root, action, lambda count, n=number: manifest.say(n=n, synced=count))  # type: ignore[misc]
        except OSError as exc:
            got = exc.errno
        else:
            belief.learn(action)
        if doomed and plan.kill_delay_s < 0:
            os.kill(plan.kill_pid, signal.SIGKILL)
        at_s = time.time()
        watched = {"watched_bytes": os.stat(plan.watched).st_size} if plan.watched else {}  # noqa: PTH116
        manifest.say(n=number, got=got, sha256=digest, at_s=at_s, **watched)
        if got in DEAD:
            return
        failures += is_unknown(got)
        if failures >= plan.failures:
            return


if __name__ == "__main__":
    run(Plan(**json.load(sys.stdin)), Manifest(sys.argv[1]))
