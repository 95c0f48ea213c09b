"""A bad network between a mount and the double, and threads in turn."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from exaifs.errors import Busy, Unreachable
from exaifs.model import ObjectRef
from exaifs.remote.interface import ChangePage, Download, Remote

T = TypeVar("T")

STALL_S = 40.0
"""Longer than anybody is patient."""

_REAL_WAIT_S = 0.00005
"""Between looks at a thread that is still working."""


@dataclass
class Weather:
    """How bad the network is; every decision comes from one source of chance."""

    chance: random.Random
    drop_rate: float = 0.0
    """Of requests that never arrive, and again of answers that do not come back."""
    delay_s: float = 0.0
    """At most so long there, and so long back."""
    stall_rate: float = 0.0
    """Of ways that take very long."""

    async def _travel(self) -> None:
        await trio.sleep(self.chance.uniform(0, self.delay_s))
        if self.stall_rate and self.chance.random() < self.stall_rate:
            await trio.sleep(self.chance.uniform(0, STALL_S))

    async def there(self) -> None:
        """Travel to the server."""
        await self._travel()
        if self.chance.random() < self.drop_rate:
            raise self.chance.choice([Unreachable("lost on the way"), Busy("later")])

    async def back(self) -> None:
        """Travel from the server, after it did what was asked."""
        await self._travel()
        if self.chance.random() < self.drop_rate:
            raise Unreachable("the answer was lost")

    def calm(self) -> None:
        """Lose and delay nothing any more."""
        self.drop_rate = self.delay_s = self.stall_rate = 0.0


@dataclass
class Link:
    """What joins one run of a mount to the server."""

    cut: bool = False
    """Whether nothing that is asked arrives any more; so it is for a process that is gone."""

    def check(self) -> None:
        """Refuse to carry anything where the link is cut."""
        if self.cut:
            raise Unreachable("nothing arrives")


class _Distant:
    """Calls every method of a protocol through the weather."""

    def __init__(self, near: Any, weather: Weather, link: Link) -> None:
        self._near = near
        self._weather = weather
        self._link = link

    async def _there(self) -> None:
        self._link.check()
        await self._weather.there()
        self._link.check()

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._near, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            await self._there()
            result = await method(*args, **kwargs)
            await self._weather.back()
            return result

        return call


class _DistantDownload:
    """Bytes that may stop coming."""

    def __init__(self, near: Download, weather: Weather) -> None:
        self._near = near
        self._weather = weather
        self.start = near.start
        self.ranged = near.ranged

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._near.chunks():
            if self._weather.chance.random() < self._weather.drop_rate:
                raise Unreachable("the connection broke")
            yield chunk


class _DistantObjects(_Distant):
    @asynccontextmanager
    async def get(self, ref: ObjectRef, start: int = 0, stop: int | None = None) -> AsyncIterator[Any]:
        await self._there()
        async with self._near.get(ref, start, stop) as download:
            yield _DistantDownload(download, self._weather)


class _DistantCatalog(_Distant):
    async def changes(self, cursor: str, limit: int = 1000) -> ChangePage:
        """Ask the log; now and then it tells once more what it told before, or only a little."""
        weather = self._weather
        await self._there()
        if weather.delay_s and cursor.isdigit():
            again = weather.chance.choice([0, 0, 1, 5])
            earlier: ChangePage = await self._near.changes(str(max(int(cursor) - again, 0)), limit)
            page = earlier if earlier.continuous else await self._near.changes(cursor, limit)
        else:
            page = await self._near.changes(cursor, limit)
        await weather.back()
        return page


def distant(remote: Remote, weather: Weather, link: Link | None = None) -> Remote:
    """Return the same bucket behind a bad network."""
    link = Link() if link is None else link
    objects: Any = _DistantObjects(remote.objects, weather, link)
    catalog: Any = _DistantCatalog(remote.catalog, weather, link)
    return Remote(objects, catalog, remote.bucket, remote.identity)


class ThreadsInTurn(trio.abc.Instrument):
    """Has the event loop wait whenever a task gave work to a thread, until that is done.

    So work in threads takes no time by the mock clock, and ends in the order in which it began: a
    schedule depends on the seed only.
    """

    def __init__(self) -> None:
        self._answers = 0

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        self._answers = trio.lowlevel.current_statistics().run_sync_soon_queue_size

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if _waits_for_thread(task):
            while trio.lowlevel.current_statistics().run_sync_soon_queue_size <= self._answers:
                time.sleep(_REAL_WAIT_S)
            # Takes the queue's lock: then the thread has woken the event loop, too.
            trio.lowlevel.current_trio_token().run_sync_soon(_nothing)


def _nothing() -> None:
    pass


def _waits_for_thread(task: trio.lowlevel.Task) -> bool:
    names = [frame.f_code.co_name for frame, _ in task.iter_await_frames()]
    # Deeper frames than these wait for the limiter: no thread was started yet.
    return names[-3:-1] == ["to_thread_run_sync", "wait_task_rescheduled"]


def choose(chance: random.Random, among: Sequence[T]) -> T:
    """Return one of several, by chance."""
    return among[chance.randrange(len(among))]
