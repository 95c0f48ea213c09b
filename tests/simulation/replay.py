"""Plays simulations so that a seed gives one history: in every process, on every day.

The seed determines what is played, faults, delays and kills, trio's scheduling, when work in threads ends
(the event loop waits for it), the time of day, names of staged files and ids of uploads. Nothing may depend
on the order of sets; `test_replay` compares processes that hash differently.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import trio
import trio._core._run
import trio.testing
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from tests.simulation.outside import simulated_outside
from tests.simulation.weather import ThreadsInTurn
from tests.support.descriptors import open_descriptors
from tests.support.double import DoubleServer

SIMULATE_S = float(os.environ.get("EXAIFS_SIMULATE_S", "0"))
"""For how long `make simulate` plays each simulation; without it a few fixed seeds are played."""

SEED = os.environ.get("EXAIFS_SIMULATE_SEED")
"""Play what this seed gives, only."""


class Server(DoubleServer):
    """A double that lives by the simulated time, and remembers which requests came when."""

    def __init__(self) -> None:
        super().__init__(now_ns=lambda: time.time_ns())  # noqa: PLW0108 - looked up at each call
        self.requests: list[str] = []

    async def arrive(self, operation: str, *, key_is_good: bool) -> None:
        self.requests.append(f"{trio.current_time():.9f} {operation}")
        await super().arrive(operation, key_is_good=key_is_good)


class Played(Protocol):
    """What is played once."""

    log: list[str]
    """What happened, for people."""


P = TypeVar("P", bound=Played)


def simulate(seed: int, begin: Callable[[Path], P], play: Callable[[P], None]) -> P:
    """Play something once, as the seed says; return it.

    Args:
        seed: decides everything.
        begin: gets an empty directory, and returns what is to be played.
        play: plays it. When it fails, the seed and the log are written to stderr.
    """
    before = open_descriptors()
    done: list[P] = []
    failed: list[BaseException] = []

    # Inside `given` Hypothesis has trio's scheduler follow a source of chance that can be seeded.
    @settings(
        max_examples=1,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(chosen=st.just(seed))
    def simulation(chosen: int) -> None:
        # By itself it would seed all chance with the same for every seed.
        trio._core._run._r.seed(chosen)
        random.seed(chosen)
        with tempfile.TemporaryDirectory() as directory, simulated_outside(chosen):
            done.append(begin(Path(directory)))
            try:
                play(done[0])
            except BaseException as exc:  # noqa: BLE001 - raised below: Hypothesis would play it again
                failed.append(exc)

    simulation()
    if failed:
        sys.stderr.write("\n".join((f"EXAIFS_SIMULATE_SEED={seed}", *done[0].log, "")))
        raise failed[0]
    left = open_descriptors() - before
    assert not left, f"descriptors are left by seed {seed}: {left}"
    return done[0]


def run(act: Callable[[], Awaitable[None]], *instruments: trio.abc.Instrument) -> None:
    """Run a coroutine by the mock clock, where work in threads takes no time."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(act, clock=clock, instruments=[ThreadsInTurn(), *instruments])


def seeds(few: int) -> Iterator[int]:
    """Yield what to play: what the environment says, or so many fixed seeds."""
    if SEED:
        yield int(SEED)
    elif not SIMULATE_S:
        yield from range(few)
    else:
        end = time.monotonic() + SIMULATE_S
        while time.monotonic() < end:
            seed = random.SystemRandom().randrange(1 << 32)
            sys.stderr.write(f"EXAIFS_SIMULATE_SEED={seed}\n")
            yield seed
