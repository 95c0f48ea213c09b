"""Child processes: started in a session of their own, ended for certain, recognised after a crash.

A session of its own means that Ctrl-C in the terminal reaches only us, so that we choose the order in
which things stop. Stdin is a pipe that we never write to: it closes when we are gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.abc import Process

from exaifs.embedded.files import open_private, read_json, write_private
from exaifs.errors import EmbeddedError

STOP_TIMEOUT_S: Final = 10.0
"""Time between SIGTERM and SIGKILL; lite closes its database well within one second."""
_POLL_S: Final = 0.05
_START_TIME_FIELD: Final = 19
"""Of /proc/PID/stat after the command's name: proc_pid_stat(5), field 22."""


@asynccontextmanager
async def running(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    log: Path,
    cwd: Path | None = None,
    stop_timeout_s: float = STOP_TIMEOUT_S,
    record: Path | None = None,
) -> AsyncIterator[Process]:
    """Run a command while the block runs; it has ended when this returns, also when cancelled.

    Args:
        command: program and arguments; never a secret.
        env: its whole environment.
        log: file for its output, started anew.
        cwd: its working directory; None for ours.
        stop_timeout_s: seconds between SIGTERM and SIGKILL.
        record: file that names the process while it runs, so that after a crash `end_recorded` finds it.

    Raises:
        EmbeddedError: the program cannot be started.
    """
    with open_private(log) as output:
        try:
            process = await anyio.open_process(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=env,
                start_new_session=True,
            )
        except OSError as exc:
            raise EmbeddedError(f"cannot run {command[0]}: {exc.strerror}. Install exaifs again.") from exc
    try:
        if record is not None:
            identity = ProcessId.of(process.pid)
            write_private(record, json.dumps(asdict(identity) if identity else {}) + "\n")
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            await _stop(process, stop_timeout_s)
        if record is not None:
            _forget(record)


def _forget(record: Path) -> None:
    record.unlink(missing_ok=True)


async def _stop(process: Process, timeout_s: float) -> None:
    """End the process's whole session: politely, then by force."""
    _signal_group(process, signal.SIGTERM)
    with anyio.move_on_after(timeout_s):
        await process.wait()
    if process.returncode is None:
        _signal_group(process, signal.SIGKILL)
    await process.aclose()


def _signal_group(process: Process, number: signal.Signals) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


async def run(command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> int:
    """Run a command to its end and return its exit status."""
    async with running(command, cwd=cwd, env=env, log=log) as process:
        return await process.wait()


def last_lines(log: Path, count: int) -> list[str]:
    """Return the last lines of a log that say something. Lite's own log holds keys: pick from them."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()][-count:]


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that can be recognised again: numbers are reused, a number with a start time is not."""

    pid: int
    start_time: int
    """Clock ticks since boot."""

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """Return the identity of a running process; None where there is none, or only a zombie."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in {"Z", "X"} else cls(pid, int(fields[_START_TIME_FIELD]))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ProcessId | None:
        """Read what `asdict` wrote; None for anything else."""
        pid, start_time = value.get("pid"), value.get("start_time")
        return cls(pid, start_time) if isinstance(pid, int) and isinstance(start_time, int) else None

    def runs(self) -> bool:
        """Whether this very process is still there."""
        return ProcessId.of(self.pid) == self

    async def end(self, timeout_s: float) -> None:
        """End the process, which need not be our child: SIGTERM, a deadline, SIGKILL."""
        for number, patience_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, STOP_TIMEOUT_S)):
            if self.runs():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, number)
            with anyio.move_on_after(patience_s):
                while self.runs():  # noqa: ASYNC110 - a foreign process sets no event
                    await anyio.sleep(_POLL_S)


async def end_recorded(path: Path, timeout_s: float) -> None:
    """End the process that a crashed run wrote down, if it is still there."""
    leftover = ProcessId.from_json(read_json(path))
    if leftover is not None:
        await leftover.end(timeout_s)
