"""The local index: every name that is known, in SQLite, so that names and attributes cost no request.

A directory is *loaded* when all its names are here. Changes made here go through `put`, `remove` and
`rename`; what Supabase answers is merged by `merge.py`.

Invariants:
- No `await` in this module: a method is one step for every task.
- A change made here is newer than any answer asked for before it: `view()` marks when a question was
  asked, and merging skips every key changed since.

Called by `fs/`; knows keys and prefixes, not inodes in memory.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import replace

from exaifs.cache.connection import transaction
from exaifs.cache.names.entries import COLUMNS, Entry, from_row, to_row
from exaifs.cache.names.oddkeys import OddKeys
from exaifs.cache.names.recency import Recency
from exaifs.model import ROOT_INO, Ino, ObjectRecord, Posix
from exaifs.names import PLACEHOLDER, split_key

_SELECT = f"SELECT {', '.join(COLUMNS)} FROM entries WHERE "  # noqa: S608  # constants only
_UPSERT = (
    f"INSERT OR REPLACE INTO entries ({', '.join(COLUMNS)}) "  # noqa: S608  # constants only
    f"VALUES ({', '.join('?' * len(COLUMNS))})"
)


def upper_bound(prefix: str) -> str:
    """Return the smallest string above every key that starts with `prefix` (which ends in a slash)."""
    return prefix[:-1] + "0"


class Index(Recency):
    """Names and attributes of one bucket.

    Args:
        database: from `open_database`; used by the event loop's thread only.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        super().__init__()
        self._db = database
        self.odd_keys = OddKeys(database)
        # Mutable state, each changed without an await between read and write.
        highest = database.execute("SELECT max(ino) FROM entries").fetchone()[0]
        self._next_ino = max(highest or 0, ROOT_INO) + 1
        # Nobody knows any more what those listings left alone.
        database.execute("UPDATE loaded SET loaded_at_ns = 0 WHERE loaded_at_ns < 0")
        self._root = self._load_root()
        self._is_sent: Callable[[Ino, ObjectRecord], bool] = lambda _ino, _record: False

    def _load_root(self) -> Entry:
        blank = Entry(parent="", name="", component="", kind="dir", ino=ROOT_INO)
        saved = self.value("root")
        if saved is None:
            return blank
        values = json.loads(saved)
        posix = Posix.from_json(values["posix"])
        return replace(blank, posix=posix, marker=values["marker"], ctime_ns=values["ctime_ns"])

    # -- questions ---------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """A number that grows with every change."""
        return self._db.total_changes

    def child(self, parent: str, name: str) -> Entry | None:
        """Return the entry of that name, whether or not the directory is loaded."""
        return self._one("parent = ? AND name = ?", parent, os.fsencode(name))

    def children(self, parent: str, after: str | None = None, limit: int = -1) -> list[Entry]:
        """Return known entries of a directory, in byte order of their names.

        Args:
            parent: prefix of the directory.
            after: go on behind this name; None for the beginning.
            limit: at most so many; -1 for all, which takes long where there are thousands.
        """
        condition = "parent = ? AND name > ? ORDER BY name LIMIT ?"
        # No name is empty, so all are above the empty one.
        return self._all(condition, parent, b"" if after is None else os.fsencode(after), limit)

    def keys(self, parent: str) -> set[str]:
        """Return the keys of a directory's entries that are in the bucket; of directories the prefixes."""
        rows = self._db.execute(
            "SELECT component, kind = 'dir' FROM entries WHERE parent = ? AND NOT pending", (parent,)
        )
        return {f"{parent}{component}/" if is_dir else parent + component for component, is_dir in rows}

    def by_ino(self, ino: Ino) -> Entry | None:
        """Return the entry with that inode number."""
        if ino == ROOT_INO:
            return self._root
        return self._one("ino = ?", ino)

    def directory(self, prefix: str) -> Entry | None:
        """Return the entry of the directory with that prefix."""
        if prefix == "":
            return self._root
        parent, component = split_key(prefix[:-1])
        return self._one("parent = ? AND component = ? AND (kind = 'dir') = 1", parent, component)

    def file(self, parent: str, component: str) -> Entry | None:
        """Return the file or symbolic link with the key `parent + component`."""
        return self._one("parent = ? AND component = ? AND (kind = 'dir') = 0", parent, component)

    def has_children(self, prefix: str) -> bool:
        """Tell whether anything is known to be in a directory, be it a key that no path can name."""
        found = self._db.execute("SELECT 1 FROM entries WHERE parent = ? LIMIT 1", (prefix,))
        return found.fetchone() is not None or self.odd_keys.has(prefix)

    def subdirectory_count(self, prefix: str) -> int:
        """Count the directories in a directory, for its link count."""
        counted = self._db.execute(
            # Left alone, SQLite would walk through all the files.
            "SELECT count(*) FROM entries INDEXED BY directories_by_parent "
            "WHERE parent = ? AND kind = 'dir'",
            (prefix,),
        )
        return int(counted.fetchone()[0])

    def has_other(self, entry: Entry) -> bool:
        """Tell whether a directory holds anything in the bucket besides this entry."""
        found = self._db.execute(
            "SELECT 1 FROM entries WHERE parent = ? AND ino != ? AND NOT pending LIMIT 1",
            (entry.parent, entry.ino),
        )
        return found.fetchone() is not None

    def below(self, prefix: str) -> list[Entry]:
        """Return every known entry below a directory, at any depth."""
        return self._all("parent >= ? AND parent < ? ORDER BY parent, name", prefix, upper_bound(prefix))

    def loaded_at_ns(self, prefix: str) -> int | None:
        """Return when a directory was last known to be complete; None when it is not."""
        row = self._db.execute("SELECT loaded_at_ns FROM loaded WHERE prefix = ?", (prefix,)).fetchone()
        return None if row is None else abs(int(row[0]))

    def holds_pending(self, prefix: str) -> bool:
        """Tell whether there are unsent files anywhere below a directory."""
        found = self._db.execute(
            "SELECT 1 FROM entries WHERE pending AND parent >= ? AND parent < ? LIMIT 1",
            (prefix, upper_bound(prefix)),
        )
        return found.fetchone() is not None

    def by_sha256(self, sha256: str, mime_type: str) -> Entry | None:
        """Return some published file with that content and type, for copying it on the server."""
        return self._one(
            "sha256 = ? AND mime_type = ? AND kind = 'file' AND NOT pending LIMIT 1", sha256, mime_type
        )

    def totals(self) -> tuple[int, int]:
        """Return the number of known files and the sum of their sizes in bytes."""
        row = self._db.execute(
            "SELECT count(*), coalesce(sum(size_bytes), 0) FROM entries WHERE kind != 'dir'"
        ).fetchone()
        return int(row[0]), int(row[1])

    def value(self, name: str) -> str | None:
        """Return a single value kept beside the entries."""
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_value(self, name: str, value: str) -> None:
        """Keep a single value."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def _one(self, condition: str, *values: str | bytes | int) -> Entry | None:
        row = self._db.execute(_SELECT + condition, values).fetchone()
        return None if row is None else from_row(row)

    def _all(self, condition: str, *values: str | bytes | int) -> list[Entry]:
        return [from_row(row) for row in self._db.execute(_SELECT + condition, values)]

    # -- changes made here -------------------------------------------------------------------------

    def reserve_ino(self, ino: Ino) -> None:
        """Never allocate a number up to this one."""
        self._next_ino = max(self._next_ino, ino + 1)

    def allocate_ino(self) -> Ino:
        """Return an inode number that no entry has had since the index was opened."""
        ino = Ino(self._next_ino)
        self._next_ino += 1
        return ino

    def put(self, entry: Entry) -> None:
        """Insert an entry made here, or replace the one of the same name."""
        self.touch(entry.key)
        self._take_name(entry)
        self.write(entry)

    def _take_name(self, entry: Entry) -> None:
        """Have another object that came under the same name meanwhile listed again: under another one."""
        there = self.child(entry.parent, entry.name)
        if there is not None and there.key != entry.key:
            self.doubt(entry.parent)

    def remove(self, entry: Entry) -> None:
        """Forget a name removed here; a directory's own listing is forgotten too."""
        self.touch(entry.key)
        self.delete(entry)

    def rename(self, entry: Entry, renamed: Entry) -> None:
        """Give an entry another name or place; for a directory everything below moves with it."""
        with self.transaction():
            self.touch(entry.key)
            self.touch(renamed.key)
            self.delete(entry, keep_below=True)
            self._take_name(renamed)
            self.write(renamed)
            if entry.is_dir:
                self._move_below(entry.key, renamed.key)

    def _move_below(self, old: str, new: str) -> None:
        for table, column in (("entries", "parent"), ("loaded", "prefix")):
            self._db.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608  # constants
                f"WHERE {column} >= ? AND {column} < ?",
                (new, len(old) + 1, old, upper_bound(old)),
            )
        self.odd_keys.move_below(old, upper_bound(old), new)

    def mark_loaded(self, prefix: str, at_ns: int, *, in_part: bool = False) -> None:
        """Record that a directory is complete, for example because it was made here.

        Args:
            prefix: of the directory.
            at_ns: when it was known to be; 0: it is to be listed again.
            in_part: whether the listing left something alone: this run asks for that, the next one lists.
        """
        self._db.execute(
            "INSERT OR REPLACE INTO loaded VALUES (?, ?)", (prefix, -at_ns if in_part else at_ns)
        )

    def loaded_prefixes(self) -> list[str]:
        """Return the directories whose names are all here, as of some time."""
        return [str(row[0]) for row in self._db.execute("SELECT prefix FROM loaded ORDER BY prefix")]

    def expired_prefixes(self) -> list[str]:
        """Return those of them that are to be listed again."""
        rows = self._db.execute("SELECT prefix FROM loaded WHERE loaded_at_ns = 0 ORDER BY prefix")
        return [str(row[0]) for row in rows]

    def expire_all(self) -> None:
        """Have every directory listed again when it is needed, keeping what is known until then.

        Listings that are on their way count as older than this.
        """
        self.outdate_listings()
        self._db.execute("UPDATE loaded SET loaded_at_ns = 0")

    def expire(self, prefix: str) -> None:
        """Do as `expire_all` with one directory."""
        self.outdate_listings()
        self.doubt(prefix)

    def doubt(self, prefix: str) -> None:
        """Have a directory listed again when it is needed; until then what is known of it is shown.

        A listing of it that is on its way counts as older than this.
        """
        self.outdate_listing(prefix)
        self._db.execute("UPDATE loaded SET loaded_at_ns = 0 WHERE prefix = ?", (prefix,))

    def doubt_key(self, key: str) -> None:
        """Do so with what shows a key, or a prefix that ends in a slash and all below: see `doubt`."""
        if key.endswith("/"):
            self.expire_below(key)
        above, component = split_key(key.rstrip("/"))
        self.doubt(above)
        if component == PLACEHOLDER:
            # Where it is all there is, the listing above has the folder, or not.
            self.doubt(split_key(above.rstrip("/"))[0])

    def release(self, key: str, *, in_vain: bool = False) -> None:
        """Undo one `claim`; answers asked for before now still leave the key alone.

        Args:
            key: what was claimed.
            in_vain: nothing is known to have come of it: what listings said meanwhile may be true.
        """
        for left in self.take_left(key):
            # A listing says of a folder also what is said of its marker.
            named = left.removesuffix(PLACEHOLDER)
            if in_vain or named.endswith("/") or named == "":
                self.doubt(split_key(named.rstrip("/"))[0])
            else:
                # Another host may have changed it before the listing, and after a gap no log says so.
                self.ask_again(left)
        super().release(key)

    def expire_below(self, prefix: str) -> None:
        """Do as `expire_all` with a directory and all below."""
        self._db.execute(
            "UPDATE loaded SET loaded_at_ns = 0 WHERE prefix >= ? AND prefix < ?",
            (prefix, upper_bound(prefix)),
        )

    def list_next_time(self, prefix: str, *, needed: bool) -> None:
        """Have the next run list a directory and all below anew; or not, as this one has come to the end.

        Args:
            prefix: of the directory.
            needed: whether it is to.
        """
        sign = "-" if needed else ""
        self._db.execute(
            f"UPDATE loaded SET loaded_at_ns = {sign}abs(loaded_at_ns) WHERE prefix >= ? AND prefix < ?",  # noqa: S608
            (prefix, upper_bound(prefix)),
        )

    def drop_pending(self, kept: Collection[Ino] = ()) -> list[Entry]:
        """Forget names of an earlier run that never reached the bucket, but for some; return them."""
        gone = [entry for entry in self._all("pending") if entry.ino not in kept]
        with self.transaction():
            for entry in gone:
                self.delete(entry)
        return gone

    def recognise_by(self, is_sent: Callable[[Ino, ObjectRecord], bool]) -> None:
        """Have somebody asked which objects are of uploads from here that had no answer."""
        self._is_sent = is_sent

    # -- for merging answers -----------------------------------------------------------------------

    def is_own(self, known: Entry, record: ObjectRecord) -> bool:
        """Tell whether an object is, or may be, of an upload from here that had no answer.

        It is left alone, and looked at when the file is sent again.
        """
        return not known.same_content(record) and self._is_sent(known.ino, record)

    def write(self, entry: Entry) -> None:
        """Store an entry without marking it as changed here."""
        if entry.ino == ROOT_INO:
            self._root = entry
            values = {"posix": entry.posix.to_json(), "marker": entry.marker, "ctime_ns": entry.ctime_ns}
            self.set_value("root", json.dumps(values))
            return
        self._db.execute(_UPSERT, to_row(entry))

    def delete(self, entry: Entry, *, keep_below: bool = False) -> None:
        """Drop an entry, and what is below a directory, without marking it as changed here."""
        self._db.execute(
            "DELETE FROM entries WHERE parent = ? AND name = ?", (entry.parent, os.fsencode(entry.name))
        )
        if entry.is_dir and not keep_below:
            bounds = (entry.key, upper_bound(entry.key))
            self._db.execute("DELETE FROM entries WHERE parent >= ? AND parent < ?", bounds)
            self._db.execute("DELETE FROM loaded WHERE prefix >= ? AND prefix < ?", bounds)
            self.odd_keys.drop_below(*bounds)

    def transaction(self) -> AbstractContextManager[None]:
        """Make several changes one."""
        return transaction(self._db)
