"""Keys that no path can name, as far as the directories that would hold them are loaded.

They are not shown, but they are there: a directory that holds one is not empty, and the status counts and
names them. Part of the index: changed in its transactions only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from exaifs.names import OddKind


class OddKeys:
    """The table of odd keys.

    Args:
        database: the index's.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._db = database

    def replace(self, prefix: str, found: Mapping[str, OddKind]) -> bool:
        """Make a directory's odd keys those of a complete listing; tell whether that changed any."""
        before = dict(self._db.execute("SELECT key, kind FROM odd_keys WHERE prefix = ?", (prefix,)))
        if before == found:
            return False
        self._db.execute("DELETE FROM odd_keys WHERE prefix = ?", (prefix,))
        for key, kind in found.items():
            self.add(prefix, key, kind)
        return True

    def add(self, prefix: str, key: str, kind: OddKind) -> None:
        """Take note of one."""
        self._db.execute("INSERT OR REPLACE INTO odd_keys VALUES (?, ?, ?)", (key, prefix, kind))

    def drop(self, key: str) -> None:
        """Forget one that is gone from the bucket."""
        self._db.execute("DELETE FROM odd_keys WHERE key = ?", (key,))

    def drop_below(self, low: str, high: str) -> None:
        """Forget those of directories whose prefix is in [low, high)."""
        self._db.execute("DELETE FROM odd_keys WHERE prefix >= ? AND prefix < ?", (low, high))

    def move_below(self, low: str, high: str, new: str) -> None:
        """After a directory rename from `low` to `new`: they moved too."""
        self._db.execute(
            "UPDATE OR REPLACE odd_keys SET key = ? || substr(key, ?), prefix = ? || substr(prefix, ?) "
            "WHERE prefix >= ? AND prefix < ?",
            (new, len(low) + 1, new, len(low) + 1, low, high),
        )

    def has(self, prefix: str) -> bool:
        """Tell whether a directory holds any."""
        found = self._db.execute("SELECT 1 FROM odd_keys WHERE prefix = ? LIMIT 1", (prefix,))
        return found.fetchone() is not None
