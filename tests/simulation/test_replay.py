"""A seed gives one history: in every process, however it hashes strings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation import test_every_moment, test_faults, test_two_mounts

_PROGRAM = """
import logging, structlog
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
from tests.simulation.test_replay import HISTORIES
print("\\n".join(HISTORIES[{name!r}]({seed})))
"""


def _storm(seed: int) -> list[str]:
    storm = test_faults.play(seed)
    return [*storm.log, *storm.server.requests]


def _two_mounts(seed: int) -> list[str]:
    two = test_two_mounts.play(seed)
    return [*two.log, *two.server.requests]


def _every_moment(seed: int) -> list[str]:
    program = test_every_moment.play(seed)
    moments = [f"{moment.number} {moment.doing}" for moment in program.moments]
    return [*program.log, *program.server.requests, *moments]


HISTORIES = {"storm": _storm, "two mounts": _two_mounts, "every moment": _every_moment}
"""What happened, and which requests came when, to the nanosecond."""


@pytest.mark.parametrize("name", HISTORIES)
def test_a_seed_replays(name: str) -> None:
    """Every step, answer and request is the same, and at the same simulated time."""
    first, second = (_history(name, 4, hashes) for hashes in ("1", "2"))
    assert len(first) > 20
    assert first == second


def _history(name: str, seed: int, hashes: str) -> list[str]:
    """Play in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(name=name, seed=seed)],
        env={**os.environ, "PYTHONHASHSEED": hashes},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
