"""Random schedules with lost, delayed and repeated answers, outages and crashes, under a mock clock.

A seed determines every operation, fault, delay and crash, trio's scheduling (Hypothesis makes that
deterministic), when work in threads ends (the event loop waits for it), the time of day, names of staged
files and write ids. Not determined: the order of sets of strings unless PYTHONHASHSEED is set, as
`make simulate` does.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from tests.simulation.outside import simulated_outside
from tests.simulation.storm import Storm, limit_file_size
from tests.simulation.weather import ThreadsInTurn
from tests.support.descriptors import open_descriptors

SIMULATE_S = float(os.environ.get("EXAIFS_SIMULATE_S", "0"))
SEED = os.environ.get("EXAIFS_SIMULATE_SEED")


def play(seed: int) -> None:
    """Play one seed; on failure say which, and what happened until then."""
    before = open_descriptors()

    # Inside `given` Hypothesis seeds trio's scheduler, the same for every example.
    @settings(
        max_examples=1,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(chosen=st.just(seed))
    def storm(chosen: int) -> None:
        clock = trio.testing.MockClock(autojump_threshold=0)
        with tempfile.TemporaryDirectory() as directory, simulated_outside(chosen):
            played = Storm(chosen, Path(directory))
            try:
                trio.run(played.run, clock=clock, instruments=[ThreadsInTurn()])
            except BaseException:
                sys.stderr.write(f"EXAIFS_SIMULATE_SEED={chosen}\n" + "\n".join(played.log) + "\n")
                raise
            finally:
                limit_file_size(resource.RLIM_INFINITY)

    storm()
    assert open_descriptors() <= before, f"descriptors are left by seed {seed}"


@pytest.mark.timeout(SIMULATE_S + 900)
def test_nothing_acknowledged_is_lost_in_a_storm() -> None:
    """After the storm all mounts agree with the bucket, and hold exactly what was acknowledged."""
    if SEED:
        play(int(SEED))
        return
    if not SIMULATE_S:
        for seed in range(20):
            play(seed)
        return
    end = time.monotonic() + SIMULATE_S
    while time.monotonic() < end:
        seed = random.SystemRandom().randrange(1 << 32)
        sys.stderr.write(f"EXAIFS_SIMULATE_SEED={seed}\n")
        play(seed)
