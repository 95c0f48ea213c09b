"""Programs that read here and there, and programs that watch: players, document viewers, watch loops."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mounts import MountedDaemon, wait_until, within

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

_WATCH = """
import pathlib, sys
seen = {}
while True:
    for path in pathlib.Path(sys.argv[1]).glob("*.txt"):
        status = path.stat()
        state = (status.st_mtime_ns, status.st_size, status.st_ino)
        if seen.get(path.name) != state:
            seen[path.name] = state
            print(path.name, path.read_text(), flush=True)
    if "end.txt" in seen:
        break
"""


def test_reads_here_and_there(mount: MountedDaemon, tmp_path: Path) -> None:
    """The end first, then the head, then anywhere, as a PDF viewer or a player does, from a cold cache."""
    data = os.urandom(9_000_000)
    source = tmp_path / "source"
    source.write_bytes(data)
    mount.sh(f"cp {source} film")
    mount.stop()
    shutil.rmtree(tmp_path / "cache")
    mount.start()
    chance = random.Random(5)
    ranges = [(len(data) - 1024, 1024), (0, 65536)]
    ranges += [(chance.randrange(len(data)), chance.choice([1, 512, 4096, 100_000])) for _ in range(200)]

    def read() -> bool:
        with (mount.path / "film").open("rb", buffering=0) as file:
            return all(
                os.pread(file.fileno(), size, offset) == data[offset : offset + size]
                for offset, size in ranges
            )

    assert within(120, read)


def test_a_watch_loop_sees_each_change(mount: MountedDaemon) -> None:
    """A program that polls names, times and sizes sees files come and change, with the right bytes."""
    mount.sh("mkdir watched")
    command = [sys.executable, "-c", _WATCH, str(mount.path / "watched")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        try:
            assert watcher.stdout is not None
            for name, text in (("a.txt", "one"), ("b.txt", "two"), ("a.txt", "three"), ("end.txt", "")):
                mount.sh(f"printf %s '{text}' > watched/tmp && mv watched/tmp watched/{name}")
                line = within(120, watcher.stdout.readline)
                assert line == f"{name} {text}\n"
            wait_until(lambda: watcher.poll() is not None, 120, "the watcher to end")
        finally:
            watcher.kill()
