from __future__ import annotations

from pathlib import Path

import magic

from exaifs.embedded.samples import sample_files, write_samples


def test_samples_are_what_their_names_say(tmp_path: Path) -> None:
    """Every sample is a real file of its type, so that viewers open it."""
    assert write_samples(tmp_path) == len(sample_files())
    found = {
        path.suffix: magic.from_file(str(path), mime=True) for path in tmp_path.rglob("*") if path.is_file()
    }
    assert found == {
        ".md": "text/plain",
        ".csv": "text/csv",
        ".png": "image/png",
        ".pdf": "application/pdf",
        ".txt": "text/plain",
    }


def test_samples_never_overwrite(tmp_path: Path) -> None:
    """What a user changed stays changed."""
    (tmp_path / "README.md").write_text("mine")
    assert write_samples(tmp_path) == len(sample_files()) - 1
    assert (tmp_path / "README.md").read_text() == "mine"
    assert write_samples(tmp_path) == 0
