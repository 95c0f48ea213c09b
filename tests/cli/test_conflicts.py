"""`exaifs conflicts` where nothing is mounted: the store is a directory of files. Mounts: tests/mount."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from exaifs.cache.directory import directory_of
from exaifs.cache.unsent.conflicts import DIRECTORY, Conflict, Version, describe, new_file
from exaifs.remote.session import identity_of
from tests.cli.support import clean_environment, exaifs
from tests.support.ports import own_port

BUCKET = "user-files"
Keep = Callable[..., Conflict]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """A project that is away, and no key: neither is needed."""
    return {"SUPABASE_URL": f"http://127.0.0.1:{own_port()}", "FILE_CACHE_DIR": str(tmp_path / "cache")}


@pytest.fixture
def store(settings: dict[str, str]) -> Path:
    """The directory of kept bytes."""
    directory = directory_of(
        Path(settings["FILE_CACHE_DIR"]), identity_of(settings["SUPABASE_URL"], BUCKET)
    )
    directory.mkdir(parents=True)
    return directory / DIRECTORY


@pytest.fixture
def keep(store: Path) -> Keep:
    """Keep bytes as the daemon does."""

    def kept(data: bytes, path: str | None = "d/é.txt", reason: str = "another host wrote") -> Conflict:
        file = new_file(store)
        file.write_bytes(data)
        ours = Version(len(data), None, 1_700_000_000_000_000_000, "host-a")
        return describe(file, path=path, reason=reason, kept=ours, winner=Version(99, "b" * 64))

    return kept


def left(store: Path) -> set[str]:
    """Return the names of all files."""
    return {path.name for path in store.iterdir()}


def test_nothing_is_kept(settings: dict[str, str], store: Path) -> None:
    """Exit code 0 and a note, also before the first mount."""
    result = exaifs("conflicts", env=settings)
    assert (result.code, result.stdout, result.stderr) == (0, "", "no conflicts\n")
    assert exaifs("conflicts", "--json", env=settings).json["conflicts"] == []
    store.parent.rmdir()
    result = exaifs("conflicts", "list", env=settings)
    assert result.code == 0
    assert f"there is no cache directory {store.parent}" in result.stderr


def test_the_list(settings: dict[str, str], keep: Keep, store: Path) -> None:
    """Words and JSON: id, path, reason, size and host of both; unreadable descriptions are counted."""
    conflict = keep(b"12345")
    lost = keep(b"x", None, "a record was damaged\x1b[31m")
    (store / "20200101-000000-00000000.data").write_bytes(b"?")
    result = exaifs("conflicts", env=settings)
    assert result.code == 0, result
    for words in (
        f"{conflict.id}  d/é.txt",
        "another host wrote",
        "5 bytes, written 2023-11-1",
        "by host-a",
        "99 bytes by another host",
        f"{lost.id}  path not known",
    ):
        assert words in result.stdout
    assert "\x1b" not in result.stdout
    assert "1 files" in result.stderr
    found = exaifs("conflicts", "--json", env=settings).json
    assert found["directory"] == str(store)
    assert (found["mountpoint"], found["undescribed"]) == (None, 1)
    first = found["conflicts"][0]
    assert (first["id"], first["path"], first["reason"]) == (conflict.id, "d/é.txt", "another host wrote")
    assert first["kept"]["size_bytes"] == 5
    assert first["kept"]["host"] == "host-a"
    assert first["winner"] == {
        "size_bytes": 99,
        "sha256": "b" * 64,
        "written_unix_s": None,
        "host": None,
    }
    assert Path(first["data"]).read_bytes() == b"12345"


def test_the_difference_while_all_is_away(settings: dict[str, str], keep: Keep) -> None:
    """The kept bytes are hashed; of the winner what was noted counts, and why is said."""
    conflict = keep(b"12345")
    result = exaifs("conflicts", "diff", conflict.id, env=settings)
    assert result.code == 0, result
    assert "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5" in result.stdout
    assert "b" * 64 in result.stdout
    assert "when it happened" in result.stdout
    assert "not mounted" in result.stderr
    with_key = {**settings, "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_x"}
    found = exaifs("conflicts", "diff", "--json", conflict.id, env=with_key).json
    assert found["current_from"] == "description"
    assert found["current"]["size_bytes"] == 99
    assert "because" in found["note"]


def test_restored_to_another_place(settings: dict[str, str], keep: Keep, tmp_path: Path) -> None:
    """The file is whole, the conflict is gone; --keep leaves it; nothing is replaced without --force."""
    first, second = keep(b"first"), keep(b"second")
    place = tmp_path / "mine.txt"
    result = exaifs("conflicts", "restore", "--keep", "--to", str(place), first.id, env=settings)
    assert result.code == 0, result
    assert place.read_bytes() == b"first"
    result = exaifs("conflicts", "restore", "--to", str(place), second.id, env=settings)
    assert result.code == 1
    assert "--force" in result.complaint
    assert place.read_bytes() == b"first"
    result = exaifs("conflicts", "restore", "--force", "--to", str(place), second.id, env=settings)
    assert result.code == 0, result
    assert place.read_bytes() == b"second"
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "mine.txt"}
    ids = [one["id"] for one in exaifs("conflicts", "--json", env=settings).json["conflicts"]]
    assert ids == [first.id]


def test_what_cannot_be_restored(settings: dict[str, str], keep: Keep, store: Path, tmp_path: Path) -> None:
    """Not mounted, path not known, a directory in the way, damaged bytes: one line, and nothing is lost."""
    known, lost = keep(b"known"), keep(b"lost", None, "a record was damaged")
    for arguments, code, words in (
        ((known.id,), 4, "not mounted"),
        ((lost.id,), 1, "--to"),
        (("--to", str(tmp_path), known.id), 1, "is a directory"),
        (("--to", str(tmp_path / "no" / "x"), known.id), 1, "No such file"),
        (("20200101-000000-00000000",), 1, known.id),
    ):
        result = exaifs("conflicts", "restore", *arguments, env=settings)
        assert result.code == code, result
        assert words in result.complaint
    (store / f"{known.id}.data").write_bytes(b"other bytes")
    result = exaifs("conflicts", "restore", "--to", str(tmp_path / "x"), known.id, env=settings)
    assert result.code == 1
    assert "damaged" in result.complaint
    assert not (tmp_path / "x").exists()
    assert len(left(store)) == 4


def test_discarding(settings: dict[str, str], keep: Keep, store: Path) -> None:
    """Some or all, never without a word; an id that is not there names those that are."""
    conflicts = [keep(b"x") for _ in range(3)]
    first, *_ = conflicts
    assert exaifs("conflicts", "discard", env=settings).code == 2
    assert exaifs("conflicts", "discard", "--all", first.id, env=settings).code == 2
    assert "--yes" in exaifs("conflicts", "discard", first.id, env=settings).complaint
    result = exaifs("conflicts", "discard", "--yes", "nonsense", env=settings)
    assert result.code == 1
    assert all(conflict.id in result.complaint for conflict in conflicts)
    assert len(left(store)) == 6
    assert exaifs("conflicts", "discard", "--yes", first.id, env=settings).stdout == "discarded 1\n"
    assert len(left(store)) == 4
    assert exaifs("conflicts", "discard", "--yes", "--all", env=settings).stdout == "discarded 2\n"
    assert left(store) == set()
    assert exaifs("conflicts", "discard", "--yes", "--all", env=settings).stdout == "discarded 0\n"
    complaint = exaifs("conflicts", "discard", "-y", first.id, env=settings).complaint
    assert f"there are none in {store}" in complaint
    assert "--mount DIR" in complaint


@pytest.mark.parametrize(("answer", "code", "files"), [(b"n\n", 130, 2), (b"y\n", 0, 0)])
def test_a_terminal_is_asked(
    settings: dict[str, str], keep: Keep, store: Path, *, answer: bytes, code: int, files: int
) -> None:
    """What would be deleted is shown, and deleted only after a yes."""
    conflict = keep(b"x")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "exaifs", "conflicts", "discard", conflict.id],
        env=clean_environment(settings),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        os.write(ours, answer)
        shown, asked = process.communicate(timeout=120)
        os.close(theirs)
        os.close(ours)
        assert process.returncode == code, asked
    assert conflict.id.encode() in shown
    assert b"for good?" in asked
    assert len(left(store)) == files


def test_two_at_once_do_no_harm(settings: dict[str, str], keep: Keep, store: Path, tmp_path: Path) -> None:
    """Several restore and discard the same: each file is whole, each says what became of it."""
    conflict = keep(b"x" * 3_000_000)
    targets = [tmp_path / f"target-{number}" for number in range(4)]
    commands = [["restore", "--to", str(target), conflict.id] for target in targets]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "exaifs", "conflicts", *arguments],
            env=clean_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for arguments in (*commands, ["discard", "--yes", conflict.id])
    ]
    codes = [process.wait(120) for process in processes]
    whole = [target for target in targets if target.exists()]
    assert all(target.read_bytes() == b"x" * 3_000_000 for target in whole)
    assert sum(code == 0 for code in codes[:4]) == len(whole) <= 1
    assert left(store) == set()


def test_without_settings(tmp_path: Path) -> None:
    """Neither a mount nor a project: exit code 2 names both; no mount at DIR: 4."""
    result = exaifs("conflicts")
    assert result.code == 2
    assert "SUPABASE_URL" in result.complaint
    result = exaifs("conflicts", str(tmp_path))
    assert result.code == 4


def test_a_store_that_may_not_be_read_is_not_empty(settings: dict[str, str], store: Path) -> None:
    """What is no directory, or is closed, is an error."""
    store.write_bytes(b"")
    result = exaifs("conflicts", env=settings)
    assert result.code == 1
    assert "Not a directory" in result.complaint
