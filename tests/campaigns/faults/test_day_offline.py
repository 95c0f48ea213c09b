"""A day without Supabase: work goes on, survives a crash, and arrives when Supabase is back."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.campaigns.actions import Piece
from tests.campaigns.host import Host
from tests.campaigns.looking import BucketClient, bucket_differences, mounted_tree
from tests.campaigns.modes import BACK, THROUGH, Settings, name_of
from tests.conftest import new_bucket
from tests.support.mounts import REPOSITORY, wait_until, within
from tests.support.proxy import Proxy

pytestmark = [
    pytest.mark.mount,
    pytest.mark.embedded,
]

SECONDS = float(os.environ.get("EXAIFS_FAULTS_S") or "0")
FILES = 3000 if SECONDS else 150
LARGE = 4 << 20
IN_TIME_S = 60.0
"""Far less than a read may wait for a server that answers nothing, far more than a busy machine needs."""

DAY = """
import os, random, sys
from tests.campaigns.actions import Piece
root, part, files, large = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
os.umask(0o022)
chance = random.Random(part)
number = part * 1_000_000
def write(path, size, mode="wb"):
    global number
    number += 1
    with open(f"{root}/{path}", mode) as file:
        file.write(Piece(number, size).data())
directories = [f"p{part}-{n}" for n in range(max(3, files // 100))]
for directory in directories:
    os.makedirs(f"{root}/{directory}/sub")
names = [f"{chance.choice(directories)}/{chance.choice(['', 'sub/'])}f{n}" for n in range(files)]
for name in names:
    write(name, chance.randrange(1, 3000))
for name in chance.sample(names, files // 5):
    write(name, chance.randrange(1, 3000))
for name in chance.sample(names, files // 10):
    write(name, 100, "ab")
for name in chance.sample(names, files // 10):
    os.rename(f"{root}/{name}", f"{root}/{name}-renamed")
    names[names.index(name)] = f"{name}-renamed"
for name in chance.sample(names, files // 10):
    os.unlink(f"{root}/{name}")
    names.remove(name)
a, b = chance.sample(names, 2)
os.replace(f"{root}/{a}", f"{root}/{b}")
os.rename(f"{root}/{directories[0]}", f"{root}/moved-{part}")
for n in range(3):
    write(f"{directories[1]}/large{n}", large)
os.makedirs(f"{root}/empty-{part}/deep")
os.makedirs(f"{root}/gone-{part}")
os.rmdir(f"{root}/gone-{part}")
if part == 2:
    for n in range(0, 20, 2):
        os.unlink(f"{root}/known/f{n}")
    for n in range(1, 20, 4):
        write(f"known/f{n}", 500)
"""


def spend(root: Path, part: int, *, deadline_s: float = 300) -> None:
    """Do one part of the day's work in a directory; every call must succeed."""
    subprocess.run(
        [sys.executable, "-c", DAY, str(root), str(part), str(FILES), str(LARGE)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "LC_ALL": "C.UTF-8"},
        check=True,
        timeout=deadline_s,
        cwd="/",
    )


def footprint(pid: int) -> tuple[int, int]:
    """Return a process's open descriptors and its resident memory in bytes."""
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resident = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return descriptors, resident * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("settings", [THROUGH, BACK] if SECONDS else [THROUGH], ids=name_of)
def test_a_day_offline(embedded_supabase: dict[str, str], tmp_path: Path, settings: Settings) -> None:
    """Nothing acknowledged is lost: thousands of changes without Supabase, a crash among them, all arrive.

    What was seen before is served, what was not fails in time, the status says since when and how much
    waits, and the daemon stays small.
    """
    environment = {**new_bucket(embedded_supabase), **settings, "MAX_MEMORY_CACHE_SIZE": str(16 << 20)}
    environment["EXAIFS_READ_TIMEOUT_S"] = str(10 * IN_TIME_S)
    server = environment["SUPABASE_URL"]
    shadow = tmp_path / "shadow"
    with (
        Proxy(server) as proxy,
        Host(tmp_path / "host", {**environment, "SUPABASE_URL": proxy.url}) as host,
    ):
        host.start()
        host.tree()
        for root in (host.path, shadow):
            within(120, lambda at=root: (at / "known").mkdir(parents=True))  # type: ignore[misc]
            for number in range(20):
                data = Piece(number, 1000).data()
                within(120, lambda at=root / f"known/f{number}", what=data: at.write_bytes(what))  # type: ignore[misc]
        host.wait_sent()
        unseen = Piece(77, 5000).data()
        _put_elsewhere(environment, "unseen", unseen)
        (shadow / "unseen").write_bytes(unseen)
        wait_until(lambda: within(120, (host.path / "unseen").exists), 120, "the name is known")
        before = footprint(host.daemon.pid)
        proxy.hang()
        away_since = time.time()
        for root in (host.path, shadow):
            spend(root, 1)
        proxy.refuse()
        _offline_but_useful(host, away_since)
        after = footprint(host.daemon.pid)
        assert after[0] < before[0] + 100, f"descriptors: {before[0]} before, {after[0]} after"
        assert after[1] < before[1] + (150 << 20), (
            f"memory: {before[1] >> 20} MiB before, {after[1] >> 20} after"
        )
        host.kill()
        host.start()
        for root in (host.path, shadow):
            spend(root, 2)
        found = host.tree(content=False)
        assert sorted(found) == sorted(mounted_tree(shadow, content=False))
        waiting = host.unsent()
        assert waiting > FILES, f"{waiting} wait"
        proxy.clear()
        host.wait_sent(600)
        expected = mounted_tree(shadow)
        found = host.tree()
        assert {path: found.get(path) for path in expected if found.get(path) != expected[path]} == {}
        assert sorted(found) == sorted(expected)
        with BucketClient.open(environment, server) as client:
            assert bucket_differences(client, expected) == []
        host.daemon.stop()
        assert host.traces() == []


def _put_elsewhere(environment: dict[str, str], key: str, data: bytes) -> None:
    """Have another client upload a file."""
    secret = environment["SUPABASE_SERVICE_ROLE_KEY"]
    httpx.post(
        f"{environment['SUPABASE_URL']}/storage/v1/object/{environment['FILE_STORAGE_BUCKET']}/{key}",
        content=data,
        headers={"apikey": secret, "Authorization": f"Bearer {secret}", "content-type": "text/plain"},
        trust_env=False,
        timeout=120,
    ).raise_for_status()


def _offline_but_useful(host: Host, away_since: float) -> None:
    status = host.status()
    assert status["state"] == "offline"
    since = status["server"]["offline_since_unix_s"]
    assert away_since - 5 < since < away_since + 60
    assert host.unsent() > FILES // 2
    for number in random.Random(1).sample(range(20), 10):
        got = within(120, (host.path / f"known/f{number}").read_bytes)
        assert got == Piece(number, 1000).data()
    assert len(within(120, lambda: list((host.path / "known").iterdir()))) == 20
    assert within(120, (host.path / "unseen").stat).st_size == 5000
    began = time.monotonic()
    with pytest.raises(OSError, match=r"Input/output error|timed out|unreachable"):
        within(120, (host.path / "unseen").read_bytes)
    assert time.monotonic() - began < IN_TIME_S
