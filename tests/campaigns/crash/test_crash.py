"""`make crash`: a daemon that is killed hundreds of times, at any moment and in any weather."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from itertools import count
from pathlib import Path

import pytest

from tests.campaigns.crash.campaign import Campaign
from tests.conftest import new_bucket

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

SECONDS = float(os.environ.get("EXAIFS_CRASH_S") or "0")
SEED = os.environ.get("EXAIFS_CRASH_SEED")
ROUNDS = int(os.environ.get("EXAIFS_CRASH_ROUNDS") or "10")
"""Of one seed."""
_SHORT_S = 20.0
_MOST_SEEDS = 20
"""On a machine that comes to nothing in that time."""


def play(seed: int, supabase: dict[str, str], until: float) -> Counter[str]:
    """Play one seed; on failure say which, and what happened until then."""
    place = Path(tempfile.mkdtemp(prefix="exaifs-crash-"))
    campaign = Campaign(seed, place, new_bucket(supabase))
    try:
        campaign.play(ROUNDS, until)
    except BaseException:
        sys.stderr.write(f"\nEXAIFS_CRASH_SEED={seed}; all of it is in {place}\n")
        sys.stderr.write("\n".join(campaign.log) + "\n")
        raise
    if SEED:
        sys.stderr.write("\n".join(campaign.log) + "\n")
    shutil.rmtree(place)
    return campaign.counts


def proves_something(counts: Counter[str]) -> bool:
    """Whether there was enough work, and some that a crash left to be recovered."""
    return counts["unsent"] > 0 and counts["acknowledged"] > counts["rounds"]


@pytest.mark.timeout(SECONDS + 900)
def test_nothing_acknowledged_is_lost_by_crashes(embedded_supabase: dict[str, str]) -> None:
    """Nothing acknowledged is lost: after SIGKILL at any moment the mount and the bucket have all of it.

    Nor is anything there that was removed, or there twice, and no byte is another. A campaign that never
    interrupts unsent work proves nothing, and fails.
    """
    if SEED:
        sys.stderr.write(f"{dict(play(int(SEED), embedded_supabase, float('inf')))}\n")
        return
    end = time.monotonic() + (SECONDS or _SHORT_S)
    counts: Counter[str] = Counter()
    seeds = (
        iter(range(1_000_000))
        if not SECONDS
        else iter(lambda: random.SystemRandom().randrange(1 << 32), -1)
    )
    for number in count():
        now = time.monotonic()
        if now > end and (SECONDS or proves_something(counts) or number == _MOST_SEEDS):
            break
        seed = next(seeds)
        if SECONDS:
            sys.stderr.write(f"EXAIFS_CRASH_SEED={seed} ")
        counts += play(seed, embedded_supabase, end if SECONDS else max(end, now + _SHORT_S))
        if SECONDS:
            sys.stderr.write(f"{dict(counts)}\n")
    assert proves_something(counts), f"no crash ever left anything to recover: {dict(counts)}"
