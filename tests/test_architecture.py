"""The shape of the code: layers, sizes, and a map that is true."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "exaifs"

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_MAP_LINES = 150

BASE = {
    "errors",
    "model",
    "names",
    "config",
    "logs",
    "limits",
    "processes",
    "proxies",
    "systemd",
    "turns",
    "__init__",
}
"""Free to all; they import only each other."""

LAYERS: dict[str, set[str]] = {
    "remote": set(),
    "cache": {"remote"},
    "fs": {"cache", "remote"},
    "providers": {"cache", "remote"},
    "handler": {"providers", "remote", "cache", "fs", "mountpoint"},
    "mcp": {"handler", "providers", "remote"},
    "__init__": {"handler"},
    "fuse": {"fs", "mountpoint"},
    "mountpoint": set(),
    "embedded": {"remote", "mountpoint"},
    "ops": {"providers", "remote", "cache", "embedded", "mountpoint"},
    "daemon": {"providers", "remote", "cache", "fs", "fuse", "mountpoint"},
    "cli": {"providers", "remote", "cache", "daemon", "embedded", "mountpoint", "ops", "mcp"},
    "__main__": {"cli"},
}
"""What each package or top-level module may import besides itself and the base."""

ORDERS = {
    "cache": ("names", "data", "unsent"),
    "fs": ("staged", "tables", "unsent", "upstream", "sending", "report", "operations"),
}
"""Packages inside a package: each may import those before it."""

HOMES = {
    "pyfuse3": {"fuse"},
    "supabase": {"remote"},
    "storage3": {"remote"},
    "postgrest": {"remote"},
    "httpx": {"remote", "providers"},
    "click": {"cli"},
    "psycopg": {"ops", "remote"},
    "mcp": {"mcp"},
    "mcp_types": {"mcp"},
    "uvicorn": {"mcp"},
    "starlette": {"mcp"},
    "asyncio": {"handler"},
    "trio": {"fs", "fuse", "daemon", "cli", "embedded", "handler"},
    "sqlite3": {"cache", "fs", "daemon", "fuse"},
    **{name: set[str]() for name in ("anthropic", "google", "mistralai", "openai", "zai")},
}
"""Libraries that only some packages may import; the providers' SDKs are for tests alone."""

CORE = {"fs", "cache", "remote"}
"""Packages whose modules are named one by one in ARCHITECTURE.md."""

REMOTE_SEAM = {"exaifs.remote.interface", "exaifs.remote.upkeep", "exaifs.remote.bodies"}
"""All that `cache` and `fs` may know of the server: the protocols, and bytes as upload bodies."""


def modules() -> list[Path]:
    """Return every module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """Return the package or top-level module that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted names a module imports, those for types only included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name(path: Path) -> str:
    """Return a module's path for messages."""
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", modules(), ids=name)
def test_imports_point_one_way(path: Path) -> None:
    """Layers: cli → daemon → fuse → fs → cache → remote → base, and never back."""
    part = part_of(path)
    assert part in BASE or part in LAYERS, f"{part} is in no layer: add it to LAYERS"
    allowed = BASE | {part} | LAYERS.get(part, set())
    for imported in imports(path):
        words = imported.split(".")
        if words[0] == "exaifs" and len(words) > 1 and words[1] != "__version__":
            assert words[1] in allowed, f"{part} may not import {imported}"


@pytest.mark.parametrize("path", [path for path in modules() if part_of(path) in ORDERS], ids=name)
def test_packages_inside_have_an_order(path: Path) -> None:
    """Within `fs` and `cache`, too, imports point one way."""
    part, inner = path.relative_to(PACKAGE).parts[:2]
    order = ORDERS[part]
    if inner.endswith(".py"):
        return  # puts them together, or serves all of them
    assert inner in order, f"{part}/{inner} has no place: add it to ORDERS"
    for imported in imports(path):
        words = imported.split(".")
        if words[:2] == ["exaifs", part] and words[2] in order:
            assert order.index(words[2]) <= order.index(inner), f"{part}.{inner} may not import {imported}"


@pytest.mark.parametrize("path", modules(), ids=name)
def test_a_library_has_one_home(path: Path) -> None:
    """pyfuse3 is met only in fuse, HTTP and Supabase only in remote."""
    part = part_of(path)
    for imported in imports(path):
        homes = HOMES.get(imported.split(".")[0])
        assert homes is None or part in homes, f"{part} may not import {imported}"


@pytest.mark.parametrize(
    "path", [path for path in modules() if part_of(path) in {"fs", "cache", "providers"}], ids=name
)
def test_the_core_knows_only_the_seam_to_the_server(path: Path) -> None:
    """These see `remote.interface` only, so that the double of the tests can stand in."""
    for imported in imports(path):
        if imported.startswith("exaifs.remote."):
            assert imported.rpartition(".")[0] in REMOTE_SEAM, f"{imported} is below the seam"


@pytest.mark.parametrize("path", modules(), ids=name)
def test_sizes(path: Path) -> None:
    """A module has one subject, a function one thought."""
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.body[0].lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


def test_the_map_is_true() -> None:
    """ARCHITECTURE.md stays short, and every module and test folder it names exists."""
    text = (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_MAP_LINES
    named = set(re.findall(r"`([\w/]+\.(?:py|sql|mjs)|(?:exaifs|tests)/[\w/]*|\w+/)`", text))
    assert any(path.startswith("exaifs/") or (PACKAGE / path).exists() for path in named), "it names none"
    # Without a prefix, a name with a slash is a package of ours or a directory that exists at run time.
    named = {path for path in named if not path.endswith("/") or path.split("/")[0] in {"exaifs", "tests"}}
    missing = [path for path in named if not (REPOSITORY / path).exists() and not (PACKAGE / path).exists()]
    assert not missing, f"ARCHITECTURE.md names what does not exist: {sorted(missing)}"


def test_the_map_is_complete() -> None:
    """ARCHITECTURE.md names every module of the core; packages beside it may be named as a whole."""
    text = (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    for path in modules():
        package = f"{name(path.parent)}/"
        is_mapped = f"`{name(path)}`" in text or path.name in {"__init__.py", "__main__.py"}
        if part_of(path) in CORE:
            # The row of a package names its modules without their path.
            is_mapped = is_mapped or f"`{path.stem}`" in rows.get(package, "")
        else:
            is_mapped = is_mapped or f"`{package}`" in text
        assert is_mapped or path.match("exaifs/ops/fsck_*.py"), (
            f"ARCHITECTURE.md does not name {name(path)}"
        )


def test_every_test_folder_is_explained() -> None:
    """CONTRIBUTING.md says of every folder of tests what it is for."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = {path.parent for path in (REPOSITORY / "tests").rglob("test_*.py")} - {REPOSITORY / "tests"}
    missing = sorted(name(folder) for folder in folders if f"`{name(folder)}`" not in text)
    assert not missing, f"CONTRIBUTING.md does not name {missing}"


def test_every_module_says_what_it_is_for() -> None:
    """A module opens with its job."""
    for path in modules():
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert re.search(r"\w", docstring), f"{path} does not say what it is for"
