"""Random programs of two mounts and an outside writer, one step after the other, against the bucket."""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st

from tests.simulation.play import Play, Step
from tests.support.descriptors import open_descriptors
from tests.support.double import DoubleServer

PATHS = ("a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "f", "f/a")
TREES = ("", "d", "d/e", "f")

paths = st.sampled_from(PATHS)
numbers = st.integers(0, 15)
mounts = st.sampled_from(("one", "two"))

FILE_VERBS = (
    "create",
    "create",
    "create",
    "overwrite",
    "read",
    "open_read",
    "open_write",
    "open_create",
    "truncate",
)
HANDLE_VERBS = ("poke", "poke", "cut", "read_open", "flush", "close_one")
NAME_VERBS = ("stat", "mkdir", "mkdir", "unlink", "rmdir", "chmod", "set_xattr", "drop_xattr")
MOUNT_VERBS = ("poll", "settle", "settle", "drop_caches", "drop_contents", "restart")

REST = Step("nobody", "rest")
"""What a step shrinks to that does not matter."""

steps = st.one_of(
    st.just(REST),
    st.builds(Step, mounts, st.sampled_from(FILE_VERBS), paths, number=numbers),
    st.builds(Step, mounts, st.sampled_from(HANDLE_VERBS), number=numbers),
    st.builds(Step, mounts, st.sampled_from(NAME_VERBS), paths, number=numbers),
    st.builds(Step, mounts, st.sampled_from(("rename", "rename", "symlink")), paths, paths),
    st.builds(Step, mounts, st.just("ls"), st.sampled_from(TREES)),
    st.builds(Step, mounts, st.sampled_from(MOUNT_VERBS)),
    st.builds(Step, st.just("outside"), st.sampled_from(("put", "put", "remove")), paths, number=numbers),
    st.builds(Step, st.just("outside"), st.sampled_from(("move", "put_same")), paths, paths),
    st.builds(Step, st.just("outside"), st.just("remove_marker"), st.sampled_from(TREES[1:])),
    st.just(Step("outside", "trim")),
)

SIMULATE_S = float(os.environ.get("EXAIFS_SIMULATE_S", "0"))
"""For how long `make simulate` runs each simulation; without it a few fixed programs are played."""

SEED = os.environ.get("EXAIFS_SIMULATE_SEED")
"""Play what this seed gives, only."""


def play(program: list[Step]) -> None:
    """Play one program; every descriptor is closed afterwards."""
    before = open_descriptors()
    with tempfile.TemporaryDirectory() as directory:
        trio.run(Play(DoubleServer(), Path(directory)).run, program)
    assert open_descriptors() <= before


def play_many(chosen: int, examples: int) -> None:
    """Play programs drawn from a seed; a failing one is shrunk and shown."""

    @seed(chosen)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(program=st.lists(steps, min_size=40, max_size=80))
    def two_mounts(program: list[Step]) -> None:
        play([step for step in program if step != REST])

    two_mounts()


@pytest.mark.timeout(SIMULATE_S + 900)
def test_two_mounts_agree_with_the_bucket() -> None:
    """After any program everything is as in the bucket, and each answer was right when it was given."""
    if SEED or not SIMULATE_S:
        play_many(int(SEED or "0"), 100 if SEED else 60)
        return
    end = time.monotonic() + SIMULATE_S
    while time.monotonic() < end:
        chosen = random.SystemRandom().randrange(1 << 32)
        sys.stderr.write(f"EXAIFS_SIMULATE_SEED={chosen}\n")
        play_many(chosen, 100)
