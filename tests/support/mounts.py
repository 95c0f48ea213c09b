"""Real mounts for tests: a daemon as a subprocess, and ways to touch its files that cannot hang a test.

A program that waits for a FUSE daemon cannot always be killed, so whenever a deadline passes here, the
daemon is killed first: that frees everybody who waits for it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from exaifs import mountpoint as mountpoints
from exaifs.mountpoint import Mount

_T = TypeVar("_T")

REPOSITORY = Path(__file__).resolve().parents[2]
_START_DEADLINE_S = 180.0
_STOP_DEADLINE_S = 180.0
_ALARMING = {"warning", "error", "critical"}

AWAY = frozenset(
    {
        "Supabase cannot be reached, serving what is known",
        "Supabase is away; serving what is known",
        "files of deleted conversations stay",
        "files not sent; they are kept in the cache directory for the next mount",
        "kept for later",
        "no change feed; directories are listed again as they age",
        "not carried out yet",
        "not sent yet",
        "request failed",
        "will be sent later",
    }
)
"""What a daemon says whose server is gone or hangs."""


class MountError(AssertionError):
    """The daemon did not do what a test needs."""


def within(seconds: float, function: Callable[[], _T]) -> _T:
    """Call a function that touches a mount; raise TimeoutError when it has not returned in time."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as exc:  # noqa: BLE001 - handed over to the caller
            errors.append(exc)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds} s")
    return results[0]


def wait_until(condition: Callable[[], Any], deadline_s: float, what: str) -> None:
    """Poll until the condition holds, for processes that cannot be waited for otherwise."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {deadline_s} s")
        time.sleep(0.02)


class MountedDaemon:
    """A daemon subprocess that mounts at `path`. Use it as a context manager.

    On leaving it is stopped with SIGTERM and its log is checked: every warning, error or traceback that
    the test did not announce in `expected` fails the test, and so does a secret.

    Args:
        argv: the command after the Python interpreter; gets no input.
        path: the mountpoint; made when missing.
        environment: added to a minimal one; nothing of ours is inherited.
        log_path: receives standard output and error of all runs.
        secrets: must never appear in the log.
        wrapper: a command that runs the one after it, such as strace; it must pass signals on.
    """

    def __init__(
        self,
        argv: Sequence[str],
        path: Path,
        *,
        environment: Mapping[str, str],
        log_path: Path,
        secrets: Sequence[str] = (),
        wrapper: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.expected: set[str] = set()
        """Log events of warning level and above that this test provokes."""
        self.log_path = log_path
        self._argv = [*wrapper, sys.executable, *argv]
        self._environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": os.environ.get("HOME", "/"),
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": str(REPOSITORY),
            # Warnings of our own code are errors, as in the other tests.
            "PYTHONWARNINGS": "default",
            **environment,
        }
        self._secrets = [secret for secret in secrets if secret]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        try:
            if self._process is not None:
                self.stop()
        finally:
            self.clean_up()
        if kind is None:
            self.check_log()

    @property
    def pid(self) -> int:
        """Process id of the daemon."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the daemon and wait until it is mounted and has said so."""
        already = self.events().count("mounted")
        self.launch()
        self.wait_started(already)

    def wait_started(self, already: int = 0) -> None:
        """Wait until a launched daemon has mounted and has said so.

        Args:
            already: how often the log says so of earlier runs.
        """
        try:
            wait_until(
                lambda: self._exited() or self.events().count("mounted") > already,
                _START_DEADLINE_S,
                "the daemon reports a mount",
            )
        except TimeoutError as exc:
            raise MountError(f"{exc}\n{self.log()}") from exc
        mount = mountpoints.find(self.path)
        if self._exited() or mount is None or not mount.is_ours:
            raise MountError(f"the daemon did not mount:\n{self.log()}")

    def launch(self) -> None:
        """Start the daemon without waiting."""
        assert self._process is None
        if mountpoints.find(self.path) is None:
            self.path.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd="/",
            )

    def _exited(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def wait(self, deadline_s: float = _STOP_DEADLINE_S) -> int:
        """Wait until the daemon has ended by itself; return its exit code."""
        assert self._process is not None
        try:
            code = self._process.wait(deadline_s)
        except subprocess.TimeoutExpired as exc:
            self.kill9()
            raise MountError(f"the daemon did not end within {deadline_s} s:\n{self.log()}") from exc
        self._process = None
        return code

    def signal(self, number: int) -> None:
        """Send a signal to the daemon."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """End the daemon in order; it must exit with 0 and leave nothing mounted."""
        self.signal(signal.SIGTERM)
        code = self.wait()
        if code != 0:
            raise MountError(f"the daemon exited with {code}:\n{self.log()}")
        if self.mount is not None:
            raise MountError(f"still mounted after a clean end:\n{self.log()}")

    def kill9(self) -> None:
        """Crash the daemon; its mountpoint stays behind."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(120)
            self._process = None

    def restart(self) -> None:
        """Stop in order and start again, with empty kernel caches."""
        self.stop()
        self.start()

    @property
    def mount(self) -> Mount | None:
        """The entry of the mount table, whether or not it answers."""
        return mountpoints.find(self.path)

    def drop_kernel_caches(self) -> None:
        """Make the kernel forget pages, names and attributes that nobody uses (root only)."""
        os.sync()
        try:
            Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
        except OSError:
            # Read-only in a container, whatever it may do else. A remount empties the caches of its mount.
            remount = ["mount", "-i", "-o", "remount", str(self.path)]
            subprocess.run(remount, check=True, capture_output=True, timeout=120)

    def sh(self, script: str, *, timeout_s: float = 120.0, check: bool = True) -> str:
        """Run a shell script in the mount; return its output.

        Args:
            script: for bash, with the mount as working directory.
            timeout_s: afterwards the daemon is killed, and TimeoutError raised.
            check: a status other than 0 raises; standard error is part of the output otherwise.
        """
        process = subprocess.Popen(
            # The directory is entered by the shell: Popen itself would hang on a hanging mount.
            ["bash", "-c", f'cd -- "$0" && {{ {script}\n}}', str(self.path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if check else subprocess.STDOUT,
            text=True,
            errors="surrogateescape",
            start_new_session=True,
        )
        try:
            output, problem = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill9()
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=120)
            raise TimeoutError(f"{script!r} did not end within {timeout_s} s\n{self.log()}") from None
        if check and process.returncode != 0:
            raise MountError(f"{script!r} failed: {problem}\n{self.log()[-4000:]}")
        return output

    def log(self) -> str:
        """Return everything the daemon has written."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def records(self) -> list[dict[str, Any]]:
        """Return the log's records; a line that is none becomes an error record."""
        records = []
        for line in self.log().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                record = {"level": "error", "event": line}
            records.append(record if isinstance(record, dict) else {"level": "error", "event": line})
        return records

    def events(self) -> list[str]:
        """Return the events of the log, in order."""
        return [str(record.get("event")) for record in self.records()]

    def check_log(self) -> None:
        """Raise for alarms that were not announced, and for secrets."""
        for secret in self._secrets:
            assert secret not in self.log(), "a secret is in the log"
        for record in self.records():
            event = str(record.get("event"))
            if event not in self.expected and (record.get("level") in _ALARMING or "exception" in record):
                raise MountError(f"the daemon logged: {json.dumps(record, indent=1)}")

    def clean_up(self) -> None:
        """Leave no daemon and no mount, whatever happened."""
        self.kill9()
        while self.mount is not None:
            mountpoints.detach(self.path, lazy=True)


def status_of(mount: MountedDaemon) -> dict[str, Any]:
    """Read what the daemon says about itself, as any program would."""
    status = json.loads(within(120, (mount.path / ".exaifs/status.json").read_text))
    assert isinstance(status, dict)
    return status
