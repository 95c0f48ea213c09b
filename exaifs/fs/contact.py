"""Whether Supabase answers: shared by everything that asks it."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
import trio

from exaifs.errors import (
    BucketMissing,
    Busy,
    RemoteError,
    SchemaMissing,
    Unauthorized,
    Unreachable,
    Unserved,
)

_log = structlog.get_logger(__name__)

_FEED_PATIENCE_S = 1.0
"""After a long absence there may be many changes to read: who waits for a directory has it listed then."""

_LAST_PATIENCE_S = 2.0
"""How long a change that is under way may still take once Supabase is found to be away."""

OFFLINE_RETRY_S = 5.0
"""While Supabase is away, ask again this often instead of making every look-up wait."""


def is_away(exc: BaseException) -> bool:
    """Tell whether an error means that Supabase cannot be used now, and may be used again later.

    A key that expired, a paused project and a schema that is gone are somebody's to mend; until then what
    is written waits, as it does while nobody answers.
    """
    if isinstance(exc, Unauthorized | BucketMissing | SchemaMissing):
        return True
    return isinstance(exc, RemoteError) and exc.temporary


def jittered(longest_s: float) -> float:
    """Return a wait of at most so long, half of it by chance: hosts are not to ask in step."""
    return longest_s * (0.5 + random.random() / 2)  # noqa: S311 - no cryptography


class Contact:
    """When Supabase last answered, and whether it does now."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self.offline_since_ns: int | None = None
        self.last_answer_ns: int | None = None
        self.problem: RemoteError | None = None
        """Why it does not; None while it does."""
        self._next_try = 0.0
        self._next_hope = 0.0
        self._followed_until = float("-inf")
        self._feed_known = trio.Event()
        self._feed_known.set()
        self._back: list[Callable[[], None]] = []
        self._impatient: set[trio.CancelScope] = set()

    @property
    def offline(self) -> bool:
        """Whether Supabase did not answer when it was asked last."""
        return self.offline_since_ns is not None

    def on_return(self, act: Callable[[], None]) -> None:
        """Have something called whenever Supabase answers again."""
        self._back.append(act)

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """Give up soon what is being asked when it turns out, meanwhile, that Supabase is away.

        A request to a server that hangs takes as long as its limits, which allow for large files.

        Raises:
            Unreachable: it was given up.
        """
        with trio.CancelScope() as scope:
            self._impatient.add(scope)
            try:
                yield
            finally:
                self._impatient.discard(scope)
        if scope.cancelled_caught:
            raise Unreachable(f"given up, as Supabase is away: {self.problem}")

    @property
    def worth_trying(self) -> bool:
        """False for a short while after a failure."""
        return self.offline_since_ns is None or self._clock() >= self._next_try

    @property
    def worth_hoping(self) -> bool:
        """Whether who has something to fall back on may ask for something newer.

        False for a short while after somebody did so in vain, too.
        """
        return self.worth_trying and self._clock() >= self._next_hope

    def hesitated(self) -> None:
        """Supabase took longer than anybody waits who has something to fall back on; it may answer yet."""
        self._next_hope = self._clock() + OFFLINE_RETRY_S

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
        self._next_hope = 0.0
        if self.offline_since_ns is None:
            return
        _log.info("Supabase answers again")
        self.offline_since_ns = None
        self.problem = None
        for scope in self._impatient:
            scope.deadline = math.inf
        for act in self._back:
            act()

    def refusal(self) -> RemoteError:
        """Return the error of a change that is not to wait until Supabase is back."""
        text = f"{self.problem}; EXAIFS_OFFLINE_WRITES=refuse keeps nothing for later"
        return Unauthorized(text) if isinstance(self.problem, Unauthorized) else Unreachable(text)

    def note(self, exc: BaseException) -> None:
        """Take notice of what a change ran into; trouble with one object is not absence."""
        if isinstance(exc, RemoteError) and is_away(exc) and not isinstance(exc, Busy | Unserved):
            self.failed(exc)

    def failed(self, exc: RemoteError) -> None:
        """Supabase did not answer, or not as it should."""
        self._next_try = self._clock() + OFFLINE_RETRY_S
        self.problem = exc
        if self.offline_since_ns is None:
            self.offline_since_ns = time.time_ns()
            _log.warning("Supabase is away; serving what is known", reason=str(exc))
            for scope in self._impatient:
                scope.deadline = self._clock() + _LAST_PATIENCE_S
