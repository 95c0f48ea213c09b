"""What people and programs see: results on stdout, one line a problem on stderr.

Rich decides by itself whether the stream is a terminal and honours NO_COLOR; elsewhere its output is
plain text.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console


def console(stream: TextIO | None = None) -> Console:
    """Return a console on stdout, or on the stream given; text is printed as it is, not as markup."""
    return Console(file=stream or sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)


def say(text: str = "", style: str | None = None) -> None:
    """Print one line of the result."""
    console().print(text, style=style)


def note(text: str = "") -> None:
    """Print an explanation beside the result: on stderr, so that stdout can be piped."""
    console(sys.stderr).print(text, style="dim")


def complain(message: str) -> None:
    """Print a problem as one line on stderr."""
    console(sys.stderr).print(f"exaifs: {' '.join(message.split())}", style="red")


def printable(text: str) -> str:
    """Return one line that any terminal shows: names may hold line breaks, or bytes that are no text."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return shown.encode("utf-8", "replace").decode("utf-8")


def say_json(value: Any, redact: Callable[[str], str] = str, *, ascii_only: bool = False) -> None:
    """Print a value for programs; `redact` sees the whole text."""
    sys.stdout.write(redact(json.dumps(value, indent=2, ensure_ascii=ascii_only)) + "\n")
