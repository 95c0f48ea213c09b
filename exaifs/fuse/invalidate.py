"""Tells the kernel to forget names and attributes that another host has changed, and damaged bytes.

A notice waits in the kernel for the lock of the directory, which whoever works in that directory holds
until we have answered. So notices are sent from threads, never by a handler or by the event loop itself,
and sending ends before serving does.
"""

from __future__ import annotations

import errno
import os
import threading

import pyfuse3
import structlog
import trio

from exaifs.fs.upstream.invalidation import (
    Invalidation,
    Invalidations,
    StaleAttributes,
    StaleName,
    StalePages,
)
from exaifs.model import Ino

_log = structlog.get_logger(__name__)

_THREADS = 4
"""At once, so that one directory at work does not delay the news about the others."""


class KernelCache:
    """Passes on what `fs` has queued.

    Args:
        invalidations: what has become stale.
    """

    def __init__(self, invalidations: Invalidations) -> None:
        self._invalidations = invalidations
        self._free = trio.Semaphore(_THREADS)
        self._taking = trio.CancelScope()
        self._stopped = trio.Event()
        self._lock = threading.Lock()
        """Guards `_sending`, which threads change."""
        self._sending = 0

    @property
    def sending(self) -> int:
        """Notices that are in the kernel; while there are any, pyfuse3's session must not be closed."""
        with self._lock:
            return self._sending

    async def run(self) -> None:
        """Pass notices on until `stop`. Cancelling leaves threads behind that are still in the kernel."""
        async with trio.open_nursery() as nursery:
            with self._taking:
                while True:
                    invalidation = await self._invalidations.take()
                    await self._free.acquire()
                    nursery.start_soon(self._send, invalidation)
        self._stopped.set()

    async def stop(self) -> None:
        """Take no more, and return when the last one has come back from the kernel."""
        self._taking.cancel()
        await self._stopped.wait()

    async def _send(self, invalidation: Invalidation) -> None:
        try:
            await trio.lowlevel.checkpoint()
            with self._lock:
                self._sending += 1
            await trio.to_thread.run_sync(self._notify, invalidation, abandon_on_cancel=True)
        finally:
            self._free.release()

    def _notify(self, invalidation: Invalidation) -> None:
        try:
            _notify(invalidation)
        finally:
            with self._lock:
                self._sending -= 1


def forget_attributes(ino: Ino) -> None:
    """Have the kernel ask for an inode's attributes before it uses them again.

    Unlike other notices this one waits for no lock, so that a handler may send it for an inode that its
    request holds.
    """
    _notify(StaleAttributes(ino))


def _notify(invalidation: Invalidation) -> None:
    try:
        if isinstance(invalidation, StaleName):
            pyfuse3.invalidate_entry(invalidation.parent, os.fsencode(invalidation.name))
        elif isinstance(invalidation, StalePages):
            # Waits for reads that are under way, as for them the pages are locked.
            pyfuse3.invalidate_inode(invalidation.ino)
        else:
            # Pages stay: other content comes with another inode.
            pyfuse3.invalidate_inode(invalidation.ino, attr_only=True)
    except OSError as exc:
        # What the kernel does not hold, it need not forget.
        if exc.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTCONN, errno.ENODEV):
            _log.warning("the kernel could not be told of a change", reason=str(exc))
