"""An HTTP proxy on loopback that does to requests what bad networks and servers in trouble do.

It runs on a thread of its own, so that tests which wait for mounts and processes can steer it. Every
request is read whole before anything happens to it, and so is every answer: what reaches the server, and
what of the answer reaches the client, is exactly what the fault says.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

import h11
import trio

from tests.support.ports import Port

Fault = Literal[
    "drop",
    "lose",
    "reset",
    "partial",
    "truncate",
    "twice",
    "corrupt",
    "corrupt part",
    "429",
    "429 later",
    "500",
    "500 done",
    "503",
    "html",
    "hole",
    "hole done",
]
"""What may happen to a request:

`drop`: the connection ends before the server hears of it. `lose`: the server does it, then the connection
ends without an answer. `reset`: the same with a TCP reset. `partial`: half of the body reaches the server,
then both connections end. `truncate`: the answer's body ends half-way. `twice`: the server gets it two
times, the second answer counts. `corrupt`: one byte of a whole object's download is another; `corrupt
part`: of any download, also of one that asks for a part. `429`, `500`, `503`, `html` (status 200, a page of
HTML): answered by the proxy, never seen by the server; `429 later` says when to come back. `500 done`: the
server did it, and the client is told that it failed. `hole`: no answer for as long as the client waits,
`hole done`: the same after the server did it.
"""

_SENDS_NOTHING: frozenset[Fault] = frozenset({"drop", "429", "429 later", "500", "503", "html", "hole"})

_LONGEST_BODY = 64 << 20
_SHOWN_BYTES = 200
_RESET = struct.pack("ii", 1, 0)
_HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"content-length"}
_PAGE = b"<!doctype html><html><body>Please log in to this network.</body></html>"
_ANSWERS: Mapping[Fault, tuple[int, list[tuple[bytes, bytes]], bytes]] = {
    "429": (429, [(b"content-type", b"text/plain")], b"slow down"),
    "429 later": (429, [(b"retry-after", b"1"), (b"content-type", b"text/plain")], b"slow down"),
    "500": (500, [(b"content-type", b"text/html")], b"<html>broken</html>"),
    "500 done": (500, [(b"content-type", b"text/html")], b"<html>broken</html>"),
    "503": (503, [(b"content-type", b"text/html")], b"<html>come back</html>"),
    "html": (200, [(b"content-type", b"text/html")], _PAGE),
}


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad it is."""

    faults: Mapping[Fault, float] = field(default_factory=dict)
    """The share of requests that meet each, 0 to 1 in total."""
    delay_s: float = 0.0
    """Each request waits at most so long before it is carried, and each answer before it is given."""
    only: str = ""
    """Faults meet requests of which `METHOD /path` contains this."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request, and what became of it."""

    method: str
    target: str
    fault: Fault | None
    status: int | None = None
    """What the server answered, if it was asked and did."""
    asked: str = ""
    """The beginning of a question in JSON."""

    @property
    def changes(self) -> bool:
        """Whether it may change something on the server: no download, and no question."""
        path = self.target.partition("?")[0]
        name = path.rpartition("/")[2]
        asks = path.startswith("/rest/v1/rpc/") and name in _QUESTIONS
        return self.method not in {"GET", "HEAD"} and not asks


_QUESTIONS = {"exaifs_hello", "exaifs_changes", "exaifs_stat", "exaifs_list", "exaifs_list_tree"}

Moment = Literal["arrived", "done", "answered"]
"""Of a request: read by the proxy; carried out by the server; its answer is with the client."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Proxy:
    """Stands before a server; use it as a context manager.

    Args:
        url: the server.
        seed: of everything that happens by chance. Requests meet it in the order in which they arrive.

    `url` is the address to use instead; it stays the same. `weather` and `watch` may be replaced at any
    time, from any thread.
    """

    def __init__(self, url: str, seed: int = 0) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = (parts.hostname, parts.port)
        self._chance = random.Random(seed)
        self._port = Port()
        self.url = f"http://127.0.0.1:{self._port.number}"
        self.weather = Weather()
        self.watch: Callable[[Moment, Exchange], None] | None = None
        """Called by the proxy's thread at each moment of each request."""
        self.met: Counter[str] = Counter()
        """How many requests met each fault, and `none`."""
        self.recent: deque[Exchange] = deque(maxlen=400)
        """The newest requests, for messages of failed tests."""
        self._hanging = False
        self._connections: set[trio.CancelScope] = set()
        self._listener: trio.socket.SocketType | None = None
        self._nursery: trio.Nursery
        self._token: trio.lowlevel.TrioToken
        self._started = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,), name="proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(120)
        self.serve()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._nursery.cancel_scope.cancel)
        self._thread.join(60)
        self._port.close()

    # -- steering, from the test's thread ------------------------------------------------------------

    def serve(self) -> None:
        """Carry requests as the weather lets them; what hung until now is cut."""
        self._do(self._serve)

    def refuse(self) -> None:
        """Refuse connections and cut those there are, as a host does whose server is down."""
        self._do(self._refuse)

    def hang(self) -> None:
        """Take connections and requests, and never answer, as behind a broken route."""
        self._hanging = True

    def clear(self) -> None:
        """Carry everything, at once and unchanged."""
        self.weather = Weather()
        self.serve()

    def _do(self, function: Callable[[], object]) -> None:
        trio.from_thread.run_sync(function, trio_token=self._token)

    # -- on the proxy's thread -----------------------------------------------------------------------

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._nursery:
            self._started.set()
            await trio.sleep_forever()

    def _serve(self) -> None:
        if self._hanging:
            self._hanging = False
            self._cut()
        if self._listener is None:
            listener = socket.create_server(("127.0.0.1", self._port.number), backlog=128)
            listener.setblocking(False)  # noqa: FBT003 - the socket module's own signature
            self._listener = trio.socket.from_stdlib_socket(listener)
            self._nursery.start_soon(self._accept, self._listener)

    def _refuse(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self._hanging = False
        self._cut()

    def _cut(self) -> None:
        for scope in self._connections:
            scope.cancel()

    async def _accept(self, listener: trio.socket.SocketType) -> None:
        with listener, suppress(trio.ClosedResourceError):
            while True:
                near, _address = await listener.accept()
                self._nursery.start_soon(self._talk, listener, trio.SocketStream(near))

    async def _talk(self, listener: trio.socket.SocketType, near: trio.SocketStream) -> None:
        """Answer the requests of one connection until it ends; none once new ones are refused."""
        scope = trio.CancelScope()
        self._connections.add(scope)
        try:
            with scope, suppress(trio.BrokenResourceError, h11.RemoteProtocolError):
                connection = h11.Connection(h11.SERVER)
                while listener is self._listener and await self._answer_one(near, connection):
                    connection.start_next_cycle()
        finally:
            self._connections.discard(scope)
            near.socket.close()

    async def _answer_one(self, near: trio.SocketStream, connection: h11.Connection) -> bool:
        """Serve one request; tell whether another may follow."""
        message = await _receive(near, connection)
        if message is None:
            return False
        request, body = message
        assert isinstance(request, h11.Request)
        asked = body[:_SHOWN_BYTES].decode("utf-8", "replace") if body[:1] == b"{" else ""
        seen = Exchange(request.method.decode(), request.target.decode(), self._meet(request), asked=asked)
        answer = await _unless_gone(near, lambda: self._exchange(request, body, seen))
        if seen.fault == "reset":
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        if answer is None:
            return False
        await _give(near, connection, request, answer, truncated=seen.fault == "truncate")
        self._tell("answered", seen)
        return {connection.our_state, connection.their_state} == {h11.DONE}

    def _meet(self, request: h11.Request) -> Fault | None:
        roll = self._chance.random()
        if self.weather.only not in f"{request.method.decode()} {request.target.decode()}":
            return None
        for fault, share in self.weather.faults.items():
            roll -= share
            if roll < 0:
                fits = request.method == b"GET" if fault == "corrupt part" else True
                if fault == "corrupt":
                    fits = request.method == b"GET" and not _header(request.headers, b"range")
                self.met[fault if fits else "none"] += 1
                return fault if fits else None
        self.met["none"] += 1
        return None

    async def _exchange(self, request: h11.Request, body: bytes, seen: Exchange) -> _Answer | None:
        """Do one request as its fault says; return what the client gets, None if that is nothing."""
        fault = seen.fault
        self._tell("arrived", seen)
        await self._wait()
        answer: _Answer | None = None
        if fault not in _SENDS_NOTHING:
            answer = await self._carried(request, body, fault)
            seen = replace(seen, status=None if answer is None else answer.status)
            self._tell("done", seen)
        self.recent.append(seen)
        await self._wait()
        if fault in {"hole", "hole done"}:
            await trio.sleep_forever()
        if fault in {"drop", "lose", "reset", "partial"}:
            return None
        if fault is not None and fault in _ANSWERS:
            return _Answer(*_ANSWERS[fault])
        spoils = answer is not None and fault in {"corrupt", "corrupt part"}
        return self._corrupted(answer) if answer is not None and spoils else answer

    def _tell(self, moment: Moment, seen: Exchange) -> None:
        if self.watch is not None:
            self.watch(moment, seen)

    async def _wait(self) -> None:
        await trio.sleep(self._chance.uniform(0, self.weather.delay_s))
        if self._hanging:
            await trio.sleep_forever()

    async def _carried(self, request: h11.Request, body: bytes, fault: Fault | None) -> _Answer | None:
        """Have the server do it; return its answer, or None when there is none."""
        if fault == "partial":
            await self._send_half(request, body)
            return None
        answer = await self._ask(request, body)
        return await self._ask(request, body) if fault == "twice" else answer

    async def _ask(self, request: h11.Request, body: bytes) -> _Answer | None:
        try:
            far = await trio.open_tcp_stream(*self._target)
        except OSError:
            return None
        connection = h11.Connection(h11.CLIENT)
        async with far:
            try:
                await far.send_all(_bytes(connection, _forwarded(request, body)))
                if body:
                    await far.send_all(_bytes(connection, h11.Data(data=body)))
                await far.send_all(_bytes(connection, h11.EndOfMessage()))
                message = await _receive(far, connection)
            except (trio.BrokenResourceError, h11.RemoteProtocolError):
                return None
        if message is None:
            return None
        head, content = message
        assert isinstance(head, h11.Response)
        return _Answer(head.status_code, [(name, value) for name, value in head.headers], content)

    async def _send_half(self, request: h11.Request, body: bytes) -> None:
        with suppress(OSError, trio.BrokenResourceError):
            async with await trio.open_tcp_stream(*self._target) as far:
                head = _bytes(h11.Connection(h11.CLIENT), _forwarded(request, body))
                await far.send_all((head + body)[: len(head) + len(body) // 2 if body else len(head) // 2])

    def _corrupted(self, answer: _Answer) -> _Answer:
        if not answer.body or answer.status not in {200, 206}:
            return answer
        position = self._chance.randrange(len(answer.body))
        body = bytearray(answer.body)
        body[position] ^= 1 << self._chance.randrange(8)
        return _Answer(answer.status, answer.headers, bytes(body))


async def _unless_gone(
    near: trio.SocketStream, work: Callable[[], Awaitable[_Answer | None]]
) -> _Answer | None:
    """Do the work, unless the client hangs up before: what it gave up does not happen later.

    Returns:
        What the work returned; None if the client is gone.
    """
    results: list[_Answer | None] = []
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            with suppress(trio.BrokenResourceError):
                early = await near.receive_some(1)
                assert not early, "the client sends more before it has an answer"
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        results.append(await work())
        nursery.cancel_scope.cancel()
    return results[0] if results else None


def _header(headers: h11._headers.Headers, name: bytes) -> bytes | None:
    return next((value for found, value in headers if found == name), None)


def _forwarded(request: h11.Request, body: bytes) -> h11.Request:
    headers = [(name, value) for name, value in request.headers if name not in _HOP_BY_HOP]
    if body or request.method not in {b"GET", b"HEAD"}:
        headers.append((b"content-length", str(len(body)).encode()))
    headers.append((b"connection", b"close"))
    return h11.Request(method=request.method, target=request.target, headers=headers)


def _bytes(connection: h11.Connection, event: h11.Event) -> bytes:
    return connection.send(event) or b""


async def _receive(
    stream: trio.SocketStream, connection: h11.Connection
) -> tuple[h11.Request | h11.Response, bytes] | None:
    """Read one whole message; None when the other side has closed instead.

    Raises:
        h11.RemoteProtocolError: what comes is no HTTP.
        trio.BrokenResourceError: the connection broke.
    """
    head: h11.Request | h11.Response | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                await stream.send_all(
                    _bytes(connection, h11.InformationalResponse(status_code=100, headers=[]))
                )
            connection.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Request | h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            assert len(body) <= _LONGEST_BODY, "no test sends as much"
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            return head, bytes(body)
        elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            return None


async def _give(
    near: trio.SocketStream,
    connection: h11.Connection,
    request: h11.Request,
    answer: _Answer,
    *,
    truncated: bool,
) -> None:
    """Send an answer, or with `truncated` half of its body."""
    headers = [(name, value) for name, value in answer.headers if name not in _HOP_BY_HOP]
    bodiless = request.method == b"HEAD" or answer.status in {204, 304}
    if not bodiless:
        headers.append((b"content-length", str(len(answer.body)).encode()))
    head = _bytes(connection, h11.Response(status_code=answer.status, headers=headers))
    if truncated:
        await near.send_all(head + answer.body[: len(answer.body) // 2])
        return
    body = b"" if bodiless or not answer.body else _bytes(connection, h11.Data(data=answer.body))
    await near.send_all(head + body + _bytes(connection, h11.EndOfMessage()))
