"""Honest provider servers on loopback: strict, no kindness, faults on command, limits scaled down.

One server class, one contract for each family of APIs (`contracts.py`). Every upload gets a new random id,
bytes are kept, deleted and expired files are gone, wrong requests are refused in the provider's own shape.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Protocol
from urllib.parse import parse_qs, urlsplit

from tests.support.ports import own_port

KEY = "sk-test-0123456789abcdef0123456789abcdef"


class Clock:
    """Time that tests move by hand; seconds since the epoch."""

    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class StoredFile:
    """A file as the server keeps it."""

    id: str
    filename: str
    data: bytes
    purpose: str
    mime_type: str
    created_at: float
    expires_at: float | None = None
    polls_left: int = 0
    """Look-ups until it is processed."""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it arrived."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server says."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> tuple[bytes, str]:
        """Return body and content type; text is HTML."""
        if isinstance(self.body, str):
            return self.body.encode(), "text/html"
        return json.dumps(self.body).encode(), "application/json"


class Refusal(Exception):
    """The contract says no."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(str(answer))
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one request."""

    kind: Literal["answer", "lose", "reset", "truncate", "silence"]
    answer: Answer | None = None


class Contract(Protocol):
    """One provider's API."""

    def authorize(self, request: Request) -> None:
        """Refuse a wrong key or a missing header."""

    def operation(self, request: Request) -> str:
        """Name the call: upload, retrieve, list, delete, or other."""

    def answer(self, server: ProviderServer, request: Request) -> Answer:
        """Do it."""


class ProviderServer:
    """A provider. `files` may be looked at and changed by tests, between requests."""

    def __init__(self, contract: Contract, clock: Callable[[], float] = time.time) -> None:
        self.contract = contract
        self.clock = clock
        self.files: dict[str, StoredFile] = {}
        self.counts: Counter[str] = Counter()
        """Requests by operation."""
        self.keys = {KEY}
        self.gate = threading.Event()
        """Uploads wait here while it is closed, see `hold`."""
        self.gate.set()
        self.stop = threading.Event()
        self.url = ""
        self.lock = threading.Lock()
        self._faults: list[tuple[str, Fault]] = []

    def fail(self, operation: str, fault: Fault | Answer, times: int = 1) -> None:
        """Let the next requests of one kind go wrong."""
        chosen = Fault("answer", fault) if isinstance(fault, Answer) else fault
        self._faults += [(operation, chosen)] * times

    def heal(self) -> None:
        """Forget the faults that have not happened."""
        self._faults.clear()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep uploads waiting until the block ends."""
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()

    def take_fault(self, operation: str) -> Fault | None:
        """Return what goes wrong with this request."""
        with self.lock:
            for place, (wanted, fault) in enumerate(self._faults):
                if wanted in {operation, "any"}:
                    del self._faults[place]
                    return fault
        return None

    def live(self, file_id: str) -> StoredFile | None:
        """Return a file that is neither deleted nor expired."""
        file = self.files.get(file_id)
        if file is not None and file.expires_at is not None and self.clock() >= file.expires_at:
            del self.files[file_id]
            return None
        return file

    def add(self, prefix: str, **fields: Any) -> StoredFile:
        """Keep a new file under a new random id."""
        file = StoredFile(id=f"{prefix}{secrets.token_hex(12)}", created_at=self.clock(), **fields)
        self.files[file.id] = file
        return file

    @property
    def requests(self) -> int:
        """Return how many requests came in all."""
        return self.counts.total()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: ProviderServer

    def log_message(self, *_args: object) -> None:
        """Keep quiet."""

    def _serve(self) -> None:
        server, fault = self.owner, None
        try:
            request = self._read()
            operation = server.contract.operation(request)
            with server.lock:
                server.counts[operation] += 1
            fault = server.take_fault(operation)
            if fault is not None and fault.kind in {"answer", "reset", "silence"}:
                self._go_wrong(fault)
                return
            if operation == "upload":
                server.gate.wait(600)
            with server.lock:
                server.contract.authorize(request)
                answer = server.contract.answer(server, request)
        except Refusal as exc:
            answer = exc.answer
        if fault is not None and fault.kind == "lose":
            self._cut()
            return
        self._send(answer, truncate=fault is not None)

    do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = _serve  # noqa: N815 - names of http.server

    def _read(self) -> Request:
        parts = urlsplit(self.path)
        length = self.headers.get("content-length")
        if self.command in {"POST", "PUT"} and (length is None or self.headers.get("transfer-encoding")):
            raise Refusal(Answer(411, "<html>Length Required</html>"))
        body = self.rfile.read(int(length or 0))
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(self.command, parts.path, query, headers, body)

    def _go_wrong(self, fault: Fault) -> None:
        if fault.kind == "reset":
            self._cut()
        elif fault.kind == "silence":
            self.owner.stop.wait(600)
            self._cut()
        elif fault.answer is not None:
            self._send(fault.answer)

    def _cut(self) -> None:
        """Close with a reset, so that the client sees no orderly end."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _send(self, answer: Answer, *, truncate: bool = False) -> None:
        body, content_type = answer.encoded()
        if truncate:
            body = body[: len(body) // 2]
        self.send_response(answer.status)
        for name, value in {"content-type": content_type, **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_args: object) -> None:
        """Keep quiet: a client that goes away is part of the tests."""


@contextmanager
def running(server: ProviderServer) -> Iterator[ProviderServer]:
    """Serve on a port of 127.0.0.1 that no provider had before.

    An account is told by URL and key: on the port of an earlier test's, its ids would count as this one's.
    """
    handler = type("Handler", (_Handler,), {"owner": server})
    with _Server(("127.0.0.1", own_port()), handler) as http:
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stop.set()
            server.gate.set()
            http.shutdown()
            thread.join(60)
