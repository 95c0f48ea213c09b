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
from tests.support.mounts import MountedDaemon

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

FILES = 1000
FEED = ("exaifs_changes", "exaifs_hello", "exaifs_stat", "exaifs_take_deletions")
"""What the feed asks, `stat` for keys that changed while a listing was on its way; and, far less often, the
janitor."""


@pytest.fixture
def gate(fresh_bucket: dict[str, str]) -> Iterator[CountingGate]:
    """The embedded server, counted."""
    with CountingGate(fresh_bucket["SUPABASE_URL"]) as gate:
        yield gate


@pytest.fixture
def mount(gate: CountingGate, mount_environment: dict[str, str], tmp_path: Path) -> Iterator[MountedDaemon]:
    """`exaifs mount` through the gate."""
    with exaifs_mount({**mount_environment, "SUPABASE_URL": gate.url}, tmp_path) as daemon:
        yield daemon


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


def test_a_thousand_files(mount: MountedDaemon, gate: CountingGate, fresh_bucket: dict[str, str]) -> None:
    """One request lists 1,000 files; after that ls, find, stat and xattrs make none (promise 6)."""
    _upload(fresh_bucket, FILES)
    gate.reset()
    assert mount.sh("ls d | wc -l").strip() == str(FILES)
    traffic = gate.reset()
    # The root, and the directory.
    assert traffic.besides(*FEED) == ["exaifs_list_directory"] * 2
    assert mount.sh("ls -l d | wc -l; find . | wc -l").split() == [str(FILES + 1), str(FILES + 2)]
    mount.sh("stat d/*.txt > /dev/null; getfattr -d d/00*.txt > /dev/null; test ! -e d/none")
    mount.drop_kernel_caches()
    mount.sh("ls -l d; stat d/*.txt; find . -newer d/0000.txt > /dev/null")
    assert gate.reset().besides(*FEED) == []
    mount.restart()
    gate.reset()
    assert mount.sh("ls -l d | wc -l").strip() == str(FILES + 1)
    assert gate.reset().besides(*FEED) == []


def test_an_idle_mount(mount: MountedDaemon, gate: CountingGate) -> None:
    """At most one small request a second while nothing happens."""
    mount.sh("ls")
    gate.reset()
    begun = time.monotonic()
    time.sleep(4)
    traffic, seconds = gate.reset(), time.monotonic() - begun
    assert traffic.besides(*FEED) == []
    assert 1 <= len(traffic.requests) <= seconds + 1
    assert (traffic.sent_bytes + traffic.received_bytes) / len(traffic.requests) < 4096
