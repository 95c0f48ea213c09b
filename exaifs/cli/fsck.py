"""`exaifs fsck`: shows what `ops.fsck` finds and repairs."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import click
import rich.progress
import trio

from exaifs import logs
from exaifs.cli.command import Session, bucket, command as define, log_level, pass_session
from exaifs.cli.output import console, note, printable, say, say_json
from exaifs.config import Config
from exaifs.errors import BucketMissing, Busy, ExaifsError, RemoteError, Unauthorized, Unreachable
from exaifs.ops.advice import explain
from exaifs.ops.fsck import check
from exaifs.ops.fsck_report import Finding, Progress, Report

STYLES: Final = {"problem": "bold red", "note": "dim", "repaired": "green"}
_MARK_WIDTH: Final = 10
_AREA_WIDTH: Final = 10
STDOUT: Final = Path("-")


@define(
    "fsck",
    examples=(
        ("exaifs fsck", "look at everything, change nothing"),
        ("exaifs fsck --repair", "repair what loses nothing; unmount first to repair this host's part"),
        ("exaifs fsck --deep --json report.json", "also read every object, and keep the report"),
        ("exaifs fsck --local", "this host only: no key is needed, nobody is asked"),
    ),
)
@click.option("--repair", is_flag=True, help="Repair what can be repaired without losing anything.")
@click.option("--deep", is_flag=True, help="Read every object and compare its SHA-256 with the row's.")
@click.option("--local", "local_only", is_flag=True, help="Leave the bucket out.")
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Write the report as JSON to a file; - prints it instead of text.",
)
@bucket
@click.option("--cache-dir", type=click.Path(path_type=Path), help="The cache directory.  [FILE_CACHE_DIR]")
@log_level
@pass_session
def command(
    session: Session,
    /,
    *,
    repair: bool,
    deep: bool,
    local_only: bool,
    json_file: Path | None,
    **flags: Any,
) -> int:
    """Compare objects with their rows, and both with the cache and the journal of this host.

    Without --repair nothing is changed. With it, what loses nothing is repaired: missing rows are made,
    rows of nothing and damaged cache contents go, bytes that no record names become conflicts (see `exaifs
    conflicts`). Nothing that was acknowledged is dropped while its bytes are there. While a mount uses
    the cache directory, this host's part is only looked at; what waits in its journal is never touched.

    The exit code is 0 when nothing is wrong (notes do not count), 1 when problems were found or are left.
    """
    if deep and local_only:
        raise click.UsageError("--deep is about the bucket, and --local leaves it out.")
    config = session.load(**flags)
    if json_file is not None and json_file != STDOUT:
        _check_place(json_file)
    secrets = logs.secrets_of(config)
    session.redact = logs.setup(flags["log_level"] or "error", config.log_format, secrets)
    with _Bar() as progress:
        report = trio.run(partial(check, config, progress, repair=repair, deep=deep, local_only=local_only))
    if json_file == STDOUT:
        say_json(report.to_json(), session.redact, ascii_only=True)
    else:
        _show(report, session)
        if json_file is not None:
            text = session.redact(json.dumps(report.to_json(), indent=2))
            json_file.write_text(text + "\n", encoding="ascii")
    if report.remote_problem is not None:
        raise _advised(report.remote_problem, config)
    return 0 if report.is_clean else 1


def _check_place(report_file: Path) -> None:
    """Find out before hours of reading whether the report can be kept.

    Raises:
        UsageError: it cannot.
    """
    try:
        report_file.open("a", encoding="ascii").close()
    except OSError as exc:
        raise click.UsageError(f"The report cannot be written to {report_file}: {exc.strerror}.") from exc


def _advised(problem: RemoteError, config: Config) -> ExaifsError:
    # A missing bucket says what to do by itself, and of the bucket that was named.
    said = (
        str(problem) if isinstance(problem, BucketMissing) else "{}. {}".format(*explain(problem, config))
    )
    kind = type(problem) if isinstance(problem, Unreachable | Unauthorized | Busy) else ExaifsError
    return kind(f"the bucket was not checked to its end: {said}")


class _Bar(Progress):
    """A bar on a terminal; a line a check elsewhere, both beside the result."""

    def __init__(self) -> None:
        out = console(sys.stderr)
        self._is_terminal = out.is_terminal
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeElapsedColumn(),
            console=out,
            transient=True,
            disable=not self._is_terminal,
        )
        self._task: rich.progress.TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, what: str, total: int | None = None) -> None:
        if not self._is_terminal:
            note(f"checking {what}")
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(f"checking {what}", total=total)

    def advance(self, amount: int = 1) -> None:
        if self._task is not None:
            self._bar.advance(self._task, amount)


def _show(report: Report, session: Session) -> None:
    for finding in report.findings:
        _show_finding(finding, session)
    if report.mounted_at is not None:
        note(f"mounted at {report.mounted_at}: what this host has was looked at, and is not changed")
    left, repaired = len(report.problems), len(report.repaired)
    notes = sum(finding.severity == "note" for finding in report.findings)
    words = _number(left, "problem") if left else "clean" if report.is_clean else "no problems so far"
    if report.repair:
        words = f"{repaired:,} repaired, " + (
            f"{_number(left, 'problem')} left" if left else "nothing left"
        )
    words += f", {_number(notes, 'note')}; {_checked(report)}"
    say(words, "bold green" if report.is_clean else "bold red")
    if left and not report.repair:
        note("exaifs fsck --repair repairs what loses nothing; for the rest see what is said above")


def _show_finding(finding: Finding, session: Session) -> None:
    mark = "repaired" if finding.outcome == "repaired" else finding.severity
    head = f"{mark:<{_MARK_WIDTH}}{finding.area:<{_AREA_WIDTH}}"
    say(session.redact(head + printable(f"{finding.where}: {finding.what}")), STYLES[mark])
    for text in (finding.done, "" if finding.outcome == "repaired" else finding.advice):
        if text:
            say(session.redact(f"{'':<{len(head)}}-> {printable(text)}"))


def _number(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _checked(report: Report) -> str:
    parts = [f"{number:,} {what.replace('_', ' ')}" for what, number in report.checked.items()]
    return f"looked at {', '.join(parts)}" if parts else "nothing to look at"
