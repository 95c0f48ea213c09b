"""Deletes the files of deleted conversations, and trims the change log.

Any number of mounts do this on one bucket: the database hands every object to one of them, and to another
if that one ends first. The mounts learn of the deletions from the change feed, as of any others.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import structlog
import trio

from exaifs.errors import RemoteError
from exaifs.fs.contact import Contact
from exaifs.remote.interface import ObjectStore
from exaifs.remote.upkeep import Housekeeping

_log = structlog.get_logger(__name__)

PACE_S = 3.0
"""Between two questions, on average, if nobody says otherwise."""

_BATCH = 100
_LEASE_S = 180
"""Longer than a batch takes with all its repetitions."""

_MAX_PACE_S = 600.0
"""After failures."""

TRIM_INTERVAL_S = 6 * 3600.0
KEEP_LOG_HOURS = 30 * 24
"""A mount that was away for longer lists anew; its cached contents have expired by then, too."""


class Janitor:
    """The janitor of one mount.

    Args:
        objects: deletes.
        housekeeping: says what.
        contact: nothing is asked while Supabase is away.
        pace_s: seconds between two questions.
        chance: yields numbers in [0, 1); several mounts are not to ask in step.
    """

    def __init__(
        self,
        objects: ObjectStore,
        housekeeping: Housekeeping,
        contact: Contact,
        pace_s: float = PACE_S,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._objects = objects
        self._housekeeping = housekeeping
        self._contact = contact
        self._pace_s = pace_s
        self._chance = chance
        # Mutable state, changed between awaits only.
        self._trim_at = 0.0
        self._problem: str | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled; what fails is tried again, less and less often."""
        self._trim_at = trio.current_time() + TRIM_INTERVAL_S * self._chance()
        task_status.started()
        pace_s = self._pace_s
        while True:
            await trio.sleep(pace_s * (0.5 + self._chance()))
            if self._contact.offline_since_ns is not None:
                continue
            try:
                await self.sweep()
                await self._trim()
            except RemoteError as exc:
                self._note(exc)
                pace_s = min(pace_s * 2, max(_MAX_PACE_S, self._pace_s))
            else:
                self._problem = None
                pace_s = self._pace_s

    async def sweep(self) -> int:
        """Delete what is queued now; return how many objects are gone."""
        deleted, more = 0, True
        while more:
            keys, more = await self._housekeeping.take_deletions(_BATCH, _LEASE_S)
            if keys:
                deleted += await self._delete(keys)
        if deleted:
            _log.info("files of deleted conversations deleted", files=deleted)
        return deleted

    async def _delete(self, keys: tuple[str, ...]) -> int:
        try:
            await self._objects.remove(keys)
        except RemoteError:
            settled = await self._housekeeping.settle_deletions(keys)
            # That a file is there still is no failure where it took another one's place.
            if settled.gone | settled.kept != set(keys):
                raise
        else:
            settled = await self._housekeeping.settle_deletions(keys)
        return len(settled.gone)

    async def _trim(self) -> None:
        if trio.current_time() < self._trim_at:
            return
        trimmed = await self._housekeeping.trim_log(KEEP_LOG_HOURS)
        self._trim_at = trio.current_time() + TRIM_INTERVAL_S * (0.5 + self._chance())
        if trimmed:
            _log.info("change log trimmed", entries=trimmed)

    def _note(self, exc: RemoteError) -> None:
        """Log a failure once; that Supabase is away others say."""
        if exc.temporary:
            _log.debug("the janitor comes back later", reason=str(exc))
        elif str(exc) != self._problem:
            _log.warning("files of deleted conversations stay", reason=str(exc))
            self._problem = str(exc)
