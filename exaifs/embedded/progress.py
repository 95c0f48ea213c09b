"""What is going on, on stderr: a bar or spinner on a terminal, a line a step elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Advance = Callable[[int], None]
"""Call it with the number of parts that are done."""


@contextmanager
def step(text: str, total: int | None = None) -> Iterator[Advance]:
    """Show that something is being done while the block runs.

    Args:
        text: what, as a sentence start ("Installing …").
        total: number of parts, where it is known.
    """
    console = Console(file=sys.stderr, highlight=False, markup=False)
    if not console.is_terminal:
        console.print(text, soft_wrap=True)
        yield _ignore
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=total)

        def advance(done: int) -> None:
            progress.update(task, completed=done)

        yield advance


def _ignore(_done: int) -> None:
    """Say nothing: a log needs no bar."""
