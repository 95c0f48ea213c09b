"""Whether Supabase answers: shared by everything that asks it."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
import trio

from exaifs.errors import RemoteError

_log = structlog.get_logger(__name__)

_FEED_PATIENCE_S = 1.0
"""After a long absence there may be many changes to read: who waits for a directory has it listed then."""

OFFLINE_RETRY_S = 5.0
"""While Supabase is away, ask again this often instead of making every look-up wait."""


class Contact:
    """When Supabase last answered, and whether it does now."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self.offline_since_ns: int | None = None
        self.last_answer_ns: int | None = None
        self.problem: RemoteError | None = None
        """Why it does not; None while it does."""
        self._next_try = 0.0
        self._followed_until = float("-inf")
        self._feed_known = trio.Event()
        self._feed_known.set()

    @property
    def worth_trying(self) -> bool:
        """False for a short while after a failure."""
        return self.offline_since_ns is None or self._clock() >= self._next_try

    @property
    def followed(self) -> bool:
        """Whether the change feed keeps every loaded directory true."""
        return self._clock() < self._followed_until

    def follow_until(self, when: float) -> None:
        """The feed vouches for names until then, by the event loop's clock."""
        self._followed_until = when
        self._feed_known.set()

    def unfollow(self) -> None:
        """The feed vouches for nothing any more."""
        self._followed_until = float("-inf")
        self._feed_known.set()

    def expect_feed(self) -> None:
        """The feed begins, and will soon say whether it vouches for what is known."""
        self._feed_known = trio.Event()

    async def wait_feed(self) -> None:
        """Return once the feed has begun or failed, or soon: one question of it saves many listings."""
        if not self._feed_known.is_set():
            with trio.move_on_after(_FEED_PATIENCE_S):
                await self._feed_known.wait()
            self._feed_known.set()

    def succeeded(self) -> None:
        """Supabase answered."""
        self.last_answer_ns = time.time_ns()
        if self.offline_since_ns is not None:
            _log.info("Supabase answers again")
        self.offline_since_ns = None
        self.problem = None

    def failed(self, exc: RemoteError) -> None:
        """Supabase did not answer, or not as it should."""
        self._next_try = self._clock() + OFFLINE_RETRY_S
        self.problem = exc
        if self.offline_since_ns is None:
            self.offline_since_ns = time.time_ns()
            _log.warning("Supabase is away; serving what is known", reason=str(exc))
