"""What a workload can do to a tree of files: as values, to be recorded and made up by chance.

This module imports the standard library only: the workload runs as a process of its own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal[
    "put", "append", "patch", "truncate", "rename", "unlink", "mkdir", "rmdir", "chmod", "setxattr", "read"
]

BIG_BYTES = 300_000
"""Larger than what the daemon takes in one write, and than what it copies rather than sends."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes that no other piece has: made from a number."""

    number: int
    size_bytes: int

    def data(self) -> bytes:
        """Return the bytes; they begin with the number, so that a failed test can tell whose they are."""
        head = b"<%d:%d>" % (self.number, self.size_bytes)
        return (head + random.Random(self.number).randbytes(self.size_bytes))[: self.size_bytes]


@dataclass(frozen=True, slots=True)
class Action:
    """One action on the tree. Paths are relative to its root."""

    kind: Kind
    path: str
    target: str = ""
    """Of a rename."""
    pieces: tuple[Piece, ...] = ()
    """What is written, one write(2) after another."""
    synced: bool = False
    """Whether fsync(2) follows each write."""
    offset: int = 0
    """Of a patch; the size of a truncation."""
    mode: int = 0
    name: str = ""
    """Of an extended attribute; its value is the name of the action's first piece."""

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Action:
        """Return what `to_json` described."""
        pieces = tuple(Piece(**piece) for piece in value.pop("pieces"))
        return cls(**value, pieces=pieces)


DIRECTORIES = ("d0", "d1", "d1/s", "d2")
NAMES = ("f0", "f1", "f2", "f3")
ATTRIBUTES = ("user.a", "user.b")


@dataclass(slots=True)
class Belief:
    """What the workload thinks is there, to choose actions that mostly make sense."""

    files: set[str]
    directories: set[str]

    def learn(self, action: Action) -> None:
        """Take note of an action that succeeded."""
        if action.kind in {"put", "append"}:
            self.files.add(action.path)
        elif action.kind == "mkdir":
            self.directories.add(action.path)
        elif action.kind in {"unlink", "rmdir"}:
            self.files.discard(action.path)
            self.directories.discard(action.path)
        elif action.kind == "rename":
            self.files = {_moved(path, action) for path in self.files - {action.target}}
            self.directories = {_moved(path, action) for path in self.directories}


def _moved(path: str, action: Action) -> str:
    if path == action.path or path.startswith(action.path + "/"):
        return action.target + path[len(action.path) :]
    return path


class Chooser:
    """Makes up actions.

    Args:
        chance: decides.
        belief: kept up to date by whoever carries the actions out.
        first_number: pieces are numbered from here, unique in a campaign.
        reads: how often to read instead of changing something, 0 to 1.
    """

    def __init__(
        self, chance: random.Random, belief: Belief, first_number: int, reads: float = 0.1
    ) -> None:
        self._chance = chance
        self._belief = belief
        self._next = first_number
        self._reads = reads

    def choose(self) -> Action:
        """Return the next action."""
        if self._chance.random() < self._reads:
            return Action("read", self._file())
        make: Callable[[], Action] = self._chance.choices(
            [
                self._put,
                lambda: Action("append", self._any_file(), pieces=(self._piece(),)),
                self._patch,
                lambda: Action("truncate", self._file(), offset=self._chance.choice((0, 1, 100, 40_000))),
                lambda: Action("rename", self._file(), self._any_file()),
                lambda: Action("rename", self._directory(), self._chance.choice(DIRECTORIES)),
                lambda: Action("unlink", self._file()),
                lambda: Action("mkdir", self._chance.choice(DIRECTORIES)),
                lambda: Action("rmdir", self._directory()),
                self._attribute,
            ],
            [30, 10, 6, 6, 14, 4, 10, 6, 4, 10],
        )[0]
        return make()

    def _put(self) -> Action:
        pieces = tuple(self._piece() for _ in range(self._chance.choice((1, 1, 1, 2, 3))))
        return Action("put", self._any_file(), pieces=pieces, synced=self._chance.random() < 0.25)

    def _patch(self) -> Action:
        return Action("patch", self._file(), pieces=(self._piece(),), offset=self._chance.randrange(5000))

    def _attribute(self) -> Action:
        if self._chance.random() < 0.5:
            return Action("chmod", self._file(), mode=self._chance.choice((0o600, 0o640, 0o644, 0o755)))
        name = self._chance.choice(ATTRIBUTES)
        return Action("setxattr", self._file(), name=name, pieces=(self._piece(20),))

    def _piece(self, size_bytes: int | None = None) -> Piece:
        self._next += 1
        if size_bytes is None:
            size_bytes = self._chance.choices(
                (self._chance.randrange(1, 2000), 20_000, BIG_BYTES), (12, 3, 1)
            )[0]
        return Piece(self._next, size_bytes)

    def _any_file(self) -> str:
        """Return a path for a file, mostly in a directory that is there."""
        directories = ["", *sorted(self._belief.directories)]
        if self._chance.random() < 0.03:
            directories = ["", *DIRECTORIES]
        directory = self._chance.choice(directories)
        return f"{directory}/{self._chance.choice(NAMES)}".lstrip("/")

    def _file(self) -> str:
        """Return a file, mostly one that is there."""
        if not self._belief.files or self._chance.random() < 0.03:
            return self._any_file()
        return self._chance.choice(sorted(self._belief.files))

    def _directory(self) -> str:
        if not self._belief.directories:
            return self._chance.choice(DIRECTORIES)
        return self._chance.choice(sorted(self._belief.directories))
