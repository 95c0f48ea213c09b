"""Streamable HTTP: who may come, what is too large, and an end in order."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import pytest

from exaifs.errors import ConfigError
from exaifs.mcp.http import MAX_BODY_BYTES, Address, address_of, is_loopback
from tests.mcp.served import CALL_S, END_S, START_S, HttpServer, Project, http_caller, http_server
from tests.providers.emulator import ProviderServer
from tests.providers.world import arrived
from tests.support.gate import Gate
from tests.support.ports import own_port

TOKEN = "t0ken-of-these-tests-0123456789abcdef"
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
ACCEPT = {"accept": "application/json, text/event-stream"}


def post(url: str, body: Any = PING, **headers: str) -> httpx.Response:
    """Send a request as any program may."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    whole = {**ACCEPT, "content-type": "application/json", **headers}
    return httpx.post(url, content=content, headers=whole, timeout=60, trust_env=False)


def tool_call(tool: str, arguments: str) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a call in the present protocol; the arguments as JSON."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = f'{{"name":"{tool}","arguments":{arguments},"_meta":{json.dumps(meta)}}}'
    body = f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}'
    headers = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": tool}
    return body.encode(), {**ACCEPT, "content-type": "application/json", **headers}


@pytest.fixture
def server(project: Project) -> Iterator[HttpServer]:
    """A server on loopback, without a token."""
    with http_server(project) as server:
        yield server


@pytest.fixture
def guarded(project: Project) -> Iterator[HttpServer]:
    """A server that others can reach, with a token."""
    with http_server(project, address="0.0.0.0:0", more={"EXAIFS_MCP_TOKEN": TOKEN}) as server:
        yield server


def test_addresses() -> None:
    """HOST:PORT, [IPV6]:PORT, or a port; anything else is refused."""
    assert address_of("127.0.0.1:8765") == Address("127.0.0.1", 8765)
    assert address_of("8765") == Address("127.0.0.1", 8765)
    assert address_of("[::1]:0") == Address("::1", 0)
    assert str(address_of("[::1]:8765")) == "[::1]:8765"
    assert address_of("localhost:1").is_loopback
    for bad in (
        "",
        ":8765",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:x",
        "::1:8765",
        "a:70000",
        "a:-1",
        "a:\u0661",
    ):
        with pytest.raises(ConfigError, match="--http"):
            address_of(bad)


def test_loopback() -> None:
    """Only what surely is this machine counts as this machine."""
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST"):
        assert is_loopback(host)
    for host in ("", "0.0.0.0", "::", "10.0.0.1", "localhost.example.com", "127.0.0.1.nip.io", "host"):  # noqa: S104 - never bound
        assert not is_loopback(host)


@pytest.mark.embedded
def test_web_pages_stay_out(server: HttpServer) -> None:
    """On loopback nothing is asked of programs; a browser that was led here by DNS names another host."""
    port = urlsplit(server.url).port
    assert post(server.url).status_code == 400  # it came through: only a session is missing
    for host in ("localhost", "localhost:1", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert post(server.url, host=host).status_code == 400
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.nip.io", "127.0.0.1@evil.example"):
        assert post(server.url, host=host).status_code == 421
    for origin in ("http://localhost:3000", f"http://127.0.0.1:{port}"):
        assert post(server.url, origin=origin).status_code == 400
    for origin in ("http://evil.example", "null", "https://localhost.evil.example", "http://[", "file://"):
        assert post(server.url, origin=origin).status_code == 403
    with httpx.Client(timeout=60, trust_env=False) as client:
        assert client.get(server.url, headers={"host": "evil.example"}).status_code == 421
        assert client.options(server.url, headers={"origin": "http://evil.example"}).is_error


@pytest.mark.embedded
@pytest.mark.anyio
async def test_with_a_token(guarded: HttpServer) -> None:
    """Beyond loopback each request brings the token; nearly right is wrong."""
    url = guarded.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - the server's own address
    async with http_caller(url, token=TOKEN) as served:
        await served.call("upload_file", path="a.txt", text="x")
    wrong = ("", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN)
    for header in wrong:
        answer = await anyio.to_thread.run_sync(partial(post, url, authorization=header))
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert TOKEN not in answer.text
    for header in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN}"):
        answer = await anyio.to_thread.run_sync(
            partial(post, url, authorization=header, host="files.example.com")
        )
        assert answer.status_code == 400
    right = {"authorization": f"Bearer {TOKEN}", "origin": "https://evil.example"}
    answer = await anyio.to_thread.run_sync(partial(post, url, **right))
    assert answer.status_code == 403


@pytest.mark.embedded
def test_a_token_from_a_file_counts_on_loopback_too(project: Project) -> None:
    """Who sets a token wants it, wherever the server listens."""
    path = project.directory / "token"
    path.write_text(TOKEN + "\n")
    with http_server(project, more={"EXAIFS_MCP_TOKEN_FILE": str(path)}) as server:
        assert post(server.url).status_code == 401
        assert post(server.url, authorization=f"Bearer {TOKEN}").status_code == 400


@pytest.mark.embedded
def test_it_does_not_start_unguarded(project: Project) -> None:
    """Any address but loopback needs a token: one line, exit code 2, and nothing listens."""
    for address in ("0.0.0.0:0", "[::]:0", "10.0.0.1:8765", "files.example.com:8765"):
        code, said = run(project, "--http", address)
        assert code == 2
        assert "EXAIFS_MCP_TOKEN" in said
    code, said = run(project, "--http", "nonsense")
    assert (code, "HOST:PORT" in said) == (2, True)
    code, said = run(project, "--http", "0.0.0.0:0", more={"EXAIFS_MCP_TOKEN_FILE": "/nonexistent"})
    assert (code, "/nonexistent" in said) == (2, True)
    empty = project.directory / "empty"
    empty.write_text("\n")
    for address in ("0.0.0.0:0", "127.0.0.1:0"):  # a secret that did not arrive is not a wish for none
        code, said = run(project, "--http", address, more={"EXAIFS_MCP_TOKEN_FILE": str(empty)})
        assert (code, f"{empty} is empty" in said) == (2, True)
    for token in ("with space", "tökén"):
        code, said = run(project, "--http", "0.0.0.0:0", more={"EXAIFS_MCP_TOKEN": token})
        assert code == 2
        assert token not in said


@pytest.mark.embedded
def test_a_taken_address(server: HttpServer, project: Project) -> None:
    """The address is named, in one line."""
    code, said = run(project, "--http", f"127.0.0.1:{urlsplit(server.url).port}")
    assert code == 2
    assert "cannot listen at 127.0.0.1" in said


def run(project: Project, *arguments: str, more: Mapping[str, str] = {}) -> tuple[int, str]:
    """Run a server that does not start; return its exit code and what it said."""
    ended = subprocess.run(
        project.command(*arguments),
        env=project.whole_environment(more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


@pytest.mark.embedded
def test_requests_that_are_too_large(server: HttpServer) -> None:
    """A request over the limit is refused before its body is read, and the limit is named."""
    host, port = urlsplit(server.url).hostname, urlsplit(server.url).port
    with socket.create_connection((host, port), timeout=60) as announcing:
        head = f"POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-length: {MAX_BODY_BYTES + 1}\r\n\r\n"
        announcing.sendall(head.encode())
        answer = b""
        while str(MAX_BODY_BYTES).encode() not in answer:
            answer += announcing.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413")
    streamed = httpx.post(
        server.url,
        content=(bytes(1 << 20) for _ in range((MAX_BODY_BYTES >> 20) + 2)),
        headers={**ACCEPT, "content-type": "application/json"},
        timeout=60,
        trust_env=False,
    )
    assert streamed.status_code == 413


@pytest.mark.embedded
def test_clients_that_break_off(server: HttpServer) -> None:
    """Nothing a client sends or leaves out, before it may come, ends the server for others."""
    host, port = urlsplit(server.url).hostname, urlsplit(server.url).port
    head = b"POST /mcp HTTP/1.1\r\nhost: localhost\r\n"
    for sent in (
        head,
        head + b"content-length: 1000\r\n\r\nhalf",
        head + b"content-length: 99999999999\r\n\r\n",
        head + b"content-length: -1\r\n\r\n",
        head + b"transfer-encoding: chunked\r\n\r\nffff\r\nhalf",
        head + b"transfer-encoding: chunked\r\n\r\nnonsense",
        head + b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: x\r\n\r\nx",
        b"GET /mcp HTTP/1.1\r\nhost: evil.example\r\ncontent-length: 5\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0" * 100_000,
    ):
        for abort in (False, True):
            with socket.create_connection((host, port), timeout=60) as client:
                with suppress(OSError):
                    client.sendall(sent)
                if abort:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert post(server.url).status_code == 400
    assert server.process.poll() is None


@pytest.mark.embedded
@pytest.mark.parametrize(
    "path", ['"a\\ud800"', '"\\udce9"', '"\\u0000"', '["a"]', "1", '{"a":1}', "null"], ids=repr
)
def test_arguments_that_no_client_sends(server: HttpServer, path: str) -> None:
    """Half pairs, NUL and other types are answered like any mistake; the server lives on."""
    body, headers = tool_call("stat_file", f'{{"path":{path}}}')
    answer = post(server.url, body, **headers)
    assert answer.status_code in {200, 400}
    if answer.status_code == 200:
        assert answer.json()["result"]["isError"] is True
    assert post(server.url).status_code == 400


@pytest.mark.embedded
@pytest.mark.anyio
async def test_read_only(project: Project) -> None:
    """What changes something is not offered, by flag and by environment, and cannot be called."""
    reading = {
        "list_files",
        "search_files",
        "stat_file",
        "download_file",
        "get_signed_url",
        "list_providers",
    }
    for arguments, more in ((("--read-only",), {}), ((), {"EXAIFS_READ_ONLY": "true"})):
        with http_server(project, *arguments, more=more) as server:
            async with http_caller(server.url) as served:
                assert {tool.name for tool in (await served.client.list_tools()).tools} == reading
                assert "upload_file" in await served.refused("upload_file", path="a", text="x")
                assert (await served.call("list_files"))["files"] == []


@pytest.mark.embedded
@pytest.mark.anyio
async def test_while_supabase_is_away(project: Project) -> None:
    """What is cached is read again when it is back; until then a sentence, soon, and no traceback."""
    with Gate(project.environment["SUPABASE_URL"]) as gate:
        more = {"SUPABASE_URL": gate.url, "EXAIFS_REQUEST_TIMEOUT_S": "10"}
        with http_server(project, more=more) as server:
            async with http_caller(server.url) as served:
                await served.call("upload_file", path="a.txt", text="content")
                gate.close()
                for tool, arguments in (
                    ("stat_file", {"path": "a.txt"}),
                    ("list_files", {}),
                    ("upload_file", {"path": "b.txt", "text": "x"}),
                    ("delete_file", {"path": "a.txt"}),
                ):
                    said = await served.refused(tool, **arguments)
                    assert "Supabase cannot be reached" in said
                    assert str(project.directory) not in said
                gate.open()
                assert await served.download("a.txt") == b"content"


@pytest.mark.embedded
@pytest.mark.anyio
async def test_a_refused_key(project: Project) -> None:
    """The user is told whom to ask; the key is not shown."""
    more = {"SUPABASE_SERVICE_ROLE_KEY": "sb_secret_wrong-key-of-these-tests"}
    with http_server(project, more=more) as server:
        async with http_caller(server.url) as served:
            said = await served.refused("list_files")
            assert "refuses this server's key" in said
            assert "wrong-key" not in said
        assert "wrong-key-of-these" not in server.log.read_text()


@pytest.mark.embedded
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order(project: Project, number: signal.Signals) -> None:
    """Also while clients are connected; the port is free afterwards, the exit code 0."""
    port = own_port()
    for _ in range(2):
        with http_server(project, address=f"127.0.0.1:{port}") as server:
            with httpx.Client(timeout=60, trust_env=False) as idle:
                idle.post(server.url, json=PING, headers=ACCEPT)
                server.process.send_signal(number)
                assert server.process.wait(END_S) == 0
            assert "stopping" in server.log.read_text()


ENDED_AS_IT_SAYS_SO = """
import os, signal, anyio, structlog
from exaifs.config import load
from exaifs.mcp.http import Address, serve_http

def end(_logger, _name, event):
    if event["event"] == "serving MCP":
        os.kill(os.getpid(), signal.SIGTERM)
    return event

structlog.configure(processors=[end, structlog.processors.JSONRenderer()])
anyio.run(serve_http, load(), Address("127.0.0.1", 0), str)
"""


@pytest.mark.embedded
def test_it_ends_in_order_as_soon_as_it_says_that_it_serves(project: Project) -> None:
    """Who waited for that line may end it at once."""
    ended = subprocess.run(
        [sys.executable, "-c", ENDED_AS_IT_SAYS_SO],
        env=project.whole_environment(),
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "stopping" in ended.stdout


@pytest.mark.embedded
@pytest.mark.anyio
async def test_it_ends_while_a_call_is_under_way(project: Project, openai: ProviderServer) -> None:
    """A call that hangs does not hold the end up for longer than a few seconds."""
    with openai.hold(), http_server(project) as server:
        async with http_caller(server.url) as served:
            await served.call("upload_file", path="a.txt", text="content")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hanging_call, server.url)
            await arrived(openai, 1)
            server.process.send_signal(signal.SIGTERM)
            assert await anyio.to_thread.run_sync(server.process.wait, END_S) == 0


async def hanging_call(url: str) -> None:
    """Call, and be cut off."""
    body, headers = tool_call("get_provider_file_id", '{"path":"a.txt","provider":"openai"}')
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        with suppress(httpx.HTTPError):
            await client.post(url, content=body, headers=headers)


@pytest.mark.embedded
@pytest.mark.anyio
async def test_cancelling_an_upload(project: Project) -> None:
    """The file is there whole, or not at all; the server goes on, and the next upload works."""
    data = os.urandom(12_000_000)
    arguments = {"path": "a.bin", "base64": base64.b64encode(data).decode()}
    with (
        Gate(project.environment["SUPABASE_URL"]) as gate,
        http_server(project, more={"SUPABASE_URL": gate.url}) as server,
    ):
        async with http_caller(server.url) as served, anyio.create_task_group() as tasks:

            async def tell(progress: float, total: float | None, message: str | None) -> None:
                assert (total, message) == (len(data), "storing, in bytes")
                assert progress <= len(data)
                gate.hang()
                tasks.cancel_scope.cancel()

            with anyio.fail_after(CALL_S):
                await served.client.call_tool("upload_file", arguments, progress_callback=tell)
                await anyio.sleep_forever()
        gate.close()
        gate.open()
        async with http_caller(server.url) as served:
            found = (await served.call("list_files"))["files"]
            assert [file["size_bytes"] for file in found] in ([], [len(data)])
            await served.call("upload_file", **arguments)
            assert await served.download("a.bin") == data
