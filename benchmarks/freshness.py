"""How long until one mount shows what another did."""

from __future__ import annotations

import random
import time
from pathlib import Path
from statistics import median, quantiles

from benchmarks.hosts import host, new_bucket, supabase
from benchmarks.results import Report
from tests.support.mounts import within

_CHANGES = 100
_PACE_S = 1.0
_DEADLINE_S = 30.0


def run(report: Report, directory: Path) -> None:
    """Measure."""
    with supabase(directory / "server") as server:
        environment = new_bucket(server)
        with host(environment, directory / "one") as one, host(environment, directory / "two") as two:
            delays_s = within(600, lambda: _delays(one.path, two.path))
    report.add("a change is seen by another mount, median", median(delays_s), "s", _PACE_S, "feed's pace")
    report.add("the same, 99 of 100", quantiles(delays_s, n=100)[98], "s", _PACE_S, "feed's pace")


def _delays(one: Path, two: Path) -> list[float]:
    chance = random.Random(1)
    (one / "f").write_bytes(b"start")
    _wait(two / "f", b"start")
    delays_s = []
    for number in range(_CHANGES):
        time.sleep(chance.uniform(0, 2 * _PACE_S))  # at any moment of the feed's cycle
        text = b"%05d" % number
        (one / "f").write_bytes(text)
        delays_s.append(_wait(two / "f", text))
    return delays_s


def _wait(path: Path, text: bytes) -> float:
    begun = time.monotonic()
    while not path.exists() or path.read_bytes() != text:
        if time.monotonic() - begun > _DEADLINE_S:
            raise TimeoutError(f"{text!r} was not seen")
        time.sleep(0.002)
    return time.monotonic() - begun
