"""One mount, from the mount call to the unmount.

pyfuse3 keeps its session in module globals, so a process has one mount at a time. After an error the
file system stays mounted without an answer (ENOTCONN): an empty directory in its place would be taken
for the truth, and a mirroring program would delete everything elsewhere. Only a clean end unmounts.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import pyfuse3
import structlog
import trio

from exaifs import mountpoint as mountpoints
from exaifs.errors import MountError
from exaifs.fs.upstream.invalidation import Invalidations
from exaifs.fuse.invalidate import KernelCache
from exaifs.fuse.operations import Operations

_log = structlog.get_logger(__name__)

_READ_AHEAD_KIB = 1024
"""What the kernel reads ahead: 1.4 times the throughput of its default of 128 (measured)."""

_MAX_BACKGROUND = 64
"""Requests of the kernel's own accord (read-ahead) at once; its default of 12 starves parallel reads."""

_MIN_TASKS = 8
_MAX_TASKS = 256
"""Handlers at once: enough that readers waiting for the network leave room for everybody else."""

_START_DEADLINE_S = 60.0
"""The kernel greets at once; what takes longer is a machine that stands still."""
_BUSY_GRACE_S = 2.0
"""How long a clean end waits for programs to close their files before it detaches the mount."""
_HANDLER_GRACE_S = 5.0
"""How long a clean end waits for requests that are being answered."""
_LEAST_GRACE_S = 0.5
"""What is left of either for a stop that has used up its time."""
_UNMOUNT_DEADLINE_S = 15.0


class Session:
    """A mount that answers.

    Args:
        mountpoint: as the mount table spells it.
        kernel_cache: stopped before the mount is.
    """

    def __init__(self, mountpoint: Path, kernel_cache: KernelCache) -> None:
        self.mountpoint = mountpoint
        self._kernel_cache = kernel_cache
        self._ended = trio.Event()
        self._device = ""
        self._stop_by = math.inf

    async def wait_ended(self) -> None:
        """Return when somebody has unmounted it.

        Raises:
            MountError: the kernel has cut the connection (`umount -f`, or an abort by the
                administrator); the mountpoint is left failing.
        """
        await self._ended.wait()
        mount = mountpoints.find(self.mountpoint)
        if mount is not None and mount.device == self._device:
            raise MountError(f"the connection to the kernel was cut; {self.mountpoint} no longer answers")

    def hurry(self, stop_by: float) -> None:
        """Have a clean end wait for nobody after this time of trio's clock, but for moments."""
        self._stop_by = stop_by

    def _patience(self, grace_s: float) -> float:
        """Return until when to wait."""
        now = trio.current_time()
        return min(now + grace_s, max(self._stop_by, now + _LEAST_GRACE_S))

    def note_greeting(self) -> None:
        """The kernel has greeted the mount, which is in the mount table by now."""
        mount = mountpoints.find(self.mountpoint)
        if mount is not None:
            self._device = mount.device
            _tune(mount.device)

    async def serve(self) -> None:
        """Answer the kernel until it ends the session."""
        await pyfuse3.main(min_tasks=_MIN_TASKS, max_tasks=_MAX_TASKS)
        self._ended.set()

    async def unmount(self) -> None:
        """Take the mount out of the tree while requests are still answered, then end the loop."""
        with trio.move_on_after(_HANDLER_GRACE_S):
            # While requests are answered: a notice may wait for one of them.
            await self._kernel_cache.stop()
        if not self._ended.is_set():
            await self._detach()
            # With no file open any more, the kernel ends the session by itself.
            pyfuse3.terminate()
            if not await self._ends():
                _log.warning("requests still unanswered at unmount are given up")

    async def _ends(self) -> bool:
        """Wait for the end of the session; tell whether it came."""
        # Twice: a process that was stopped, or a host that slept, wakes up with all the time over.
        for grace_s in (_HANDLER_GRACE_S, _LEAST_GRACE_S):
            with trio.move_on_at(self._patience(grace_s)):
                await self._ended.wait()
                return True
        return False

    async def _detach(self) -> None:
        end = self._patience(_BUSY_GRACE_S)
        lazy = False
        while not self._ended.is_set():
            try:
                await trio.to_thread.run_sync(
                    partial(mountpoints.detach, self.mountpoint, lazy=lazy), abandon_on_cancel=True
                )
            except MountError as exc:
                if lazy:
                    _log.warning("could not unmount", reason=str(exc))
                    return
                # Only what was found in use is detached, however late it is.
                lazy = trio.current_time() >= end
                if not lazy:
                    await trio.sleep(0.1)
            else:
                if lazy:
                    _log.warning("unmounted while files were open", mountpoint=str(self.mountpoint))
                return


@asynccontextmanager
async def mounted(
    operations: Operations,
    invalidations: Invalidations,
    mountpoint: Path,
    *,
    bucket: str,
    read_only: bool,
    allow_other: bool,
) -> AsyncIterator[Session]:
    """Mount, serve while the body runs, and unmount if the body ends without an error.

    Args:
        operations: the handlers.
        invalidations: what the kernel must forget.
        mountpoint: a directory that `exaifs.mountpoint.check` has accepted.
        bucket: shown as the mounted device.
        read_only: let the kernel refuse every change.
        allow_other: let other users in; permissions are checked by the kernel in any case.

    Raises:
        MountError: the kernel refused the mount.
    """
    path = mountpoints.resolved(mountpoint)
    options = _options(bucket=bucket, read_only=read_only, allow_other=allow_other)
    logging.getLogger("pyfuse3").addFilter(_is_news)
    _init(operations, path, options)
    kernel_cache = KernelCache(invalidations)
    session = Session(path, kernel_cache)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.serve)
            with trio.move_on_after(_START_DEADLINE_S) as scope:
                await operations.started.wait()
            if scope.cancelled_caught:
                raise MountError(f"the kernel did not greet the mount within {_START_DEADLINE_S:.0f} s")
            session.note_greeting()
            nursery.start_soon(kernel_cache.run)
            yield session
            with trio.move_on_after(_UNMOUNT_DEADLINE_S, shield=True):
                await session.unmount()
            nursery.cancel_scope.cancel()
    finally:
        # Closes the device: from here on the mount, if it is still there, answers ENOTCONN. The end of
        # the process does the same where a thread still needs the session.
        if not kernel_cache.sending:
            pyfuse3.close(unmount=False)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop what pyfuse3 calls an error when the kernel has withdrawn a request, as any unmount does."""
    return not record.getMessage().endswith(f"fuse_reply_* failed with {os.strerror(errno.ENOENT)}")


def _options(*, bucket: str, read_only: bool, allow_other: bool) -> set[str]:
    # A comma would end the value.
    source = f"exaifs:{bucket}".replace("\\", "\\\\").replace(",", "\\,")
    # No max_read: libfuse ends the session over it unless the INIT handler repeats it, which pyfuse3
    # cannot. Reads arrive in up to 1 MiB without.
    options = {f"fsname={source}", "subtype=exaifs", "default_permissions"}
    if read_only:
        options.add("ro")
    if allow_other:
        options.add("allow_other")
    return options


def _init(operations: Operations, path: Path, options: set[str]) -> None:
    """Mount; libfuse tells the reason of a failure only to standard error, so that is read."""
    with _captured_stderr() as captured:
        failure: RuntimeError | None = None
        try:
            pyfuse3.init(operations, str(path), options)
        except RuntimeError as exc:
            failure = exc
        captured.seek(0)
        said = captured.read().decode("utf-8", "replace").strip().replace("\n", "; ")
    if failure is not None:
        raise MountError(f"cannot mount on {path}: {said or failure}") from failure
    if said:
        _log.warning("libfuse has something to say", text=said)


@contextmanager
def _captured_stderr() -> Iterator[IO[bytes]]:
    """Collect what C code writes to descriptor 2."""
    with tempfile.TemporaryFile() as captured:
        saved = os.dup(2)
        try:
            os.dup2(captured.fileno(), 2)
            yield captured
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _tune(device: str) -> None:
    """Raise the kernel's limits for this mount, where allowed; it works without."""
    minor = device.partition(":")[2]
    for knob, value in (
        (Path(f"/sys/class/bdi/{device}/read_ahead_kb"), _READ_AHEAD_KIB),
        (Path(f"/sys/fs/fuse/connections/{minor}/max_background"), _MAX_BACKGROUND),
    ):
        try:
            knob.write_text(str(value), encoding="ascii")
        except OSError as exc:
            _log.debug("could not tune the mount", knob=str(knob), reason=exc.strerror)
