"""Unsent work in situations that the campaigns found, each by itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaigns.host import Host
from tests.campaigns.looking import BucketClient, bucket_differences
from tests.campaigns.modes import REFUSE, THROUGH
from tests.support.mounts import wait_until, within
from tests.support.proxy import Proxy, Weather

pytestmark = [pytest.mark.mount, pytest.mark.embedded]


@pytest.fixture
def proxy(mount_environment: dict[str, str]) -> Iterator[Proxy]:
    """Stands between the mount and its Supabase."""
    with Proxy(mount_environment["SUPABASE_URL"]) as proxy:
        yield proxy


@pytest.fixture
def host(mount_environment: dict[str, str], proxy: Proxy, tmp_path: Path) -> Iterator[Host]:
    """A mount that journals while Supabase is away, not started yet.

    Patient: what a test takes away it refuses or cuts, and what it does not take away may be slow.
    """
    settings = {**mount_environment, **THROUGH, "SUPABASE_URL": proxy.url}
    with Host(tmp_path / "host", settings, quick=False) as host:
        yield host


def test_a_truncation_that_failed_is_sent_later(host: Host, proxy: Proxy) -> None:
    """As a failed close, truncate(2) by path leaves nothing that shows here and is never sent."""
    host.environment |= REFUSE
    host.start()
    host.daemon.sh("echo twelve bytes > f; ls")
    proxy.refuse()
    with pytest.raises(OSError, match="Input/output"):
        within(120, lambda: os.truncate(host.path / "f", 3))
    proxy.clear()
    host.wait_sent()
    host.daemon.stop()


def test_what_follows_a_truncation_that_failed_begins_at_the_new_end(host: Host, proxy: Proxy) -> None:
    """Right bytes: the kernel goes on from the size the file has, and leaves no zeros between."""
    host.environment |= REFUSE
    host.start()
    path, data = host.path / "f", bytes(range(1, 251)) * 1000
    within(120, lambda: path.write_bytes(data))
    assert within(120, path.stat).st_size == len(data)
    proxy.refuse()
    with pytest.raises(OSError, match="Input/output"):
        within(120, lambda: os.truncate(path, 100))

    def append() -> None:
        with path.open("ab", buffering=0) as file:
            file.write(b"more")

    with pytest.raises(OSError, match="Input/output"):
        within(120, append)
    assert within(120, path.read_bytes) == data[:100] + b"more"
    proxy.clear()
    host.wait_sent(60)
    assert within(120, path.read_bytes) == data[:100] + b"more"
    host.daemon.stop()


def test_a_rename_over_a_file_that_stopped_half_way_shows_as_done(
    host: Host, proxy: Proxy, mount_environment: dict[str, str]
) -> None:
    """It failed, but the kernel does not go on with the old names; it is finished later."""
    host.environment |= REFUSE
    host.start()
    host.daemon.sh("echo new > f; chmod 600 f; setfattr -n user.a -v 1 f; echo old > g; cat f g")
    proxy.weather = Weather({"lose": 1.0}, only="exaifs_carry_row")
    with pytest.raises(OSError, match="Input/output"):
        within(120, lambda: (host.path / "f").replace(host.path / "g"))
    wait_until(lambda: not within(120, (host.path / "f").exists), 120, "the old name goes")
    wait_until(lambda: within(120, (host.path / "g").read_bytes) == b"new\n", 120, "the new one shows it")
    proxy.clear()
    host.wait_sent(60)
    assert host.daemon.sh("ls; stat -c %a g; getfattr -n user.a --only-values g; cat g") == "g\n600\n1new\n"
    with BucketClient.open(mount_environment, mount_environment["SUPABASE_URL"]) as client:
        assert bucket_differences(client, host.tree()) == []
    host.daemon.stop()


def test_a_file_whose_upload_had_no_answer_can_be_removed_offline(
    host: Host, proxy: Proxy, mount_environment: dict[str, str]
) -> None:
    """What the bucket has of it is ours, and goes when Supabase is back: nothing removed comes back."""
    host.start()
    host.daemon.sh("echo old > f; ls")
    proxy.weather = Weather({"lose": 1.0}, only="PUT ")
    host.daemon.sh("echo newer > f")
    proxy.refuse()
    host.daemon.sh("rm f; ls")
    proxy.clear()
    host.wait_sent()
    with BucketClient.open(mount_environment, mount_environment["SUPABASE_URL"]) as client:
        assert client.keys() == set()
    assert host.tree() == {}
    host.daemon.stop()


def test_a_file_whose_upload_had_no_answer_can_be_renamed_offline(
    host: Host, proxy: Proxy, mount_environment: dict[str, str]
) -> None:
    """It is there once, under its new name, with its new bytes, and no conflict is made of it."""
    host.start()
    host.daemon.sh("echo old > f; ls")
    proxy.weather = Weather({"lose": 1.0}, only="PUT ")
    host.daemon.sh("echo newer > f")
    proxy.refuse()
    host.daemon.sh("mv f g; ls")
    proxy.clear()
    host.wait_sent()
    tree = host.tree()
    assert {path: node.data for path, node in tree.items()} == {"g": b"newer\n"}
    with BucketClient.open(mount_environment, mount_environment["SUPABASE_URL"]) as client:
        assert bucket_differences(client, tree) == []
    assert list(host.cache.glob("*/conflicts/*")) == []
    host.daemon.stop()


def test_unsent_files_cost_no_descriptors(host: Host, proxy: Proxy) -> None:
    """Thousands may be renamed, and get other attributes, while Supabase is away."""
    host.start()
    host.daemon.sh("ls")
    proxy.refuse()
    host.daemon.sh("for i in $(seq 60); do echo $i > $i; done")

    def descriptors() -> int:
        return len(list(Path(f"/proc/{host.daemon.pid}/fd").iterdir()))

    before = descriptors()
    host.daemon.sh("for i in $(seq 60); do mv $i $i.renamed; chmod 600 $i.renamed; done")
    assert descriptors() < before + 20
    proxy.clear()
    host.wait_sent()
    host.daemon.stop()


def test_a_replaced_file_shows_its_own_bytes_after_two_renames_over_it(
    host: Host, proxy: Proxy, mount_environment: dict[str, str]
) -> None:
    """Two renames over one name, carried out late: the last one counts, here and in the bucket."""
    host.start()
    host.daemon.sh("mkdir d e; echo one > d/a; echo two > b; echo three > e/t; ls -R")
    proxy.refuse()
    host.daemon.sh("mv d c; mv c/a e/t; mv b e/t; cat e/t")
    host.kill()
    host.start()
    assert host.daemon.sh("cat e/t") == "two\n"
    proxy.clear()
    host.wait_sent()
    tree = host.tree()
    assert {path: node.data for path, node in tree.items() if node.kind == "file"} == {"e/t": b"two\n"}
    with BucketClient.open(mount_environment, mount_environment["SUPABASE_URL"]) as client:
        assert bucket_differences(client, tree) == []
    host.daemon.stop()


@pytest.mark.parametrize("crash", [False, True])
def test_attributes_set_after_a_rename_of_the_directory_stay(
    host: Host, proxy: Proxy, *, crash: bool
) -> None:
    """What an unsent file is given while its directory's rename waits is there when all is carried out."""
    host.start()
    host.daemon.sh("mkdir d; echo x > d/f; ls -R")
    proxy.refuse()
    host.daemon.sh("echo more >> d/f; mv d e; setfattr -n user.a -v 1 e/f; chmod 755 e/f")
    if crash:
        host.kill()
        host.start()
    assert host.daemon.sh("stat -c %a e/f; getfattr -n user.a --only-values e/f") == "755\n1"
    proxy.clear()
    host.wait_sent()
    assert host.daemon.sh("stat -c %a e/f; getfattr -n user.a --only-values e/f; cat e/f") == (
        "755\n1x\nmore\n"
    )
    host.daemon.stop()


def test_a_working_directory_outlives_the_feed(host: Host, proxy: Proxy) -> None:
    """Git and rsync ask where they are; that Supabase is away is no reason not to know."""
    host.start()
    host.daemon.sh("mkdir d; ls")
    with subprocess.Popen(
        ["bash", "-c", 'cd "$0" && echo ready && read -r _ && /bin/pwd -P', str(host.path / "d")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            assert program.stdout is not None
            assert within(120, program.stdout.readline) == "ready\n"
            proxy.refuse()
            lost = "no change feed; directories are listed again as they age"
            wait_until(lambda: lost in host.daemon.events(), 120, "the feed is lost")
            # What the kernel is to forget, it is told in this order: then it has been told all of it.
            wait_until(lambda: host.status()["state"] == "offline", 120, "the mount is offline")
            output, _ = program.communicate("go on\n", timeout=120)
        finally:
            program.kill()
    assert output.strip() == str(host.path / "d")
    host.daemon.stop()
