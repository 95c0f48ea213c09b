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

_BEGIN_NS = 1_800_000_000 * 10**9
_STEP_NS = 1000
"""No two moments are the same."""


@contextmanager
def simulated_outside(seed: int) -> Iterator[None]:
    """Have the wall clock follow the event loop's, and names of files and uploads the seed, meanwhile."""
    chance = random.Random(seed)
    newest_ns = _BEGIN_NS

    def time_ns() -> int:
        nonlocal newest_ns
        try:
            now_ns = _BEGIN_NS + int(trio.current_time() * 1e9)
        except RuntimeError:  # in a thread, or before the event loop runs
            now_ns = newest_ns
        newest_ns = max(now_ns, newest_ns + _STEP_NS)
        return newest_ns

    def token_hex(size_bytes: int = 32) -> str:
        return chance.randbytes(size_bytes).hex()

    before = time.time_ns, secrets.token_hex
    time.time_ns, secrets.token_hex = time_ns, token_hex  # type: ignore[assignment]
    try:
        yield
    finally:
        time.time_ns, secrets.token_hex = before
