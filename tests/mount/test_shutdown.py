"""Stops with work in the queue: it is sent, or kept and counted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.campaigns.host import Host
from tests.campaigns.looking import BucketClient, bucket_differences
from tests.mount.conftest import exaifs
from tests.support.mounts import wait_until, within
from tests.support.proxy import Proxy, Weather

pytestmark = [
    pytest.mark.mount,
    pytest.mark.embedded,
]

FILES = 200
SEND_S = 600
"""For all of them on a busy machine."""
LEFT = "files not sent; they are kept in the cache directory for the next mount"
"""What the daemon says of its queue at its end."""


@pytest.fixture
def proxy(mount_environment: dict[str, str]) -> Iterator[Proxy]:
    """Stands between the mount and its Supabase."""
    with Proxy(mount_environment["SUPABASE_URL"]) as proxy:
        yield proxy


@pytest.fixture
def host(mount_environment: dict[str, str], proxy: Proxy, tmp_path: Path) -> Iterator[Host]:
    """A mount that writes to its journal, not started yet; it waits as long as a busy machine needs."""
    limits = {"EXAIFS_REQUEST_TIMEOUT_S": "10", "EXAIFS_READ_TIMEOUT_S": "10"}
    settings = {"EXAIFS_WRITE_MODE": "back", "SUPABASE_URL": proxy.url, **limits}
    with Host(tmp_path / "host", {**mount_environment, **settings}, quick=False) as host:
        yield host


def fill(host: Host, proxy: Proxy) -> None:
    """Put files into the queue faster than they can be sent."""
    host.daemon.sh("mkdir d; ls")
    proxy.hang()
    host.daemon.sh(f"for i in $(seq {FILES}); do echo $i > d/$i; done", timeout_s=240)
    assert host.unsent() >= FILES


def assert_all_there(host: Host, environment: dict[str, str]) -> None:
    """Assert that the bucket has every file, by asking it, and that a new mount shows them."""
    host.start()
    host.wait_sent(SEND_S)
    tree = host.tree()
    files = {path: node.data for path, node in tree.items() if node.kind == "file"}
    assert files == {f"d/{number}": f"{number}\n".encode() for number in range(1, FILES + 1)}
    with BucketClient.open(environment, environment["SUPABASE_URL"]) as client:
        assert bucket_differences(client, tree) == []
    host.daemon.stop()
    assert host.traces() == []


def said_at_the_end(host: Host) -> list[dict[str, Any]]:
    """Return the records that tell what is left."""
    return [record for record in host.daemon.records() if record.get("event") == LEFT]


def test_a_full_queue_is_drained(host: Host, proxy: Proxy, mount_environment: dict[str, str]) -> None:
    """With Supabase there and time enough, a stop sends everything, and says nothing of leftovers."""
    host.environment["EXAIFS_DRAIN_TIMEOUT_S"] = str(SEND_S)
    host.start()
    fill(host, proxy)
    proxy.clear()
    host.daemon.signal(signal.SIGTERM)
    assert host.daemon.wait(SEND_S + 60) == 0
    assert said_at_the_end(host) == []
    assert host.daemon.mount is None
    with BucketClient.open(mount_environment, mount_environment["SUPABASE_URL"]) as client:
        assert len([key for key in sorted(client.keys()) if not key.endswith("Placeholder")]) == FILES
    assert_all_there(host, mount_environment)


def test_what_does_not_fit_into_the_deadline_is_kept_and_counted(
    host: Host, proxy: Proxy, mount_environment: dict[str, str]
) -> None:
    """A slow server: exit code 0 in time, the log says how many files wait; the next mount sends them."""
    host.environment["EXAIFS_DRAIN_TIMEOUT_S"] = "2"
    host.start()
    fill(host, proxy)
    proxy.clear()
    proxy.weather = Weather(delay_s=1.0)
    began = time.monotonic()
    host.daemon.signal(signal.SIGTERM)
    assert host.daemon.wait() == 0
    assert time.monotonic() - began < 60
    (said,) = said_at_the_end(host)
    with BucketClient.open(mount_environment, mount_environment["SUPABASE_URL"]) as client:
        there = sum(not key.endswith("Placeholder") for key in sorted(client.keys()))
    assert said["files"] >= FILES - there > 0
    proxy.clear()
    assert_all_there(host, mount_environment)


def test_a_second_signal_is_quicker_with_a_full_queue(
    host: Host, proxy: Proxy, mount_environment: dict[str, str]
) -> None:
    """While the drain waits for a server that hangs, another SIGTERM ends it at once; nothing is lost."""
    host.environment["EXAIFS_DRAIN_TIMEOUT_S"] = "120"
    host.start()
    fill(host, proxy)
    host.daemon.signal(signal.SIGTERM)
    wait_until(lambda: any("stopping" in event for event in host.daemon.events()), 120, "the drain begins")
    began = time.monotonic()
    host.daemon.signal(signal.SIGTERM)
    assert host.daemon.wait() == 0
    assert time.monotonic() - began < 60
    assert said_at_the_end(host)[0]["files"] >= FILES
    proxy.clear()
    assert_all_there(host, mount_environment)


def test_a_container_that_is_stopped(host: Host, proxy: Proxy, mount_environment: dict[str, str]) -> None:
    """SIGTERM, and SIGKILL after 10 s whatever the drain wanted: the next start has all of it."""
    host.environment["EXAIFS_DRAIN_TIMEOUT_S"] = "25"
    host.start()
    fill(host, proxy)
    host.daemon.signal(signal.SIGTERM)
    deadline = time.monotonic() + 10
    wait_until(lambda: time.monotonic() > deadline, 120, "ten seconds of grace are over")
    host.kill()
    proxy.clear()
    assert_all_there(host, mount_environment)


def test_umount_says_what_is_not_sent(host: Host, proxy: Proxy, mount_environment: dict[str, str]) -> None:
    """It unmounts all the same: the next mount sends what Supabase did not take in time.

    The daemon need not answer for that: on a busy host it may take long to.
    """
    host.environment["EXAIFS_DRAIN_TIMEOUT_S"] = "2"
    host.start()
    host.tree()
    proxy.hang()
    within(120, lambda: (host.path / "unsent").write_bytes(b"kept"))
    host.daemon.signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(exaifs, host.environment, "umount", str(host.path), timeout_s=240)
        try:
            wait_until(lambda: host.daemon.mount is None, 120, "it is unmounted")
        finally:
            host.daemon.signal(signal.SIGCONT)
        code, output = told.result()
    assert (code, "not in Supabase yet: 1 change, kept in" in output) == (0, True), output
    assert host.daemon.wait(120) == 0
    proxy.clear()
    host.start()
    host.wait_sent()
    with BucketClient.open(mount_environment, mount_environment["SUPABASE_URL"]) as client:
        assert client.get("unsent") == b"kept"
    host.daemon.stop()


def test_unmounting_with_open_files(host: Host, proxy: Proxy, mount_environment: dict[str, str]) -> None:
    """A plain unmount is refused while files are open; a lazy one keeps them usable, and their bytes."""
    host.start()
    host.tree()
    proxy.hang()
    descriptor = within(120, lambda: os.open(host.path / "open", os.O_CREAT | os.O_WRONLY))
    try:
        within(120, lambda: os.write(descriptor, b"before, "))
        code, output = exaifs(host.environment, "umount", str(host.path))
        assert (code, f"({os.getpid()})" in output) == (4, True), output
        code, output = exaifs(host.environment, "umount", "--lazy", "--timeout", "1", str(host.path))
        assert (code, "or programs have some open" in output) == (4, True), output
        within(120, lambda: os.write(descriptor, b"after"))
    finally:
        with suppress(OSError):
            within(120, lambda: os.close(descriptor))
    proxy.clear()
    assert host.daemon.wait(120) == 0
    host.start()
    host.wait_sent()
    assert within(120, (host.path / "open").read_bytes) == b"before, after"
    with BucketClient.open(mount_environment, mount_environment["SUPABASE_URL"]) as client:
        assert client.get("open") == b"before, after"
    host.daemon.stop()
