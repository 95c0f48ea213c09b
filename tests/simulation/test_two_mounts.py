"""Random programs of two mounts and an outside writer, one step after the other, against the bucket."""

from __future__ import annotations

import sys
from contextlib import redirect_stderr
from io import StringIO

import pytest

from tests.simulation.play import Play
from tests.simulation.programs import Program, draw, shrink
from tests.simulation.replay import SIMULATE_S, run, seeds, simulate


def play(seed: int) -> Play:
    """Play what a seed stands for; on failure say what it is, and what of it is enough to fail."""
    program = draw(seed)
    try:
        return _play(program)
    except BaseException:
        smaller = shrink(program, _fails)
        steps = "\n".join(map(repr, smaller.steps))
        sys.stderr.write(f"{smaller.world}\nfails with\n{steps}\n")
        raise


def _play(program: Program) -> Play:
    return simulate(
        program.world.seed, lambda directory: Play(program, directory), lambda play: run(play.run)
    )


def _fails(program: Program) -> bool:
    try:
        with redirect_stderr(StringIO()):
            _play(program)
    except Exception:  # noqa: BLE001 - any failure is one
        return True
    return False


@pytest.mark.timeout(SIMULATE_S + 900)
def test_two_mounts_agree_with_the_bucket() -> None:
    """After any program everything is as in the bucket, no bytes are lost, and each answer was right."""
    for seed in seeds(60):
        play(seed)
