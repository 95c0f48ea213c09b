"""What `exaifs fsck` finds and does: values only. The checks make them, `cli.fsck` shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from exaifs.cache.names.keyset import KeySet
from exaifs.errors import RemoteError

FORMAT: Final = 1

Area = Literal["bucket", "cache", "journal", "index", "conflicts"]
Severity = Literal["problem", "note"]
Outcome = Literal["found", "repaired", "left"]

Mend = Callable[[], Awaitable[str]]
"""Repairs one thing, and returns what was done, for people."""


@dataclass(slots=True)
class Finding:
    """One thing that is not as it should be, or that is worth knowing.

    Attributes:
        area: which part of exaifs it is about.
        kind: for programs: lower case, underscores.
        where: a path in the bucket, or a file of the cache directory.
        what: one sentence without a dot at its end.
        severity: a note is no damage, and does not count.
        advice: what to do where `--repair` does not help; empty where it does.
        mend: repairs it without losing anything; None: nothing here can.
        outcome: `left`: it was to be repaired, and was not.
        done: what was done, or why nothing was.
    """

    area: Area
    kind: str
    where: str
    what: str
    severity: Severity = "problem"
    advice: str = ""
    mend: Mend | None = field(default=None, repr=False)
    outcome: Outcome = "found"
    done: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is a problem that is still there."""
        return self.severity == "problem" and self.outcome != "repaired"

    def to_json(self) -> dict[str, Any]:
        """Return it as the report has it."""
        return {
            "area": self.area,
            "kind": self.kind,
            "severity": self.severity,
            "where": self.where,
            "what": self.what,
            "repairable": self.mend is not None,
            "outcome": self.outcome,
            "done": self.done,
            "advice": self.advice,
        }


class Progress(Protocol):
    """Shows how far a check is."""

    def begin(self, what: str, total: int | None = None) -> None:
        """Begin a check.

        Args:
            what: for people.
            total: how much there is to do, in bytes or keys; None: not known.
        """

    def advance(self, amount: int = 1) -> None:
        """Note that so much more is done."""


class Report:
    """All that was found, as it comes.

    Args:
        server_url: without secrets.
        bucket: its name.
        cache_directory: of the bucket; need not exist.
        repair: whether things are to be repaired.
    """

    def __init__(self, server_url: str, bucket: str, cache_directory: Path, *, repair: bool) -> None:
        self.server_url = server_url
        self.bucket = bucket
        self.cache_directory = cache_directory
        self.repair = repair
        # Mutable, by the checks.
        self.findings: list[Finding] = []
        self.checked: Counter[str] = Counter()
        self.mounted_at: str | None = None
        """Where a daemon has this cache directory in use, so that nothing in it may be changed."""
        self.unsent = KeySet()
        """Keys that the journal has records of: they are about to change."""
        self.contents: dict[str, Path] = {}
        """Cached contents that are what their names say."""
        self.remote_problem: RemoteError | None = None
        """Why the bucket could not be checked, or not to its end."""
        self.is_remote_checked = False

    def begin_anew(self) -> None:
        """Forget what was found."""
        self.findings.clear()
        self.checked.clear()
        self.contents.clear()

    @property
    def problems(self) -> list[Finding]:
        """Those that are still there."""
        return [finding for finding in self.findings if finding.counts]

    @property
    def repaired(self) -> list[Finding]:
        """Those that are not any more."""
        return [finding for finding in self.findings if finding.outcome == "repaired"]

    @property
    def is_clean(self) -> bool:
        """Whether everything was looked at that was to be, and nothing is wrong."""
        return not self.problems and self.remote_problem is None

    def to_json(self) -> dict[str, Any]:
        """Return the report for programs.

        `findings` in the order they were found; `checked`: how many of what was looked at.
        """
        return {
            "format": FORMAT,
            "server_url": self.server_url,
            "bucket": self.bucket,
            "cache_directory": str(self.cache_directory),
            "mounted_at": self.mounted_at,
            "repair": self.repair,
            "clean": self.is_clean,
            "problems": len(self.problems),
            "repaired": len(self.repaired),
            "notes": sum(finding.severity == "note" for finding in self.findings),
            "bucket_checked": self.is_remote_checked,
            "bucket_problem": None if self.remote_problem is None else str(self.remote_problem),
            "checked": dict(self.checked),
            "findings": [finding.to_json() for finding in self.findings],
        }
