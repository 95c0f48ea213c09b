from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import httpx
import pytest

from exaifs.embedded import EmbeddedServer, env_file_text, serve
from exaifs.embedded.process import ProcessId
from exaifs.errors import EmbeddedError
from tests.conftest import LITE_DIR, STOP_TIMEOUT_S, environment_for, read_env_file

pytestmark = pytest.mark.embedded

START_TIMEOUT_S = 300.0
KILLED = -9


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One state directory for this module: making a database takes seconds, reusing it a part of one."""
    return tmp_path_factory.mktemp("state") / "of" / "lite"


def headers(key: str) -> dict[str, str]:
    """Return what supabase-py sends for a key."""
    return {"apikey": key, "Authorization": f"Bearer {key}"}


@contextmanager
def client_of(url: str, key: str) -> Iterator[httpx.Client]:
    """Open a client with a key; the empty one sends none."""
    with httpx.Client(
        base_url=url, headers=headers(key) if key else {}, timeout=60, trust_env=False
    ) as client:
        yield client


@contextmanager
def server_process(state_dir: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m exaifs.embedded`; it has ended afterwards."""
    with subprocess.Popen(
        [sys.executable, "-m", "exaifs.embedded", str(state_dir), *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment_for({"EXAIFS_LITE_DIR": str(LITE_DIR)}),
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()


def wait_until(condition: Callable[[], bool], deadline_s: float = 60.0) -> bool:
    """Poll what another process does; tell whether it came true in time."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def lite_of(state_dir: Path) -> ProcessId:
    """Return the server's Node process, as it is written down."""
    found = ProcessId.from_json(json.loads((state_dir / "server.json").read_text()))
    assert found is not None
    return found


def kill_lite(state_dir: Path) -> bool:
    """Kill the server's Node process; tell whether there was one, for it is started more than once."""
    try:
        lite = lite_of(state_dir)
        if lite.runs():
            os.kill(lite.pid, signal.SIGKILL)
            return True
    except (OSError, ValueError):
        pass
    return False


def mode_of(path: Path) -> int:
    """Return the permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_serves_while_the_block_runs_under_both_event_loops(state_dir: Path, backend: str) -> None:
    """`serve` yields a server whose database and storage answer, and it is gone afterwards."""

    async def use() -> EmbeddedServer:
        async with serve(state_dir, install_dir=LITE_DIR) as server:
            with client_of(server.url, server.service_key) as client:
                buckets = {bucket["name"]: bucket for bucket in client.get("/storage/v1/bucket").json()}
                hello = client.post("/rest/v1/rpc/exaifs_hello", json={"p_bucket": "user-files"})
            assert hello.is_success, hello.text
            assert hello.json()["bucket_registered"]
            assert buckets["user-files"]["file_size_limit"] == 52_428_800
            assert buckets["generated-files"]["file_size_limit"] == 10_485_760
            assert not buckets["user-files"]["public"]
            assert not buckets["generated-files"]["public"]
            assert ProcessId.of(server.pid) is not None
            return server

    server = anyio.run(use, backend=backend)
    assert ProcessId.of(server.pid) is None
    assert not (state_dir / "server.json").exists()


def test_only_the_service_key_opens_it(state_dir: Path) -> None:
    """No key, a foreign key and the publishable key see nothing and change nothing."""

    async def use() -> None:
        async with serve(state_dir, install_dir=LITE_DIR) as server:
            with client_of(server.url, server.service_key) as client:
                client.post("/storage/v1/object/user-files/secret.txt", content=b"x").raise_for_status()
            for key in ("", server.anon_key, "sb_secret_wrong"):
                with client_of(server.url, key) as client:
                    assert client.get("/storage/v1/object/user-files/secret.txt").is_error
                    assert client.post("/storage/v1/object/user-files/other.txt", content=b"x").is_error
                    assert client.post(
                        "/rest/v1/rpc/exaifs_hello", json={"p_bucket": "user-files"}
                    ).is_error
                    rows = client.get("/rest/v1/file_metadata")
                    assert rows.is_error or rows.json() == []

    anyio.run(use, backend="trio")


def test_keys_and_port_stay_and_are_private(state_dir: Path) -> None:
    """A second run has the same URL and key; files with keys are for their owner only."""

    async def use() -> str:
        async with serve(state_dir, install_dir=LITE_DIR) as server:
            assert server.service_key not in repr(server)
            assert urlsplit(server.url).hostname == "127.0.0.1"
            return env_file_text(server)

    first, second = anyio.run(use, backend="trio"), anyio.run(use, backend="trio")
    assert first == second
    url, key = first.splitlines()
    assert url.startswith("SUPABASE_URL=http://127.0.0.1:")
    assert key.startswith("SUPABASE_SERVICE_ROLE_KEY=sb_secret_")
    for name in ("keys.json", "lite.log", "supabase/config.toml"):
        assert mode_of(state_dir / name) == 0o600, name
    assert mode_of(state_dir) == 0o700


def test_a_second_server_on_the_same_state_is_refused(state_dir: Path) -> None:
    """Two servers would write one database; the second says where the first is."""

    async def use() -> None:
        async with serve(state_dir, install_dir=LITE_DIR) as server:
            with pytest.raises(EmbeddedError, match=f"another embedded Supabase .*{server.url}"):
                await serve(state_dir, install_dir=LITE_DIR).__aenter__()
            assert ProcessId.of(server.pid) is not None

    anyio.run(use, backend="trio")


def test_cancellation_ends_the_server(state_dir: Path) -> None:
    """A cancelled block leaves no process behind."""

    async def use() -> int:
        pid = 0
        with anyio.CancelScope() as scope:
            async with serve(state_dir, install_dir=LITE_DIR) as server:
                pid = server.pid
                scope.cancel()
                await anyio.sleep_forever()
        return pid

    assert ProcessId.of(anyio.run(use, backend="trio")) is None


def test_kill_9_of_the_parent_ends_the_server(state_dir: Path) -> None:
    """Nothing of ours outlives a parent that had no chance to clean up."""
    with server_process(state_dir) as process:
        read_env_file(process, START_TIMEOUT_S)
        lite = lite_of(state_dir)
        process.kill()
        assert process.wait(STOP_TIMEOUT_S) == KILLED
        assert wait_until(lambda: not lite.runs())


def test_end_of_stdin_ends_the_program(state_dir: Path) -> None:
    """With --until-eof the program lives as long as whoever holds its stdin."""
    with server_process(state_dir, "--until-eof") as process:
        read_env_file(process, START_TIMEOUT_S)
        lite = lite_of(state_dir)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(STOP_TIMEOUT_S) == 0
        assert not lite.runs()


def test_ctrl_c_in_the_terminal_does_not_reach_the_server_itself(state_dir: Path) -> None:
    """The server is a session of its own, so that we decide when it stops."""
    with server_process(state_dir) as process:
        read_env_file(process, START_TIMEOUT_S)
        lite = lite_of(state_dir)
        assert os.getsid(lite.pid) == lite.pid
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_TIMEOUT_S) == 0
        assert not lite.runs()


def test_what_a_crash_left_running_is_ended_first(state_dir: Path) -> None:
    """A process written down by an earlier run is ended; one that only has its number is not."""

    async def use() -> None:
        async with serve(state_dir, install_dir=LITE_DIR):
            pass

    anyio.run(use, backend="trio")
    with subprocess.Popen(["sleep", "600"]) as leftover, subprocess.Popen(["sleep", "600"]) as stranger:
        try:
            identity, other = ProcessId.of(leftover.pid), ProcessId.of(stranger.pid)
            assert identity is not None
            assert other is not None
            record = state_dir / "server.json"
            record.write_text(json.dumps({**asdict(other), "start_time": other.start_time - 1}))
            anyio.run(use, backend="trio")
            assert stranger.poll() is None
            record.write_text(json.dumps(asdict(identity)))
            anyio.run(use, backend="trio")
            assert leftover.wait(STOP_TIMEOUT_S) == -signal.SIGTERM
        finally:
            leftover.kill()
            stranger.kill()


def test_a_taken_port_is_refused_at_once(state_dir: Path) -> None:
    """The error names the port and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        with server_process(state_dir, "--port", str(port)) as process:
            _, errors = process.communicate(timeout=START_TIMEOUT_S)
    assert process.returncode == 1
    assert f"exaifs: port {port} on 127.0.0.1 is taken" in errors.decode()


def test_new_migrations_are_applied_to_an_existing_database(state_dir: Path) -> None:
    """What an older version of exaifs lacks is applied before the server starts, and written down."""

    async def use() -> None:
        async with serve(state_dir, install_dir=LITE_DIR):
            pass

    anyio.run(use, backend="trio")
    record = state_dir / "migrations.json"
    applied = json.loads(record.read_text())
    record.write_text(json.dumps(dict(list(applied.items())[:-1])))
    anyio.run(use, backend="trio")
    assert json.loads(record.read_text()) == applied


def test_a_database_of_another_version_is_brought_up_to_date(state_dir: Path) -> None:
    """A migration that has changed is applied again, with all others, however often; files stay."""
    record = state_dir / "migrations.json"
    kept = "/storage/v1/object/user-files/kept"

    async def use() -> str:
        async with serve(state_dir, install_dir=LITE_DIR) as server:
            with client_of(server.url, server.service_key) as client:
                if client.get(kept).is_error:
                    client.put(kept, content="kept", headers={"x-upsert": "true"}).raise_for_status()
                return client.get(kept).text

    assert anyio.run(use, backend="trio") == "kept"
    first = sorted(json.loads(record.read_text()))
    for _again in range(2):
        applied = json.loads(record.read_text())
        newest = max(applied)
        record.write_text(json.dumps(applied | {newest: "of other SQL"}))
        assert anyio.run(use, backend="trio") == "kept"
        made = sorted(json.loads(record.read_text()).keys() - applied.keys())
        assert [name[12:] for name in made] == [name[12:] for name in first]
        assert made[0] > newest
        log = (state_dir / "migrate.log").read_text()
        assert all(name.removesuffix(".sql") in log for name in made), "lite says what it applied"


def test_a_server_that_dies_while_starting_is_explained(tmp_path: Path) -> None:
    """Its end is noticed at once, not at the deadline; the line holds a reason and the log, no key."""
    with server_process(tmp_path) as process:
        # Until it has ended: what was killed while it was ending anyway says nothing.
        assert wait_until(lambda: not kill_lite(tmp_path) and process.poll() is not None, START_TIMEOUT_S)
        _, errors = process.communicate(timeout=START_TIMEOUT_S)
    assert process.returncode == 1
    lines = [line for line in errors.decode().splitlines() if line.startswith("exaifs: ")]
    assert len(lines) == 1
    assert str(tmp_path / "lite.log") in lines[0]
    assert json.loads((tmp_path / "keys.json").read_text())["secret_key"] not in errors.decode()


def test_fresh_buckets_are_private_to_a_test(fresh_bucket: dict[str, str]) -> None:
    """The fixture's bucket is empty, registered, and named in its environment."""
    with client_of(fresh_bucket["SUPABASE_URL"], fresh_bucket["SUPABASE_SERVICE_ROLE_KEY"]) as client:
        hello = client.post(
            "/rest/v1/rpc/exaifs_hello", json={"p_bucket": fresh_bucket["FILE_STORAGE_BUCKET"]}
        )
        listing = client.post(
            f"/storage/v1/object/list/{fresh_bucket['FILE_STORAGE_BUCKET']}", json={"prefix": ""}
        )
    assert hello.json()["bucket_registered"]
    assert listing.json() == []
