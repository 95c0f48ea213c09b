"""The one retry policy: which failures pass, how long to wait, and when to give up.

Only for calls that may be repeated. An error says itself whether it is temporary
(`RemoteError.temporary`); everything else passes at once, `Cancelled` included. All waiting is
`anyio.sleep`, so a test clock that jumps needs no real time.

`total_s` is what a caller waits at most while nothing moves, attempts and waits together: at its end the
attempt under way is cancelled. A call without a body moves nothing, so for it this is the whole time.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import anyio
import structlog

from exaifs.errors import Busy, RemoteError, Unreachable

_log = structlog.get_logger(__name__)

T = TypeVar("T")


class Progress:
    """How far a transfer has come over all attempts, and for how long nothing has moved.

    Bytes that no attempt has reached before start the clock anew. Those that are sent once more only stop
    it while they move: a dead connection, whose buffers take some megabytes, would look alive each time.
    """

    def __init__(self) -> None:
        self.confirmed_bytes = 0
        """What the server has said it keeps."""
        self._furthest_bytes = 0
        self._idle_s = 0.0  # of gaps that ended in a failure, since the furthest byte
        self._since = 0.0  # when something last moved, or a gap was added up
        self._limit_s = 0.0
        self._scope = anyio.CancelScope()

    @property
    def left_s(self) -> float:
        """Time until the caller is told that nothing moves."""
        return self._scope.deadline - anyio.current_time()

    def moved(self, position_bytes: int) -> None:
        """Note that the transfer has come to this byte, or that the server has answered."""
        if position_bytes > self._furthest_bytes:
            self._furthest_bytes = position_bytes
            self._idle_s = 0.0
        self._since = anyio.current_time()
        self._scope.deadline = self._since + self._limit_s - self._idle_s

    def confirmed(self, position_bytes: int) -> None:
        """Note how much the server keeps."""
        self.confirmed_bytes = max(self.confirmed_bytes, position_bytes)
        self.moved(position_bytes)

    def begin_again(self) -> None:
        """Note that another attempt begins: the time since something moved is lost."""
        now = anyio.current_time()
        self._idle_s += now - self._since
        self._since = now

    @contextmanager
    def watched(self, limit_s: float) -> Iterator[anyio.CancelScope]:
        """Cancel the block once nothing has moved for so long."""
        self._limit_s = limit_s
        self._since = anyio.current_time()
        self._scope = anyio.CancelScope(deadline=self._since + limit_s - self._idle_s)
        with self._scope:
            yield self._scope


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with jitter, a limit on attempts and one on the whole.

    Args:
        attempts: how often to try at most without getting further, the first time included.
        first_delay_s: longest wait before the second attempt; doubles with each further one.
        max_delay_s: longest wait between two attempts, unless the server asks for more.
        total_s: how long a caller waits at most while nothing moves.
        jitter: yields numbers in [0, 1); a wait is half fixed and half by chance.
    """

    attempts: int = 4
    first_delay_s: float = 0.2
    max_delay_s: float = 3.0
    total_s: float = 20.0
    jitter: Callable[[], float] = random.random

    def within(self, total_s: float) -> RetryPolicy:
        """Return the same policy with another limit on the whole."""
        return replace(self, total_s=total_s)

    def once(self) -> RetryPolicy:
        """Return the policy for a call that must not be repeated: only its time is limited."""
        return replace(self, attempts=1)

    async def run(
        self, what: str, attempt: Callable[[], Awaitable[T]], progress: Progress | None = None
    ) -> T:
        """Call `attempt` until it succeeds, fails for good, or a limit is reached.

        Args:
            what: names the call in the log, without secrets.
            attempt: one try; must be safe to repeat.
            progress: told by a transfer how far it is; its failures count from the last confirmed byte.

        Raises:
            ExaifsError: the last attempt's error.
        """
        progress = Progress() if progress is None else progress
        last: RemoteError | None = None
        failures = 0
        with progress.watched(self.total_s):
            while True:
                confirmed_bytes = progress.confirmed_bytes
                try:
                    return await attempt()
                except RemoteError as exc:
                    failures = 1 if progress.confirmed_bytes > confirmed_bytes else failures + 1
                    delay_s = self.delay_s(failures, exc)
                    # A wait that would end too late is not begun, whoever asked for it.
                    if not exc.temporary or failures >= self.attempts or delay_s >= progress.left_s:
                        raise
                    last = exc
                _log.debug(
                    "trying again",
                    what=what,
                    failures=failures,
                    delay_s=round(delay_s, 3),
                    error=str(last),
                )
                await anyio.sleep(delay_s)
                progress.begin_again()
        raise _waited_out(what, self.total_s, last)

    def delay_s(self, failures: int, error: RemoteError) -> float:
        """Return how long to wait after so many failures; never less than the server asked for."""
        longest_s = min(self.max_delay_s, self.first_delay_s * 2.0 ** (failures - 1))
        delay_s = longest_s * (0.5 + self.jitter() / 2)
        asked_s = error.retry_after_s if isinstance(error, Busy) else None
        return delay_s if asked_s is None else max(delay_s, asked_s)


def _waited_out(what: str, total_s: float, last: RemoteError | None) -> RemoteError:
    """Return the error of a call that was given up while it waited: what was wrong before says more."""
    error = Unreachable(f"{what}: no answer in {total_s:.3g} s") if last is None else last
    error.waited_out = True
    return error
