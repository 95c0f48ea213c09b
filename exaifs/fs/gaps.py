"""After a gap in the change log: every loaded directory is listed once more, in the background.

The kernel holds names that nobody asks about, so it is not enough to list a directory when it is needed.
"""

from __future__ import annotations

import structlog
import trio

from exaifs.fs.directories import Directories

_log = structlog.get_logger(__name__)

_RETRY_S = 1.0


class Gaps:
    """Closes the gaps of one mount's feed.

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
        """List anew after each gap until all were listed; runs until cancelled."""
        task_status.started()
        while True:
            await self._found.wait()
            self._found = trio.Event()
            while not await self._directories.reconcile():
                _log.debug("listing anew goes on")
                await trio.sleep(_RETRY_S)
