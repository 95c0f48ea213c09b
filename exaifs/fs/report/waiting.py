"""What Supabase does not have yet, one line each: the content of `.exaifs/sync`, read by `exaifs sync`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from exaifs.cache.unsent.intents import Move
from exaifs.fs.core import Core
from exaifs.fs.sending.losses import Losses
from exaifs.fs.sending.sender import Sender
from exaifs.fs.tables.inodes import Inode
from exaifs.names import path_of

_NS = 1e9

State = Literal["open", "pending", "uploading", "failed", "lost"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A file, or a change of a name, that waits.

    Attributes:
        path: relative to the mount.
        what: `file`, or the change: `remove`, `move`, `mark` or `unmark` (a directory), `patch`.
        state: `open`: a program has it open and changed; `pending`: safe here, to be sent; `uploading`:
            being sent; `failed`: refused for good, or not safe here; `lost`: does not wait any more, bytes
            were set aside or a change given up, since the start.
        size_bytes: of a file, 0 of a change.
        since_unix_s: since when, of a file.
        source: of a move: where from.
        number: of a change: they are carried out in this order; of what is lost: counted by itself.
        problem: why the last attempt failed.
    """

    path: str
    what: str
    state: State
    size_bytes: int = 0
    since_unix_s: float | None = None
    source: str | None = None
    number: int | None = None
    problem: str | None = None


class WaitingList:
    """Says what waits in one mount.

    Args:
        core: inodes and outbox.
        sender: knows why operations wait.
        losses: what does not wait any more.
    """

    def __init__(self, core: Core, sender: Sender, losses: Losses) -> None:
        self._table = core.table
        self._outbox = core.changes.outbox
        self._sender = sender
        self._losses = losses

    def __iter__(self) -> Iterator[Waiting]:
        for number, operation in self._outbox.operations.items():
            problem = self._sender.problems.get(number)
            yield Waiting(
                path_of(operation.entry.key),
                type(operation).__name__.lower(),
                "pending",
                source=path_of(operation.source) if isinstance(operation, Move) else None,
                number=number,
                problem=problem,
            )
        for inode in self._table:
            if inode.dirty:
                yield _file(inode)
        for loss in self._losses:
            yield Waiting(
                loss.path, loss.what, "lost", source=loss.source, number=loss.number, problem=loss.problem
            )

    def to_bytes(self) -> bytes:
        """Return a JSON object a line; ASCII, so that any name survives."""
        return b"".join(json.dumps(asdict(one)).encode() + b"\n" for one in self)


def _file(inode: Inode) -> Waiting:
    staged = inode.staged
    assert staged is not None
    return Waiting(
        path_of(inode.entry.key),
        "file",
        _state(inode),
        staged.size_bytes,
        staged.dirty_since_ns / _NS,
        problem=inode.failure,
    )


def _state(inode: Inode) -> State:
    staged = inode.staged
    assert staged is not None
    if inode.uploading:
        return "uploading"
    if staged.refused:
        return "failed"
    if staged.kept and staged.acknowledged:
        return "pending"
    return "open" if inode.opens else "failed"
