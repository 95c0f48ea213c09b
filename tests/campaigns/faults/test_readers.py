"""Readers with a cold cache behind a network that breaks."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.campaigns import weathers
from tests.campaigns.actions import Piece
from tests.campaigns.host import Host
from tests.conftest import new_bucket
from tests.support.mounts import wait_until, within
from tests.support.proxy import Fault, Proxy, Weather

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

SECONDS = float(os.environ.get("EXAIFS_FAULTS_S") or "0")
READ_S = SECONDS / 3 if SECONDS else 3.0

BAD: dict[Fault, float] = {
    "truncate": 0.15,
    "corrupt part": 0.15,
    "reset": 0.05,
    "lose": 0.05,
    "500": 0.1,
    "html": 0.1,
    "429": 0.05,
    "twice": 0.05,
}
SIZES = (0, 1, 1000, 65_536, 300_000, 3_000_000, 20_000_000)


def read(path: Path) -> bytes | int | None:
    """Return all bytes of a file, or the errno."""
    try:
        return within(120, path.read_bytes)
    except OSError as exc:
        return exc.errno


@pytest.mark.timeout(SECONDS + 900)
def test_readers_get_the_right_bytes_or_an_error(embedded_supabase: dict[str, str], tmp_path: Path) -> None:
    """Right bytes or an error: whatever happens to a download, a reader has what was written, or EIO."""
    # Every request gets an answer: only the machine could make one late.
    environment = {**new_bucket(embedded_supabase), "EXAIFS_REQUEST_TIMEOUT_S": "20"}
    files = {f"f{size}": Piece(number, size).data() for number, size in enumerate(SIZES, start=1)}
    with Host(tmp_path / "writer", environment) as writer:
        writer.start()
        for name, data in files.items():
            within(120, lambda at=writer.path / name, what=data: at.write_bytes(what))  # type: ignore[misc]
        writer.wait_sent()
        writer.daemon.stop()
    counts: Counter[str] = Counter()
    with Proxy(environment["SUPABASE_URL"], seed=3) as proxy:
        end = time.monotonic() + READ_S
        number = 0
        # Each run begins with a cold cache: what was read once is never fetched again.
        # Which requests meet what is chance: it goes on until both ways to spoil bytes have been met.
        while (
            number < 2
            or time.monotonic() < end
            or not (proxy.met["truncate"] and proxy.met["corrupt part"])
        ):
            number += 1
            place = tmp_path / f"reader-{number}"
            with Host(place, {**environment, "SUPABASE_URL": proxy.url}) as reader:
                reader.start()
                within(120, lambda at=reader.path: list(at.iterdir()))  # type: ignore[misc]
                proxy.weather = Weather(BAD)
                for name, data in files.items():
                    for _again in range(3):
                        got = read(reader.path / name)
                        if isinstance(got, bytes):
                            assert got == data, (
                                f"{name}: wrong bytes, first at {_first_difference(got, data)}"
                            )
                        counts["right" if isinstance(got, bytes) else "error"] += 1
                proxy.clear()
                for name, data in files.items():
                    assert read(reader.path / name) == data
                reader.daemon.stop()
                assert reader.traces() == []
    # Most requests meet a fault, so a read may well fail; most of the second and third ones do not.
    assert 3 * counts["right"] > sum(counts.values())


@pytest.mark.timeout(SECONDS + 900)
def test_readers_get_one_version(embedded_supabase: dict[str, str], tmp_path: Path) -> None:
    """Right bytes or an error: while another client replaces a file, each read is one version, whole."""
    environment = new_bucket(embedded_supabase)
    size = 700_000
    versions: list[bytes] = []
    key = environment["SUPABASE_SERVICE_ROLE_KEY"]
    url = f"{environment['SUPABASE_URL']}/storage/v1/object/{environment['FILE_STORAGE_BUCKET']}/file"
    headers = {"apikey": key, "Authorization": f"Bearer {key}", "x-upsert": "true"}

    def replace() -> None:
        versions.append(Piece(len(versions) + 1, size).data())
        kind = {"content-type": "application/octet-stream"}
        httpx.put(
            url, content=versions[-1], headers=headers | kind, timeout=60, trust_env=False
        ).raise_for_status()

    replace()
    with (
        Proxy(environment["SUPABASE_URL"], seed=5) as proxy,
        Host(tmp_path, {**environment, "SUPABASE_URL": proxy.url}) as host,
    ):
        host.start()
        proxy.weather = weathers.LIGHT
        end = time.monotonic() + READ_S
        while time.monotonic() < end:
            replace()
            for _again in range(3):
                got = read(host.path / "file")
                assert not isinstance(got, bytes) or got in versions, "a blend of two versions"
        proxy.clear()
        wait_until(lambda: read(host.path / "file") == versions[-1], 120, "the newest version is there")
        host.daemon.stop()
        assert host.traces() == []


def _first_difference(got: bytes, expected: bytes) -> int:
    same = (position for position, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b)
    return next(same, min(len(got), len(expected)))
