"""From callbacks that tell bytes to the protocol's progress notifications."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from mcp.server.mcpserver import Context

from exaifs.remote.bodies import Progress

_PAUSE_S = 0.1
"""Between two notifications; each tells all that happened meanwhile."""

_SEND_S = 5.0
"""How long a client that does not take one may hold the end of a call."""


class _Reporter:
    """Sends the newest of what it is told; changed by synchronous steps only."""

    def __init__(self, context: Context[Any, Any], what: str) -> None:
        self._context = context
        self._what = what
        self._told: tuple[int, int] | None = None
        self._sent: tuple[int, int] | None = None
        self._news = anyio.Event()

    def tell(self, done_bytes: int, total_bytes: int) -> None:
        if self._told is None or done_bytes > self._told[0]:
            self._told = (done_bytes, total_bytes)
            self._news.set()

    async def run(self) -> None:
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            await self.send()
            await anyio.sleep(_PAUSE_S)

    async def send(self) -> None:
        """Send what was not sent, to its end; a client that has gone is told nothing."""
        if self._told is None or self._told == self._sent:
            return
        self._sent = done_bytes, total_bytes = self._told
        # Cut off, nobody would know whether the client has it: the last one would be lost, or told twice.
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError), _to_its_end():
            await self._context.report_progress(done_bytes, total_bytes, f"{self._what}, in bytes")


def _to_its_end() -> anyio.CancelScope:
    return anyio.move_on_after(_SEND_S, shield=True)


@asynccontextmanager
async def reporting(context: Context[Any, Any], what: str) -> AsyncGenerator[Progress]:
    """Give a callback whose (bytes done, bytes in all) the client is told, if it asked for progress.

    Args:
        context: of the call.
        what: is being done, such as "uploading to kimi".
    """
    reporter = _Reporter(context, what)
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reporter.run)
        try:
            yield reporter.tell
        except Exception as exc:  # noqa: BLE001 - raised again below, not in a group
            failure = exc
        finally:
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    await reporter.send()
