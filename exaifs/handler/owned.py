"""A context manager that is entered and left by a task of its own, whoever opens and closes it.

Task groups must be left by the task that entered them, and one that nobody leaves takes its task down.
Programs keep to neither: test fixtures, and the start and stop hooks of web frameworks, run in tasks of
their own, and some forget to close. The only place that knows both event loops: anyio has no task without
a group around it.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

import anyio
import structlog
import trio

from exaifs.errors import ExaifsError

_log = structlog.get_logger(__name__)

T = TypeVar("T")


class Owned(Generic[T]):
    """What a context manager gives, until `close` or the end of the event loop. Entered once.

    Args:
        manager: entered and left by one task.
    """

    def __init__(self, manager: AbstractAsyncContextManager[T]) -> None:
        self._manager = manager
        self._closing = anyio.Event()
        self._entered = anyio.Event()
        self._ended = anyio.Event()
        self._value: T | None = None
        self._error: Exception | None = None
        self._task: object = None
        self._loop: object = None

    @property
    def has_ended(self) -> bool:
        """Whether it was left, by `close` or with its event loop."""
        is_dead = isinstance(self._loop, asyncio.AbstractEventLoop) and self._loop.is_closed()
        return is_dead or self._ended.is_set()

    def check_loop(self) -> None:
        """Refuse to be used in another event loop: connections and locks would belong to the wrong one.

        Raises:
            ExaifsError: it lives in another one that has not ended.
        """
        if self._loop is not None and not self.has_ended and self._loop is not _current_loop():
            raise ExaifsError(
                "the handler is open in another event loop, and works in that one only: give each event "
                "loop a handler of its own"
            )

    async def open(self) -> T:
        """Enter it, or wait until it is entered; return what it gives.

        Raises:
            Exception: what entering raises.
            ExaifsError: this is another event loop than that of the first call.
        """
        self.check_loop()
        if self._task is None:
            self._loop = _current_loop()
            self._task = _spawn(self._live)
        await self._entered.wait()
        if self._error is not None:
            raise self._error
        if self._value is None:
            raise ExaifsError("the handler was closed, or its event loop is ending")
        return self._value

    async def close(self) -> None:
        """Leave it, if it was opened; this is not cut short, because a half of it cannot be left.

        Raises:
            Exception: what leaving raises.
            ExaifsError: this is another event loop than that of the first call.
        """
        if self._task is None or self.has_ended:
            return
        self.check_loop()
        has_entered = self._value is not None
        self._closing.set()
        with anyio.CancelScope(shield=True):
            await self._ended.wait()
        if self._error is not None and has_entered:
            raise self._error

    async def _live(self) -> None:
        try:
            async with self._manager as self._value:
                self._entered.set()
                await self._closing.wait()
        except Exception as exc:  # noqa: BLE001 - raised where somebody waits
            self._error = exc
            if self._entered.is_set() and not self._closing.is_set():
                _log.exception(
                    "what works in the background of a handler failed; the next call begins anew"
                )
        finally:
            self._value = None
            self._entered.set()
            self._ended.set()


def _current_loop() -> object:
    """Name the event loop that runs this."""
    if trio.lowlevel.in_trio_task():
        return trio.lowlevel.current_trio_token()
    return asyncio.get_running_loop()


def _spawn(work: Callable[[], Coroutine[Any, Any, None]]) -> object:
    """Start a task that the event loop cancels when it ends; return what keeps it alive."""
    if trio.lowlevel.in_trio_task():
        return trio.lowlevel.spawn_system_task(work, context=contextvars.copy_context())
    return asyncio.get_running_loop().create_task(work(), name="exaifs")
