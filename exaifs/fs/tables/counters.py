"""Counts reads in memory and writes them to the rows in batches."""

from __future__ import annotations

import time

import structlog
import trio

from exaifs.errors import RemoteError
from exaifs.remote.interface import Access, Catalog

_log = structlog.get_logger(__name__)

FLUSH_INTERVAL_S = 30.0
_BATCH = 500


class AccessCounters:
    """Reads per key since the last flush.

    Args:
        catalog: takes the batches.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._counts: dict[str, tuple[int, int]] = {}

    @property
    def waiting(self) -> int:
        """Keys with reads that are not in their rows yet."""
        return len(self._counts)

    def count(self, key: str) -> None:
        """Count one open-and-read of an object."""
        before = self._counts.get(key, (0, 0))[0]
        self._counts[key] = (before + 1, time.time_ns())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Flush for ever, at intervals."""
        task_status.started()
        while True:
            await trio.sleep(FLUSH_INTERVAL_S)
            await self.flush()

    async def flush(self) -> None:
        """Send what was counted; a count that cannot be sent is kept for the next time."""
        counts, self._counts = self._counts, {}
        pending = [Access(key, count, last_ns) for key, (count, last_ns) in counts.items()]
        while pending:
            batch = pending[:_BATCH]
            try:
                await self._catalog.touch(batch)
            except RemoteError as exc:
                _log.debug("access counters wait", reason=str(exc), keys=len(pending))
                break
            del pending[:_BATCH]
        for access in pending:
            count, last_ns = self._counts.get(access.key, (0, 0))
            self._counts[access.key] = (count + access.count, max(last_ns, access.last_ns))
