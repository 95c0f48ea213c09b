"""The store of bytes that lost a conflict: what is listed is whole, and nothing listed is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from exaifs.cache.unsent.conflicts import (
    Version,
    data_of,
    describe,
    discard,
    list_conflicts,
    new_file,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where conflicts go; made when it is needed."""
    return tmp_path / "conflicts"


def keep(directory: Path, data: bytes) -> None:
    """Keep some bytes."""
    path = new_file(directory)
    path.write_bytes(data)
    describe(path, path="d/f", reason="another host closed later", kept=Version(len(data), None, 5, "here"))


def test_what_was_described_is_listed_with_its_bytes(directory: Path) -> None:
    """Oldest first, with who, when and why."""
    for data in (b"first", b"second"):
        keep(directory, data)
    first, second = list_conflicts(directory)
    assert [data_of(directory, one).read_bytes() for one in (first, second)] == [b"first", b"second"]
    assert (first.path, first.reason) == ("d/f", "another host closed later")
    assert first.kept == Version(5, None, 5, "here")
    assert first.winner is None


def test_bytes_without_a_description_are_not_listed_and_not_lost(directory: Path) -> None:
    """The process ended between the two."""
    path = new_file(directory)
    path.write_bytes(b"half")
    path.with_suffix(".tmp").write_text("{")
    assert list_conflicts(directory) == []
    assert path.read_bytes() == b"half"


def test_a_damaged_description_hides_no_other(directory: Path) -> None:
    """It is passed over."""
    keep(directory, b"good")
    (directory / "bad.json").write_text('{"format": 1}')
    (directory / "worse.json").write_bytes(b"\xff")
    assert [data_of(directory, one).read_bytes() for one in list_conflicts(directory)] == [b"good"]


def test_only_the_owner_may_read_them(directory: Path) -> None:
    """They are somebody's files."""
    new_file(directory)
    assert directory.stat().st_mode & 0o777 == 0o700


def test_discarding_removes_both(directory: Path) -> None:
    """Once more does no harm."""
    keep(directory, b"1")
    (conflict,) = list_conflicts(directory)
    for _ in range(2):
        discard(directory, conflict)
    assert list(directory.iterdir()) == []
