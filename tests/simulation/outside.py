"""What a process takes from outside besides the network and the disk: the time of day, and random names.

Both follow from the seed in a simulation, so that it can be played again, and so that hours by the event
loop's clock are hours by the wall clock, too.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

import trio

_BEGIN_NS = 4_000_000_000 * 10**9
"""Long after any time that the kernel gives to a file, so that all files are old on every day of play."""

_STEP_NS = 1000
"""No two moments are the same."""


class _Day:
    """The time of day: goes with the event loop's clock, from one loop to the next."""

    def __init__(self) -> None:
        self._begin_ns = self._newest_ns = _BEGIN_NS
        self._loop_ns = 0

    def time_ns(self) -> int:
        try:
            loop_ns = int(trio.current_time() * 1e9)
        except RuntimeError:  # in a thread, or before the event loop runs
            loop_ns = self._loop_ns
        if loop_ns < self._loop_ns:  # another event loop, whose clock begins again
            self._begin_ns = self._newest_ns - loop_ns
        self._loop_ns = loop_ns
        self._newest_ns = max(self._begin_ns + loop_ns, self._newest_ns + _STEP_NS)
        return self._newest_ns

    def time(self) -> float:
        return self.time_ns() / 1e9


@contextmanager
def simulated_outside(seed: int) -> Iterator[None]:
    """Have the wall clock follow the event loop's, and names of files and uploads the seed, meanwhile."""
    chance = random.Random(seed)
    day = _Day()

    def token_hex(size_bytes: int = 32) -> str:
        return chance.randbytes(size_bytes).hex()

    before = time.time_ns, time.time, secrets.token_hex
    time.time_ns, time.time, secrets.token_hex = day.time_ns, day.time, token_hex  # type: ignore[assignment]
    try:
        yield
    finally:
        time.time_ns, time.time, secrets.token_hex = before
