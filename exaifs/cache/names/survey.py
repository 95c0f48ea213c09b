"""Figures about the local index, for the status. Reads only."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Literal

from exaifs.cache.names.entries import COLUMNS, Entry, from_row
from exaifs.cache.names.naming import plain_name
from exaifs.names import OddKind, path_of

ClashKind = Literal["file_and_folder", "same_name"]
"""Why an object is shown under a marked name: its key is a folder too, or another key has the name."""

KINDS: tuple[OddKind | ClashKind, ...] = (
    "empty_segment",
    "dot_segment",
    "reserved_name",
    "long_name",
    "file_and_folder",
    "same_name",
)


@dataclass(frozen=True, slots=True)
class IndexSize:
    """How much is known."""

    entries: int
    loaded_directories: int
    directories_to_list_again: int
    """Loaded ones that are listed once more, because the feed could not say what changed in them."""
    database_bytes: int


@dataclass(frozen=True, slots=True)
class OddNames:
    """Keys of one kind."""

    count: int
    names: tuple[str, ...]
    """The first of them: the key where no path can name it, else the path as it is shown."""


class Survey:
    """Questions to one index.

    Args:
        database: from `open_database`.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._db = database

    def size(self) -> IndexSize:
        """Count; takes milliseconds where there are 100,000 entries."""
        return IndexSize(
            entries=self._number("SELECT count(*) FROM entries"),
            loaded_directories=self._number("SELECT count(*) FROM loaded"),
            directories_to_list_again=self._number("SELECT count(*) FROM loaded WHERE loaded_at_ns = 0"),
            database_bytes=self._number("PRAGMA page_count") * self._number("PRAGMA page_size"),
        )

    def odd_names(self, sample: int) -> dict[OddKind | ClashKind, OddNames]:
        """Return what is not shown, or not under its plain name, by kind; all kinds are there."""
        found: dict[OddKind | ClashKind, list[str]] = {kind: [] for kind in KINDS}
        for key, kind in self._db.execute("SELECT key, kind FROM odd_keys ORDER BY key"):
            found[kind].append(key)
        for entry in self._marked():
            clash: ClashKind = "file_and_folder" if self._has_folder(entry) else "same_name"
            found[clash].append(path_of(entry.parent) + entry.name)
        return {kind: OddNames(len(names), tuple(names[:sample])) for kind, names in found.items()}

    def _marked(self) -> list[Entry]:
        rows = self._db.execute(
            f"SELECT {', '.join(COLUMNS)} FROM entries "  # noqa: S608  # constants only
            "WHERE substr(name, -9) = CAST(' (object)' AS BLOB) ORDER BY parent, name"
        )
        return [entry for entry in map(from_row, rows) if entry.name != plain_name(entry)]

    def _has_folder(self, entry: Entry) -> bool:
        row = self._db.execute(
            "SELECT 1 FROM entries WHERE parent = ? AND component = ? AND (kind = 'dir') = 1",
            (entry.parent, entry.component),
        ).fetchone()
        return row is not None and not entry.is_dir

    def _number(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0])
