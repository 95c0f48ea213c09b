"""The mount against a local directory, at random; `make conformance` runs it for long."""

from __future__ import annotations

import os
import time

import pytest

from tests.conformance.machine import Machine
from tests.support.twins import Twins

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

SECONDS = float(os.environ.get("EXAIFS_CONFORMANCE_S", "2.5"))
FIRST_SEED = int(os.environ.get("EXAIFS_CONFORMANCE_SEED", "1"))
STEPS = 400


@pytest.mark.timeout(SECONDS * 2 + 900)
@pytest.mark.parametrize("between", ["nothing", "caches dropped", "remounts"])
def test_random_calls(twins: Twins, between: str) -> None:
    """The same calls give the same answers, names, bytes, modes, link counts and order of mtimes."""
    end = time.monotonic() + SECONDS
    seed = FIRST_SEED * 1000
    while time.monotonic() < end:
        machine = Machine(twins, seed)
        while machine.steps < STEPS and time.monotonic() < end:
            machine.run(100, lambda: time.monotonic() < end)
            if between == "caches dropped" and os.geteuid() == 0:
                twins.mount.drop_kernel_caches()
            elif between == "remounts":
                twins.mount.restart()
            machine.compare()
        seed += 1
