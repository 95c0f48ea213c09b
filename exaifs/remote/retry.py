"""The one retry policy: which failures pass, how long to wait, and when to give up.

Only for calls that may be repeated. An error says itself whether it is temporary
(`RemoteError.temporary`); everything else passes at once, `Cancelled` included. All waiting is
`anyio.sleep`, so a test clock that jumps needs no real time.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio
import structlog

from exaifs.errors import Busy, RemoteError

_log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with jitter, a limit on attempts and one on the whole.

    Args:
        attempts: how often to try at most, the first time included.
        first_delay_s: longest wait before the second attempt; doubles with each further one.
        max_delay_s: longest wait between two attempts.
        total_s: no attempt starts later than this after the first.
        jitter: yields numbers in [0, 1); a wait is half fixed and half by chance.
    """

    attempts: int = 4
    first_delay_s: float = 0.2
    max_delay_s: float = 3.0
    total_s: float = 20.0
    jitter: Callable[[], float] = random.random

    async def run(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Call `attempt` until it succeeds, fails for good, or a limit is reached.

        Args:
            what: names the call in the log, without secrets.
            attempt: one try; must be safe to repeat.

        Raises:
            ExaifsError: the last attempt's error.
        """
        give_up_at = anyio.current_time() + self.total_s
        for number in range(1, self.attempts):
            try:
                return await attempt()
            except RemoteError as exc:
                delay_s = self.delay_s(number, exc)
                if not exc.temporary or anyio.current_time() + delay_s > give_up_at:
                    raise
                _log.debug(
                    "trying again", what=what, attempt=number, delay_s=round(delay_s, 3), error=str(exc)
                )
            await anyio.sleep(delay_s)
        return await attempt()

    def delay_s(self, failures: int, error: RemoteError) -> float:
        """Return how long to wait after so many failures; never less than the server asked for."""
        longest_s = min(self.max_delay_s, self.first_delay_s * 2.0 ** (failures - 1))
        delay_s = longest_s * (0.5 + self.jitter() / 2)
        asked_s = error.retry_after_s if isinstance(error, Busy) else None
        return delay_s if asked_s is None else max(delay_s, asked_s)
