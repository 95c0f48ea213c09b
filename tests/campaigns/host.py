"""One machine of a campaign: a daemon that is killed and started again on the same cache directory."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from exaifs.cache.unsent.journalfile import read_journal
from tests.campaigns.actions import Action
from tests.campaigns.looking import BucketClient, bucket_differences, mounted_tree
from tests.campaigns.workload import DEAD, Plan, is_unknown
from tests.campaigns.worlds import ImpossibleError, Node, Outcome, Worlds
from tests.conftest import PATIENT
from tests.support.mounts import REPOSITORY, MountedDaemon, MountError, wait_until, within

QUICK = {
    "EXAIFS_REQUEST_TIMEOUT_S": "0.8",
    "EXAIFS_FRESHNESS_S": "0.3",
    "EXAIFS_LOG_FORMAT": "json",
    "EXAIFS_LOG_LEVEL": "info",
}
"""Settings with which a campaign wastes no time."""

_FEED_DEADLINE_S = 60.0
_LOOKS = 5
_STARTS = 10
_ANSWER_S = 30.0


class Host:
    """Use it as a context manager: daemon and mount are gone afterwards.

    Args:
        place: a directory of its own; gets the cache directory, the mountpoint and the logs.
        environment: names server, bucket and key, and overrides settings.
        quick: whether no time is to be lost over a server that hangs.
    """

    def __init__(self, place: Path, environment: Mapping[str, str], *, quick: bool = True) -> None:
        self.place = place
        self.cache = place / "cache"
        self.path = place / "mnt"
        impatient = {name: value for name, value in environment.items() if PATIENT.get(name) != value}
        given = impatient if quick else environment
        self.environment = {**QUICK, **given, "FILE_CACHE_DIR": str(self.cache)}
        self.runs = 0
        self._daemon: MountedDaemon | None = None
        place.mkdir(exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._daemon is not None:
            self._daemon.clean_up()

    @property
    def daemon(self) -> MountedDaemon:
        """The newest run."""
        assert self._daemon is not None
        return self._daemon

    def launch(self, *, wrapper: tuple[str, ...] = ()) -> None:
        """Start a run without waiting for the mount."""
        self.runs += 1
        self._daemon = MountedDaemon(
            ["-m", "exaifs", "mount", str(self.path)],
            self.path,
            environment=self.environment,
            log_path=self.place / f"log-{self.runs}",
            secrets=[self.environment["SUPABASE_SERVICE_ROLE_KEY"]],
            wrapper=wrapper,
        )
        self._daemon.launch()

    def start(self, *, wrapper: tuple[str, ...] = ()) -> None:
        """Start a run and wait until it is mounted.

        Again where a first run, which has nothing to serve yet, was not answered in time, as a service
        manager does: its patience is that of a campaign, the machine may be busy.
        """
        for left in reversed(range(_STARTS)):
            self.launch(wrapper=wrapper)
            try:
                self.daemon.wait_started()
            except MountError as exc:
                if left == 0 or "Nothing is cached yet" not in str(exc):
                    raise
                self.daemon.clean_up()
                self.daemon.log_path.unlink()
            else:
                return

    def kill(self) -> None:
        """Crash the daemon."""
        self.daemon.kill9()

    def status(self) -> dict[str, Any]:
        """Return what the daemon says about itself."""
        value = json.loads(within(120, (self.path / ".exaifs/status.json").read_text))
        assert isinstance(value, dict)
        return value

    def unsent(self) -> int:
        """Return how many files and changes only this host has."""
        queue = self.status()["queue"]
        files = int(queue["dirty_open"]) + int(queue["waiting"])
        return max(files, self.left_behind())

    def wait_sent(self, deadline_s: float = 120.0) -> None:
        """Wait until nothing is left to send, and Supabase answers."""
        end = time.monotonic() + deadline_s
        while True:
            status, unsent = self.status(), self.unsent()
            if unsent == 0 and status["state"] == "online":
                return
            if time.monotonic() > end:
                shown = json.dumps({name: status[name] for name in ("state", "reason", "queue", "server")})
                raise TimeoutError(f"{unsent} not sent within {deadline_s} s: {shown}\n{self.tail()}")
            time.sleep(0.05)

    def tree(self, *, content: bool = True, below: str = "") -> dict[str, Node]:
        """Return what the mount shows; looks again if a name goes away meanwhile, as the feed may tell.

        So it does where a read fails: of a campaign's server a mount expects answers within a second, which
        a busy machine may need longer for.
        """
        for _attempt in range(_LOOKS):
            try:
                return within(120, lambda: mounted_tree(self.path / below, content=content))
            except FileNotFoundError:
                continue
            except OSError as exc:
                if exc.errno != errno.EIO:
                    raise
                # Until it is asked again, what was never listed is an error at once.
                with suppress(TimeoutError):
                    wait_until(lambda: self.status()["state"] != "offline", _ANSWER_S, "an answer")
        return within(120, lambda: mounted_tree(self.path / below, content=content))

    def tail(self, lines: int = 60) -> str:
        """Return the end of the newest log."""
        return "\n".join(self.daemon.log().splitlines()[-lines:])

    def traces(self) -> list[str]:
        """Return the log lines of all runs that show a bug: tracebacks, and what is no record."""
        found = []
        for path in sorted(self.place.glob("log-*")):
            for line in path.read_text(errors="replace").splitlines():
                try:
                    record = json.loads(line)
                    bug = "exception" in record or record.get("level") == "critical"
                except ValueError:
                    bug = True
                if bug:
                    found.append(f"{path.name}: {line}")
        return found

    def left_behind(self) -> int:
        """Return how many pieces of unsent work the cache directory names."""
        return sum(len(read_journal(path).records) for path in self.cache.glob("*/journal"))

    def work(self, plan: Plan, manifest: Path, *, deadline_s: float = 60.0) -> list[dict[str, Any]]:
        """Have a workload work in the mount until it ends; return what it wrote down."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.campaigns.workload", str(manifest)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "LC_ALL": "C.UTF-8"},
            cwd="/",
        )
        try:
            output, _ = process.communicate(json.dumps(asdict(plan)).encode(), deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()  # frees whoever waits for it
            process.kill()
            process.communicate(timeout=120)
            shown = manifest.read_text()[-600:] if manifest.exists() else ""
            raise TimeoutError(f"the workload did not end: {shown}\n{self.tail()}") from None
        assert process.returncode == 0, output.decode()
        return [json.loads(line) for line in manifest.read_text().splitlines()]


def verify(host: Host, worlds: Worlds, client: BucketClient) -> None:
    """Assert that mount and bucket are one and the same possible tree, and go on from it.

    The mount must be right at once. What is in the bucket since a request without answer, it may learn from
    its change feed.

    Args:
        host: has sent everything.
        worlds: what is possible.
        client: sees the bucket without any proxy.
    """
    end = time.monotonic() + _FEED_DEADLINE_S
    while True:
        tree = host.tree()
        wrong = worlds.differences(tree)
        if wrong:
            also = bucket_differences(client, tree)
            wrong += ["the bucket is different from that:", *also] if also else ["and so is the bucket"]
        assert not wrong, "the mount is wrong:\n" + "\n".join(wrong)
        wrong = bucket_differences(client, tree)
        if not wrong:
            worlds.settle(tree)
            return
        assert time.monotonic() < end, "the bucket is not what the mount shows:\n" + "\n".join(wrong)
        time.sleep(0.1)


def replay(manifest: list[dict[str, Any]], worlds: Worlds) -> tuple[int, int]:
    """Note what a workload wrote down.

    Args:
        manifest: its lines, in order.
        worlds: where it began.

    Returns:
        How many changes were acknowledged, and how many failed without a reason in the tree.

    Raises:
        ImpossibleError: an answer or a read was wrong.
    """
    acknowledged = failed = 0
    action: Action | None = None
    synced = 0
    for line in manifest:
        if "want" in line:
            action, synced = Action.from_json(dict(line["want"])), 0
        elif "synced" in line:
            synced = line["synced"]
        else:
            assert action is not None
            outcome = _note(worlds, action, line, synced)
            acknowledged += outcome == "done" and action.kind != "read"
            failed += outcome == "failed" and action.kind != "read"
            action = None
    assert action is None, "the workload writes down every answer"
    return acknowledged, failed


def _note(worlds: Worlds, action: Action, answer: dict[str, Any], synced: int) -> Outcome | None:
    """Note one answer; return what it says, None if it says that nothing was done."""
    number = answer["got"]
    outcome: Outcome = "done" if number is None else "unknown" if number in DEAD else "failed"
    if outcome == "failed" and not is_unknown(number):
        worlds.refused(action, number)
        return None
    if action.kind != "read":
        worlds.take(action, outcome, synced)
    elif outcome == "done" and not worlds.could_read(action.path, answer["sha256"]):
        possible = worlds.possible(action.path)
        raise ImpossibleError(f"{action.path} was read as {answer['sha256']}, but is one of {possible}")
    return outcome


def plan_for(tree: Mapping[str, Node], root: Path, seed: int, **changes: Any) -> Plan:
    """Return a plan that begins with what is there."""
    files = sorted(path for path, node in tree.items() if node.kind == "file")
    directories = sorted(path for path, node in tree.items() if node.kind == "directory")
    plan = Plan(str(root), seed, files, directories, first_number=0, actions=40, seconds=30.0, failures=8)
    return replace(plan, **changes)
