"""Runs `exaifs mcp` as clients do, and calls it with the protocol's official client."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import anyio
import httpx
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp_types import CallToolResult, TextContent

from tests.cli.support import clean_environment
from tests.providers.emulator import KEY
from tests.support.mounts import wait_until

START_S = 120.0
END_S = 60.0
"""Less than a provider of these tests keeps an upload waiting."""
CALL_S = 120.0

_URL = re.compile(r"serving MCP .*url=(\S+)\s")


@dataclass(frozen=True, slots=True)
class Project:
    """The environment of a server, and where its logs go."""

    environment: Mapping[str, str]
    directory: Path

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of a server."""
        return [sys.executable, "-m", "exaifs", "mcp", *arguments]

    def whole_environment(self, more: Mapping[str, str] = {}) -> dict[str, str]:
        """Return the environment for a process."""
        return clean_environment({**self.environment, **more})

    def put(self, key: str, data: bytes, mime_type: str = "text/plain") -> None:
        """Upload as a client that knows nothing of exaifs."""
        secret = self.environment["SUPABASE_SERVICE_ROLE_KEY"]
        bucket = self.environment["FILE_STORAGE_BUCKET"]
        httpx.post(
            f"{self.environment['SUPABASE_URL']}/storage/v1/object/{bucket}/{key}",
            content=data,
            headers={
                "apikey": secret,
                "Authorization": f"Bearer {secret}",
                "x-upsert": "true",
                "content-type": mime_type,
            },
            timeout=60,
            trust_env=False,
        ).raise_for_status()

    def check_log(self, text: str, *more_secrets: str) -> None:
        """No log holds a secret, or a crash."""
        for secret in (self.environment["SUPABASE_SERVICE_ROLE_KEY"], KEY, *more_secrets):
            assert secret not in text
        assert "Traceback" not in text, text


@dataclass(frozen=True, slots=True)
class Caller:
    """A connected client."""

    client: Client

    async def result(self, tool: str, **arguments: Any) -> CallToolResult:
        """Call a tool."""
        with anyio.fail_after(CALL_S):
            return await self.client.call_tool(tool, arguments)

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool that works; return what it answers."""
        result = await self.result(tool, **arguments)
        assert not result.is_error, result
        assert result.structured_content is not None
        return cast("dict[str, Any]", result.structured_content)

    async def refused(self, tool: str, **arguments: Any) -> str:
        """Call a tool that refuses; return what a model is told."""
        result = await self.result(tool, **arguments)
        assert result.is_error, result
        (block,) = result.content
        assert isinstance(block, TextContent)
        assert "Traceback" not in block.text
        return block.text

    async def upload(self, path: str, data: bytes, **more: Any) -> dict[str, Any]:
        """Store bytes."""
        return await self.call("upload_file", path=path, base64=base64.b64encode(data).decode(), **more)

    async def download(self, path: str, length: int | None = None) -> bytes:
        """Read a file part by part, as a model would."""
        data, offset, version = b"", 0, ""
        while True:
            length_given = {} if length is None else {"length": length}
            part = await self.call(
                "download_file", path=path, offset=offset, version=version, **length_given
            )
            piece = bytes_of(part)
            assert (len(piece), part["offset"]) == (part["length"], len(data))
            data, version = data + piece, part["version"]
            if part["next_offset"] is None:
                assert len(data) == part["size_bytes"]
                return data
            assert part["next_offset"] > offset
            offset = part["next_offset"]


def bytes_of(part: Mapping[str, Any]) -> bytes:
    """Return the bytes in an answer of download_file."""
    if part["encoding"] == "text":
        return str(part["text"]).encode()
    return base64.b64decode(part["base64"])


@asynccontextmanager
async def stdio_caller(
    project: Project, *arguments: str, mode: str = "auto", more: Mapping[str, str] = {}
) -> AsyncIterator[Caller]:
    """Start a server as a desktop client does."""
    command, *rest = project.command(*arguments)
    parameters = StdioServerParameters(command=command, args=rest, env=project.whole_environment(more))
    path = project.directory / "stdio.log"
    with path.open("a+") as log:
        async with Client(stdio_client(parameters, errlog=log), mode=cast("Any", mode)) as client:
            yield Caller(client)
    project.check_log(path.read_text())


@dataclass(frozen=True, slots=True)
class HttpServer:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def http_server(
    project: Project, *arguments: str, address: str = "127.0.0.1:0", more: Mapping[str, str] = {}
) -> Iterator[HttpServer]:
    """Start a server over HTTP, and end it with SIGTERM."""
    path = project.directory / f"http-{os.urandom(4).hex()}.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            project.command("--http", address, *arguments),
            env=project.whole_environment(more),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: _URL.search(path.read_text()) or process.poll() is not None, START_S, "serving")
        found = _URL.search(path.read_text())
        assert found is not None, path.read_text()
        yield HttpServer(found[1], process, path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_S) == 0, path.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(END_S)
    project.check_log(path.read_text(), *(value for name, value in more.items() if "TOKEN" in name))


@asynccontextmanager
async def http_caller(url: str, *, mode: str = "auto", token: str | None = None) -> AsyncIterator[Caller]:
    """Connect to a server over HTTP."""
    headers = None if token is None else {"Authorization": f"Bearer {token}"}
    async with (
        create_mcp_http_client(headers=headers) as http,
        Client(streamable_http_client(url, http_client=http), mode=cast("Any", mode)) as client,
    ):
        yield Caller(client)
