"""So many transfers at a time, and nobody waits behind transfers that hang.

A lane's transfers tell it when something moves. Who waits for a place waits as long as that goes on; once
nothing in the lane has moved for the limit, waiting is over for all. So a caller is told within the limit
that the server hangs, however long the queue.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from exaifs.errors import Unreachable


class Lane:
    """Places for transfers of one direction.

    Args:
        places: how many at once.
        limit_s: how long nothing may move.
    """

    def __init__(self, places: int, limit_s: float) -> None:
        self._places = anyio.Semaphore(places)
        self._limit_s = limit_s
        self._moved_at = float("-inf")

    def moved(self) -> None:
        """Note that bytes came or went."""
        self._moved_at = anyio.current_time()

    @asynccontextmanager
    async def place(self, what: str) -> AsyncIterator[float]:
        """Hold a place; yields how much of the limit is left for the transfer, in seconds.

        Raises:
            Unreachable: nothing has moved for too long.
        """
        started = anyio.current_time()
        while True:
            since = max(started, self._moved_at)
            with anyio.CancelScope(deadline=since + self._limit_s) as scope:
                await self._places.acquire()
            if not scope.cancelled_caught:
                break
            if max(started, self._moved_at) == since:
                raise self._hangs(what)
        try:
            # Waiting costs nothing of the limit while others move.
            left_s = max(since, self._moved_at) + self._limit_s - anyio.current_time()
            if left_s <= 0:
                raise self._hangs(what)
            yield left_s
        finally:
            self._places.release()

    def _hangs(self, what: str) -> Unreachable:
        error = Unreachable(f"{what}: the server has moved nothing for {self._limit_s:.3g} s")
        error.waited_out = True
        return error
