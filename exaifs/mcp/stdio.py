"""Serving one client over standard input and output.

The SDK reads standard input in a thread, which nothing can interrupt. So it is given a pipe of ours: a task
copies what the client sends, and closing the pipe ends the SDK like a client that has gone.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable

import anyio

from exaifs.config import Config
from exaifs.mcp.server import open_server
from exaifs.mcp.signals import ended_by_signal

_CHUNK_BYTES = 64 * 1024
_FIRST_FD = 3
"""Above the standard streams."""


async def serve_stdio(config: Config, redact: Callable[[str], str]) -> None:
    """Serve until the client closes standard input, or SIGTERM or SIGINT.

    Standard output carries the protocol and nothing else: what anything prints goes to standard error.

    Raises:
        ConfigError: as `open_server`.
    """
    source = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD)
    read_end, write_end = os.pipe()
    os.dup2(read_end, 0)
    os.close(read_end)
    os.set_blocking(write_end, False)
    try:
        async with open_server(config, redact) as server, anyio.create_task_group() as tasks:
            stop = anyio.Event()
            tasks.start_soon(_copy, source, write_end, stop)
            await tasks.start(ended_by_signal, stop.set)
            await server.run_stdio_async()
            tasks.cancel_scope.cancel()
    finally:
        os.close(source)


async def _copy(source: int, target: int, stop: anyio.Event) -> None:
    """Copy until the source ends or `stop` is set; then close the target."""
    try:
        async with anyio.create_task_group() as tasks:

            async def copy() -> None:
                while chunk := await _read(source):
                    await _write(target, chunk)
                tasks.cancel_scope.cancel()

            tasks.start_soon(copy)
            await stop.wait()
            tasks.cancel_scope.cancel()
    finally:
        os.close(target)


async def _read(fd: int) -> bytes:
    try:
        await anyio.wait_readable(fd)
    except PermissionError:  # epoll(7): a regular file, which never lets anybody wait
        await anyio.lowlevel.checkpoint()
    return os.read(fd, _CHUNK_BYTES)


async def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        await anyio.wait_writable(fd)
        view = view[os.write(fd, view) :]
