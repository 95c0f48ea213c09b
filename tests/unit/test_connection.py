"""The index on a disk that refuses it: nothing that was asked of it fails, and it returns to the disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from exaifs.cache.connection import Database
from exaifs.cache.names.database import open_database
from tests.support.disks import KINDS, SmallDisk, disk_of


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 16 MiB."""
    with disk_of(request.param, tmp_path, size_mib=16) as disk:
        yield disk


def put(database: Database, name: str, size: int = 4000) -> None:
    """Write one value."""
    database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, "x" * size))


def names(database: sqlite3.Connection) -> int:
    """Count what is there, but for the identity."""
    return int(database.execute("SELECT count(*) FROM meta").fetchone()[0]) - 1


def test_a_transaction_that_fills_the_disk(disk: SmallDisk) -> None:
    """All of it happens, in memory; reads see it; it is on the disk once there is room, and stays."""
    database = open_database(disk.path / "index.db", "it")
    put(database, "before")
    disk.fill()
    changes = database.total_changes
    database.execute("BEGIN IMMEDIATE")
    assert database.in_transaction
    for number in range(300):
        put(database, f"name {number}")
    database.executemany("DELETE FROM meta WHERE name = ?", [("name 1",), ("name 2",)])
    database.execute("COMMIT")
    assert "full" in str(database.trouble)
    assert names(database) == 299
    assert database.total_changes >= changes + 302
    with pytest.raises(OSError, match="no room"):
        database.try_disk()
    put(database, "later")
    disk.make_room()
    changes = database.total_changes
    database.try_disk()
    assert database.trouble is None
    assert database.total_changes >= changes
    put(database, "and later")
    assert names(database) == 301
    database.close()
    database = open_database(disk.path / "index.db", "it")
    assert names(database) == 301
    assert database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    database.close()


def test_a_transaction_that_is_given_up(disk: SmallDisk) -> None:
    """A rollback in memory undoes what the transaction did on the disk before, too."""
    database = open_database(disk.path / "index.db", "it")
    put(database, "before")
    disk.fill()
    database.execute("BEGIN IMMEDIATE")
    for number in range(1000):
        put(database, f"name {number}")
    assert database.in_transaction
    database.execute("ROLLBACK")
    put(database, "after")
    assert names(database) == 2
    database.close()


def test_an_end_while_the_disk_is_full(disk: SmallDisk) -> None:
    """The index is as it was, and good."""
    database = open_database(disk.path / "index.db", "it")
    put(database, "before")
    disk.fill()
    for number in range(1000):
        put(database, f"name {number}")
    database.close()
    disk.make_room()
    database = open_database(disk.path / "index.db", "it")
    assert 1 <= names(database) < 1001
    assert list(disk.path.glob("*.damaged*")) == []
    database.close()


def test_a_full_disk_is_no_damage(disk: SmallDisk) -> None:
    """An index that cannot be opened for lack of room is not set aside."""
    database = open_database(disk.path / "index.db", "it")
    put(database, "before")
    database.close()
    disk.fill()
    try:
        open_database(disk.path / "index.db", "it").close()
    except sqlite3.OperationalError as exc:
        assert "disk" in str(exc)  # noqa: PT017 - either is right
    disk.make_room()
    database = open_database(disk.path / "index.db", "it")
    assert names(database) == 1
    assert list(disk.path.glob("*.damaged*")) == []
    database.close()


def test_other_errors_are_errors(tmp_path: Path) -> None:
    """What is no trouble with the disk is raised, and changes nothing."""
    database = open_database(tmp_path / "index.db", "it")
    with pytest.raises(sqlite3.OperationalError):
        database.execute("INSERT INTO nothing VALUES (1)")
    with pytest.raises(sqlite3.IntegrityError):
        database.execute("INSERT INTO meta VALUES ('identity', '')")
    assert database.trouble is None
    database.close()
