"""Names: every sequence of bytes that Linux takes is a name here, and no name becomes another."""

# These tests are about system calls, with names that no Path can hold.
# ruff: noqa: PTH102, PTH104, PTH112, PTH114, PTH116, PTH208, PTH211
from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from exaifs.names import MAX_KEY_BYTES
from tests.support.mounts import within
from tests.support.twins import Twins, outcome

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

# The embedded server takes no key with two dots in a row; see README.
NAMES: tuple[bytes, ...] = (
    *(f"a{character}b".encode() for character in "\\#?%&+ '\"\n\r\t|<>*:;=@$!^`~,()[]{}"),
    *(f"{character}".encode() for character in "\\#?%&+'\"\n~*"),
    unicodedata.normalize("NFC", "é").encode(),
    unicodedata.normalize("NFD", "é").encode(),
    "🍋".encode(),
    "👩‍👩‍👧".encode(),
    "名前".encode(),
    "ﬁ".encode(),
    "\u200b".encode(),
    "\u0130\u0131\u017f\u212a".encode(),
    b"\xff\xfe",
    b"a\x80b",
    b"\xc3",
    b"\x01\x7f",
    b" ",
    b" leading",
    b"trailing ",
    b"trailing.",
    b".hidden",
    b"-dash",
    b"=41",
    b"=",
    b"%41",
    b"CON",
    b"Case",
    b"case",
    b".emptyFolderPlaceholder",
    b"x.emptyFolderPlaceholder",
    b"n" * 255,
    # Three bytes of the key for each: servers that keep objects as files take no more than 255.
    b"\xff" * 85,
    "é".encode() * 42,
)


def test_every_name(twins: Twins) -> None:
    """Files, directories and links of any name come back byte for byte, also after a restart."""

    def make(directory: Path) -> None:
        at = os.fsencode(directory)
        for number, name in enumerate(NAMES):
            path = at + b"/" + name
            if number % 3 == 0:
                os.mkdir(path)
            elif number % 3 == 1:
                os.symlink(b"to " + name[:100], path)
            else:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))

    def listed(directory: Path) -> list[tuple[bytes, int]]:
        at = os.fsencode(directory)
        return sorted((name, os.lstat(at + b"/" + name).st_mode) for name in os.listdir(at))

    twins.agree(make)
    assert [name for name, _mode in twins.agree(listed)] == sorted(NAMES)
    twins.mount.restart()
    assert [name for name, _mode in twins.agree(listed)] == sorted(NAMES)

    def move(directory: Path) -> None:
        at = os.fsencode(directory)
        for name in NAMES[:40]:
            # The embedded server lets no file have the name that a directory had.
            moved = at + (b"/moved-dir" if os.path.isdir(at + b"/" + name) else b"/moved")
            os.rename(at + b"/" + name, moved)
            os.rename(moved, at + b"/" + name)
        for name in NAMES:
            path = at + b"/" + name
            (os.rmdir if os.path.isdir(path) and not os.path.islink(path) else os.unlink)(path)

    twins.agree(move)
    assert twins.agree(listed) == []


def test_names_that_are_too_long(twins: Twins) -> None:
    """More than 255 bytes, or a key longer than the store takes: ENAMETOOLONG before anything is sent."""

    def long_names(directory: Path) -> list[Any]:
        at = os.fsencode(directory)
        found: list[Any] = []
        for name in (b"n" * 256, "é".encode() * 128):
            path = at + b"/" + name
            found += [
                outcome(lambda path=path: os.mkdir(path)),  # type: ignore[misc]  # bound now
                outcome(lambda path=path: os.symlink("x", path)),  # type: ignore[misc]  # bound now
                outcome(lambda path=path: os.open(path, os.O_CREAT)),  # type: ignore[misc]  # bound now
                outcome(lambda path=path: os.rename(at, path)),  # type: ignore[misc]  # bound now
                outcome(lambda path=path: os.stat(path)),  # type: ignore[misc]  # bound now
            ]
        return found

    assert set(twins.agree(long_names)) == {"ENAMETOOLONG"}

    def deep() -> tuple[int, Any, Any]:
        directory, depth = twins.remote, 0
        while True:
            made = outcome((directory / ("d" * 100)).mkdir)
            if made is not None:
                break
            directory, depth = directory / ("d" * 100), depth + 1
        return depth, made, outcome(lambda: (directory / "short").write_bytes(b"x"))

    depth, made, short = within(120, deep)
    assert made == "ENAMETOOLONG"
    assert depth == (MAX_KEY_BYTES - len(twins.remote.name) - 1) // 101
    assert short == 1
