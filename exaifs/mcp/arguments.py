"""Arguments that do not fit, in words a model can act on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError


def unknown_in(tool: str, given: Mapping[str, Any], takes: Collection[str]) -> str | None:
    """Say which arguments a tool does not have; None: it has all of them.

    Ignored, they would mislead: a list of everything is no answer to a list of one directory.
    """
    unknown = sorted(set(given).difference(takes))
    if not unknown:
        return None
    names = ", ".join(repr(name) for name in unknown)
    return f"{tool} has no argument {names}; {_there_are(takes)}."


def mistakes_in(tool: str, error: ValidationError, takes: Collection[str]) -> str:
    """Say what is wrong with the arguments of a tool, without repeating them: one may be a file."""
    said = []
    for problem in error.errors(include_input=False, include_url=False, include_context=False):
        name = ".".join(str(part) for part in problem["loc"])
        what = (
            "is needed"
            if problem["type"] == "missing"
            else problem["msg"].replace("Input should", "should")
        )
        said.append(f"{name} {what}")
    return f"{tool}: {'; '.join(said)}; {_there_are(takes)}."


def _there_are(takes: Collection[str]) -> str:
    return f"its arguments are {', '.join(takes)}" if takes else "it takes no arguments"
