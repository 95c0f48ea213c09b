"""Tells the kernel what to forget, as other hosts change the bucket.

In threads of their own, never inside a handler: the kernel may make such a call wait for a request that
is being answered.
"""

from __future__ import annotations

import errno
import os
from functools import partial

import pyfuse3
import structlog
import trio

from exaifs.fs.invalidation import Invalidations, StaleName

_log = structlog.get_logger(__name__)

_WORKERS = 4
"""One slow directory must not hold up the news of the others."""

_UNKNOWN = {errno.ENOENT, errno.ENOTDIR, errno.ENOTCONN, errno.EBADF}
"""The kernel does not hold it, or the mount is ending: nothing to forget."""


async def run(
    invalidations: Invalidations, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Pass invalidations on until cancelled."""
    async with trio.open_nursery() as nursery:
        for _ in range(_WORKERS):
            nursery.start_soon(_work, invalidations)
        task_status.started()


async def _work(invalidations: Invalidations) -> None:
    while True:
        stale = await invalidations.take()
        if isinstance(stale, StaleName):
            forget = partial(pyfuse3.invalidate_entry, stale.parent, os.fsencode(stale.name))
        else:
            forget = partial(pyfuse3.invalidate_inode, stale.ino, attr_only=True)
        try:
            await trio.to_thread.run_sync(forget, abandon_on_cancel=True)
        except OSError as exc:
            if exc.errno not in _UNKNOWN:
                _log.warning("the kernel did not take an invalidation", reason=str(exc), what=repr(stale))
