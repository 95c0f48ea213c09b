"""A bucket of 100,000 objects: start, first listings, what is known already, and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from benchmarks.hosts import client, host, process, rss_mb
from benchmarks.results import Report, timed, typical
from benchmarks.synthetic import BIG, DIRECTORIES, LEVELS, keys_of
from tests.conftest import read_env_file
from tests.support.mounts import MountedDaemon

_OBJECTS = 100_000


def run(report: Report, directory: Path) -> None:
    """Measure."""
    local = directory / "ext4"
    _copy(local)
    with process(["-m", "benchmarks.synthetic", str(_OBJECTS)]) as server:
        environment = {**read_env_file(server, 30), "FILE_STORAGE_BUCKET": "bench"}
        imports = typical(lambda: _python("import exaifs.cli, exaifs.daemon"))
        mount = host(environment, directory / "host")
        report.add("mount, nothing known: until it serves", timed(mount.start), "s", imports, "imports")
        try:
            with client(environment) as http:
                some = _first(report, mount, http, local)
            _known(report, mount, local, some)
            mount.stop()
            report.add(f"mount, {_OBJECTS:,} known", timed(mount.start), "s", imports, "imports")
            again = timed(lambda: mount.sh("ls big > /dev/null"))
            report.add("ls of 10,000 after a restart", again, "s", _ls(local / "big"), "ext4")
            mount.stop()
        finally:
            mount.kill9()
            subprocess.run(["umount", "-l", mount.path], check=False, capture_output=True)


def _first(report: Report, mount: MountedDaemon, http: httpx.Client, local: Path) -> float:
    before = rss_mb(mount.pid)
    report.add("memory of the daemon, nothing known", before, "MB")
    bystander = _Bystander(mount.path)
    with bystander:
        first = timed(lambda: mount.sh("ls big > /dev/null"))
    rpc = typical(lambda: _pages(http, "exaifs_list_directory", "big/"), 1)
    report.add("first ls of 10,000", first, "s", rpc, "its requests alone")
    report.add("longest wait of somebody else meanwhile", bystander.longest_s, "s")
    again = typical(lambda: mount.sh("ls -l big > /dev/null"))
    limit = typical(lambda: _shell("ls -l big > /dev/null", local))
    report.add("ls -l of 10,000 again", again, "s", limit, "ext4")
    deep = "deep/" + "/".join(str(level) for level in range(LEVELS))
    report.add(f"first stat {LEVELS} levels down", timed(lambda: mount.sh(f"stat {deep}/file.txt")), "s")
    some = rss_mb(mount.pid)
    report.add("memory, 10,000 entries known to the kernel", some, "MB")
    everything = timed(lambda: mount.sh("find . > /dev/null", timeout_s=300))
    rpc = timed(lambda: _pages(http, "exaifs_list_tree", ""))
    report.add(f"find over {_OBJECTS:,}, first", everything, "s", rpc, "one flat listing")
    directories = DIRECTORIES + LEVELS + len(("", "big", "deep", "dirs"))
    report.add("the same, for each directory", everything / directories * 1e3, "ms")
    return some


def _known(report: Report, mount: MountedDaemon, local: Path, some: float) -> None:
    again = timed(lambda: mount.sh("find . > /dev/null", timeout_s=300))
    limit = timed(lambda: _shell("find . > /dev/null", local))
    report.add(f"find over {_OBJECTS:,} again", again, "s", limit, "ext4")
    stats = timed(lambda: mount.sh("find . -newer big > /dev/null", timeout_s=300))
    limit = timed(lambda: _shell("find . -newer big > /dev/null", local))
    report.add("find with a stat of each", stats, "s", limit, "ext4")
    known = rss_mb(mount.pid)
    report.add(f"memory, {_OBJECTS:,} entries known to the kernel", known, "MB")
    report.add("memory for each of the later ones", (known - some) / (_OBJECTS - BIG) * 1e6, "bytes")
    Path("/proc/sys/vm/drop_caches").write_text("2", encoding="ascii")
    time.sleep(2)  # the kernel sends what it forgot at its leisure
    report.add("memory after drop_caches", rss_mb(mount.pid), "MB")


class _Bystander:
    """Asks the daemon for something small all the time, and notes the longest answer."""

    def __init__(self, path: Path) -> None:
        self.longest_s = 0.0
        self._path = path
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._thread.join(10)

    def _ask(self) -> None:
        while not self._done.is_set():
            # An attribute list is not cached by the kernel.
            self.longest_s = max(self.longest_s, timed(lambda: os.listxattr(self._path)))


def _pages(http: httpx.Client, function: str, prefix: str) -> None:
    after: str | None = ""
    while after is not None:
        parameters = {"p_bucket": "bench", "p_prefix": prefix, "p_after": after, "p_limit": 1000}
        answer = http.post(f"/rest/v1/rpc/{function}", json=parameters).raise_for_status().json()
        after = answer["next"]


def _copy(local: Path) -> None:
    """Make the same names on the local file system."""
    made: set[Path] = set()
    for key in keys_of(_OBJECTS):
        path = local / key
        if path.parent not in made:
            path.parent.mkdir(parents=True)
            made.add(path.parent)
        path.touch()


def _ls(path: Path) -> float:
    return typical(lambda: _shell("ls > /dev/null", path))


def _shell(script: str, path: Path) -> None:
    # Like `MountedDaemon.sh`, so that both pay for a shell.
    subprocess.run(["bash", "-c", f'cd -- "$0" && {{ {script}\n}}', path], check=True)


def _python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)
