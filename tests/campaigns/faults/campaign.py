"""Work and reads through a network that breaks; when it is whole again, everything must agree."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.campaigns import weathers
from tests.campaigns.host import Host, plan_for, replay, verify
from tests.campaigns.looking import BucketClient
from tests.campaigns.modes import REFUSE, Settings, name_of
from tests.campaigns.worlds import Worlds
from tests.support.proxy import Proxy

_NUMBERS_A_PHASE = 1000
_MOST_UNKNOWN = 3
"""With so many outcomes unknown no further phase begins before it is known which happened: each may double
what is possible, and a phase has up to eight."""


class Campaign:
    """The phases of one seed, on a bucket and a cache directory of their own.

    Args:
        seed: of everything that is chosen: actions, weather, faults.
        settings: one of `modes`.
        place: a directory of its own.
        environment: names server, bucket and key.
    """

    def __init__(self, seed: int, settings: Settings, place: Path, environment: Mapping[str, str]) -> None:
        self.chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        """Of `phases`, `acknowledged` and `failed` actions, and each fault that a request met."""
        self.log: list[str] = [f"seed {seed}, {name_of(settings)}"]
        self._settings = settings
        self._place = place
        self._server = environment["SUPABASE_URL"]
        self._environment = {**environment, **settings}
        self._proxy = Proxy(self._server, seed)
        self._worlds = Worlds()
        self._unknown = 0
        """Actions since the last look of which nobody knows whether they happened."""

    def play(self, phases: int, until: float = float("inf")) -> None:
        """Play so many phases, or until that time (`time.monotonic`).

        Raises:
            AssertionError: something is wrong; see `log`.
        """
        with self._proxy, Host(self._place, {**self._environment, "SUPABASE_URL": self._proxy.url}) as host:
            try:
                host.start()
                host.tree()  # known from here on, also while Supabase is away
                for number in range(phases):
                    if time.monotonic() > until:
                        break
                    self._phase(host, number)
                self._verify(host)
            except BaseException:
                self.log += [f"  {exchange}" for exchange in list(self._proxy.recent)[-25:]]
                if host.runs:
                    self.log += host.tail(80).splitlines()
                raise
            finally:
                self.counts.update({f"met {fault}": count for fault, count in self._proxy.met.items()})
            bugs = host.traces()
            assert not bugs, "\n".join(bugs)

    def _phase(self, host: Host, number: int) -> None:
        self.counts["phases"] += 1
        weather = weathers.change(self._proxy, self.chance)
        plan = plan_for(
            self._worlds.certain,
            host.path,
            self.chance.randrange(1 << 32),
            first_number=number * _NUMBERS_A_PHASE,
            seconds=self.chance.uniform(0.5, 5.0),
            reads=0.25,
        )
        manifest = self._place / f"manifest-{number}"
        lines = host.work(plan, manifest, deadline_s=120)
        acknowledged, failed = replay(lines, self._worlds)
        self.counts["acknowledged"] += acknowledged
        self.counts["failed"] += failed
        self._unknown += failed
        self.log.append(f"phase {number}: {weather}, {acknowledged} acknowledged, {failed} failed")
        if self._settings != REFUSE:
            errors = [
                line for line in lines if line.get("got") is not None and line["n"] in _changes(lines)
            ]
            assert failed == 0, f"a change failed although it could be journaled: {errors}"
        if self.chance.random() < 0.6 or self._unknown >= _MOST_UNKNOWN:
            self._verify(host)

    def _verify(self, host: Host) -> None:
        self._proxy.clear()
        host.wait_sent(90)
        with BucketClient.open(self._environment, self._server) as client:
            verify(host, self._worlds, client)
        self._unknown = 0


def _changes(lines: list[dict[str, object]]) -> set[object]:
    wants = [line for line in lines if isinstance(line.get("want"), dict)]
    return {line["n"] for line in wants if line["want"]["kind"] != "read"}  # type: ignore[index]
