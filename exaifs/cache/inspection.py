"""An index as a file to be checked: what `exaifs fsck` asks of it, and repairs in it.

Nothing is changed by asking, and a running daemon may have the file open. Everything in it can be rebuilt
from Supabase, so that whatever does not fit is taken out; unsent writes are in the journal.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from exaifs.cache.connection import transaction
from exaifs.cache.names.database import SCHEMA_VERSION
from exaifs.errors import ExaifsError
from exaifs.names import split_key

_MAX_LINES = 5
"""Of what SQLite says of a damaged file."""

_BUSY_S = 10.0
"""How long to wait for a daemon's transaction."""


@dataclass(frozen=True, slots=True)
class PendingName:
    """A name that was made on this host and is not in the bucket."""

    ino: int
    key: str
    name: str


class IndexFile:
    """One `index.db` of a mount, or `contents.sqlite3` of a program beside it.

    Args:
        path: exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def _opened(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            uri = f"file:{quote(os.fspath(self.path))}?mode=rw"
            connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_S)
            try:
                if not write:
                    connection.execute("PRAGMA query_only = ON")
                yield connection
            finally:
                connection.close()
        except sqlite3.Error as exc:
            raise ExaifsError(f"{self.path}: {exc}") from exc

    def problem(self) -> str | None:
        """Return what SQLite finds wrong with the file; None: nothing. Takes seconds where it is large."""
        try:
            with self._opened() as connection:
                rows = connection.execute(f"PRAGMA integrity_check({_MAX_LINES})").fetchall()
        except ExaifsError as exc:
            return str(exc)
        lines = [str(line) for (line,) in rows]
        return None if lines == ["ok"] else "; ".join(" ".join(line.split()) for line in lines)

    def is_foreign(self, identity: str) -> bool:
        """Tell whether it is of another version of exaifs or another bucket: the next use rebuilds it."""
        with self._opened() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version != SCHEMA_VERSION:
                return True
            row = connection.execute("SELECT value FROM meta WHERE name = 'identity'").fetchone()
            return row is None or row[0] != identity

    def set_aside(self) -> Path:
        """Rename it, as a mount does with one that is damaged, and return what it is called now.

        Raises:
            OSError: the disk refuses.
        """
        aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time())}")
        self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        return aside

    # -- contents ----------------------------------------------------------------------------------

    def contents(self) -> dict[str, int]:
        """Return the sizes of all contents by SHA-256, as the table says."""
        with self._opened() as connection:
            return dict(connection.execute("SELECT sha256, size_bytes FROM contents"))

    def content(self, sha256: str) -> int | None:
        """Return the size of one, as the table says now."""
        with self._opened() as connection:
            row = connection.execute(
                "SELECT size_bytes FROM contents WHERE sha256 = ?", (sha256,)
            ).fetchone()
            return None if row is None else int(row[0])

    def forget_content(self, sha256: str) -> None:
        """Take a content out of the table."""
        with self._opened(write=True) as connection:
            connection.execute("DELETE FROM contents WHERE sha256 = ?", (sha256,))

    def add_content(self, sha256: str, size_bytes: int, used_ns: int) -> None:
        """Take a content into the table."""
        with self._opened(write=True) as connection:
            values = (sha256, size_bytes, used_ns)
            connection.execute("INSERT OR REPLACE INTO contents VALUES (?, ?, ?)", values)

    # -- names -------------------------------------------------------------------------------------

    def count_entries(self) -> int:
        """Return how many names are known."""
        with self._opened() as connection:
            return int(connection.execute("SELECT count(*) FROM entries").fetchone()[0])

    def lost_prefixes(self) -> dict[str, int]:
        """Return the directories that the index has names in, or calls loaded, but does not have itself.

        With the number of their names; those below one that is lost are lost, too.
        """
        with self._opened() as connection:
            counts = dict(connection.execute("SELECT parent, count(*) FROM entries GROUP BY parent"))
            for (prefix,) in connection.execute("SELECT prefix FROM loaded"):
                counts.setdefault(prefix, 0)
            there = {
                f"{parent}{component}/"
                for parent, component in connection.execute(
                    "SELECT parent, component FROM entries WHERE kind = 'dir'"
                )
            }
        lost: dict[str, int] = {}
        # In this order a directory comes before what is below it.
        for prefix in sorted(counts):
            if prefix and (prefix not in there or _above(prefix) in lost):
                lost[prefix] = counts[prefix]
        return lost

    def forget_prefix(self, prefix: str) -> None:
        """Forget a directory's names, and that it was loaded; not what is below it."""
        with self._opened(write=True) as connection, transaction(connection):
            connection.execute("DELETE FROM entries WHERE parent = ?", (prefix,))
            connection.execute("DELETE FROM loaded WHERE prefix = ?", (prefix,))

    def pending(self, kept: Collection[int]) -> list[PendingName]:
        """Return the names that are not in the bucket, but for those with these inode numbers."""
        with self._opened() as connection:
            rows: Iterable[tuple[int, str, str, bytes]] = connection.execute(
                "SELECT ino, parent, component, name FROM entries WHERE pending ORDER BY parent, name"
            ).fetchall()
        return [
            PendingName(ino, parent + component, os.fsdecode(name))
            for ino, parent, component, name in rows
            if ino not in kept
        ]

    def forget_name(self, ino: int) -> None:
        """Forget one name that is not in the bucket."""
        with self._opened(write=True) as connection:
            connection.execute("DELETE FROM entries WHERE ino = ? AND pending", (ino,))


def _above(prefix: str) -> str:
    return split_key(prefix[:-1])[0]
