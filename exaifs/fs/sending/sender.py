"""Sends in the background what waits: operations in order, staged files when they are due.

One loop starts what may run, at most eight at a time, and sleeps until there is news or something falls
due. Trouble with one thing delays that one; when Supabase is away, one thing at a time asks, at growing
intervals with jitter, until it answers.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import islice

import structlog
import trio

from exaifs.cache.unsent.intents import Move, Operation
from exaifs.errors import ExaifsError
from exaifs.fs.contact import is_away, jittered
from exaifs.fs.core import Core
from exaifs.fs.sending.losses import Losses
from exaifs.fs.sending.publish import Publisher
from exaifs.fs.sending.replay import Replayer
from exaifs.fs.tables.inodes import Inode
from exaifs.fs.unsent.verdicts import is_hopeless
from exaifs.names import path_of

_log = structlog.get_logger(__name__)

AT_ONCE = 8
"""The server gains nothing from more (measured)."""

_FIRST_RETRY_S = 1.0
_MAX_RETRY_S = 30.0
_REFUSED_RETRY_S = 300.0
_LAST_TRIES = 3
"""How often to ask, at the end, a Supabase that is away."""

_KEEP_S = 5.0
"""How long to wait, at the end, for the disk, and for files whose renames and removals have no answer."""

_PACE_S = 0.01
"""Many closes in a row make one look at what waits."""

_LOOK_S = 20e-6
"""Several times what a look at one file takes."""

_Item = tuple[object, Callable[[], Awaitable[None]]]
"""What is sent, as a key of the table of what is under way, and the attempt."""


class Sender:
    """Empties the outbox of one mount.

    Args:
        core: inodes, outbox, contact.
        publisher: sends staged files.
        replayer: carries out operations.
        losses: told of those that are given up.
        delay_s: how long a file rests after a close in mode `back`, or an fsync, before it is sent.
    """

    def __init__(
        self, core: Core, publisher: Publisher, replayer: Replayer, losses: Losses, *, delay_s: float
    ) -> None:
        self._table = core.table
        self._outbox = core.changes.outbox
        self._contact = core.contact
        self._publisher = publisher
        self._replayer = replayer
        self._losses = losses
        self._delay_s = delay_s
        # Mutable state, changed without an await.
        self._news = trio.Event()
        self._files: dict[Inode, None] = {}  # with unsent bytes, the one that was closed first at the front
        self._under_way: set[object] = set()
        self._attempts: dict[int, int] = {}
        self._due: dict[int, float] = {}
        self._pause_until = -math.inf
        self._failures = 0
        self._failing_since: dict[int, float] = {}
        self._sent_at = -math.inf  # when anything was last sent or carried out
        self.problems: dict[int, str] = {}
        """Why operations could not be carried out, by number."""
        self.given_up = 0
        """How many operations Supabase will never carry out, since the start."""
        self._last_given_up: str | None = None
        self._outbox.on_news(self.wake)
        self._contact.on_return(self._begin_anew)

    @property
    def change_problem(self) -> str | None:
        """An operation that fails, and why, or else the last that was given up; None: all goes well."""
        for number, problem in self.problems.items():
            return f"{_described(self._outbox.operations[number])}: {problem}"
        return self._last_given_up

    # -- telling it --------------------------------------------------------------------------------

    def wake(self) -> None:
        """There may be something to send."""
        self._news.set()
        self._news = trio.Event()

    def note(self, inode: Inode, *, at_once: bool = False) -> None:
        """A staged file waits to be sent: after its rest, or at once."""
        if inode.staged is not None:
            inode.staged.due_at = -math.inf if at_once else trio.current_time() + self._delay_s
            self._files.pop(inode, None)
            self._files[inode] = None
        self.wake()

    def _begin_anew(self) -> None:
        """Supabase was away: nothing is held against what failed meanwhile."""
        self._failing_since.clear()
        self.hurry()

    def hurry(self) -> None:
        """Try everything now, whatever it was waiting for."""
        self._pause_until = -math.inf
        self._failures = 0
        self._due.clear()
        for inode in self._files:
            if inode.staged is not None:
                inode.staged.due_at = -math.inf
        self.wake()

    # -- running -----------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                news = self._news
                self._start(nursery)
                with trio.move_on_after(self._until_due()):
                    await news.wait()
                # While files rest, each close is news; looking at them all again would take all the time.
                await trio.sleep(_PACE_S if self._under_way else max(_PACE_S, _LOOK_S * len(self._files)))

    def _start(self, nursery: trio.Nursery) -> None:
        if trio.current_time() < self._pause_until:
            return
        for key, attempt in islice(self._ready(), self._room()):
            self._under_way.add(key)
            nursery.start_soon(self._attempt, key, attempt)

    def _room(self) -> int:
        # While Supabase is away one question is enough.
        return max((1 if self._contact.offline else AT_ONCE) - len(self._under_way), 0)

    async def _attempt(self, key: object, attempt: Callable[[], Awaitable[None]]) -> None:
        try:
            await attempt()
        finally:
            self._under_way.discard(key)
            self.wake()

    def _ready(self) -> Iterator[_Item]:
        now = trio.current_time()
        for number, _operation in self._outbox.runnable():
            if number not in self._under_way and self._due.get(number, -math.inf) <= now:
                yield number, partial(self._carry_out, number)
        for inode in self._waiting():
            if inode not in self._under_way and self._due_at(inode) <= now:
                yield inode, partial(self._send, inode)

    def _waiting(self) -> Iterator[Inode]:
        """Yield the inodes whose staged bytes may be sent, sooner or later, as things are."""
        for inode in list(self._files):
            staged = inode.staged
            if staged is None or not inode.dirty:
                del self._files[inode]
                continue
            if staged.refused:
                continue
            # Of an open file only what an fsync has made whole.
            if (inode.opens == 0 or staged.kept) and not self._outbox.overlaps(inode.entry.key):
                yield inode

    def _due_at(self, inode: Inode) -> float:
        return -math.inf if inode.staged is None else inode.staged.due_at

    def _until_due(self) -> float:
        """Return how long to sleep if nothing happens."""
        # Thousands of things may wait, and news come often: look at them only if one of them could be sent.
        if self._room() == 0:
            return math.inf
        now = trio.current_time()
        if self._pause_until > now:
            return self._pause_until - now
        times = [self._due_at(inode) for inode in self._waiting() if inode not in self._under_way]
        times += [
            self._due.get(number, -math.inf)
            for number, _operation in self._outbox.runnable()
            if number not in self._under_way
        ]
        if not times:
            return math.inf
        soonest = min(times)
        # What is due and was not started waits for room, of which there will be news.
        return soonest - now if soonest > now else math.inf

    async def _send(self, inode: Inode) -> None:
        staged, before = inode.staged, inode.failure
        try:
            async with inode.lock:
                if not self._outbox.overlaps(inode.entry.key):
                    await self._publisher.send(inode)
                if inode.opens == 0 and inode.staged is not None:
                    inode.staged.rest()
            self._worked(sent=not inode.dirty)
        except Exception as exc:  # noqa: BLE001 - logged there; the other files are still to be sent
            if staged is not None:
                staged.attempts += 1
                staged.due_at = self._failed(exc, staged.attempts)
            self._tell("not sent yet", exc, before, path=path_of(inode.entry.key))
        self._table.release(inode)

    async def _carry_out(self, number: int) -> None:
        operation = self._outbox.begin(number)
        if operation is None:
            return
        try:
            await self._carry_out_or_give_up(number, operation)
        except Exception as exc:  # noqa: BLE001 - logged there; the other operations are still to be done
            self._attempts[number] = self._attempts.get(number, 0) + 1
            self._due[number] = self._failed(exc, self._attempts[number])
            before, self.problems[number] = self.problems.get(number), str(exc)
            what, path = type(operation).__name__.lower(), path_of(operation.entry.key)
            self._tell("not carried out yet", exc, before, path=path, what=what)
            self._outbox.let_go(number)
            return
        for table in (self._attempts, self._due, self._failing_since, self.problems):
            table.pop(number, None)
        self._contact.succeeded()

    async def _carry_out_or_give_up(self, number: int, operation: Operation) -> None:
        try:
            await self._replayer.carry_out(number, operation)
        except Exception as exc:
            now = trio.current_time()
            since = self._failing_since.setdefault(number, now)
            if not is_hopeless(exc, now - since, others_succeed=self._sent_at > since):
                raise
            await self._replayer.give_up(number, operation, exc)
            self.given_up += 1
            self._last_given_up = f"{_described(operation)}: {exc}"
            source = path_of(operation.source) if isinstance(operation, Move) else None
            what = type(operation).__name__.lower()
            self._losses.note(path_of(operation.entry.key), what, f"given up: {exc}", source)
        else:
            self._worked(sent=True)

    def _tell(self, event: str, exc: Exception, before: str | None, **where: str) -> None:
        """Log a failure, unless it is the one before; with a traceback where it is none that is known."""
        if str(exc) == before:
            return
        if isinstance(exc, ExaifsError | OSError | sqlite3.Error):
            _log.warning(event, reason=str(exc), **where)
        else:
            _log.error(event, exc_info=exc, **where)

    def _worked(self, *, sent: bool) -> None:
        if sent:
            self._sent_at = trio.current_time()
        self._failures = 0
        self._pause_until = -math.inf

    def _failed(self, exc: Exception, attempts: int) -> float:
        """Take notice of a failure and return when to try that thing again."""
        self._contact.note(exc)
        # What was under way at once fails at once: that is one try, after which a drain does not end.
        if self._contact.offline and trio.current_time() >= self._pause_until:
            self._failures += 1
            self._pause_until = trio.current_time() + _backoff_s(self._failures)
        if not is_away(exc) and isinstance(exc, ExaifsError):
            return trio.current_time() + min(_REFUSED_RETRY_S, _backoff_s(attempts) * 10)
        return trio.current_time() + _backoff_s(attempts)

    # -- the end -----------------------------------------------------------------------------------

    async def drain(self, deadline_s: float) -> int:
        """Send what waits, open files too, for at most so long; return how many things are left.

        While Supabase is away it is asked a few times: all of it is in the journal, or put there now.
        """
        with trio.move_on_after(deadline_s):
            async with trio.open_nursery() as nursery:
                await self._keep_all()
                self.hurry()
                await self._send_all(nursery)
        # Who waits for an answer holds the lock of its file, and keeps it now.
        self._publisher.stop_waiting()
        await self._keep_all()
        return self.left()

    async def _send_all(self, nursery: trio.Nursery) -> None:
        while self.left() or self._under_way:
            news = self._news
            self._start(nursery)
            until_due_s = self._until_due()
            away = self._contact.offline and self._failures >= _LAST_TRIES
            if not self._under_way and (away or until_due_s == math.inf):
                return  # refused, or waiting for what was
            with trio.move_on_after(until_due_s):
                await news.wait()

    def left(self) -> int:
        """Return how many files and operations Supabase does not have."""
        return sum(inode.dirty for inode in self._table) + len(self._outbox.operations)

    async def _keep_all(self) -> None:
        """Have what is dirty in the journal, open or not: no close may come before the end."""
        with trio.move_on_after(_KEEP_S):
            async with trio.open_nursery() as nursery:
                for inode in self._table:
                    if inode.dirty and inode.staged is not None and not inode.staged.kept:
                        nursery.start_soon(self._keep, inode)

    async def _keep(self, inode: Inode) -> None:
        async with inode.lock:
            await self._publisher.keep_unsent(inode)
        self.note(inode, at_once=True)


def _backoff_s(failures: int) -> float:
    """Return how long to wait after so many failures: half of it by chance."""
    return jittered(min(_MAX_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(failures - 1, 10)))


def _described(operation: Operation) -> str:
    """Return what an operation does, for people."""
    what, path = type(operation).__name__.lower(), path_of(operation.entry.key)
    return (
        f"{what} {path_of(operation.source)} to {path}" if isinstance(operation, Move) else f"{what} {path}"
    )
