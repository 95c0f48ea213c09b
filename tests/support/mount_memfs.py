"""Mounts the in-memory file system until SIGTERM: `python -m tests.support.mount_memfs DIR [REPORT]`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import structlog
import trio

from exaifs import logs
from exaifs.fuse.operations import Operations
from exaifs.fuse.session import mounted
from tests.support.memfs import MemFileSystem

_log = structlog.get_logger("memfs")


async def _main(directory: Path, report: Path | None) -> None:
    fs: Any = MemFileSystem(report)
    operations = Operations(fs)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with mounted(
            operations,
            fs.invalidations,
            directory,
            bucket="memory",
            read_only="--ro" in sys.argv,
            allow_other=False,
        ) as session:
            _log.info("mounted")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_signal, signals, nursery.cancel_scope)
                await session.wait_ended()
                nursery.cancel_scope.cancel()
    _log.info("unmounted")


async def _until_signal(signals: Any, scope: trio.CancelScope) -> None:
    async for _signal in signals:
        scope.cancel()
        return


if __name__ == "__main__":
    logs.setup("debug", "json")
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    trio.run(_main, Path(arguments[0]), Path(arguments[1]) if len(arguments) > 1 else None)
