"""Servers that answer in ways the embedded Supabase does not: bare, foreign, silent."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import httpx
import psycopg
import pytest

from exaifs.embedded.install import cli_script, install
from exaifs.embedded.node import node_command
from tests.cli.support import clean_environment, jwt
from tests.conftest import LITE_DIR
from tests.support.mounts import wait_until
from tests.support.ports import own_port

JWT_SECRET = "only-for-these-tests-0123456789-abcdefghijklm"
POSTGRES_PASSWORD = "a-pass-word-of-these-tests"
STORAGE_SCHEMA = Path(__file__).parent.parent / "support" / "storage_schema.sql"
CONFIG = """\
[api]
port = {port}

[db]
driver = "pglite"
url = "supabase/.temp/data"

[auth]
enabled = true
enable_signup = false
jwt_secret = "{secret}"

[storage]
enabled = true
"""


@dataclass(frozen=True, slots=True)
class BareSupabase:
    """A Supabase without schema and buckets, which takes the legacy keys."""

    url: str

    def key(self, *, secret: str = JWT_SECRET, **claims: Any) -> dict[str, str]:
        """Return the environment for a key with these claims."""
        return {"SUPABASE_URL": self.url, "SUPABASE_SERVICE_ROLE_KEY": jwt(secret, **claims)}


@pytest.fixture(scope="session")
def bare_supabase(
    embedded_supabase: dict[str, str],  # noqa: ARG001 - it installs the Node packages
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BareSupabase]:
    """Run a Supabase that nobody has prepared: no tables, no buckets."""
    directory = tmp_path_factory.mktemp("bare")
    port = own_port()
    (directory / "supabase").mkdir()
    (directory / "supabase" / "config.toml").write_text(CONFIG.format(port=port, secret=JWT_SECRET))
    script = cli_script(anyio.run(partial(install, LITE_DIR)))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            node_command(script, "start", "--host", "127.0.0.1", "--no-admin"),
            cwd=directory,
            env=clean_environment(
                {"EXPERIMENTAL_STORAGE": "1", "LITE_TELEMETRY": "0", "DO_NOT_TRACK": "1"}
            ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    server = BareSupabase(f"http://127.0.0.1:{port}")
    try:
        _wait_for(server, directory / "log")
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(120)


def _wait_for(server: BareSupabase, log: Path) -> None:
    key = server.key(role="service_role")["SUPABASE_SERVICE_ROLE_KEY"]
    headers = {"apikey": key, "Authorization": f"Bearer {key}"}

    def answers() -> bool:
        """Tell whether both halves do; the first answer may take longer than `doctor` waits."""
        try:
            return all(
                httpx.get(server.url + path, headers=headers, timeout=60, trust_env=False).is_success
                for path in ("/rest/v1/", "/storage/v1/bucket")
            )
        except httpx.TransportError:
            return False

    try:
        wait_until(answers, 180, "the bare Supabase")
    except TimeoutError:
        pytest.fail(f"the bare Supabase did not start: {log.read_text(errors='replace')}")


Answer = tuple[int, dict[str, str], bytes]
FRAMING = frozenset({"content-length", "content-encoding", "transfer-encoding", "connection"})


class Stranger:
    """Starts HTTP servers that are not what they should be."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self.patience_s: list[float] = []
        """How long clients of `silent` waited for an answer before they gave up."""

    def answering(self, status: int, content_type: str, body: bytes) -> str:
        """Start one; return its URL."""
        return self._start(
            lambda _method, _path, _headers, _body: (status, {"Content-Type": content_type}, body)
        )

    def falsifying(self, url: str) -> str:
        """Start a proxy to `url` that changes a byte of every download; return its URL."""

        def flip(method: str, path: str, content: bytes) -> bytes:
            if method == "GET" and path.startswith("/storage/v1/object/"):
                return bytes([content[0] ^ 1]) + content[1:]
            return content

        return self.changing(url, flip)

    def changing(self, url: str, change: Callable[[str, str, bytes], bytes]) -> str:
        """Start a proxy to `url` that changes answers, by method, path and content; return its URL."""
        forward = self._forward(url)

        def answer(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
            status, kept, content = forward(method, path, headers, body)
            return status, kept, change(method, path, content)

        return self._start(answer)

    def expiring(self, url: str, expired: threading.Event) -> str:
        """Start a proxy to `url` that says, while the event is set, that the key has expired."""
        forward = self._forward(url)
        refusal = json.dumps({"code": "PGRST303", "message": "JWT expired"}).encode()

        def answer(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
            if expired.is_set():
                return 401, {"Content-Type": "application/json"}, refusal
            return forward(method, path, headers, body)

        return self._start(answer)

    def _forward(self, url: str) -> Callable[[str, str, dict[str, str], bytes], Answer]:
        client = self._stack.enter_context(httpx.Client(base_url=url, timeout=60, trust_env=False))

        def forward(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
            headers.pop("Host", None)
            answer = client.request(method, path, headers=headers, content=body)
            kept = {name: value for name, value in answer.headers.items() if name not in FRAMING}
            return answer.status_code, kept, answer.content

        return forward

    def _start(self, answer: Callable[[str, str, dict[str, str], bytes], Answer]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length", "0"))
                status, headers, body = answer(
                    self.command, self.path, dict(self.headers.items()), self.rfile.read(length)
                )
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any  # noqa: N815 - the library's names

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
                """Keep the test's output clean."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self._stack.callback(thread.join, 60)
        self._stack.callback(server.server_close)
        self._stack.callback(server.shutdown)
        return f"http://127.0.0.1:{server.server_port}"

    def silent(self) -> str:
        """Listen, but never answer; return the URL. See `patience_s`."""
        listener = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        threading.Thread(target=self._take, args=(listener,), daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    def _take(self, listener: socket.socket) -> None:
        """Take connections until the end, and note how long each client waits."""
        with contextlib.suppress(OSError):
            while True:
                client, _address = listener.accept()
                threading.Thread(target=self._wait, args=(client,), daemon=True).start()

    def _wait(self, client: socket.socket) -> None:
        began_s = time.monotonic()
        with client, contextlib.suppress(OSError):
            while client.recv(65536):
                pass
        self.patience_s.append(time.monotonic() - began_s)


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    """Servers that are not Supabase."""
    with contextlib.ExitStack() as stack:
        yield Stranger(stack)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Run a PostgreSQL of its own; yield its URL, without the name of a database at the end."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
    # It refuses to run as root, and pytest's own directory is closed to every other user.
    become = (
        ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups") if os.geteuid() == 0 else ()
    )
    with tempfile.TemporaryDirectory(prefix="exaifs-postgres-", ignore_cleanup_errors=True) as name:
        directory, bin_dir, port = Path(name), programs[-1].parent, own_port()
        if become:
            shutil.chown(directory, "postgres")
        password = directory / "password"
        password.write_text(POSTGRES_PASSWORD)
        password.chmod(0o644)
        place = [*become, str(bin_dir / "initdb"), "-D", f"{directory}/data", "-U", "postgres", "--no-sync"]
        _run([*place, "-A", "scram-sha-256", f"--pwfile={password}", "--encoding=UTF8", "--locale=C"])
        control = [
            *become,
            str(bin_dir / "pg_ctl"),
            "-D",
            f"{directory}/data",
            "-l",
            f"{directory}/log",
            "-w",
        ]
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={name} -c fsync=off"
        _run([*control, "-o", options, "start"])
        try:
            yield f"postgresql://postgres:{POSTGRES_PASSWORD}@127.0.0.1:{port}"
        finally:
            _run([*control, "-m", "immediate", "stop"])


def _run(command: list[str]) -> None:
    subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=180,
        check=True,
    )


@pytest.fixture
def storage_database(postgres_server: str) -> Iterator[str]:
    """Make a database with the tables of Supabase's storage server; yield its URL."""
    name = "exaifs_storage"
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        try:
            with psycopg.connect(f"{postgres_server}/{name}", autocommit=True) as storage:
                storage.execute(STORAGE_SCHEMA.read_bytes())
            yield f"{postgres_server}/{name}"
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
