"""`exaifs gc`: delete what nobody needs any more, after showing it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import click
import trio
from rich.filesize import decimal

from exaifs import logs
from exaifs.cli.command import Session, Span, bucket, command as define, log_level, pass_session
from exaifs.cli.output import note, say, say_json
from exaifs.config import Config
from exaifs.embedded.progress import step
from exaifs.names import path_of
from exaifs.ops.gc import FILES, ROWS, Collector, Outcome, Survey, report, totals
from exaifs.remote.upkeep import Finding

_DAY_S: Final = 86_400
_MAX_DAYS: Final = 36_500
_SHOWN_NAMES: Final = 5

_TITLES: Final = {
    "queued": "left by deleted conversations",
    "expired": "expired",
    "orphan": "orphans, not used for {days:g} days",
    "row": "rows without a file",
    "entry": "rows in the table files without a file",
    "malformed": "not deleted: expires_at is no time such as 2026-01-31T12:00:00Z",
}


@define(
    "gc",
    examples=(
        ("exaifs gc --dry-run", "show what would be deleted; changes nothing"),
        ("exaifs gc", "show it, ask, and delete it"),
        ("exaifs gc --older-than 90 --yes", "for a timer: do not ask"),
    ),
)
@click.option(
    "--older-than",
    "older_days",
    type=Span(min=0, max=_MAX_DAYS),
    default=30.0,
    show_default=True,
    metavar="DAYS",
    help="Leave orphans and rows that somebody wrote or read since.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be deleted; change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Delete without asking.")
@bucket
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@log_level
@pass_session
def command(
    session: Session,
    /,
    *,
    older_days: float,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **flags: Any,
) -> int:
    """Delete what nobody needs any more; show it first, and ask.

    \b
    - Orphans, when older than DAYS: files in uploads/ID/ whose conversation ID does
      not exist, and files that a program stored as generated or cache (file_type)
      and nobody moved to another directory; none that a conversation has.
    - Expired files: expires_at in their metadata is past, such as
      2026-01-31T12:00:00Z. Until then such a file is no orphan. What is no time is
      shown, and its file stays.
    - What deleted conversations left, where no mount has deleted it yet.
    - Rows whose file is gone, when older than DAYS.

    Any other file is yours and stays. Each is looked at again at the moment of its deletion: what was
    written or linked meanwhile stays.
    """  # noqa: D301  # click asks for the character
    config = session.load(**flags)
    session.redact = logs.setup(
        flags.get("log_level") or "warning", config.log_format, logs.secrets_of(config)
    )
    older_s = int(older_days * _DAY_S)
    survey, outcome = trio.run(_Run(config, older_s, dry_run=dry_run, yes=yes, as_json=as_json).collect)
    if as_json:
        say_json(report(survey, outcome, bucket=config.bucket, older_s=older_s), session.redact)
    elif outcome is None:
        note("nothing was changed")
    else:
        _conclude(outcome)
    if outcome is None:
        return 0 if dry_run else 1
    return 1 if outcome.failed else 0


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of the command."""

    config: Config
    older_s: int
    dry_run: bool
    yes: bool
    as_json: bool

    async def collect(self) -> tuple[Survey, Outcome | None]:
        """Look, show, ask, delete. Without an outcome nothing was deleted.

        Raises:
            UsageError: there is something to delete, and nobody to ask.
        """
        async with Collector.open(self.config, self.older_s) as collector:
            with step(f"Looking at the files of {self.config.bucket}") as advance:
                survey = await collector.survey(advance)
            if not self.as_json:
                _show(survey, self.older_s)
            found = survey.of(*FILES, *ROWS)
            if self.dry_run or (found and not self.yes and not self._confirmed(found)):
                return survey, None
            if not found:
                return survey, Outcome()
            with step("Deleting", total=len(found)) as advance:
                return survey, await collector.delete(survey, advance)

    def _confirmed(self, found: Sequence[Finding]) -> bool:
        if self.as_json or not sys.stdin.isatty():
            raise click.UsageError("there is nobody to ask: say --yes to delete, --dry-run to look only.")
        return click.confirm(f"Delete {_amount(found)}?", err=True)


def _show(survey: Survey, older_s: int) -> None:
    """Print what was found: a line a kind, and some names below it."""
    for kind, title in _TITLES.items():
        found = survey.of(kind)
        if not found:
            continue
        say(f"{title.format(days=older_s / _DAY_S)}: {_amount(found)}", "bold")
        for finding in found[:_SHOWN_NAMES]:
            say(f"  {_printable(path_of(finding.key))}  ({_printable(finding.note) or 'no date'})")
        if len(found) > _SHOWN_NAMES:
            say(f"  and {len(found) - _SHOWN_NAMES:,} more")
    if not survey.findings:
        say("nothing to delete")
    note(f"{survey.scanned:,} rows looked at")


def _conclude(outcome: Outcome) -> None:
    for finding, reason in outcome.failed[:_SHOWN_NAMES]:
        note(f"not deleted: {_printable(path_of(finding.key))}: {reason}")
    if outcome.failed:
        note(f"{_amount([finding for finding, _ in outcome.failed])} could not be deleted")
    if outcome.kept:
        note(f"{_amount(outcome.kept)} stay: changed, linked or referred to since, or a mount is at it")
    say(f"deleted {_amount(outcome.deleted)}")


def _amount(findings: Sequence[Finding]) -> str:
    files = [finding for finding in findings if finding.kind not in ROWS]
    rows = len(findings) - len(files)
    size = decimal(totals(files)["bytes"])
    parts = [f"{len(files):,} file{'s' * (len(files) != 1)} ({size})"] if files or not rows else []
    if rows:
        parts.append(f"{rows:,} row{'s' * (rows != 1)}")
    return " and ".join(parts)


def _printable(text: str) -> str:
    """Show control characters as escapes: a name must not steer the terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
