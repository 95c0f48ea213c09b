"""Standard input and output: nothing but the protocol, and an end in order."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import anyio
import pytest

from tests.cli.support import clean_environment, exaifs
from tests.mcp.served import END_S, Project, stdio_caller
from tests.providers.emulator import ProviderServer
from tests.providers.world import arrived
from tests.support.mounts import wait_until, within

INITIALIZE = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "0"},
}


class Wire:
    """A server, and its two pipes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self.stdin: IO[bytes] = process.stdin
        self.stdout: IO[bytes] = process.stdout
        self._next = 0

    def send(self, line: bytes) -> None:
        """Write a line."""
        self.stdin.write(line + b"\n")
        self.stdin.flush()

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a request; return its answer."""
        self._next += 1
        request = {"jsonrpc": "2.0", "id": self._next, "method": method, "params": params}
        self.send(json.dumps(request).encode())
        while True:
            answer = json.loads(within(120, self.stdout.readline))
            if answer.get("id") == self._next:
                return dict(answer)

    def begin(self) -> None:
        """Shake hands."""
        assert self.ask("initialize", **INITIALIZE)["result"]["serverInfo"]["name"] == "exaifs"
        self.send(json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}).encode())

    def ended(self) -> int:
        """Wait for the end; what is left on standard output is protocol too."""
        code = self.process.wait(END_S)
        for line in self.stdout.read().splitlines():
            assert json.loads(line)["jsonrpc"] == "2.0"
        return code


@contextmanager
def wire(project: Project, *arguments: str, more: Mapping[str, str] = {}) -> Iterator[Wire]:
    """Start a server with pipes of our own."""
    path = project.directory / "wire.log"
    with path.open("ab") as log:
        process = subprocess.Popen(
            project.command(*arguments),
            env=project.whole_environment(more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    with process:
        try:
            yield Wire(process)
        finally:
            if process.poll() is None:
                process.kill()
    project.check_log(path.read_text())


@pytest.mark.embedded
def test_it_ends_with_its_input(project: Project) -> None:
    """A client that closes standard input, before or after it said anything, gets exit code 0."""
    for begin in (False, True):
        with wire(project) as server:
            if begin:
                server.begin()
            server.stdin.close()
            assert server.ended() == 0


@pytest.mark.embedded
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_by_a_signal(project: Project, number: signal.Signals) -> None:
    """While standard input stays open, and a thread waits for it."""
    with wire(project) as server:
        server.begin()
        server.process.send_signal(number)
        assert server.ended() == 0
        assert server.stdin.closed is False


@pytest.mark.embedded
@pytest.mark.anyio
async def test_it_ends_in_the_middle_of_an_upload(project: Project, openai: ProviderServer) -> None:
    """A call under way ends with the client."""
    with openai.hold():
        async with stdio_caller(project) as served:
            await served.call("upload_file", path="a.txt", text="content")
            async with anyio.create_task_group() as tasks:
                arguments = {"path": "a.txt", "provider": "openai"}
                tasks.start_soon(served.client.call_tool, "get_provider_file_id", arguments)
                await arrived(openai, 1)
                tasks.cancel_scope.cancel()
    assert not openai.files or openai.counts["upload"] == 1


@pytest.mark.embedded
def test_noise_does_not_stop_it(project: Project) -> None:
    """Lines that are no messages are passed over; unknown methods and tools are answered."""
    with wire(project) as server:
        server.begin()
        for line in (
            b"",
            b"nonsense",
            b"{}",
            b"[]",
            b"\xff\xfe",
            b'{"jsonrpc":"2.0","method":"x"}',
            b"null",
        ):
            server.send(line)
        assert "error" in server.ask("no/such/method")
        answer = server.ask("tools/call", name="no_such_tool", arguments={})
        assert answer["result"]["isError"] is True
        answer = server.ask("tools/call", name="list_files", arguments={"limit": "many"})
        assert answer["result"]["isError"] is True
        assert "limit" in answer["result"]["content"][0]["text"]
        assert "error" in server.ask("tools/call", name=7)
        answer = server.ask("tools/call", name="list_files", arguments={"prefix": None})
        assert answer["result"]["structuredContent"]["files"] == []
        server.stdin.close()
        assert server.ended() == 0


@pytest.mark.embedded
def test_input_from_a_file(project: Project) -> None:
    """Standard input may be a file, which never makes anybody wait."""
    path = project.directory / "input"
    requests = (
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": INITIALIZE},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
    )
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    with path.open("rb") as file:
        ended = subprocess.run(
            project.command(),
            env=project.whole_environment(),
            stdin=file,
            capture_output=True,
            timeout=120,
            check=False,
        )
    assert ended.returncode == 0
    assert json.loads(ended.stdout.splitlines()[0])["result"]["serverInfo"]["name"] == "exaifs"


@pytest.mark.embedded
def test_a_client_that_is_gone(project: Project) -> None:
    """When the client is killed both pipes break, and the server ends."""
    script = (
        "import subprocess, sys, time\n"
        "server = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE,"
        " stderr=subprocess.DEVNULL)\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, *project.command()],
        env=project.whole_environment(),
        stdout=subprocess.PIPE,
    ) as client:
        assert client.stdout is not None
        pid = int(within(120, client.stdout.readline))
        client.kill()
    wait_until(lambda: not is_running(pid), 120, "the server ends")


def is_running(pid: int) -> bool:
    """Tell whether a process is there and not yet a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123 - gone at any time
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.embedded
@pytest.mark.anyio
async def test_two_servers_share_a_cache(project: Project) -> None:
    """Desktop clients start a server each; they may have one cache directory."""
    async with stdio_caller(project) as first, stdio_caller(project) as second:
        await first.call("upload_file", path="a.txt", text="content")
        assert await second.download("a.txt") == b"content"
        await second.call("delete_file", path="a.txt")
        assert "no file" in await first.refused("stat_file", path="a.txt")


def test_what_stops_it_from_starting(tmp_path: Any) -> None:
    """No project, no key, no place for the cache: one line, exit code 2, nothing on standard output."""
    nothing = exaifs("mcp")
    assert (nothing.code, nothing.stdout) == (2, "")
    assert "SUPABASE_URL" in nothing.complaint
    project = {"SUPABASE_URL": "http://127.0.0.1:9", "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_x" * 3}
    blocked = tmp_path / "file"
    blocked.write_text("")
    unusable = exaifs("mcp", env={**project, "FILE_CACHE_DIR": str(blocked / "cache")})
    assert (unusable.code, "FILE_CACHE_DIR" in unusable.complaint) == (2, True)
    providers = exaifs("mcp", env={**project, "EXAIFS_PROVIDERS": "nobody"})
    assert (providers.code, "EXAIFS_PROVIDERS" in providers.complaint) == (2, True)


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [("mcp", []), ("mcp_types", []), ("mcp", ["--http", "8765"]), ("uvicorn", ["--http", "8765"])],
)
def test_without_the_extra(missing: str, arguments: list[str], tmp_path: Any) -> None:
    """It says what to install, in one line, with exit code 2; help works all the same."""
    environment = clean_environment(
        {
            "SUPABASE_URL": "http://127.0.0.1:9",
            "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_x" * 3,
            "FILE_CACHE_DIR": str(tmp_path),
        }
    )
    for given, code, said in ((arguments, 2, "pip install 'exaifs[mcp]'"), (["--help"], 0, "")):
        script = f"import sys; sys.modules[{missing!r}] = None; from exaifs.cli import main; main()"
        ended = subprocess.run(
            [sys.executable, "-c", script, "mcp", *given],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == code, ended
        assert said in ended.stderr
        assert len(ended.stderr.splitlines()) <= 1


def test_other_commands_do_not_load_it() -> None:
    """The SDK takes a second to import: only `exaifs mcp` pays for it, and its help does not."""
    for arguments in (
        ["--help"],
        ["version"],
        ["mcp", "--help"],
        ["mount", "--help"],
        ["provider", "--help"],
    ):
        script = (
            "import sys\nfrom exaifs.cli import main\n"
            "try:\n    main()\nexcept SystemExit:\n    pass\n"
            "print(sorted({'mcp', 'mcp_types', 'starlette', 'uvicorn', 'exaifs.mcp'} & set(sys.modules)))"
        )
        ended = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert ended.stdout.splitlines()[-1] == "[]", arguments
