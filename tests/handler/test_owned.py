"""A context manager with a task of its own."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest
from structlog.testing import capture_logs

from exaifs.errors import ExaifsError
from exaifs.handler.owned import Owned

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def working(trouble: anyio.Event, *, when: str) -> AsyncGenerator[str]:
    """Give a value, with a task in the background that fails when it is told to."""
    if when == "entering":
        raise OSError(when)

    async def work() -> None:
        await trouble.wait()
        raise OSError(when)

    async with anyio.create_task_group() as tasks:
        if when == "background":
            tasks.start_soon(work)
        yield "value"
        tasks.cancel_scope.cancel()
    if when == "leaving":
        raise OSError(when)


async def test_trouble_with_entering() -> None:
    """It is raised to whoever opens, as often as that is; there is nothing to close."""
    owned = Owned(working(anyio.Event(), when="entering"))
    for _ in range(2):
        with pytest.raises(OSError, match="entering"):
            await owned.open()
    await owned.close()


async def test_trouble_with_leaving() -> None:
    """It is raised to who closes."""
    owned = Owned(working(anyio.Event(), when="leaving"))
    assert await owned.open() == "value"
    with pytest.raises(OSError, match="leaving"):
        await owned.close()
    await owned.close()


async def test_trouble_in_the_background() -> None:
    """It is logged, because nobody waits for it, and what failed is over."""
    trouble = anyio.Event()
    owned = Owned(working(trouble, when="background"))
    assert await owned.open() == "value"
    with capture_logs() as logs:
        trouble.set()
        with anyio.fail_after(60):
            while not owned.has_ended:
                await anyio.lowlevel.checkpoint()
    assert [entry["log_level"] for entry in logs] == ["error"]
    with pytest.raises(ExceptionGroup):
        await owned.open()
    await owned.close()


async def test_closed_while_it_is_entered() -> None:
    """Who stops waiting leaves it to others; who closes it waits until it is left."""
    owned = Owned(working(anyio.Event(), when="never"))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await owned.open()
    assert scope.cancelled_caught
    assert await owned.open() == "value"
    with anyio.CancelScope() as scope:
        scope.cancel()
        await owned.close()
    assert owned.has_ended


async def test_another_event_loop() -> None:
    """It is refused while the first one lives, whoever asks, and harms nobody."""
    owned = Owned(working(anyio.Event(), when="never"))
    assert await owned.open() == "value"

    async def elsewhere() -> None:
        for attempt in (owned.open, owned.close):
            with pytest.raises(ExaifsError, match="another event loop"):
                await attempt()

    for backend in ("asyncio", "trio"):
        await anyio.to_thread.run_sync(partial(anyio.run, elsewhere, backend=backend))
    assert await owned.open() == "value"
    await owned.close()


def test_an_event_loop_that_was_closed_without_ending_its_tasks() -> None:
    """What was open in it is over; nobody waits for it."""

    async def begin() -> Owned[str]:
        owned = Owned(working(anyio.Event(), when="never"))
        assert await owned.open() == "value"
        return owned

    loop = asyncio.new_event_loop()
    owned = loop.run_until_complete(begin())
    ended = [owned.has_ended]
    loop.close()
    ended.append(owned.has_ended)
    assert ended == [False, True]
    asyncio.run(owned.close())
    del owned
    gc.collect()
