"""Does something before every call to the system that may change the disk, on whatever thread it is made.

A kill falls between two of them, not only where a task waits: within a step of the event loop, and within
the work of a thread, of which the loop hears only when all of it is done.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import trio

_POSIX = frozenset(
    {
        *("open", "write", "pwrite", "pwritev", "writev", "ftruncate", "truncate", "posix_fallocate"),
        *("fsync", "fdatasync", "rename", "replace", "unlink", "remove", "link", "symlink"),
        *("mkdir", "rmdir", "copy_file_range", "sendfile", "setxattr"),
    }
)
_SQLITE = frozenset({"execute", "executemany", "executescript", "backup"})
_THREADS = 16
"""More than one mount uses at once."""


class _Watch:
    """Whom to tell; the profile functions of threads stay, as threads are used again."""

    def __init__(self) -> None:
        self.tell: Callable[[], None] | None = None

    def __call__(self, frame: FrameType, event: str, called: Any) -> None:
        if self.tell is not None and event == "c_call" and _may_change_the_disk(frame, called):
            self.tell()


_watch = _Watch()


def _may_change_the_disk(frame: FrameType, called: Any) -> bool:
    if getattr(called, "__module__", None) == "posix":
        return called.__name__ in _POSIX
    name = getattr(called, "__name__", None)
    if name in _SQLITE and isinstance(getattr(called, "__self__", None), sqlite3.Connection):
        return not str(frame.f_locals.get("sql", "")).startswith("SELECT")
    return name == "ioctl"  # a file is cloned


@contextmanager
def before_every_call(tell: Callable[[], None]) -> Iterator[None]:
    """Call something before every such call meanwhile, on the thread that makes it."""
    before, before_in_threads = sys.getprofile(), threading.getprofile()
    threading.setprofile(_watch)
    trio.run(_watch_idle_threads)
    _watch.tell = tell
    sys.setprofile(_watch)
    try:
        yield
    finally:
        sys.setprofile(before)
        _watch.tell = None
        threading.setprofile(before_in_threads)


async def _watch_idle_threads() -> None:
    """Have the threads that trio keeps for later watched, too: each of these needs one of its own."""
    together = threading.Barrier(_THREADS)

    def watch() -> None:
        sys.setprofile(_watch)
        together.wait(60)

    limiter = trio.CapacityLimiter(_THREADS)
    async with trio.open_nursery() as nursery:
        for _ in range(_THREADS):
            nursery.start_soon(lambda: trio.to_thread.run_sync(watch, limiter=limiter))
