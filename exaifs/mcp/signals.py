"""SIGTERM and SIGINT end a server in order; a second one ends it at once."""

from __future__ import annotations

import signal
from collections.abc import Callable

import anyio
import structlog
from anyio.abc import TaskStatus

_log = structlog.get_logger(__name__)


async def ended_by_signal(
    stop: Callable[[], object], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Wait for the first signal, then call `stop`; from there on signals do what they do by default."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        task_status.started()
        async for number in received:
            _log.info("stopping", signal=signal.Signals(number).name)
            break
    stop()
