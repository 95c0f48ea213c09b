"""The composition root: builds everything bottom-up, serves one mount, and ends it in order.

Start-up errors are raised before anything is mounted. Once mounted, only two things end the daemon
cleanly: somebody unmounts, or a signal. Anything else leaves the mountpoint failing (see `fuse.session`).
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import structlog
import trio

from exaifs import mountpoint as mountpoints
from exaifs.cache.directory import locked_directory, unsent_elsewhere
from exaifs.config import Config
from exaifs.errors import KeyExpired, MountError, RemoteError, Unreachable
from exaifs.fs.filesystem import FileSystem
from exaifs.fs.operations.provider_ids import OpenProviderIds
from exaifs.fuse.operations import Operations
from exaifs.fuse.session import Session, mounted
from exaifs.limits import memory_limit_bytes, memory_tier_bytes, raise_descriptor_limit
from exaifs.providers.service import ProviderService
from exaifs.providers.settings import load_providers
from exaifs.providers.source import CachedContents
from exaifs.remote.client import open_remote
from exaifs.remote.interface import Hello, Remote
from exaifs.systemd import notify

_log = structlog.get_logger(__name__)

_LAST_DRAIN_S = 1.0
"""At least this long for what programs wrote while the mount was being taken away."""


def daemonize(log_path: Path) -> Callable[[], None]:
    """Go to the background: the original process waits for the mount and exits, this one goes on.

    Call it before any thread or event loop starts. Until the returned function is called (when mounted),
    messages still go to the terminal, and if this process ends before, the original one exits with its
    code. From then on standard output and error go to `log_path`.

    Args:
        log_path: appended to; made readable for the owner only.

    Raises:
        MountError: the log cannot be written.
    """
    try:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise MountError(f"cannot write the log {log_path}: {exc.strerror}. Name another file.") from exc
    sys.stdout.flush()
    sys.stderr.flush()
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child:
        os.close(write_end)
        _wait_for_child(child, read_end)
    os.close(read_end)
    os.setsid()
    return partial(_leave_terminal, log, write_end)


def _wait_for_child(child: int, read_end: int) -> None:
    """Exit as soon as the child is ready, or with the code it ended with."""
    if os.read(read_end, 1):
        os._exit(0)
    _pid, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    # Not sys.exit: this process must not run the clean-up that belongs to the child.
    os._exit(code if code >= 0 else 128 - code)


def _leave_terminal(log: int, write_end: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)
    os.chdir("/")
    os.write(write_end, b"1")
    os.close(write_end)


async def run(
    config: Config,
    mountpoint: Path,
    *,
    ready: Callable[[], None] = lambda: None,
    nonempty: bool = False,
) -> int:
    """Mount the configured bucket and serve it until it is unmounted or a signal asks to stop.

    Args:
        config: validated settings.
        mountpoint: where to mount.
        ready: called once the mount answers.
        nonempty: allow a mountpoint that hides files.

    Returns:
        0 after a clean end.

    Raises:
        ConfigError: server or key missing.
        MountError: mountpoint, FUSE device or cache directory in the way.
        RemoteError: the server refused, or cannot be reached and nothing is known locally.
    """
    config.require_remote()
    raise_descriptor_limit()
    config = _within_memory(config)
    await trio.to_thread.run_sync(
        partial(mountpoints.check, mountpoint, nonempty=nonempty, allow_other=config.allow_other)
    )
    path = mountpoints.resolved(mountpoint)
    async with AsyncExitStack() as stack:
        remote = await stack.enter_async_context(open_remote(config))
        directory = stack.enter_context(locked_directory(config.cache_dir, remote.identity, path))
        await trio.to_thread.run_sync(_tell_of_others, directory)
        hello, problem = await _greet(remote)
        try:
            fs = await stack.enter_async_context(
                FileSystem.open(config, remote, directory, hello, path, open_providers=_providers(config))
            )
        except (OSError, sqlite3.Error) as exc:
            raise MountError(
                f"cannot use the cache directory {directory}: {exc}. Free the disk, make it writable, or "
                "set FILE_CACHE_DIR to another directory."
            ) from exc
        if problem is not None:
            _accept_offline(config, problem, known=fs.is_known())
        return await _serve(config, fs, path, online=hello is not None, ready=ready)


def _within_memory(config: Config) -> Config:
    """Take no more for the memory tier than this process's control groups leave room for."""
    limit_bytes = memory_limit_bytes()
    allowed_bytes = memory_tier_bytes(config.memory_cache_bytes, limit_bytes)
    if allowed_bytes == config.memory_cache_bytes:
        return config
    _log.info(
        "the memory cache is smaller than MAX_MEMORY_CACHE_SIZE: this process may take little memory",
        size_bytes=allowed_bytes,
        configured_bytes=config.memory_cache_bytes,
        process_limit_bytes=limit_bytes,
    )
    return config.model_copy(update={"memory_cache_bytes": allowed_bytes})


def _providers(config: Config) -> OpenProviderIds | None:
    """Return what opens the file ids at providers; None where no provider is turned on.

    Raises:
        ConfigError: their settings are wrong.
    """
    providers = load_providers(config.providers_file, config.providers)
    if providers is None:
        return None
    return lambda remote, contents: ProviderService.open(
        providers, remote.catalog, CachedContents(contents)
    )


def _tell_of_others(directory: Path) -> None:
    for place, waiting in unsent_elsewhere(directory).items():
        _log.warning(
            "unsent files of another bucket or project are kept here; only a mount of that one sends them",
            cache=str(place),
            waiting=waiting,
        )


async def _greet(remote: Remote) -> tuple[Hello | None, RemoteError | None]:
    """Prove the key; return what the server said, or why it could not be asked.

    As patient as anybody who reads: a first mount has nothing to fall back on.

    Raises:
        RemoteError: the server answered, and refused, but for a key that was good once.
    """
    try:
        return await remote.catalog.hello(), None
    except RemoteError as exc:
        if not (exc.temporary or isinstance(exc, KeyExpired)):
            raise
        return None, exc


def _accept_offline(config: Config, problem: RemoteError, *, known: bool) -> None:
    """Go on without the server where that makes sense.

    Raises:
        Unreachable, KeyExpired: it must be online, or there is nothing to serve.
    """
    url = config.supabase_url
    if isinstance(problem, KeyExpired):
        if config.require_online or not known:
            raise problem
        _log.warning("the key has expired, serving what is known until a mount with a new one", url=url)
        return
    if config.require_online or not known:
        why = "--require-online is set" if known else "Nothing is cached yet, so there is nothing to serve"
        raise Unreachable(
            f"cannot reach Supabase at {url}: {str(problem).rstrip('.')}. {why}. Check SUPABASE_URL and "
            "the network, and that the project is not paused."
        )
    _log.warning("Supabase cannot be reached, serving what is known", url=url, reason=str(problem))


async def _serve(
    config: Config, fs: FileSystem, path: Path, *, online: bool, ready: Callable[[], None]
) -> int:
    stopping = _Stopping()
    async with trio.open_nursery() as nursery:
        await nursery.start(stopping.run)
        await nursery.start(fs.run)
        async with mounted(
            Operations(fs),
            fs.invalidations,
            path,
            bucket=config.bucket,
            read_only=config.read_only,
            allow_other=config.allow_other,
        ) as session:
            state = "online" if online else "offline"
            notify("READY=1", f"STATUS=serving {config.bucket} at {path} ({state})")
            ready()
            _log.info("mounted", bucket=config.bucket, mountpoint=str(path), state=state)
            end = await _until_stopped(session, stopping, fs, config.drain_timeout_s)
            session.hurry(end)
        left_s = max(end - trio.current_time(), _LAST_DRAIN_S)
        unsent = await stopping.unless_hurried(partial(fs.drain, left_s))
        if unsent is None:
            unsent = await fs.drain(0)
        nursery.cancel_scope.cancel()
    if unsent:
        _log.warning(
            "files not sent; they are kept in the cache directory for the next mount", files=unsent
        )
    _log.info("unmounted", mountpoint=str(path))
    return 0


async def _until_stopped(session: Session, stopping: _Stopping, fs: FileSystem, drain_s: float) -> float:
    """Wait for the end; after a signal drain while still answering. Returns when `drain_s` are over."""
    await _first(session.wait_ended, stopping.asked.wait)
    notify("STOPPING=1", "STATUS=sending what was written")
    end = trio.current_time() + drain_s
    if stopping.asked.is_set():
        _log.info("stopping: sending what was written", deadline_s=drain_s)
        await stopping.unless_hurried(partial(fs.drain, drain_s))
    return end


class _Stopping:
    """Signals: the first asks for an orderly stop, a second one for a quick one."""

    def __init__(self) -> None:
        self.asked = trio.Event()
        self._hurried = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen. A terminal that closes (SIGHUP) asks for a stop too, unless nohup(1) said otherwise."""
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        with trio.open_signal_receiver(*numbers) as signals:
            task_status.started()
            await self._listen(signals)

    async def _listen(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            _log.debug("signal", name=signal.Signals(number).name)
            if self.asked.is_set():
                self._hurried.set()
            self.asked.set()

    async def unless_hurried(self, work: Callable[[], Awaitable[int]]) -> int | None:
        """Do the work, or return None as soon as there is a second signal."""
        results: list[int] = []

        async def keep() -> None:
            results.append(await work())

        await _first(keep, self._hurried.wait)
        return results[0] if results else None


async def _first(*waits: Callable[[], Awaitable[object]]) -> None:
    """Return when one of them returns; the others are cancelled."""
    async with trio.open_nursery() as nursery:

        async def wait(what: Callable[[], Awaitable[object]]) -> None:
            await what()
            nursery.cancel_scope.cancel()

        for what in waits:
            nursery.start_soon(wait, what)
