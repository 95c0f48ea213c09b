"""Serving clients over streamable HTTP.

On a loopback address everybody on this machine may come, but no web page: a browser that was led here by
DNS (rebinding) names another host or another origin. On any other address, or where a token is set, each
request must bring that token. It runs on asyncio, under uvicorn: hypercorn, which runs on trio, ends as a
whole when one client breaks off a request.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

import anyio
import structlog
import uvicorn
from anyio.abc import TaskStatus
from mcp.server.transport_security import TransportSecuritySettings
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exaifs.config import MIB, Config
from exaifs.errors import ConfigError
from exaifs.mcp.bucket import MAX_UPLOAD_BYTES
from exaifs.mcp.events import LargeAnswers
from exaifs.mcp.server import open_server
from exaifs.mcp.signals import ended_by_signal

_log = structlog.get_logger(__name__)

PATH: Final = "/mcp"
MAX_BODY_BYTES: Final = 3 * MAX_UPLOAD_BYTES + MIB
"""The SDK's default is 4 MiB. Base64 makes 16 MiB of content 22 MiB, JSON escapes may triple a text."""

_END_S: Final = 3
"""What calls under way have to end."""

_KEEP_ALIVE_S: Final = 75
"""Longer than clients keep a connection, so that none is closed just as it is used again."""

_MAX_PORT: Final = 65_535


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can come."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Tell whether a name or an address stands for this machine only; unknown names do not."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def address_of(text: str) -> Address:
    """Read HOST:PORT, [IPV6]:PORT, or a port of 127.0.0.1.

    Raises:
        ConfigError: it is neither.
    """
    host, colon, port = text.rpartition(":")
    if not colon:
        host = "127.0.0.1"
    elif host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not (port.isascii() and port.isdigit()) or int(port) > _MAX_PORT:
        raise ConfigError(f"--http: {text!r} is no address; write HOST:PORT, such as 127.0.0.1:8765")
    return Address(host, int(port))


class Guard:
    """Lets only requests through that may come, and ends them when the server does.

    Args:
        app: behind it.
        token: that each must bring; None: not needed.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token
        self._under_way: set[anyio.CancelScope] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it before its body is read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(dict(scope["headers"]))
        if refusal is not None:
            await _refuse(send, *refusal)
            return
        answered: Literal["nothing", "a part", "all"] = "nothing"

        async def noted(message: Message) -> None:
            nonlocal answered
            is_last = message["type"] == "http.response.body" and not message.get("more_body")
            answered = "all" if is_last else "a part"
            await send(message)

        with anyio.CancelScope() as under_way:
            self._under_way.add(under_way)
            try:
                await self._app(scope, receive, noted)
            finally:
                self._under_way.discard(under_way)
        if under_way.cancelled_caught and answered == "nothing":
            await _refuse(send, 503, "the server is stopping: try again in a minute")
        elif under_way.cancelled_caught and answered == "a part":
            await send({"type": "http.response.body", "body": b""})

    def end(self) -> None:
        """Cut off what is under way."""
        for scope in tuple(self._under_way):
            scope.cancel()

    def _refusal(self, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        host = _host_of("//" + headers.get(b"host", b"").decode("latin-1"))
        origin = headers.get(b"origin")
        if self._token is None and not is_loopback(host):
            return 421, "this server answers to loopback names only; set EXAIFS_MCP_TOKEN to serve others"
        if origin is not None and not _may_come_from(_host_of(origin.decode("latin-1")), host):
            return 403, "requests from web pages of other origins are refused"
        if self._token is not None and not _matches(headers.get(b"authorization", b""), self._token):
            return 401, "send the header Authorization: Bearer TOKEN, with this server's EXAIFS_MCP_TOKEN"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            return 413, f"a request has at most {MAX_BODY_BYTES} bytes, a file {MAX_UPLOAD_BYTES}: split it"
        return None


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _may_come_from(origin: str, host: str) -> bool:
    return bool(origin) and (origin == host or (is_loopback(origin) and is_loopback(host)))


def _matches(header: bytes, token: str) -> bool:
    scheme, _, given = header.partition(b" ")
    return hmac.compare_digest(given.strip(), token.encode()) and scheme.lower() == b"bearer"


async def _refuse(send: Send, status: int, reason: str) -> None:
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": reason}}
    body = json.dumps(error).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:  # noqa: PLR2004 - Unauthorized
        headers.append((b"www-authenticate", b'Bearer realm="exaifs"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Server(uvicorn.Server):
    """Leaves signals to `ended_by_signal`: by itself it would end by the signal, not in order."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Take no new requests, wait for those under way, then return from `serve`."""
        self.should_exit = True


async def serve_http(config: Config, address: Address, redact: Callable[[str], str]) -> None:
    """Serve until SIGTERM or SIGINT; calls under way have a few seconds to end. Needs asyncio.

    Args:
        config: all settings, the token too.
        address: where to listen; port 0: a free one, which the log names.
        redact: removes secrets from errors.

    Raises:
        ConfigError: the address is taken or not of this machine, or as `open_server`.
    """
    token = config.mcp_bearer or None
    with closing(_listening(address)) as listener:
        async with open_server(config, redact) as server, anyio.create_task_group() as tasks:
            app = server.streamable_http_app(
                streamable_http_path=PATH,
                max_request_body_size=MAX_BODY_BYTES,
                # The guard looks at both headers, by parsing them.
                transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
            )
            guard = Guard(LargeAnswers(app), token)
            web = _Server(_settings(guard))
            await tasks.start(_end_by_signal, web, guard)
            here = Address(address.host, listener.getsockname()[1])
            _log.info("serving MCP", url=f"http://{here}{PATH}", needs_token=token is not None)
            await web.serve(sockets=[listener])
            tasks.cancel_scope.cancel()


async def _end_by_signal(
    web: _Server, guard: Guard, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    await ended_by_signal(web.stop, task_status=task_status)
    await anyio.sleep(_END_S)
    guard.end()


def _listening(address: Address) -> socket.socket:
    """Listen.

    Raises:
        ConfigError: it cannot be done there.
    """
    is_ipv6 = ":" in address.host
    both = address.host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            (address.host, address.port),
            family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
            dualstack_ipv6=both,
        )
    except OSError as exc:
        raise ConfigError(f"cannot listen at {address}: {exc.strerror or exc}") from exc


def _settings(app: ASGIApp) -> uvicorn.Config:
    for name in ("streamable_http", "streamable_http_manager"):
        # At info they log the ids of sessions, which are good for calls.
        logging.getLogger(f"mcp.server.{name}").setLevel(logging.WARNING)
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=2 * _END_S,
    )
