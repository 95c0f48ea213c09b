"""Rounds of work that end with SIGKILL: what was acknowledged must be in the mount and in the bucket."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tests.campaigns import weathers
from tests.campaigns.host import Host, plan_for, replay, verify
from tests.campaigns.looking import BucketClient
from tests.campaigns.worlds import Worlds
from tests.support.mounts import MountError
from tests.support.proxy import Exchange, Moment, Proxy

ACTIONS = 40
_NUMBERS_A_ROUND = 1000
_WORK_DEADLINE_S = 120.0
_DELAYS_S = (0.0, 0.001, 0.005, 0.02, 0.1, 0.5)


class Campaign:
    """The rounds of one seed, on a bucket and a cache directory of their own.

    Args:
        seed: of everything that is chosen: actions, weather, moments of death.
        place: a directory of its own.
        environment: names server, bucket and key.
    """

    def __init__(self, seed: int, place: Path, environment: Mapping[str, str]) -> None:
        self.chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        """Of `rounds`, `kills`, `acknowledged` actions, and rounds that left `unsent` work."""
        self.log: list[str] = [f"seed {seed}"]
        self._place = place
        self._server = environment["SUPABASE_URL"]
        self._environment = dict(environment)
        self._proxy = Proxy(self._server, seed)
        self._worlds = Worlds()
        self._environment["EXAIFS_WRITE_MODE"] = self.chance.choice(("through", "back", "back"))
        self._environment["EXAIFS_OFFLINE_WRITES"] = self.chance.choice(("journal", "journal", "refuse"))
        self._say(
            **{name: self._environment[name] for name in ("EXAIFS_WRITE_MODE", "EXAIFS_OFFLINE_WRITES")}
        )

    def _say(self, **facts: object) -> None:
        self.log.append(", ".join(f"{name} {value}" for name, value in facts.items()))

    def play(self, rounds: int, until: float = float("inf")) -> None:
        """Play so many rounds, or until that time (`time.monotonic`).

        Raises:
            AssertionError: something acknowledged is lost, or something else is wrong; see `log`.
        """
        with self._proxy, Host(self._place, {**self._environment, "SUPABASE_URL": self._proxy.url}) as host:
            try:
                host.start()
                host.tree()  # known from here on, also while Supabase is away
                for number in range(rounds):
                    if time.monotonic() > until:
                        break
                    self._round(host, number)
                self._verify(host)
            except BaseException:
                self.log += [f"  {exchange}" for exchange in list(self._proxy.recent)[-60:]]
                if host.runs:
                    self.log += host.tail(80).splitlines()
                raise
            bugs = host.traces()
            assert not bugs, "\n".join(bugs)

    def _round(self, host: Host, number: int) -> None:
        self.counts["rounds"] += 1
        weather = weathers.change(self._proxy, self.chance)
        death = self.chance.choice(("action", "acknowledged", "request", "request"))
        manifest = self._place / f"manifest-{number}"
        kill_at = self.chance.randrange(ACTIONS)
        plan = plan_for(
            self._worlds.certain,
            host.path,
            self.chance.randrange(1 << 32),
            first_number=number * _NUMBERS_A_ROUND,
            actions=ACTIONS,
            seconds=self.chance.uniform(0.5, 5.0),
        )
        if death == "request":
            moment: Moment = self.chance.choice(("arrived", "done", "answered"))
            self._kill_at_request(host.daemon.pid, moment, self.chance.randrange(1, 30))
        else:
            delay_s = self.chance.choice(_DELAYS_S) if death == "action" else -1.0
            plan = replace(plan, kill_pid=host.daemon.pid, kill_at=kill_at, kill_delay_s=delay_s)
        self._say(round=number, weather=weather, death=death, at=kill_at)
        began = time.monotonic()
        lines = host.work(plan, manifest, deadline_s=_WORK_DEADLINE_S)
        self._proxy.watch = None
        host.kill()
        self.counts["kills"] += 1
        acknowledged, _failed = replay(lines, self._worlds)
        self.counts["acknowledged"] += acknowledged
        left = host.left_behind()
        for journal in host.cache.glob("*/journal/log"):  # to look at when something is wrong
            shutil.copy(journal, self._place / f"journal-{number}")
        self.counts["unsent"] += left > 0
        worked_s = round(time.monotonic() - began, 1)
        self._say(acknowledged=acknowledged, left=left, manifest=manifest.name, worked_s=worked_s)
        began = time.monotonic()
        self._restart(host)
        if self.chance.random() < 0.8:
            self._verify(host)
        self._say(well_after_s=round(time.monotonic() - began, 1))

    def _kill_at_request(self, pid: int, moment: Moment, count: int) -> None:
        """Crash the daemon at some moment of its n-th request that changes something."""
        left = count

        def watch(now: Moment, exchange: Exchange) -> None:
            nonlocal left
            if now == moment and exchange.changes:
                left -= 1
                if left == 0:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

        self._proxy.watch = watch

    def _restart(self, host: Host) -> None:
        """Start the daemon again; now and then it is killed while it takes over, a few times."""
        while self.chance.random() < 0.35:
            weather = weathers.change(self._proxy, self.chance)
            host.launch()
            self._kill_at_request(host.daemon.pid, "done", self.chance.randrange(1, 6))
            # Whatever comes first: that request, or a moment between its start and some work.
            with suppress(MountError):
                host.daemon.wait(self.chance.uniform(0.2, 2.5))
            host.kill()
            self._proxy.watch = None
            self.counts["kills"] += 1
            self._say(killed_while_starting_in=weather)
        if self.chance.random() < 0.3:
            self._say(starts_in=weathers.change(self._proxy, self.chance))
        else:
            self._proxy.clear()
        host.start()

    def _verify(self, host: Host) -> None:
        self._proxy.clear()
        host.wait_sent()
        with BucketClient.open(self._environment, self._server) as client:
            verify(host, self._worlds, client)
