"""README's promises are held by tests, which quote them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def promises() -> list[str]:
    """Return the first column of README's table of promises."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("| promise | in short |", 1)[1].split("\n\n", 1)[0]
    return [match[1] for line in table.splitlines()[2:] if (match := re.match(r"\| ([^|]+) \|", line))]


def quotations() -> str:
    """Return the docstrings of all test functions."""
    return "\n".join(
        ast.get_docstring(node) or ""
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


def test_the_table_is_found() -> None:
    """The README has its seven promises."""
    assert len(promises()) == 7


@pytest.mark.parametrize("promise", promises())
def test_each_promise_is_quoted_by_a_test(promise: str) -> None:
    """A promise without a test that names it is a wish."""
    assert f"{promise}:" in quotations()
