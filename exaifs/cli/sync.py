"""`exaifs sync`: waits until what was written is in Supabase."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from exaifs.cli.command import MOUNTPOINT, Session, Span, command as define, log_level, pass_session
from exaifs.cli.output import complain, note, printable, say
from exaifs.config import MIB
from exaifs.ops.status import links_above, mount_above
from exaifs.ops.sync import Left, described, wait

_LINE_EVERY_S: Final = 10.0
_NAMED: Final = 10


@define(
    "sync",
    examples=(
        ("exaifs sync", "everything in the mount of the working directory, or in the only mount"),
        ("exaifs sync /app/files/uploads/42", "one directory, or one file"),
        ("exaifs sync --timeout 60 /app/files || exaifs status /app/files", "give up after a minute"),
    ),
)
@click.argument("path", required=False, type=MOUNTPOINT)
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=Span(min=0),
    help="Give up after so long.  [as long as it takes]",
)
@log_level
@pass_session
def command(
    session: Session, /, *, path: Path | None, timeout_s: float | None, log_level: str | None
) -> int:
    """Wait until everything written at PATH or below it so far is in Supabase.

    Of a symbolic link, the link itself and what it leads to. What waits is tried at once, whatever it was
    waiting for. The exit code is 0 when all of it is in
    Supabase, and 1 when some is left (refused for good, or the time was up), when some was set aside
    meanwhile (see `exaifs conflicts`) or given up, or there is no such path.
    Files that programs have open and changed are named; nobody has been told that those are safe.
    """
    session.debug = session.debug or log_level == "debug"
    directory, inside = _place(path)
    with _progress() as show:
        left = wait(directory, inside, timeout_s=timeout_s, progress=show)
    return _report(left, directory)


def _place(path: Path | None) -> tuple[Path, list[str]]:
    if path is not None:
        return links_above(path)
    directory, inside = mount_above(None)
    return directory, [inside]


def _report(left: Left, directory: Path) -> int:
    for line in left.open[:_NAMED]:
        note(f"open and changed, not waited for: {printable(line['path'])}")
    for line in (left.lost + left.waiting + left.failed)[:_NAMED]:
        complain(f"not in Supabase: {printable(described(line))}")
    unsent = len(left.waiting) + len(left.failed)
    if left.lost:
        say(f"{len(left.lost):,} will not be sent; see exaifs conflicts {directory}, and the log")
    if unsent:
        say(f"{unsent:,} not in Supabase yet, safe on this host; see exaifs status {directory}")
    if unsent or left.lost:
        return 1
    say("everything is in Supabase")
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[Left], None]]:
    """Show what is left: a bar on a terminal, a line now and then elsewhere."""
    console = Console(file=sys.stderr, highlight=False, markup=False)
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("sending", total=None)
        most_bytes = 0

        def show(left: Left) -> None:
            nonlocal most_bytes
            most_bytes = max(most_bytes, left.size_bytes)
            bar.update(
                task,
                description=_what_is_left(left),
                total=most_bytes,
                completed=most_bytes - left.size_bytes,
            )

        yield show


def _lines(console: Console) -> Callable[[Left], None]:
    next_s = time.monotonic() + _LINE_EVERY_S

    def show(left: Left) -> None:
        nonlocal next_s
        if left.waiting and time.monotonic() >= next_s:
            next_s = time.monotonic() + _LINE_EVERY_S
            console.print(f"{_what_is_left(left)}, {left.size_bytes / MIB:,.1f} MiB", soft_wrap=True)

    return show


def _what_is_left(left: Left) -> str:
    stuck = left.problem
    return f"{len(left.waiting):,} left" + (f" ({printable(stuck)})" if stuck else "")
