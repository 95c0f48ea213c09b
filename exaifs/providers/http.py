"""Requests to one provider: one client for all of them, its limits, its errors.

Redirects are not followed: they would carry key and content to somebody else. Requests are not repeated
here; who sends a file knows better when that is safe.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from typing import Any

import httpx

from exaifs import __version__
from exaifs.providers.errors import FileChanged, ProviderProtocolError, ProviderUnreachable
from exaifs.providers.failures import failure, is_error, json_object
from exaifs.providers.settings import ProviderSettings
from exaifs.proxies import check_proxies

_TIMEOUT = httpx.Timeout(connect=5.0, write=60.0, read=300.0, pool=300.0)
"""A provider may think for minutes about a large file before it answers; who waits has a deadline."""

_ASK_TIMEOUT = httpx.Timeout(connect=5.0, write=30.0, read=30.0, pool=60.0)

_MAX_ANSWER_BYTES = 16 * 1024 * 1024

_LOOPBACK = ("all://localhost", "all://127.0.0.1", "all://[::1]")


@cache
def _tls() -> ssl.SSLContext:
    """Read the certificates of this machine once: that takes as long as a request."""
    return httpx.create_ssl_context()


@asynccontextmanager
async def open_http() -> AsyncIterator[httpx.AsyncClient]:
    """Open the client for all providers; nothing is sent yet.

    Raises:
        ConfigError: a proxy of the environment cannot be used.
    """
    check_proxies()
    async with httpx.AsyncClient(
        http2=False,
        verify=_tls(),
        timeout=_ASK_TIMEOUT,
        follow_redirects=False,
        headers={"user-agent": f"exaifs/{__version__}", "accept": "application/json"},
        # A proxy from the environment serves the way out, never the way to this machine.
        mounts=dict.fromkeys(_LOOPBACK),
    ) as client:
        yield client


class ProviderHttp:
    """Requests to one provider.

    Args:
        client: from `open_http`.
        settings: the provider's.
        auth: header that carries the key, and what stands before the key in it.
        headers: sent with every request.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        settings: ProviderSettings,
        *,
        auth: tuple[str, str] = ("authorization", "Bearer "),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.settings = settings
        self._client = client
        self._auth = auth
        self._headers = dict(headers or {})

    async def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
    ) -> Mapping[str, Any]:
        """Send a small request; return the JSON object that came back.

        Raises:
            ProviderError: see `failures`.
        """
        url = f"{self.settings.base_url}/{path}"
        request = self._client.build_request(
            method, url, params=params, json=json, headers=self._all(headers)
        )
        response, content = await self._exchange(request)
        return self._object(response, content)

    async def start(self, path: str, *, headers: Mapping[str, str], json: Any) -> httpx.Headers:
        """Send a small request whose answer is in its headers."""
        url = f"{self.settings.base_url}/{path}"
        request = self._client.build_request("POST", url, json=json, headers=self._all(headers))
        response, content = await self._exchange(request)
        if not response.is_success:
            raise self._failure(response, content)
        return response.headers

    async def send(
        self, url: str, content: AsyncIterable[bytes], size_bytes: int, headers: Mapping[str, str]
    ) -> Mapping[str, Any]:
        """POST a body as it is read; return the JSON object that came back.

        Raises:
            ProviderError: see `failures`.
            FileChanged: the body had another length than announced.
        """
        sized = {**headers, "content-length": str(size_bytes)}
        request = self._client.build_request(
            "POST", url, content=content, headers=self._all(sized), timeout=_TIMEOUT
        )
        response, answer = await self._exchange(request)
        return self._object(response, answer)

    def _all(self, headers: Mapping[str, str] | None) -> dict[str, str]:
        name, scheme = self._auth
        return {**self._headers, **(headers or {}), name: f"{scheme}{self.settings.key}"}

    async def _exchange(self, request: httpx.Request) -> tuple[httpx.Response, bytes]:
        with _translated(self.settings):
            response = await self._client.send(request, stream=True)
            try:
                content = bytearray()
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > _MAX_ANSWER_BYTES:
                        raise ProviderProtocolError(f"{self.settings.name}: an endless answer")
            finally:
                await response.aclose()
        return response, bytes(content)

    def _object(self, response: httpx.Response, content: bytes) -> Mapping[str, Any]:
        if response.is_success and not content.strip():
            return {}
        body = json_object(content) if response.is_success else None
        if body is None or (is_error(body) and "id" not in body and "name" not in body):
            raise self._failure(response, content)
        return body

    def _failure(self, response: httpx.Response, content: bytes) -> Exception:
        error = failure(
            self.settings.name,
            response.status_code,
            content,
            response.headers.get("retry-after", ""),
            (self.settings.key,),
        )
        # A success that cannot be read: whatever was asked for may be done.
        error.may_have_landed = error.may_have_landed or response.is_success
        return error


def _reason(exc: BaseException) -> str:
    """Say why no connection was made: a name that does not exist, a certificate, nobody who listens."""
    kind, cause = type(exc).__name__, exc.__cause__ or exc.__context__
    while not str(exc) and cause is not None:  # httpx says nothing of TLS under trio
        exc, cause = cause, cause.__cause__ or cause.__context__
    return f"{kind}: {exc}" if str(exc) else kind


@contextmanager
def _translated(settings: ProviderSettings) -> Iterator[None]:
    """Translate what httpx raises."""
    where = f"{settings.name} at {settings.host}"
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError) as exc:
        raise ProviderUnreachable(f"{where}: cannot connect ({_reason(exc)})") from exc
    except httpx.LocalProtocolError as exc:
        raise FileChanged(f"{where}: the file had another size than announced") from exc
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise ProviderUnreachable(
            f"{where}: the connection broke ({type(exc).__name__})", may_have_landed=True
        ) from exc
