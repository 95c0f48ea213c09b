"""`exaifs doctor`: shows what `ops.doctor` finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click
import trio

from exaifs import logs
from exaifs.cli.command import Session, bucket, command as define, log_level, pass_session
from exaifs.cli.output import say, say_json
from exaifs.ops.checks import Check, Report, Status
from exaifs.ops.doctor import examine

MARKS: Final = {
    Status.OK: ("ok", "green"),
    Status.WARNING: ("warning", "yellow"),
    Status.FAILED: ("FAILED", "bold red"),
    Status.SKIPPED: ("skipped", "dim"),
}
_TITLE_WIDTH: Final = 28
_MARK_WIDTH: Final = 9


@define(
    "doctor",
    examples=(
        ("exaifs doctor", "test the project and the bucket of the environment"),
        ("exaifs doctor --bucket generated-files", "test another bucket"),
        ("exaifs doctor --json | jq -r '.passed'", "for programs; the exit code is 1 if anything failed"),
    ),
)
@bucket
@click.option(
    "--cache-dir", type=click.Path(path_type=Path), help="The cache directory to test.  [FILE_CACHE_DIR]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@log_level
@pass_session
def command(session: Session, /, *, as_json: bool, **flags: Any) -> int:
    """Test the connection to Supabase and what this machine needs for a mount.

    Six checks: environment variables, storage client, database connection, tables, buckets, and a round
    trip of a small test file, which is removed again. Then this machine and the set-up of the project.
    Each failure names its fix. Nothing else is changed, and no secret is shown.
    """
    logs.setup(flags["log_level"] or "warning", "auto", ())
    report = trio.run(examine, lambda: _load(session, flags))
    if as_json:
        say_json(report.to_json(), session.redact)
    else:
        _show(report, session)
    return 0 if report.healthy else 1


def _load(session: Session, flags: dict[str, Any]) -> Any:
    config = session.load(**flags)
    logs.setup(flags["log_level"] or "warning", config.log_format, logs.secrets_of(config))
    return config


def _show(report: Report, session: Session) -> None:
    for number, check in enumerate(report.checks, 1):
        _show_check(f"{number}. {check.title}", check, session)
    say()
    say("This machine and the set-up", "bold")
    for check in report.local:
        _show_check(check.title, check, session)
    say()
    say(f"{report.passed}/{len(report.checks)} passed", "bold green" if report.healthy else "bold red")
    if report.passed == len(report.checks) and not report.healthy:
        say("Supabase is fine; this machine is not ready for a mount, see above.", "red")


def _show_check(title: str, check: Check, session: Session) -> None:
    mark, style = MARKS[check.status]
    say(session.redact(f"{title:<{_TITLE_WIDTH}}{mark:<{_MARK_WIDTH}}{check.summary}"), style)
    for line in check.details:
        _, line_style = MARKS[line.status]
        say(
            session.redact(f"     {line.name:<26}{line.text}"),
            line_style if line.status is not Status.OK else None,
        )
    if check.fix:
        say(session.redact(f"     -> {check.fix}"), "bold")
