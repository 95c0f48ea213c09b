"""Notes of uploads in files: whole, or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from exaifs.cache.unsent.uploadmemory import FileUploadMemory


def test_note_survives_the_process(tmp_path: Path) -> None:
    """What one process saved the next one loads; forgotten is forgotten."""
    path = tmp_path / "a.upload"
    memory = FileUploadMemory(path)
    assert memory.load() is None
    memory.save("one")
    memory.save("two ü")
    assert FileUploadMemory(path).load() == "two ü"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.upload"]
    memory.forget()
    memory.forget()
    assert FileUploadMemory(path).load() is None


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * 70_000])
def test_what_is_no_note_is_forgotten(tmp_path: Path, content: bytes) -> None:
    """A damaged file is as good as none."""
    path = tmp_path / "a.upload"
    path.write_bytes(content)
    assert FileUploadMemory(path).load() is None


def test_disk_that_fails(tmp_path: Path) -> None:
    """A note that cannot be kept stops no upload."""
    memory = FileUploadMemory(tmp_path / "missing" / "a.upload")
    memory.save("text")
    assert memory.load() is None
    memory.forget()
    (tmp_path / "directory").mkdir()
    assert FileUploadMemory(tmp_path / "directory").load() is None
