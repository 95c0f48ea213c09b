"""What was acknowledged here and will never be in Supabase, for whoever waits until all of it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Loss:
    """Bytes that were set aside, or a change that was given up.

    Attributes:
        number: they are counted from 1 on, in order.
        path: relative to the mount.
        what: `file`, or the change.
        problem: why, for people.
        source: of a move: where from.
    """

    number: int
    path: str
    what: str
    problem: str
    source: str | None = None


class Losses:
    """The newest losses of one mount since its start."""

    def __init__(self) -> None:
        self._newest: deque[Loss] = deque(maxlen=_REMEMBERED)
        self._count = 0

    def note(self, path: str, what: str, problem: str, source: str | None = None) -> None:
        """Remember one; `Loss` says what of it."""
        self._count += 1
        self._newest.append(Loss(self._count, path, what, problem, source))

    def __iter__(self) -> Iterator[Loss]:
        return iter(self._newest)
