"""How long something took, less what a busy machine added.

Time limits are kept by the event loop. A machine with other things to do wakes it late: that is time a test
must not hold against the code, and it is measured here, by sleeping beside the code.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

_STEP_S = 0.02
_TRIES = 5


class Stopwatch:
    """Time since the block began."""

    def __init__(self) -> None:
        self._started = anyio.current_time()
        self._due = self._started + _STEP_S
        self._late_s = 0.0

    @property
    def late_s(self) -> float:
        """By how much this event loop was woken late, in all."""
        return self._late_s + max(0.0, anyio.current_time() - self._due)

    @property
    def elapsed_s(self) -> float:
        """Time on the clock, less all by which this event loop was woken late."""
        return anyio.current_time() - self._started - self.late_s

    async def run(self) -> None:
        """Note how late the event loop is, until cancelled."""
        while True:
            await anyio.sleep_until(self._due)
            now = anyio.current_time()
            self._late_s += max(0.0, now - self._due)
            self._due = now + _STEP_S


@asynccontextmanager
async def stopwatch() -> AsyncIterator[Stopwatch]:
    """Run a stopwatch for as long as the block runs."""
    watch = Stopwatch()
    async with anyio.create_task_group() as group:
        group.start_soon(watch.run)
        yield watch
        group.cancel_scope.cancel()


async def undisturbed(scene: Callable[[], Awaitable[None]], most_s: float) -> None:
    """Play a scene whose time limits a machine that stands still would pass; again if it did.

    Args:
        scene: may be played several times.
        most_s: by how much the event loop may have been woken late in a scene that fails.
    """
    for left in reversed(range(_TRIES)):
        failure: Exception | None = None
        async with stopwatch() as watch:
            try:
                await scene()
            except Exception as exc:  # noqa: BLE001 - raised below, unless it says nothing
                failure = exc
        if failure is None:
            return
        if left == 0 or watch.late_s <= most_s:
            raise failure
