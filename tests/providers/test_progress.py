"""Who waits for an upload is told how far it is."""

from __future__ import annotations

import os

import anyio
import pytest

from tests.providers.conftest import Start
from tests.providers.world import CONTRACTS, Providers, arrived
from tests.support.double import DoubleServer

pytestmark = pytest.mark.anyio

SIZE_BYTES = 500_000


async def test_all_who_wait_are_told(start: Start, providers: Providers) -> None:
    """Bytes done of bytes in all, never less than before, up to the end; also for who did not begin it."""
    openai = start(CONTRACTS["openai"]())
    providers.add("openai", openai)
    told: dict[str, list[tuple[int, int]]] = {"first": [], "second": [], "gone": []}
    async with providers.host(DoubleServer().remote()) as host:
        file = await host.put("a.txt", os.urandom(SIZE_BYTES))

        async def ask(name: str) -> None:
            def tell(done_bytes: int, total_bytes: int) -> None:
                told[name].append((done_bytes, total_bytes))

            await host.service.value(file, "openai", progress=tell)

        with openai.hold():
            async with anyio.create_task_group() as leaving:
                leaving.start_soon(ask, "gone")
                await arrived(openai, 1)
                leaving.cancel_scope.cancel()
            async with anyio.create_task_group() as staying:
                staying.start_soon(ask, "first")
                staying.start_soon(ask, "second")
                openai.gate.set()
        assert openai.counts["upload"] == 1
        assert told["gone"][-1] == (SIZE_BYTES, SIZE_BYTES)

        file = await host.put("a.txt", os.urandom(SIZE_BYTES))
        for steps in told.values():
            steps.clear()
        async with anyio.create_task_group() as both:
            both.start_soon(ask, "first")
            both.start_soon(ask, "second")
        assert openai.counts["upload"] == 2
        for name in ("first", "second"):
            steps = told[name]
            assert steps == sorted(steps)
            assert {total for _, total in steps} == {SIZE_BYTES}
            assert steps[-1] == (SIZE_BYTES, SIZE_BYTES)
        assert told["gone"] == []


async def test_nothing_is_told_where_nothing_is_sent(start: Start, providers: Providers) -> None:
    """A stored id answers at once, without progress."""
    openai = start(CONTRACTS["openai"]())
    providers.add("openai", openai)
    async with providers.host(DoubleServer().remote()) as host:
        await host.put("a.txt", b"content")
        made = await host.id("a.txt", "openai")
        told: list[int] = []
        value, _ = await host.service.value(
            await host.file("a.txt"), "openai", progress=lambda done, _total: told.append(done)
        )
        assert (value.decode(), told) == (made, [])
