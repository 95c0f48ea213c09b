"""What a check says: values only. `doctor` and `local` make them, `cli.doctor` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How a check went."""

    OK = "ok"
    WARNING = "warning"
    """Works, but not as it should; counts as passed."""
    FAILED = "failed"
    SKIPPED = "skipped"
    """Not tried, because a check it rests on failed; counts as not passed."""


GOOD = frozenset({Status.OK, Status.WARNING})


@dataclass(frozen=True, slots=True)
class Detail:
    """One line below a check: a table, a bucket, a variable."""

    name: str
    text: str
    status: Status = Status.OK
    data: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs, such as {"rows": 3}."""


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check.

    Args:
        name: for programs: lower case, underscores.
        title: for people.
        summary: what was found or what went wrong, one line.
        fix: what to do next; empty when nothing is to be done.
    """

    name: str
    title: str
    status: Status
    summary: str
    details: tuple[Detail, ...] = ()
    fix: str = ""

    @property
    def passed(self) -> bool:
        """Whether it counts in `N/6 passed`."""
        return self.status in GOOD

    def to_json(self) -> dict[str, Any]:
        """Return the check as `exaifs doctor --json` prints it."""
        return {
            "name": self.name,
            "title": self.title,
            "status": self.status.value,
            "summary": self.summary,
            "fix": self.fix,
            "details": [
                {"name": line.name, "status": line.status.value, "text": line.text, **line.data}
                for line in self.details
            ],
        }


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the doctor found: the six numbered checks, and those of this machine and the set-up."""

    url: str
    bucket: str
    checks: tuple[Check, ...]
    local: tuple[Check, ...]

    @property
    def passed(self) -> int:
        """How many of the numbered checks passed."""
        return sum(check.passed for check in self.checks)

    @property
    def healthy(self) -> bool:
        """Whether nothing failed, here or there."""
        return all(check.passed for check in self.checks) and not any(
            check.status is Status.FAILED for check in self.local
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as `exaifs doctor --json` prints it."""
        return {
            "url": self.url,
            "bucket": self.bucket,
            "passed": self.passed,
            "total": len(self.checks),
            "ok": self.healthy,
            "checks": [
                {"number": number, **check.to_json()} for number, check in enumerate(self.checks, 1)
            ],
            "local": [check.to_json() for check in self.local],
        }
