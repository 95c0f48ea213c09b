"""README's promises are held by tests, which quote them."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest
from pydantic import AliasChoices

from exaifs.config import Config
from exaifs.embedded.install import INSTALL_DIR_VARIABLE

ROOT = Path(__file__).parent.parent


def promises() -> list[str]:
    """Return the first column of README's table of promises."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("| promise | in short |", 1)[1].split("\n\n", 1)[0]
    return [match[1] for line in table.splitlines()[2:] if (match := re.match(r"\| ([^|]+) \|", line))]


@functools.cache
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


def settings() -> set[str]:
    """Return the variables in README's table of settings; `…` stands for the other names of its row."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("## Settings", 1)[1].split("\n## ", 1)[0]
    found = set()
    for line in table.splitlines():
        names = re.findall(r"`(…?[A-Z_]+)`", line)
        whole = {name for name in names if not name.startswith("…")}
        found |= whole | {start + name[1:] for name in names if name not in whole for start in whole}
    return found


def test_the_settings_are_all_in_the_readme_and_nothing_else_is() -> None:
    """Whatever the environment can set has a row, and each row names what can be set."""
    read = {INSTALL_DIR_VARIABLE}
    for field in Config.model_fields.values():
        assert isinstance(field.validation_alias, AliasChoices)
        read |= {str(name) for name in field.validation_alias.choices}
    assert settings() == read


def test_the_links_of_the_readme_lead_somewhere() -> None:
    """To one of its own headings, as GitHub names them, or to a file beside it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    anchors = {"#" + re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target in anchors or (ROOT / target).is_file(), target
