"""What leaves the host, counted where HTTP does: names and attributes cost nothing once they are known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.mount.conftest import exaifs_mount
from tests.support.counting import CountingGate
from tests.support.mounts import MountedDaemon, status_of, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

FILES = 1000
FEED = ("exaifs_changes", "exaifs_hello", "exaifs_stat", "exaifs_take_deletions", "exaifs_trim_log")
"""What the feed asks, `stat` for keys that changed while a listing was on its way; and, far less often, the
janitor."""


@pytest.fixture
def gate(fresh_bucket: dict[str, str]) -> Iterator[CountingGate]:
    """The embedded server, counted."""
    with CountingGate(fresh_bucket["SUPABASE_URL"]) as gate:
        yield gate


@pytest.fixture
def environment(gate: CountingGate, mount_environment: dict[str, str]) -> dict[str, str]:
    """What a mount through the gate needs to know."""
    return {**mount_environment, "SUPABASE_URL": gate.url}


def _upload(environment: dict[str, str], count: int) -> None:
    """Put many small objects into the bucket, as another client."""
    key, bucket = environment["SUPABASE_SERVICE_ROLE_KEY"], environment["FILE_STORAGE_BUCKET"]
    headers = {"apikey": key, "Authorization": f"Bearer {key}", "content-type": "text/plain"}
    url = f"{environment['SUPABASE_URL']}/storage/v1/object/{bucket}/d/"
    with (
        httpx.Client(headers=headers, timeout=60, trust_env=False) as client,
        ThreadPoolExecutor(4) as pool,
    ):

        def put(number: int) -> None:
            client.post(f"{url}{number:04}.txt", content=b"x").raise_for_status()

        list(pool.map(put, range(count)))


def _wait_live(mount: MountedDaemon) -> None:
    """Wait until the feed vouches for what is known."""
    wait_until(lambda: status_of(mount)["feed"]["live"], 120, "the change feed is live")


def test_a_thousand_files(
    gate: CountingGate, environment: dict[str, str], fresh_bucket: dict[str, str], tmp_path: Path
) -> None:
    """One request lists 1,000 files; after that ls, find, stat and xattrs make none (promise 6)."""
    # What is known counts as long as the feed is heard, which a busy machine may keep from it for seconds.
    _upload(fresh_bucket, FILES)
    with exaifs_mount({**environment, "EXAIFS_FRESHNESS_S": "600"}, tmp_path) as mount:
        _wait_live(mount)
        assert mount.sh("ls") == "d\n"
        gate.reset()
        assert mount.sh("ls d | wc -l").strip() == str(FILES)
        assert gate.reset().besides(*FEED) == ["exaifs_list_directory"]
        assert mount.sh("ls -l d | wc -l; find . | wc -l").split() == [str(FILES + 1), str(FILES + 2)]
        mount.sh("stat d/*.txt > /dev/null; getfattr -d d/00*.txt > /dev/null; test ! -e d/none")
        mount.drop_kernel_caches()
        mount.sh("ls -l d; stat d/*.txt; find . -newer d/0000.txt > /dev/null")
        assert gate.reset().besides(*FEED) == []
        mount.restart()
        _wait_live(mount)
        gate.reset()
        assert mount.sh("ls -l d | wc -l").strip() == str(FILES + 1)
        assert gate.reset().besides(*FEED) == []


def test_an_idle_mount(gate: CountingGate, environment: dict[str, str], tmp_path: Path) -> None:
    """At most one small request a second while nothing happens, but for the janitor, which comes seldom."""
    with exaifs_mount(environment, tmp_path) as mount:
        mount.sh("ls")
        _wait_live(mount)
        begun = time.monotonic()
        gate.reset()
        wait_until(lambda: gate.traffic.requests.count("exaifs_changes") >= 5, 120, "the feed asks")
        traffic, seconds = gate.reset(), time.monotonic() - begun
    assert traffic.besides(*FEED) == []
    # The first may have been sent before, and have come to the gate since.
    assert traffic.requests.count("exaifs_changes") <= seconds + 2
    assert len(traffic.besides("exaifs_changes")) <= seconds / 4 + 2
    assert (traffic.sent_bytes + traffic.received_bytes) / len(traffic.requests) < 4096
