"""The connection to the local index, which goes on in memory while the disk refuses.

A full, read-only or failing disk would else take every name with it: listings, look-ups and closes need the
index. What happened in memory is written back when the disk works again; a process that ends before leaves
the index as a power cut would, and the next run catches up by the change log and the write journal.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import structlog

_log = structlog.get_logger(__name__)

_MAX_BYTES = 256 << 20
"""An index larger than this would take too much memory: its writes fail while the disk does."""

_SPARE_BYTES = 1 << 20
"""So much room is left when the index is written back."""

_DISK_TROUBLE = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
}
_PRIMARY_CODE = 0xFF
"""The bits of a result code that are not its details."""

_Call = Callable[[sqlite3.Connection], sqlite3.Cursor]


class Database(sqlite3.Connection):
    """A connection in autocommit mode; `BEGIN` and `COMMIT` are executed as statements.

    Reads that meet trouble only after their first row raise it. Nothing goes to memory before `schema` is
    set: while it is opened, trouble is the opener's.
    """

    def __init__(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        super().__init__(path, *args, **kwargs)
        self._directory = os.path.dirname(os.fspath(path)) or "."  # noqa: PTH120 - may be no path
        self.schema = ""
        """What an empty index is made of, where the one on the disk cannot even be read."""
        self.trouble: str | None = None
        """Why it goes on in memory; None while it does not."""
        # Mutable state, changed without an await.
        self._memory: sqlite3.Connection | None = None
        self._earlier_changes = 0
        self._since_begin: list[_Call] = []

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return super().in_transaction if self._memory is None else self._memory.in_transaction

    @property
    def total_changes(self) -> int:
        """A number that grows with every change."""
        in_memory = 0 if self._memory is None else self._memory.total_changes
        return super().total_changes + self._earlier_changes + in_memory

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Execute a statement, on the disk or in memory.

        Raises:
            sqlite3.Error: it is wrong, or neither can be used.
        """
        return self._do(sql, lambda connection: _BASE.execute(connection, sql, parameters))

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        """Execute a statement for each set of parameters, as `execute`.

        Raises:
            sqlite3.Error: as `execute`.
        """
        rows = list(parameters)
        return self._do(sql, lambda connection: _BASE.executemany(connection, sql, rows))

    def _do(self, sql: str, call: _Call) -> sqlite3.Cursor:
        if self._memory is not None:
            return call(self._memory)
        if sql.startswith("BEGIN"):
            self._since_begin = []
        try:
            cursor = call(self)
        except sqlite3.DatabaseError as exc:
            memory = self._go_to_memory(exc)
            if memory is None:
                raise
            return call(memory)
        if super().in_transaction:
            self._since_begin.append(call)
        else:
            self._since_begin = []
        return cursor

    def _go_to_memory(self, exc: sqlite3.DatabaseError) -> sqlite3.Connection | None:
        """Copy what there is to memory, with the transaction that failed; None: that is no way out."""
        if not (self.schema and (is_disk_trouble(exc) or _is_damage(exc))) or self._is_large():
            return None
        begun, self._since_begin = self._since_begin, []
        if super().in_transaction:  # trouble may have rolled it back already
            with suppress(sqlite3.Error):
                super().execute("ROLLBACK")
        memory = self._memory = self._copied()
        self.trouble = f"the index cannot be used: {exc}"
        _log.warning("the local index goes on in memory: the disk refuses it", reason=str(exc))
        for call in begun:
            call(memory)
        return memory

    def _is_large(self) -> bool:
        try:
            return _size_of(super()) > _MAX_BYTES
        except sqlite3.Error:
            return False  # what can be read is copied, and if that is nothing, the index begins anew

    def _copied(self) -> sqlite3.Connection:
        memory = _in_memory()
        try:
            self.backup(memory)
            verdict = memory.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        except sqlite3.Error as exc:
            _log.warning("the local index cannot be read: directories are listed anew", reason=str(exc))
            memory.close()
            memory = _in_memory()
            memory.executescript(self.schema)
        memory.row_factory = self.row_factory
        return memory

    @property
    def needed_bytes(self) -> int:
        """Room on the disk that it takes to write back what is in memory: through the log of SQLite."""
        return 0 if self._memory is None else 2 * _size_of(self._memory) + _SPARE_BYTES

    def try_disk(self) -> None:
        """Write back what is in memory, if anything is: the disk is in use again when this returns.

        Takes as long as writing the whole index does.

        Raises:
            OSError: the disk refuses; ENOSPC: more room would help.
        """
        if self._memory is None:
            return
        if _free_bytes(self._directory) < self.needed_bytes:
            raise OSError(
                errno.ENOSPC, "no room for the local index"
            )  # half of it would only fill the disk
        try:
            self._memory.backup(self)
        except sqlite3.Error as exc:
            code = errno.ENOSPC if exc.sqlite_errorcode == sqlite3.SQLITE_FULL else errno.EIO
            raise OSError(code, f"the local index cannot be written: {exc}") from exc
        self._earlier_changes += self._memory.total_changes
        self._memory.close()
        self._memory = None
        self.trouble = None
        _log.info("the local index is on the disk again")

    def close(self) -> None:
        """Close it, and write back what is in memory if the disk takes it."""
        try:
            self.try_disk()
        except OSError as exc:
            _log.warning("the local index ends as it was before the disk refused it", reason=str(exc))
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        super().close()


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Make several changes one."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if database.in_transaction:  # a full disk has rolled it back already
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


_BASE = sqlite3.Connection
"""Its methods, for both kinds of connection."""


def is_disk_trouble(exc: sqlite3.DatabaseError) -> bool:
    """Tell whether it is the disk that refuses: full, read-only, failing."""
    return (exc.sqlite_errorcode & _PRIMARY_CODE) in _DISK_TROUBLE


def _is_damage(exc: sqlite3.DatabaseError) -> bool:
    """Tell whether the file is damaged; SQLite says so, too, of a disk that cannot be read."""
    return (exc.sqlite_errorcode & _PRIMARY_CODE) == sqlite3.SQLITE_CORRUPT


def _size_of(connection: Any) -> int:
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    return int(pages * connection.execute("PRAGMA page_size").fetchone()[0])


def _free_bytes(directory: str) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def _in_memory() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
