"""What a power cut leaves of the cache directory holds everything that was acknowledged."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.campaigns.host import Host, plan_for, replay, verify
from tests.campaigns.looking import BucketClient, bucket_differences
from tests.campaigns.modes import BACK, REFUSE, THROUGH, Settings, name_of
from tests.campaigns.powercut import Call, Disk, calls, trace_command
from tests.campaigns.worlds import Worlds
from tests.conftest import new_bucket
from tests.support.mounts import wait_until
from tests.support.proxy import Proxy

pytestmark = [
    pytest.mark.mount,
    pytest.mark.embedded,
    pytest.mark.skipif(shutil.which("strace") is None, reason="NO strace HERE: power cuts are not tested"),
]

SECONDS = float(os.environ.get("EXAIFS_CRASH_S") or "0")
SEED = int(os.environ.get("EXAIFS_CRASH_SEED") or "1")
ACTIONS = 80 if SECONDS else 30
CUTS = 24 if SECONDS else 2


@pytest.mark.parametrize("settings", [BACK, THROUGH] if SECONDS else [BACK], ids=name_of)
def test_nothing_acknowledged_is_lost_by_a_power_cut(
    embedded_supabase: dict[str, str], tmp_path: Path, settings: Settings
) -> None:
    """Nothing acknowledged is lost: the power fails right after some close, and later pages never came.

    While Supabase is away everything is acknowledged by the journal alone. The daemon's writes, renames
    and fsyncs are recorded; for several moments the directory is built as a disk may have it that kept
    only what was made durable until then, and some of the rest. A new daemon must find every acknowledged
    change in it.
    """
    chance = random.Random(SEED)
    environment = {**new_bucket(embedded_supabase), **settings}
    manifest, trace = tmp_path / "manifest", tmp_path / "trace"
    with (
        Proxy(environment["SUPABASE_URL"]) as proxy,
        Host(tmp_path / "host", {**environment, "SUPABASE_URL": proxy.url}) as host,
    ):
        worlds = Worlds()
        host.start()
        host.work(plan_for({}, host.path, SEED, actions=10), tmp_path / "before")
        host.wait_sent()
        start = host.tree()
        host.daemon.stop()
        os.sync()
        disk = Disk(host.cache)
        proxy.refuse()
        host.start(wrapper=trace_command(trace))
        plan = plan_for(start, host.path, SEED + 1, first_number=1000, actions=ACTIONS)
        lines = host.work(plan, manifest, deadline_s=300)
        host.kill()
        wait_until(lambda: _is_whole(trace), 120, "the trace is whole")
        recorded = calls(trace)
        answers = [number for number, line in enumerate(lines) if "got" in line]
        chosen = sorted({*chance.sample(answers, CUTS - 1), answers[-1]})
        host.cache.rename(tmp_path / "cache-at-the-end")
        played = 0
        for cut in chosen:
            worlds = Worlds(dict(start))
            replay(lines[: cut + 1], worlds)
            played = _play_until(disk, recorded, played, lines[cut]["at_s"])
            for how in (None, random.Random(chance.random())):
                disk.rebuild(host.cache, how)
                _assert_recovered(host, worlds, f"after line {cut} of the manifest, {how}")
                if cut != chosen[-1] or how is None:
                    shutil.rmtree(host.cache)
        proxy.clear()
        host.start()
        host.wait_sent(120)
        with BucketClient.open(environment, environment["SUPABASE_URL"]) as client:
            assert bucket_differences(client, host.tree()) == []
        assert worlds.differences(host.tree()) == []
        host.daemon.stop()
        assert host.traces() == []


def test_a_cache_after_a_power_cut_shows_no_wrong_bytes(
    embedded_supabase: dict[str, str], tmp_path: Path
) -> None:
    """Right bytes or an error: pages that never reached the disk are no content, whatever the index says.

    Everything was sent, and the mount served it from its cache. What a power cut leaves of that cache, at
    any moment, may be useless, but with it the mount shows exactly what is in the bucket.
    """
    chance = random.Random(SEED)
    environment = {**new_bucket(embedded_supabase), **REFUSE}
    trace = tmp_path / "trace"
    with Host(tmp_path / "host", environment) as host:
        host.start()
        host.tree()
        host.daemon.stop()
        disk = Disk(host.cache)
        host.start(wrapper=trace_command(trace))
        lines = host.work(plan_for({}, host.path, SEED, actions=ACTIONS), tmp_path / "manifest")
        worlds = Worlds()
        replay(lines, worlds)
        host.wait_sent()
        host.tree()
        host.kill()
        wait_until(lambda: _is_whole(trace), 120, "the trace is whole")
        recorded = calls(trace)
        host.cache.rename(tmp_path / "cache-at-the-end")
        played = 0
        for cut in sorted({*chance.sample(range(len(recorded)), CUTS - 1), len(recorded) - 1}):
            played = _play_until(disk, recorded, played, recorded[cut].ended_s)
            disk.rebuild(host.cache, random.Random(chance.random()))
            host.start()
            host.wait_sent()
            with BucketClient.open(environment, environment["SUPABASE_URL"]) as client:
                verify(host, worlds, client)
            host.daemon.stop()
            shutil.rmtree(host.cache)
        assert host.traces() == []


def _is_whole(trace: Path) -> bool:
    """Tell whether strace has written down how the daemon ended."""
    with trace.open("rb") as file:
        file.seek(max(0, trace.stat().st_size - 4096))
        return b"+++ killed by SIGKILL +++" in file.read()


def _play_until(disk: Disk, recorded: list[Call], played: int, at_s: float) -> int:
    """Play the calls that had ended by some time; return how many of all are played now."""
    while played < len(recorded) and recorded[played].ended_s <= at_s:
        disk.play(recorded[played])
        played += 1
    return played


def _assert_recovered(host: Host, worlds: Worlds, when: str) -> None:
    """Serve what is left, without Supabase."""
    host.start()
    wrong = worlds.differences(host.tree())
    assert not wrong, f"{when}:\n" + "\n".join(wrong) + f"\n{host.tail()}"
    host.kill()
