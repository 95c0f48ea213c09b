"""`exaifs dev`: the embedded Supabase, on request with a mount and sample files, until Ctrl-C.

Two children in sessions of their own, stopped in the reverse order of their start: first the mount,
which sends what it still holds and unmounts, then the server. The key travels in the environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import Process
from rich.console import Console
from rich.text import Text

from exaifs import mountpoint
from exaifs.config import load
from exaifs.embedded.files import write_private
from exaifs.embedded.process import end_recorded, last_lines, running
from exaifs.embedded.progress import step
from exaifs.embedded.samples import write_samples
from exaifs.embedded.server import EmbeddedServer, env_file_text, serve
from exaifs.embedded.stopping import until_stopped
from exaifs.errors import EmbeddedError, MountError

BUCKET: Final = "user-files"
MOUNT_TIMEOUT_S: Final = 60.0
SAMPLES_TIMEOUT_S: Final = 60.0
_STOP_MARGIN_S: Final = 15.0
"""Beyond the daemon's own drain deadline, for unmounting and closing its index."""
_LAST_WORDS_S: Final = 2.0
"""How long a daemon that fails may take to end and say why."""
_POLL_S: Final = 0.05


async def run_dev(
    state_dir: Path, port: int, env_file: Path | None, mount: Path | None, *, samples: bool
) -> int:
    """Serve until told to stop; return the exit code. Runs under trio and asyncio.

    Args:
        state_dir: keys, database, objects and cache.
        port: of the server on 127.0.0.1; 0 for the one of the last run, or any.
        env_file: where URL and key are written (mode 0600); None for stdout.
        mount: directory to mount `user-files` at, made if missing; None for the server alone.
        samples: whether to put sample files in at the first mount.

    Raises:
        EmbeddedError: the server or the mount cannot be started, or ended by itself.
        MountError: nothing can be mounted at `mount`.
    """
    if mount is not None:
        await anyio.to_thread.run_sync(_check_mountpoint, mount)
    work = partial(_dev, state_dir, port, env_file, mount, samples=samples)
    code = await until_stopped(work, on_stop=partial(_say_stopping, mounted=mount is not None))
    _say(f"Stopped. Everything is kept in {state_dir} for the next run.")
    return code


async def _dev(
    state_dir: Path, port: int, env_file: Path | None, mount: Path | None, *, samples: bool
) -> int:
    async with serve(state_dir, port) as server:
        _hand_out(server, env_file)
        if mount is None:
            _show_status(server, env_file, None)
            raise EmbeddedError(await server.wait_ended())
        async with _mounted(server, mount) as daemon:
            if samples:
                await _write_samples_once(server, daemon, mount)
            _show_status(server, env_file, mount)
            return await _watch(server, daemon)


def _hand_out(server: EmbeddedServer, env_file: Path | None) -> None:
    """Give URL and key to the user, in the form every tool reads."""
    if env_file is None:
        sys.stdout.write(env_file_text(server))
        sys.stdout.flush()
        return
    try:
        write_private(env_file, env_file_text(server))
    except OSError as exc:
        raise EmbeddedError(
            f"cannot write the env file {env_file}: {exc.strerror}. Name a place that you can write."
        ) from exc


def _check_mountpoint(mount: Path) -> None:
    """Refuse early, before anything is installed or started, what could never be mounted.

    A mount of ours that is alive may be left from a crash: `_mounted` decides, under the lock.
    """
    try:
        mount.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        pass  # no directory, or a stale mount: `check` tells them apart
    except OSError as exc:
        raise MountError(
            f"cannot create the mountpoint {mount}: {exc.strerror}. Name another one."
        ) from exc
    found = mountpoint.find(mount)
    if found is None or not found.is_ours:
        mountpoint.check(mount)


@asynccontextmanager
async def _mounted(server: EmbeddedServer, mount: Path) -> AsyncIterator[Process]:
    """Mount while the block runs, in a child process; at the end it has drained and unmounted."""
    record = server.state_dir / "mount.json"
    stop_timeout_s = load().drain_timeout_s + _STOP_MARGIN_S
    await end_recorded(record, stop_timeout_s)
    await anyio.to_thread.run_sync(mountpoint.check, mount)
    log = server.state_dir / "mount.log"
    try:
        async with running(
            [sys.executable, "-m", "exaifs", "mount", str(mount)],
            env=_mount_environment(server),
            log=log,
            stop_timeout_s=stop_timeout_s,
            record=record,
        ) as daemon:
            with step(f"Mounting at {mount}"):
                await _wait_mounted(mount, daemon, log)
            yield daemon
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(mountpoint.heal, mount)


def _mount_environment(server: EmbeddedServer) -> dict[str, str]:
    """Return our environment, pointed at the embedded server; the key is nowhere else."""
    foreign = ("SUPABASE_",)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {
        **kept,
        "SUPABASE_URL": server.url,
        "SUPABASE_SERVICE_ROLE_KEY": server.service_key,
        "FILE_STORAGE_BUCKET": BUCKET,
        "FILE_CACHE_DIR": str(server.state_dir / "cache"),
    }


async def _wait_mounted(mount: Path, daemon: Process, log: Path) -> None:
    with anyio.move_on_after(MOUNT_TIMEOUT_S):
        while daemon.returncode is None:
            found = mountpoint.find(mount)
            if found is not None and found.is_ours:
                return
            await anyio.sleep(_POLL_S)
    if daemon.returncode is None:
        raise MountError(f"nothing was mounted at {mount} within {MOUNT_TIMEOUT_S:.0f} s. Log: {log}")
    raise MountError(_mount_obituary(daemon.returncode, log))


def _mount_obituary(status: int, log: Path) -> str:
    """Return why the mount ended: its own last words, which it makes one line for people."""
    lines = last_lines(log, 1)
    if lines and lines[0].startswith("exaifs: "):
        return lines[0].removeprefix("exaifs: ")
    return f"the mount ended unexpectedly (exit status {status}). Its log: {log}"


async def _write_samples_once(server: EmbeddedServer, daemon: Process, mount: Path) -> None:
    """Put the sample files in through the mount, unless an earlier run did: deleted ones stay deleted."""
    done = server.state_dir / "samples.done"
    if done.exists():
        return
    log = server.state_dir / "mount.log"
    with step("Putting in a few sample files"):
        try:
            with anyio.fail_after(SAMPLES_TIMEOUT_S):
                await anyio.to_thread.run_sync(write_samples, mount, abandon_on_cancel=True)
        except OSError as exc:
            with anyio.move_on_after(_LAST_WORDS_S):
                raise MountError(_mount_obituary(await daemon.wait(), log)) from exc
            raise EmbeddedError(
                f"the sample files could not be written through the mount: {exc.strerror or 'too slow'}. "
                f"Its log: {log}"
            ) from exc
    done.touch(mode=0o600)


async def _watch(server: EmbeddedServer, daemon: Process) -> int:
    """Wait until one of the two ends. The mount may: `exaifs umount` is a way to stop, too.

    Raises:
        EmbeddedError: it was not meant to end.
    """
    endings: list[str] = []
    async with anyio.create_task_group() as tasks:

        async def server_ended() -> None:
            endings.append(await server.wait_ended())
            tasks.cancel_scope.cancel()

        tasks.start_soon(server_ended)
        status = await daemon.wait()
        tasks.cancel_scope.cancel()
        if status != 0:
            endings.append(_mount_obituary(status, server.state_dir / "mount.log"))
    if endings:
        raise EmbeddedError(endings[0])
    _say("Unmounted; stopping.")
    return 0


def _show_status(server: EmbeddedServer, env_file: Path | None, mount: Path | None) -> None:
    """Say where things are, what to try and how to stop: on stderr, so that stdout is the env file."""
    rows = [("Supabase", f"{server.url}  (embedded, on this machine only)")]
    if env_file is not None:
        rows.append(("Key", f"in {env_file}: set -a; . {env_file}; set +a"))
    if mount is not None:
        rows += [
            ("Files", f"{mount}  (bucket {BUCKET})"),
            ("Try", f"ls -lR {mount}"),
            ("", f"cp /etc/hostname {mount}/"),
            ("", f"getfattr -d {mount}/README.md"),
        ]
    rows.append(("Stop", "Ctrl-C" + (": sends what is left, unmounts, stops everything" if mount else "")))
    _say("")
    for label, text in rows:
        _console().print(Text.assemble((f"  {label:<10}", "bold green"), text), soft_wrap=True)
    _say("")


def _say_stopping(*, mounted: bool) -> None:
    _say("Stopping: sending what is left, unmounting …" if mounted else "Stopping …")


def _say(text: str) -> None:
    _console().print(text, soft_wrap=True)


def _console() -> Console:
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
