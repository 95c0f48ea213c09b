"""`make faults`: random work through a network that loses, repeats, cuts, corrupts and refuses."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from itertools import cycle
from pathlib import Path

import pytest

from tests.campaigns.faults.campaign import Campaign
from tests.campaigns.modes import MODES, Settings
from tests.conftest import new_bucket

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

SECONDS = float(os.environ.get("EXAIFS_FAULTS_S") or "0")
SEED = os.environ.get("EXAIFS_FAULTS_SEED")
PHASES = 8
"""Of one seed."""
_SHORT_S = 15.0
_MOST_SEEDS = 20
"""On a machine that comes to nothing in that time."""


def play(seed: int, settings: Settings, supabase: dict[str, str], until: float) -> Counter[str]:
    """Play one seed; on failure say which, and what happened until then."""
    place = Path(tempfile.mkdtemp(prefix="exaifs-faults-"))
    campaign = Campaign(seed, settings, place, new_bucket(supabase))
    try:
        campaign.play(PHASES, until)
    except BaseException:
        sys.stderr.write(f"\nEXAIFS_FAULTS_SEED={seed}; all of it is in {place}\n")
        sys.stderr.write("\n".join(campaign.log) + "\n")
        raise
    shutil.rmtree(place)
    return campaign.counts


def proves_something(counts: Counter[str]) -> bool:
    """Whether there was enough work, and enough of it in bad weather."""
    met = sum(count for name, count in counts.items() if name.startswith("met "))
    return counts["acknowledged"] > counts["phases"] and met > counts["met none"]


@pytest.mark.timeout(SECONDS + 900)
def test_nothing_acknowledged_is_lost_by_a_bad_network(embedded_supabase: dict[str, str]) -> None:
    """Nothing acknowledged is lost: when the faults stop, mount and bucket hold all of it, and no more.

    What failed has happened or not, nothing else. Every read on the way gave a version that could be there.
    Only a mount that refuses what it cannot send lets a change fail.
    """
    if SEED:
        for settings in MODES:
            counts = play(int(SEED), settings, embedded_supabase, float("inf"))
            sys.stderr.write(f"{settings}: {dict(counts)}\n")
        return
    end = time.monotonic() + (SECONDS or _SHORT_S)
    counts = Counter[str]()
    for number, settings in enumerate(cycle(MODES)):
        now = time.monotonic()
        if now > end and (SECONDS or proves_something(counts) or number == _MOST_SEEDS):
            break
        seed = random.SystemRandom().randrange(1 << 32) if SECONDS else number
        if SECONDS:
            sys.stderr.write(f"EXAIFS_FAULTS_SEED={seed} {settings} ")
        counts += play(seed, settings, embedded_supabase, end if SECONDS else max(end, now + _SHORT_S))
        if SECONDS:
            sys.stderr.write(f"{dict(counts)}\n")
    assert proves_something(counts), dict(counts)
