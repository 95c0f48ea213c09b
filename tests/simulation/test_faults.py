"""Random schedules with lost, delayed and repeated answers, outages and crashes, under a mock clock.

A seed determines all of it; see `replay`.
"""

from __future__ import annotations

import resource

import pytest

from tests.simulation.replay import SIMULATE_S, run, seeds, simulate
from tests.simulation.storm import Storm, limit_file_size


def play(seed: int) -> Storm:
    """Play one seed; on failure say which, and what happened until then."""
    return simulate(seed, lambda directory: Storm(seed, directory), _play)


def _play(storm: Storm) -> None:
    try:
        run(storm.run)
    finally:
        limit_file_size(resource.RLIM_INFINITY)


@pytest.mark.timeout(SIMULATE_S + 900)
def test_nothing_acknowledged_is_lost_in_a_storm() -> None:
    """After the storm all mounts agree with the bucket, and hold exactly what was acknowledged."""
    for seed in seeds(20):
        play(seed)
