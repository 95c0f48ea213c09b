"""Follows the change log, so that loaded directories stay true without being listed again.

Invariant: every directory the index calls loaded was listed at or after the cursor. So replaying from the
cursor makes them all true, whatever was missed in between; where the log cannot say (trimmed, restored
from a backup, first run), they are all listed once more in the background.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

import structlog
import trio

from exaifs.cache.names.merge import Difference, merge_changes
from exaifs.errors import RemoteError, SchemaMissing
from exaifs.fs.contact import jittered
from exaifs.fs.core import Core
from exaifs.remote.interface import Change, Hello

_log = structlog.get_logger(__name__)

_CURSOR = "cursor"
_NOT_STARTED = "not started"
_BUSY_S = 0.1
"""While changes come, the next question follows this soon."""

_PAGE = 1000
_MAX_BACKOFF_S = 10.0
_PROOF_INTERVAL_S = 60.0
_SILENCE_S = 3.0
"""The feed is taken for dead when no answer came for this much longer than the pace."""


class Feed:
    """The change feed of one mount.

    Args:
        core: bucket and index.
        pace_s: seconds between questions while nothing changes.
        on_hello: told what the server says of itself, now and then.
        on_change: told what other hosts changed.
        on_gap: told when the log cannot say what changed: list everything loaded once more.
        on_loss: told when freshness can no longer be promised.
    """

    def __init__(
        self,
        core: Core,
        pace_s: float,
        *,
        on_hello: Callable[[Hello], None],
        on_change: Callable[[Difference], None],
        on_gap: Callable[[], None],
        on_loss: Callable[[], None],
    ) -> None:
        self._core = core
        self._pace_s = pace_s
        self._on_hello = on_hello
        self._on_change = on_change
        self._on_gap = on_gap
        self._on_loss = on_loss
        # Mutable state, changed between awaits only.
        self._cursor = ""
        self._recheck: set[str] = set()
        self._answered_at: float | None = None
        self._proven_at = float("-inf")
        self._caught_up = trio.Event()
        self._returned = trio.Event()
        core.contact.on_return(self._hear_of_return)
        self.changes_seen = 0
        self.problem: str | None = _NOT_STARTED

    def _hear_of_return(self) -> None:
        """Somebody else had an answer: ask at once."""
        self._returned.set()
        self._returned = trio.Event()

    @property
    def starting(self) -> bool:
        """Whether the log has neither been read to its end nor failed to be read yet."""
        return self.problem == _NOT_STARTED

    @property
    def lag_s(self) -> float | None:
        """Seconds since the log was last read to its end; None before the first time."""
        return None if self._answered_at is None else trio.current_time() - self._answered_at

    async def wait_caught_up(self) -> None:
        """Return once every change up to about now has been taken in."""
        await self._caught_up.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow until cancelled; errors are waited out, with the state told once."""
        self._core.contact.expect_feed()
        task_status.started()
        backoff_s = self._pace_s
        while True:
            try:
                busy = await self.poll()
            except (RemoteError, sqlite3.Error) as exc:
                returned = self._returned
                self._lost(exc)
                with trio.move_on_after(jittered(backoff_s)):
                    await returned.wait()
                backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)
                continue
            backoff_s = self._pace_s
            if not self._caught_up.is_set():
                continue
            await trio.sleep(min(_BUSY_S, self._pace_s) if busy else self._pace_s)

    async def poll(self) -> bool:
        """Ask once and take in the answer; tell whether anything came."""
        core = self._core
        await self._prove()
        with core.index.view() as view:
            asked_at, asked_ns = trio.current_time(), time.time_ns()
            cursor = self._cursor = self._cursor or core.index.value(_CURSOR) or ""
            page = await core.remote.catalog.changes(cursor, _PAGE)
            rechecked = await self._ask_again()
            core.contact.succeeded()
            if not page.continuous or cursor == "":
                self._gap(cursor)
            difference, skipped = merge_changes(
                core.index, (*page.changes, *rechecked), view=view, at_ns=asked_ns
            )
            self._recheck -= {change.key for change in rechecked}
            self._recheck |= skipped
            self._cursor = page.cursor
            if not self._recheck:
                # Else a crash would lose the keys to ask again; so they come again from the log.
                core.index.set_value(_CURSOR, page.cursor)
        self.changes_seen += len(page.changes)
        self._on_change(difference)
        if not page.more:
            self._found(asked_at)
        return bool(page.changes) or page.more

    async def _prove(self) -> None:
        """Make sure, now and then, that the log is being written at all."""
        if trio.current_time() - self._proven_at < _PROOF_INTERVAL_S:
            return
        hello = await self._core.remote.catalog.hello()
        self._on_hello(hello)
        if not hello.trigger_installed or not hello.bucket_registered:
            # What changes now is never in the log, also when it is written again: list anew then.
            self._cursor = ""
            if self._core.index.value(_CURSOR):
                self._core.index.set_value(_CURSOR, "")
            raise SchemaMissing("the change log is not written: run `exaifs init --apply`")
        self._proven_at = trio.current_time()

    async def _ask_again(self) -> list[Change]:
        """Look at keys whose change was left alone because something newer was known here."""
        self._recheck |= self._core.index.take_unasked()
        keys = sorted(self._recheck)[:_PAGE]
        if not keys:
            return []
        records = await self._core.remote.catalog.stat(keys)
        return [Change(key, records.get(key)) for key in keys]

    def _gap(self, cursor: str) -> None:
        if cursor:
            _log.warning("the change log does not reach back to the last visit; listing anew")
        self._core.index.expire_all()
        self._on_gap()

    def _found(self, asked_at: float) -> None:
        self._answered_at = asked_at
        self._core.contact.follow_until(asked_at + self._pace_s + _SILENCE_S)
        if not self._caught_up.is_set():
            _log.info("change feed is live")
        self._caught_up.set()
        self.problem = None

    def _lost(self, exc: RemoteError | sqlite3.Error) -> None:
        if isinstance(exc, RemoteError) and not isinstance(exc, SchemaMissing):
            self._core.contact.failed(exc)
        if self.problem != str(exc):
            _log.warning("no change feed; directories are listed again as they age", reason=str(exc))
        self._proven_at = float("-inf")
        self._core.contact.unfollow()
        if self._caught_up.is_set():
            self._caught_up = trio.Event()
            self._on_loss()
        self.problem = str(exc)
