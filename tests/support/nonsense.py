"""A real HTTP server on loopback that answers what a test dictates, down to the bytes on the wire."""

from __future__ import annotations

import json
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

_LINGER_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Request:
    """What a client sent. Header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """Bytes to send, and how the connection ends after them."""

    data: bytes
    reset: bool = False
    stall: bool = False


Script = Callable[[Request], Reply]


def reply(
    status: int = 200,
    body: bytes | object = b"",
    headers: Mapping[str, str] | None = None,
    *,
    length: int | None = -1,
    reset: bool = False,
    stall: bool = False,
) -> Reply:
    """Return an answer; a body that is not bytes is sent as JSON.

    Args:
        status: of the answer.
        body: what follows the headers.
        headers: besides Content-Length.
        length: what to announce; -1 for the truth, None for nothing.
        reset: end with a TCP reset.
        stall: keep the connection open and silent.
    """
    kind = {} if isinstance(body, bytes) else {"content-type": "application/json"}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    announced = len(data) if length == -1 else length
    lines = {**kind, **(headers or {}), "connection": "close"}
    if announced is not None:
        lines["content-length"] = str(announced)
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return Reply(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + data, reset=reset, stall=stall)


def chunked(body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
    """Return a 200 whose length is not announced."""
    framed = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    return reply(200, framed, {**(headers or {}), "transfer-encoding": "chunked"}, length=None)


class NonsenseServer(socketserver.ThreadingTCPServer):
    """Answers by script; remembers all requests."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128
    """A test may come with so many at once; who finds no place comes again after a second, or three."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self.refuses_bodies = False
        """Answer before the body has come, as a server does that will not have it."""
        self._scripts: dict[str, Script] = {}

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def on(self, call: str, *replies: Reply | Script) -> None:
        """Answer requests that begin with `call` (`GET /path`) one after another; the last for ever."""
        left = list(replies)

        def script(request: Request) -> Reply:
            current = left.pop(0) if len(left) > 1 else left[0]
            return current if isinstance(current, Reply) else current(request)

        self._scripts[call] = script

    def answer(self, request: Request) -> Reply:
        """Find the script for a request."""
        self.requests.append(request)
        line = f"{request.method} {request.target}"
        for call, script in self._scripts.items():
            if line.startswith(call):
                return script(request)
        return reply(500, {"message": f"no script for {line}"})

    def seen(self, call: str) -> list[Request]:
        """Return the requests that begin with `call`."""
        return [item for item in self.requests if f"{item.method} {item.target}".startswith(call)]


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = cast("NonsenseServer", self.server)
        line = self.rfile.readline().decode()
        if not line.strip():
            return
        method, target, _ = line.split(" ", 2)
        headers: dict[str, str] = {}
        while (header := self.rfile.readline().decode().strip()) != "":
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", "0"))
        body = b"" if server.refuses_bodies else self.rfile.read(length)
        answer = server.answer(Request(method, target, headers, body))
        self.wfile.write(answer.data)
        self.wfile.flush()
        if answer.stall:
            server.closing.wait()
        if answer.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self.connection.close()


@contextmanager
def nonsense_server() -> Iterator[NonsenseServer]:
    """Serve on a free port of loopback for as long as the block runs."""
    with NonsenseServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join(10)
