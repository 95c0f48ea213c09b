"""The SQL of exaifs: ordered migrations, shipped as files beside this module.

Each may be applied any number of times, on a project that is new, that has the given tables, or that has
an earlier version of exaifs. Nobody here talks to a database: `exaifs init` applies what this returns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

from exaifs.config import MIB

BUCKETS: Final[Mapping[str, int]] = {"user-files": 50 * MIB, "generated-files": 10 * MIB}
"""The buckets of the schema and their size limits, bytes a file; any other gets the project's limit."""

_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema."""

    number: int
    """Counts up from 1, without gaps."""
    name: str
    """Lower case with underscores, as in the file's name."""
    sql: str
    """Statements without transaction control: apply them in one transaction."""


@cache
def migrations() -> tuple[Migration, ...]:
    """Return all migrations in the order in which they must be applied."""
    found = []
    for file in resources.files("exaifs.remote").joinpath("migrations").iterdir():
        match = _FILE_NAME.fullmatch(file.name)
        if match is not None:
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return tuple(sorted(found, key=lambda migration: migration.number))


LATEST: int = migrations()[-1].number
"""Number of the newest migration; `Hello.schema_version` of a server that is up to date."""


def as_one_script() -> str:
    """Return all migrations as one transaction, for `psql -f` or Supabase's SQL editor."""
    parts = [f"-- Migration {step.number:04}: {step.name}\n\n{step.sql.strip()}\n" for step in migrations()]
    head = "-- Schema of exaifs. Applying it again changes nothing.\n"
    return (
        head + "\nBEGIN;\nSET LOCAL client_min_messages = warning;\n\n" + "\n\n".join(parts) + "\nCOMMIT;\n"
    )
