"""One HTTP connection pool and one supabase-py client that share it.

supabase-py serves tables and functions; bytes go through httpx directly, because storage3 buffers whole
bodies and rewrites names. No session is signed in and no channel opened: those would start asyncio tasks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import anyio
import httpx
from supabase import AsyncClient, AsyncClientOptions, acreate_client

from exaifs import __version__
from exaifs.config import Config
from exaifs.errors import Unreachable
from exaifs.proxies import check_proxies
from exaifs.remote.failures import failure_of, rest_error, storage_error, translated
from exaifs.remote.lanes import Lane
from exaifs.remote.retry import RetryPolicy
from exaifs.remote.streams import without_generator
from exaifs.remote.wire import foreign_answer

T = TypeVar("T")

_DOWNLOADS = 12
_UPLOADS = 8
_CONNECTIONS = _DOWNLOADS + _UPLOADS + 4
"""Neither direction waits for the other, nor metadata for any of them. More downloads only divide the link,
and pools of proxies in between are often small."""

_CONNECT_S = 5.0
_SLOW_FACTOR = 3.0
"""What moves bytes on the server (copy, move, the end of a PUT) gets so many times the usual limit."""

_WRITE_FACTOR = 2.0
"""As many times the usual limit for a change of a row, all attempts together."""

_READING = frozenset(
    {
        "exaifs_changes",
        "exaifs_file",
        "exaifs_find_content",
        "exaifs_find_provider_ids",
        "exaifs_hello",
        "exaifs_list_directory",
        "exaifs_list_files",
        "exaifs_list_tree",
        "exaifs_search_files",
        "exaifs_stat",
        "exaifs_unused_provider_files",
    }
)
"""Functions that somebody who reads waits for."""

_COUNTING = frozenset({"exaifs_touch"})
"""Functions that must not run twice for one call; all others may."""


@dataclass(frozen=True, slots=True)
class Session:
    """An open connection to one project. One event loop, any number of tasks."""

    http: httpx.AsyncClient
    supabase: AsyncClient
    url: str
    """Without a slash at the end."""
    auth_headers: Mapping[str, str]
    retry: RetryPolicy
    timeout_s: float
    """For one answer."""
    read_timeout_s: float
    """For a read or a listing, all attempts together, while nothing arrives."""
    downloads: Lane
    uploads: Lane

    @property
    def slow_timeout_s(self) -> float:
        """For what makes the server move bytes, all attempts together, while nothing moves."""
        return self.timeout_s * _SLOW_FACTOR

    @property
    def reading(self) -> RetryPolicy:
        """For calls that somebody who reads waits for."""
        return self.retry.within(self.read_timeout_s)

    @property
    def moving(self) -> RetryPolicy:
        """For calls that make the server move bytes."""
        return self.retry.within(self.slow_timeout_s)

    def storage_url(self, path: str) -> str:
        """Return the URL of a path of the storage API; the path is quoted already."""
        return f"{self.url}/storage/v1/{path}"

    async def call(self, function: str, params: Mapping[str, Any], parse: Callable[[Any], T]) -> T:
        """Call an SQL function, again where that may help.

        Args:
            function: its name.
            params: its arguments.
            parse: reads the JSON; raises `Unreachable` for what does not come from our functions.

        Raises:
            RemoteError: see `failures`.
        """
        policy = self.reading if function in _READING else self.retry.within(self.timeout_s * _WRITE_FACTOR)
        if function in _COUNTING:
            policy = policy.once()

        async def attempt() -> T:
            return parse(await self.rpc(function, params))

        return await policy.run(function, attempt)

    async def rpc(self, function: str, params: Mapping[str, Any]) -> Any:
        """Call an SQL function once and return its JSON.

        Raises:
            RemoteError: see `failures`.
        """
        with translated(function):
            try:
                with anyio.fail_after(self.timeout_s):
                    answer = await self.supabase.rpc(function, dict(params)).execute()
            except TimeoutError as exc:
                raise Unreachable(f"{function}: no answer in {self.timeout_s:g} s") from exc
        return answer.data

    async def ask(self, function: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call an SQL function that may be repeated, and return the JSON object it answers with.

        Raises:
            RemoteError: see `failures`.
        """
        answer = await self.retry.run(function, lambda: self.rpc(function, params))
        if not isinstance(answer, Mapping):
            raise foreign_answer(function)
        return answer

    async def storage(
        self,
        what: str,
        method: str,
        path: str,
        *,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        limit_s: float | None = None,
    ) -> Any:
        """Ask the storage API once and return its JSON.

        Raises:
            ExaifsError: see `failures`.
        """
        limit_s = self.timeout_s if limit_s is None else limit_s
        request = self.http.build_request(
            method,
            self.storage_url(path),
            json=json,
            headers={**self.auth_headers, **(headers or {})},
            timeout=self.timeouts(read_s=limit_s),
        )
        with translated(what):
            try:
                with anyio.fail_after(limit_s):
                    response = await self.http.send(request)
            except TimeoutError as exc:
                raise Unreachable(f"{what}: no answer in {limit_s:g} s") from exc
        if not response.is_success:
            raise storage_error(what, failure_of(response))
        return json_of(what, response)

    def timeouts(self, read_s: float | None = None) -> httpx.Timeout:
        """Return the limits of one request; each holds between two steps, not for the whole."""
        return _timeouts(self.timeout_s, read_s)


def _timeouts(timeout_s: float, read_s: float | None = None) -> httpx.Timeout:
    connect_s = min(_CONNECT_S, timeout_s)
    return httpx.Timeout(
        connect=connect_s, read=read_s or timeout_s, write=timeout_s, pool=timeout_s * _SLOW_FACTOR
    )


def json_of(what: str, response: httpx.Response) -> Any:
    """Return the JSON of a success.

    Raises:
        Unreachable: a page that is no JSON.
    """
    try:
        return response.json()
    except ValueError as exc:
        raise foreign_answer(what) from exc


async def _check_rest(response: httpx.Response) -> None:
    """Translate errors of PostgREST where the status is still known; supabase-py drops it."""
    if "/rest/v1/" not in response.request.url.path:
        return
    await response.aread()
    what = response.request.url.path.rpartition("/")[2]
    if not response.is_success:
        raise rest_error(what, failure_of(response))
    if response.content:
        json_of(what, response)


@asynccontextmanager
async def open_session(config: Config) -> AsyncIterator[Session]:
    """Open the pool; nothing is sent yet.

    Raises:
        ConfigError: no server or key is named, the key cannot be one, or a proxy cannot be used.
    """
    config.require_remote()
    if not config.is_local_server:
        check_proxies()
    key = config.key
    timeout_s = config.request_timeout_s
    async with httpx.AsyncClient(
        http2=False,
        limits=httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
        timeout=_timeouts(timeout_s),
        # A proxy from the environment serves the way out, never the way to this machine.
        trust_env=not config.is_local_server,
        headers={"user-agent": f"exaifs/{__version__}"},
        event_hooks={"request": [without_generator], "response": [_check_rest]},
    ) as http:
        yield Session(
            http=http,
            supabase=await _supabase(config.supabase_url, key, http),
            url=config.supabase_url,
            auth_headers={"apikey": key, "authorization": f"Bearer {key}"},
            retry=RetryPolicy(),
            timeout_s=timeout_s,
            read_timeout_s=config.read_timeout_s,
            downloads=Lane(_DOWNLOADS, config.read_timeout_s),
            uploads=Lane(_UPLOADS, timeout_s * _SLOW_FACTOR),
        )


async def _supabase(url: str, key: str, http: httpx.AsyncClient) -> AsyncClient:
    options = AsyncClientOptions(
        httpx_client=http,
        postgrest_client_retry=False,  # it would sleep with asyncio, also under trio
        auto_refresh_token=False,
        persist_session=False,
    )
    return await acreate_client(url, key, options=options)


def identity_of(url: str, bucket: str) -> str:
    """Name a project's bucket without secrets, the same for every spelling of its URL."""
    parts = urlsplit(url)
    default_port = {"http": 80, "https": 443}.get(parts.scheme)
    port = "" if parts.port in {None, default_port} else f":{parts.port}"
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path.rstrip('/')}/{bucket}"
