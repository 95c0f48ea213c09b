"""Being told to stop: by Ctrl-C, a service manager, the terminal's end, or the death of our parent."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable

import anyio

from exaifs.errors import ExaifsError


async def until_stopped(
    work: Callable[[], Awaitable[int]],
    *,
    on_stop: Callable[[], None] = lambda: None,
    until_eof: bool = False,
) -> int:
    """Run `work` until it returns or we are told to stop, which cancels it; return its result, else 0.

    Args:
        work: cleans up in its `finally` blocks; further signals do not hurry it.
        on_stop: called before the cancellation, to tell people.
        until_eof: the end of stdin counts as being told, too.

    Raises:
        ExaifsError: whatever `work` raised.
    """
    result = 0
    failure: ExaifsError | None = None
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with anyio.create_task_group() as tasks:

            async def stop_after(waiting: Callable[[], Awaitable[object]]) -> None:
                await waiting()
                on_stop()
                tasks.cancel_scope.cancel()

            tasks.start_soon(stop_after, lambda: anext(aiter(signals)))
            if until_eof:
                tasks.start_soon(stop_after, _wait_for_eof)
            try:
                result = await work()
            except ExaifsError as exc:  # outside the task group, so that it does not arrive in a group
                failure = exc
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result


async def _wait_for_eof() -> None:
    """Wait until whoever holds the other end of our stdin closes it, or dies."""
    descriptor = sys.stdin.fileno()
    while True:
        with contextlib.suppress(PermissionError):  # epoll takes no files, which are always readable
            await anyio.wait_readable(descriptor)
        if not os.read(descriptor, 4096):
            return
