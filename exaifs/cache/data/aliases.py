"""What the bytes of a version are, where its row does not tell: found by reading them, and remembered."""

from __future__ import annotations

import sqlite3

from exaifs.cache.health import DiskHealth

_REMEMBERED_HASHES = 50_000


class Aliases:
    """SHA-256 of versions whose row does not tell it, found by reading them.

    Args:
        database: has the table `aliases`. What it cannot keep is known until the process ends.
        health: told of every trouble.
    """

    def __init__(self, database: sqlite3.Connection, health: DiskHealth) -> None:
        self._database = database
        self._health = health
        self._known: dict[str, str | None] = {}

    def get(self, version: str) -> str | None:
        """Return the hash of a version, if it was ever found."""
        if version not in self._known:
            self._remember(version, self._look_up(version))
        return self._known[version]

    def learn(self, version: str, sha256: str) -> None:
        """Note what a version's bytes are."""
        self._remember(version, sha256)
        try:
            self._database.execute("INSERT OR REPLACE INTO aliases VALUES (?, ?)", (version, sha256))
        except sqlite3.Error as exc:
            self._health.failed("writing a hash to the index", exc)

    def prune(self) -> None:
        """Forget the hashes of contents that are no longer here, unless this process asked for them."""
        try:
            orphans = self._database.execute(
                "SELECT version FROM aliases WHERE sha256 NOT IN (SELECT sha256 FROM contents)"
            ).fetchall()
            self._database.executemany(
                "DELETE FROM aliases WHERE version = ?",
                [(version,) for (version,) in orphans if version not in self._known],
            )
        except sqlite3.Error as exc:
            self._health.failed("pruning the index", exc)

    def _look_up(self, version: str) -> str | None:
        try:
            row = self._database.execute(
                "SELECT sha256 FROM aliases WHERE version = ?", (version,)
            ).fetchone()
        except sqlite3.Error as exc:
            self._health.failed("looking up a hash in the index", exc)
            return None
        return None if row is None else str(row[0])

    def _remember(self, version: str, sha256: str | None) -> None:
        if len(self._known) >= _REMEMBERED_HASHES:
            self._known.clear()
        self._known[version] = sha256
