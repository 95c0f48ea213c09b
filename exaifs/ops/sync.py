"""Waits until what was written is in Supabase, by what `.exaifs/sync` of the mount lists."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from exaifs.errors import NotFound
from exaifs.ops.status import DEADLINE_S, read_hidden
from exaifs.processes import ask_child

_PACE_S: Final = 0.25
_MAX_PACE_S: Final = 2.0
_PATIENCE_S: Final = 60.0
"""How long a mount may take to say what waits, where somebody waits for as long as it takes."""

_IS_THERE: Final = """
import os, sys
try:
    os.lstat(sys.argv[1])
except (FileNotFoundError, NotADirectoryError):
    sys.stdout.write("no")
except OSError:
    pass
"""

Line = dict[str, Any]
"""One thing that waits; `fs.waiting.Waiting` says what it holds."""


@dataclass(frozen=True, slots=True)
class Left:
    """What is not in Supabase at a moment.

    Attributes:
        waiting: what is safe on this host and will be sent.
        failed: what was refused for good, or could not even be kept.
        open: what programs have open and changed; nobody was told that it is safe.
        lost: what will not be sent: bytes that were set aside, changes that were given up.
    """

    waiting: list[Line]
    failed: list[Line]
    open: list[Line]
    lost: list[Line] = field(default_factory=list)

    @property
    def problem(self) -> str | None:
        """What of it was tried in vain, and why."""
        return next((described(line) for line in self.waiting if line["problem"]), None)

    @property
    def size_bytes(self) -> int:
        """What is still to be sent."""
        return sum(line["size_bytes"] for line in self.waiting)


def described(line: Line) -> str:
    """Return what waits, and why, for people."""
    what = "" if line["what"] == "file" else f"{line['what']} "
    path = f"{line['source']} to {line['path']}" if line["source"] else line["path"]
    return f"{what}{path}" + (f": {line['problem']}" if line["problem"] else "")


@dataclass(frozen=True, slots=True)
class Moment:
    """What was written when it was first asked what waits; later writes are somebody else's to wait for.

    By the numbers and times of the mount alone: this host's clock may have been set back meanwhile.
    """

    newest_number: int
    newest_unix_s: float
    newest_loss: int

    @classmethod
    def of(cls, left: Left) -> Moment:
        """Return the moment at which that was left."""
        lines = left.waiting + left.failed + left.open
        return cls(
            max((line["number"] or 0 for line in lines), default=0),
            max((line["since_unix_s"] or 0.0 for line in lines), default=0.0),
            max((line["number"] for line in left.lost), default=0),
        )

    def has(self, line: Line) -> bool:
        """Tell whether that waited, or may have."""
        if line["number"] is not None:
            return bool(line["number"] <= self.newest_number)
        return line["since_unix_s"] is None or bool(line["since_unix_s"] <= self.newest_unix_s)


def look(directory: Path, *inside: str, deadline_s: float = DEADLINE_S) -> Left:
    """Have a mount try everything now, and return what it has not sent at or below some paths.

    Args:
        directory: the mountpoint.
        inside: relative to it; '' for everything.
        deadline_s: how long the mount may take to answer.

    Raises:
        MountError: it does not answer.
    """
    lines = [json.loads(line) for line in read_hidden(directory, "sync", deadline_s).splitlines()]
    lines = [line for line in lines if any(_concerns(line, path) for path in inside)]
    failed = [line for line in lines if line["state"] == "failed"]
    opened = [line for line in lines if line["state"] == "open"]
    lost = [line for line in lines if line["state"] == "lost"]
    return Left([line for line in lines if line["state"] in {"pending", "uploading"}], failed, opened, lost)


def _concerns(line: Line, inside: str) -> bool:
    paths = [line["path"], line["source"]] if line["source"] else [line["path"]]
    # A change of a directory above concerns what is in it.
    return inside == "" or any(
        _is_at_or_below(path.rstrip("/"), inside) or _is_at_or_below(inside, path.rstrip("/"))
        for path in paths
    )


def _is_at_or_below(path: str, above: str) -> bool:
    return path == above or path.startswith(f"{above}/")


def wait(
    directory: Path, inside: Sequence[str], *, timeout_s: float | None, progress: Callable[[Left], None]
) -> Left:
    """Return once what waits at this moment is sent, or failed for good.

    Args:
        directory: the mountpoint.
        inside: relative to it; '' for everything. Of several, the first is what was asked for: a symbolic
            link, with what it leads to.
        timeout_s: how long at most; None: as long as it takes.
        progress: told again and again what is left.

    Returns:
        What is left of it, or was lost meanwhile.

    Raises:
        MountError: the mount does not answer.
        NotFound: there is no such path, and nothing of it waits.
    """
    end = None if timeout_s is None else time.monotonic() + timeout_s
    deadline_s = _PATIENCE_S if timeout_s is None else max(DEADLINE_S, min(timeout_s, _PATIENCE_S))
    moment: Moment | None = None
    pace_s = _PACE_S
    while True:
        left = look(directory, *inside, deadline_s=deadline_s)
        if moment is None:
            nothing = not (left.waiting or left.failed or left.open)
            if nothing and _is_absent(directory, inside[0], deadline_s):
                missing = directory / inside[0]
                raise NotFound(f"{missing}: no such file or directory, and nothing waits there")
            moment = Moment.of(left)
        left.waiting[:] = [line for line in left.waiting if moment.has(line)]
        left.lost[:] = [line for line in left.lost if line["number"] > moment.newest_loss]
        progress(left)
        if not left.waiting or (end is not None and time.monotonic() >= end):
            return left
        time.sleep(pace_s)
        pace_s = min(_MAX_PACE_S, pace_s * 1.3)


def _is_absent(directory: Path, inside: str, deadline_s: float) -> bool:
    """Tell whether a path is known not to be there; a mount that hangs cannot hold this up."""
    return ask_child(_IS_THERE, directory / inside, deadline_s) == b"no"
