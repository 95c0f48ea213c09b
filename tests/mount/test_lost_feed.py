"""Programs whose current directory is in the mount, while the change feed is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.mount.conftest import exaifs_mount
from tests.support.mounts import AWAY, MountedDaemon, wait_until, within
from tests.support.proxy import Proxy, Weather

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

_LOST = "no change feed; directories are listed again as they age"
_WATCHED_S = 1.5
"""Longer than the kernel needs to be told, and than it trusts a directory's name."""

_PROGRAM = """
import errno, os, sys
for _line in sys.stdin:
    try:
        print(os.getcwd(), flush=True)
    except OSError as exc:
        print(errno.errorcode[exc.errno], flush=True)
"""


class Resident:
    """A program that works in one directory and looks nothing up."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def getcwd(self) -> str:
        """Return where it is, or the name of the error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return within(120, self._process.stdout.readline).strip()


@contextmanager
def living_in(directory: Path) -> Iterator[Resident]:
    """Run a program with that current directory."""
    process = within(
        120,
        lambda: subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=directory,
        ),
    )
    with process:
        try:
            yield Resident(process)
        finally:
            process.kill()


def is_gone(path: Path) -> bool:
    """Tell whether the mount says ENOENT."""
    try:
        within(120, path.stat)
    except FileNotFoundError:
        return True
    return False


@pytest.mark.parametrize("loss", ["the log alone", "everything"])
def test_a_current_directory_outlives_the_feed(
    fresh_bucket: dict[str, str], tmp_path: Path, loss: str
) -> None:
    """Fresh: while the feed is lost getcwd(3) works; a directory that another host removed is found gone.

    With the log alone unreadable at once, else when Supabase is back.
    """
    environment = {**fresh_bucket, "EXAIFS_LOG_FORMAT": "json"}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with (
        Proxy(fresh_bucket["SUPABASE_URL"]) as proxy,
        _host(environment, tmp_path / "one") as one,
        _host({**environment, "SUPABASE_URL": proxy.url}, tmp_path / "two") as two,
        ExitStack() as stack,
    ):
        two.expected |= AWAY
        homes = {name: two.path / name for name in ("stays", "gone", "moved")}
        one.sh("mkdir stays gone moved")
        wait_until(lambda: set(within(120, lambda: os.listdir(two.path))) == set(homes), 120, "mkdir")  # noqa: PTH208
        residents = {name: stack.enter_context(living_in(home)) for name, home in homes.items()}
        if loss == "everything":
            proxy.refuse()
        else:
            proxy.weather = Weather({"500": 1.0}, only="exaifs_changes")
        wait_until(lambda: _LOST in two.events(), 120, "the host notices")
        end = time.monotonic() + _WATCHED_S
        while time.monotonic() < end:
            assert {name: resident.getcwd() for name, resident in residents.items()} == {
                name: str(home) for name, home in homes.items()
            }
            time.sleep(0.05)
        one.sh("rmdir gone; mv moved elsewhere")
        if loss == "everything":
            proxy.clear()
        wait_until(lambda: is_gone(homes["gone"]) and is_gone(homes["moved"]), 120, "the change")
        assert within(120, (two.path / "elsewhere").is_dir)
        assert residents["stays"].getcwd() == str(homes["stays"])
        for name in ("gone", "moved"):
            assert residents[name].getcwd() == "ENOENT"
        assert not is_gone(homes["stays"])
        proxy.clear()


def _host(environment: dict[str, str], directory: Path) -> MountedDaemon:
    return exaifs_mount({**environment, "FILE_CACHE_DIR": str(directory / "cache")}, directory)
