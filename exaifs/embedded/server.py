"""A real Supabase on loopback for as long as a block runs.

`serve` owns its state directory: one server at a time, whatever an earlier crash left is ended first,
and nothing it starts outlives it. Runs under trio and asyncio.
"""

from __future__ import annotations

import fcntl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import Process
from pydantic import SecretStr

from exaifs.config import load
from exaifs.embedded.install import cli_script, default_install_dir, install
from exaifs.embedded.node import node_command, small_environment
from exaifs.embedded.process import STOP_TIMEOUT_S, end_recorded, last_lines, run, running
from exaifs.embedded.progress import step
from exaifs.embedded.project import LOOPBACK, Project, choose_port
from exaifs.errors import Busy, EmbeddedError, RemoteError, Unreachable
from exaifs.remote.probe import Probe, open_probe
from exaifs.remote.schema import BUCKETS

START_TIMEOUT_S: Final = 120.0
"""A warm start takes one second; a cold, busy machine needs more."""
MIGRATE_TIMEOUT_S: Final = 180.0
_POLL_S: Final = 0.05
_LITE_ENVIRONMENT: Final = {
    "EXPERIMENTAL_STORAGE": "1",
    "LITE_TELEMETRY": "0",
    "DO_NOT_TRACK": "1",
    "LITE_NON_INTERACTIVE": "1",
    "NO_COLOR": "1",
}
_SEARCHED_LINES: Final = 1000


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A Supabase that answers."""

    url: str
    service_key: str = field(repr=False)
    anon_key: str = field(repr=False)
    state_dir: Path
    pid: int
    _process: Process = field(repr=False)

    async def wait_ended(self) -> str:
        """Wait until the server ends by itself, which it should not; return why, on one line."""
        status = await self._process.wait()
        return _obituary(Project(self.state_dir), status)


def env_file_text(server: EmbeddedServer) -> str:
    """Return the two variables that every Supabase program needs, in the form of an env file."""
    return f"SUPABASE_URL={server.url}\nSUPABASE_SERVICE_ROLE_KEY={server.service_key}\n"


@asynccontextmanager
async def serve(
    state_dir: Path, port: int = 0, *, install_dir: Path | None = None
) -> AsyncIterator[EmbeddedServer]:
    """Run the embedded Supabase: installed, migrated, with its buckets, on 127.0.0.1.

    Args:
        state_dir: its keys, database and objects; made if missing, kept afterwards.
        port: 0 takes the port of the last run again, if it is free.
        install_dir: where the Node packages are shared; see `install.default_install_dir`.

    Raises:
        EmbeddedError: it cannot be installed or started, or another one runs on `state_dir`.
    """
    project = Project(state_dir)
    project.create()
    with _sole_use(project):
        await end_recorded(project.process_file, STOP_TIMEOUT_S)
        script = cli_script(await install(install_dir or default_install_dir()))
        keys = project.keys()
        chosen = choose_port(port, project.last_port())
        project.configure(chosen, keys)
        url = f"http://{LOOPBACK}:{chosen}"
        config = load(supabase_url=url, supabase_key=SecretStr(keys.secret_key))
        async with open_probe(config) as probe:
            if project.write_migrations():
                await _migrate(project, script, probe)
            async with _lite(project, script) as process:
                project.remember_port(chosen)
                with step("Starting the embedded Supabase"):
                    await _wait_ready(project, process, partial(_schema_answers, probe))
                    await _wait_ready(project, process, partial(_buckets_are_there, probe))
                yield EmbeddedServer(
                    url, keys.secret_key, keys.publishable_key, project.state_dir, process.pid, process
                )


@contextmanager
def _sole_use(project: Project) -> Iterator[None]:
    """Hold the state directory's lock; the kernel frees it when we end, however we end."""
    with (project.state_dir / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            port = project.last_port()
            where = f" (http://{LOOPBACK}:{port})" if port else ""
            raise EmbeddedError(
                f"another embedded Supabase is running on {project.state_dir}{where}. Stop it first, "
                "or use another state directory."
            ) from None
        yield


async def _migrate(project: Project, script: Path, probe: Probe) -> None:
    """Apply the migrations that are new; lite must not be running meanwhile.

    Supabase's roles and schemas, which migrations refer to, are made by the first start.
    """
    with step("Preparing the database"):
        if project.is_new:
            async with _lite(project, script) as process:
                await _wait_ready(project, process, partial(_storage_answers, probe))
        log = project.state_dir / "migrate.log"
        status: int | None = None
        with anyio.move_on_after(MIGRATE_TIMEOUT_S):
            status = await run(
                node_command(script, "migration", "up"),
                cwd=project.state_dir,
                env=small_environment(_LITE_ENVIRONMENT),
                log=log,
            )
        if status != 0:
            raise EmbeddedError(f"the database schema was not applied: {_reason(log, status)}. Log: {log}")
        project.remember_migrations()


def _lite(project: Project, script: Path) -> AbstractAsyncContextManager[Process]:
    """Run the server process, written down so that a later run finds it if we crash."""
    return running(
        node_command(script, "start", "--host", LOOPBACK, "--no-admin"),
        cwd=project.state_dir,
        env=small_environment(_LITE_ENVIRONMENT),
        log=project.log,
        record=project.process_file,
    )


async def _wait_ready(project: Project, process: Process, answers: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the server answers as asked.

    Raises:
        EmbeddedError: the process ended, or did not answer in time.
    """
    with anyio.move_on_after(START_TIMEOUT_S):
        while not await answers():
            if process.returncode is not None:
                raise EmbeddedError(_obituary(project, process.returncode))
            await anyio.sleep(_POLL_S)
        return
    raise EmbeddedError(
        f"the embedded Supabase did not answer within {START_TIMEOUT_S:.0f} s. Log: {project.log}"
    )


async def _storage_answers(probe: Probe) -> bool:
    """Whether the server is up and takes our key: another program on the port does not know it."""
    try:
        await probe.list_buckets()
    except RemoteError:
        return False
    return True


async def _schema_answers(probe: Probe) -> bool:
    """Whether both halves answer, the database with our tables."""
    try:
        await probe.count_rows("file_metadata")
    except RemoteError:
        return False
    return await _storage_answers(probe)


async def _buckets_are_there(probe: Probe) -> bool:
    """Create them; whether that was done: a server that has just started may be slow once more."""
    try:
        await _create_buckets(probe)
    except (Busy, Unreachable):
        return False
    return True


async def _create_buckets(probe: Probe) -> None:
    existing = {bucket.name for bucket in await probe.list_buckets()}
    for name, size_limit_bytes in BUCKETS.items():
        if name not in existing:
            await probe.create_bucket(name, size_limit_bytes)
        await probe.call("exaifs_register_bucket", p_bucket=name)


def _obituary(project: Project, status: int) -> str:
    return f"the embedded Supabase ended: {_reason(project.log, status)}. Log: {project.log}"


def _reason(log: Path, status: int | None) -> str:
    """Return the line that looks like the reason; never a whole log, which may hold keys."""
    if status is None:
        return "it did not finish in time"
    lines = last_lines(log, _SEARCHED_LINES)
    errors = [line for line in lines if line.lower().startswith("error")]
    return errors[0] if errors else f"exit status {status}, without an explanation"
