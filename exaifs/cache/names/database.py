"""The one SQLite file of a cache directory: opened, checked, and set aside when damaged.

Everything in it can be rebuilt from Supabase and from the content directory; unsent writes are never
kept here. Calls are synchronous on purpose: a look-up takes microseconds, and a transaction without an
`await` inside is atomic for every task.
"""

from __future__ import annotations

import sqlite3
import time
from functools import partial
from pathlib import Path

import structlog

from exaifs.cache.connection import Database, is_disk_trouble

_log = structlog.get_logger(__name__)

SCHEMA_VERSION = 2
"""Raised when the tables change; an index of another version is rebuilt, not migrated."""

_CHECK_BUDGET_S = 0.3
"""How long the check for damage may take: a mount serves within a second whatever the bucket's size."""

_SCHEMA = """
-- What this file belongs to, and single values: identity, cursor, next_ino.
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- One row a name that is known to exist. Prefixes are '' for the root, else end in a slash.
CREATE TABLE entries (
  parent TEXT NOT NULL,            -- prefix of the directory that holds the name
  name BLOB NOT NULL,              -- what readdir shows, as bytes (names need not be UTF-8)
  component TEXT NOT NULL,         -- last component of the key, without slash
  kind TEXT NOT NULL,              -- file | dir | symlink
  ino INTEGER NOT NULL UNIQUE,     -- stable across restarts
  pending INTEGER NOT NULL,        -- 1: made here and not yet in the bucket
  marker INTEGER NOT NULL,         -- directories: 1 when a folder marker exists in the bucket
  version TEXT NOT NULL,           -- '' for directories and for pending files
  size_bytes INTEGER NOT NULL,
  mime_type TEXT NOT NULL,
  etag TEXT NOT NULL,
  sha256 TEXT,                     -- null: not known
  file_id TEXT,
  created_ns INTEGER NOT NULL,
  updated_ns INTEGER NOT NULL,     -- last write, by the server's clock
  ctime_ns INTEGER NOT NULL,       -- last change of data or attributes
  mode INTEGER,                    -- with the next four: model.Posix; null: not recorded
  uid INTEGER,
  gid INTEGER,
  mtime_ns INTEGER,
  posix_kind TEXT NOT NULL,        -- file | dir | symlink
  xattrs TEXT NOT NULL,            -- JSON: name to base64
  provider_file_ids TEXT NOT NULL, -- JSON
  PRIMARY KEY (parent, name)
) WITHOUT ROWID;
-- A key may be both a file and a folder; each has a row and a name of its own. SQLite uses this index only
-- for a query that compares the expression (kind = 'dir') itself.
CREATE UNIQUE INDEX entries_by_key ON entries (parent, component, (kind = 'dir'));
CREATE INDEX entries_by_content ON entries (sha256) WHERE sha256 IS NOT NULL;
-- Link counts and what is unsent are asked often, of directories with any number of files.
CREATE INDEX directories_by_parent ON entries (parent) WHERE kind = 'dir';
CREATE INDEX pending_by_parent ON entries (parent) WHERE pending;

-- Names that lost their plain form to another key: few, and counted in the status.
CREATE INDEX entries_marked ON entries (parent, name) WHERE substr(name, -9) = CAST(' (object)' AS BLOB);

-- Keys that no path can name, in loaded directories.
CREATE TABLE odd_keys (
  key TEXT PRIMARY KEY,
  prefix TEXT NOT NULL,            -- the directory that holds them: what follows cannot be shown
  kind TEXT NOT NULL               -- names.OddKind
) WITHOUT ROWID;
CREATE INDEX odd_keys_by_prefix ON odd_keys (prefix);

-- Directories whose names are all in `entries`.
CREATE TABLE loaded (
  prefix TEXT PRIMARY KEY,
  loaded_at_ns INTEGER NOT NULL    -- by this host's clock; 0: to be listed again; negative: by the next run
) WITHOUT ROWID;

-- Complete contents in the content directory, by SHA-256.
CREATE TABLE contents (
  sha256 TEXT PRIMARY KEY,
  size_bytes INTEGER NOT NULL,
  last_used_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX contents_by_use ON contents (last_used_ns);

-- Versions whose SHA-256 was found by reading them (objects written by other clients).
CREATE TABLE aliases (
  version TEXT PRIMARY KEY,
  sha256 TEXT NOT NULL
) WITHOUT ROWID;
"""


def open_database(path: Path, identity: str) -> Database:
    """Open or create the database for one bucket of one project.

    A file that is damaged, of another schema version or of another identity is renamed to
    `<name>.damaged-<seconds>` with a log line, and a new one begun.

    Raises:
        OSError, sqlite3.OperationalError: the directory cannot be written.
    """
    if path.exists():
        problem = _problem(path, identity)
        if problem is None:
            return _ready(_connect(path), identity)
        aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
        path.rename(aside)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        _log.warning("index set aside, rebuilding", reason=problem, kept_as=str(aside))
    connection = _connect(path)
    with connection:
        connection.executescript(_schema_for(identity))
    return _ready(connection, identity)


def _ready(connection: Database, identity: str) -> Database:
    connection.schema = _schema_for(identity)
    return connection


def _schema_for(identity: str) -> str:
    """Return what makes an empty index of one bucket."""
    name = identity.replace("'", "''")
    return (
        f"{_SCHEMA}\nINSERT INTO meta VALUES ('identity', '{name}');\n"
        f"PRAGMA user_version = {SCHEMA_VERSION};"
    )


def _connect(path: Path) -> Database:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Database)
    connection.row_factory = sqlite3.Row
    for pragma in (
        "journal_mode = WAL",
        # Losing the last transactions in a power cut only costs a refresh.
        "synchronous = NORMAL",
        "cache_size = -16384",
        "temp_store = MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _problem(path: Path, identity: str) -> str | None:
    """Say what is wrong with an existing file; None when it can be used.

    A large file is checked as far as the time allows.
    """
    connection: sqlite3.Connection | None = None
    try:
        connection = _connect(path)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA_VERSION:
            return f"schema version {version}, not {SCHEMA_VERSION}"
        row = connection.execute("SELECT value FROM meta WHERE name = 'identity'").fetchone()
        if row is None or row[0] != identity:
            return "it belongs to another bucket"
        verdict = _quick_check(connection)
        if verdict != "ok":
            return f"damaged: {verdict}"
    except sqlite3.DatabaseError as exc:
        if is_disk_trouble(exc):
            raise  # it may be as good as new once the disk has room
        return f"damaged: {exc}"
    finally:
        if connection is not None:
            connection.close()
    return None


def _quick_check(connection: sqlite3.Connection) -> str:
    end = time.monotonic() + _CHECK_BUDGET_S
    connection.set_progress_handler(partial(_is_over, end), 10_000)
    try:
        return str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return "ok"


def _is_over(end: float) -> bool:
    return time.monotonic() > end
