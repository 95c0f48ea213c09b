"""Directories of which it is not certain what changed are listed once more, in the background.

The kernel holds names that nobody asks about, so it is not enough to list a directory when it is needed.
"""

from __future__ import annotations

import sqlite3

import structlog
import trio

from exaifs.fs.upstream.directories import Directories

_log = structlog.get_logger(__name__)

_RETRY_S = 1.0

_DOUBT_S = 5.0
"""How long a directory in doubt may wait for somebody who needs it, before it is listed again anyway."""


class Gaps:
    """Closes the gaps of one mount's feed, and those that an earlier run left.

    Args:
        directories: lists them.
    """

    def __init__(self, directories: Directories) -> None:
        self._directories = directories
        self._found = trio.Event()

    def note(self) -> None:
        """The log could not say what changed."""
        self._found.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """List anew until nothing is in doubt; runs until cancelled.

        At once where the feed could not say what changed, and soon where a conflict or a change that
        failed leaves a doubt.
        """
        task_status.started()
        while True:
            self._found = trio.Event()
            while not await self._list_again():
                _log.debug("listing anew goes on")
                await trio.sleep(_RETRY_S)
            with trio.move_on_after(_DOUBT_S):
                await self._found.wait()

    async def _list_again(self) -> bool:
        try:
            return await self._directories.reconcile()
        except sqlite3.Error:
            return False  # whoever needs the index says so
