"""One after the other, by name: for work on the same thing that may be begun by several tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Hashable
from contextlib import asynccontextmanager

import anyio


class Turns:
    """One lock a name, for as long as somebody wants it."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, anyio.Lock] = {}
        self._users: Counter[Hashable] = Counter()

    @asynccontextmanager
    async def taken(self, name: Hashable) -> AsyncGenerator[None]:
        """Wait until nobody else has this name's turn; have it until the block ends."""
        lock = self._locks.setdefault(name, anyio.Lock())
        self._users[name] += 1
        try:
            async with lock:
                yield
        finally:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name], self._locks[name]
