"""One question at a time, asked once: what `doctor` and `init` need and a mount does not.

Apart from the client of a mount on purpose: nothing is retried here and the first answer must come within
seconds, because a person waits; and answers are judged with suspicion (a proxy's page, an anon key).
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import httpx

from exaifs import __version__
from exaifs.config import Config
from exaifs.errors import (
    Busy,
    ExaifsError,
    Exists,
    NotFound,
    Rejected,
    SchemaMissing,
    Unauthorized,
    Unreachable,
)
from exaifs.proxies import check_proxies
from exaifs.remote.failures import KEY_CODES, PAUSED, SCHEMA_CODES, failure_of

CONNECT_TIMEOUT_S: Final = 3.0
ANSWER_TIMEOUT_S: Final = 4.0
"""For the first answer, which a healthy project gives in well under a second. Who has given it is there,
and may take as long over the next one as a mount would wait."""

_REFUSED_CODES: Final = KEY_CODES | {"PGRST300"}
"""That PostgREST has nothing to check tokens by is an outage for a mount; for a person it is the key."""
_PAGE_START: Final = 60
"""Characters shown of an answer that is no JSON."""


@dataclass(frozen=True, slots=True)
class BucketInfo:
    """A bucket as the Storage API describes it."""

    name: str
    public: bool
    size_limit_bytes: int | None
    """None: no limit of its own, the project's holds."""
    mime_types: tuple[str, ...] = ()
    """The only types it takes; empty for all."""


class Probe:
    """Asks Supabase single questions.

    Every method raises `Unreachable`, `Unauthorized`, `Busy`, `Rejected` or what it names.

    Args:
        client: has the limits of the first question.
        patience_s: for an answer of who has answered once.
    """

    def __init__(self, client: httpx.AsyncClient, patience_s: float) -> None:
        self._client = client
        self._patience_s = patience_s

    async def list_buckets(self) -> tuple[BucketInfo, ...]:
        """Return the buckets that the key may see; an anon key sees none and gets no error."""
        answer = await self._ask("GET", "/storage/v1/bucket")
        if not isinstance(answer, list):
            raise Unreachable("the Storage API answered with something that is no list of buckets")
        return tuple(_bucket(entry) for entry in answer if isinstance(entry, Mapping))

    async def create_bucket(self, name: str, size_limit_bytes: int | None) -> bool:
        """Create a private bucket; return False if it was there already, as it was."""
        body: dict[str, Any] = {"id": name, "name": name, "public": False}
        if size_limit_bytes is not None:
            body["file_size_limit"] = size_limit_bytes
        try:
            await self._ask("POST", "/storage/v1/bucket", json=body)
        except Exists:
            return False
        return True

    async def count_rows(self, table: str) -> int:
        """Return the number of rows.

        Raises:
            SchemaMissing: no such table, or PostgREST does not know it yet.
        """
        response = await self._send(
            "GET", f"/rest/v1/{quote(table)}?select=*&limit=1", headers={"Prefer": "count=exact"}
        )
        total = response.headers.get("content-range", "").rpartition("/")[2]
        if not total.isdigit():
            raise Unreachable(f"no row count came back for {table}: is a proxy changing the answers?")
        return int(total)

    async def select(self, table: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return rows; `query` is PostgREST's (select, order, limit, filters).

        Raises:
            SchemaMissing: no such table or column.
        """
        answer = await self._ask("GET", f"/rest/v1/{quote(table)}", params=dict(query))
        if not isinstance(answer, list):
            raise Unreachable(f"the database answered with something that is no list of rows of {table}")
        return [row for row in answer if isinstance(row, dict)]

    async def delete(self, table: str, column: str, value: str) -> None:
        """Delete the rows whose column has this value.

        Raises:
            SchemaMissing: no such table or column.
        """
        await self._ask("DELETE", f"/rest/v1/{quote(table)}", params={column: f"eq.{value}"})

    async def call(self, function: str, **arguments: Any) -> Any:
        """Call an SQL function and return its value.

        Raises:
            SchemaMissing: no such function.
        """
        return await self._ask("POST", f"/rest/v1/rpc/{quote(function)}", json=arguments)

    async def _ask(self, method: str, path: str, **more: Any) -> Any:
        response = await self._send(method, path, **more)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            raise Unreachable(_not_supabase(response)) from None

    async def _send(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            response = await self._client.request(method, path, **more)
        except httpx.HTTPError as exc:
            raise Unreachable(explain_transport(exc, self._client.base_url.host)) from exc
        self._client.timeout = httpx.Timeout(self._patience_s, connect=CONNECT_TIMEOUT_S)
        if not response.is_success:
            raise _refusal(response)
        return response


@asynccontextmanager
async def open_probe(config: Config) -> AsyncIterator[Probe]:
    """Open a connection for questions; nothing is sent before the first one.

    Raises:
        ConfigError: a proxy of the environment cannot be used.
    """
    if not config.is_local_server:
        check_proxies()
    timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    headers = {
        "apikey": config.key,
        "Authorization": f"Bearer {config.key}",
        "User-Agent": f"exaifs/{__version__}",
    }
    async with httpx.AsyncClient(
        base_url=config.supabase_url,
        headers=headers,
        timeout=timeout,
        trust_env=not config.is_local_server,
    ) as client:
        yield Probe(client, max(ANSWER_TIMEOUT_S, config.request_timeout_s))


def explain_transport(exc: httpx.HTTPError, host: str) -> str:
    """Say in words why no answer came, without naming any header or body."""
    chain: list[BaseException] = []
    seen: BaseException | None = exc
    while seen is not None and seen not in chain:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    if any(isinstance(link, socket.gaierror) for link in chain):
        return f"the name {host} cannot be resolved"
    if any(isinstance(link, ssl.SSLError) for link in chain):
        return f"no trusted TLS connection to {host}"
    match exc:
        case httpx.ConnectTimeout():
            return f"{host} does not accept the connection within {CONNECT_TIMEOUT_S:g} s"
        case httpx.TimeoutException():
            limit_s = exc.request.extensions["timeout"]["read"]
            return f"{host} accepts the connection but does not answer within {limit_s:g} s"
        case httpx.ConnectError():
            return f"{host} refuses the connection"
        case _:
            return f"the connection to {host} broke ({type(exc).__name__})"


def _refusal(response: httpx.Response) -> ExaifsError:
    """Return the error for an answer that is no success: short, because the caller knows the next step."""
    if response.status_code == PAUSED:
        return Unreachable("the project is paused")
    failure = failure_of(response)
    if not failure.from_supabase:
        return Unreachable(_not_supabase(response))
    if failure.code in SCHEMA_CODES:
        kind: type[ExaifsError] = SchemaMissing
    elif failure.code in _REFUSED_CODES:
        kind = Unauthorized
    elif failure.status >= httpx.codes.INTERNAL_SERVER_ERROR:
        kind = Busy
    else:
        kind = _KINDS.get(failure.status, Rejected)
    return kind(f"{failure.message or failure.code or 'no reason given'} (HTTP {failure.status})")


_KINDS: Final[Mapping[int, type[ExaifsError]]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    409: Exists,
    423: Busy,
    429: Busy,
}


def _not_supabase(response: httpx.Response) -> str:
    # A page that quotes the request must not have our key cut in two, where nobody knows it any more.
    text = response.text.replace(response.request.headers.get("apikey") or "\0", "[redacted]")
    start = " ".join(text.split())[:_PAGE_START]
    kind = response.headers.get("content-type", "").partition(";")[0]
    what = f"{kind or 'no content type'}, {start!r}" if start else "no content"
    return f"what answers there (HTTP {response.status_code}, {what}) is no Supabase"


def _bucket(entry: Mapping[str, Any]) -> BucketInfo:
    limit = entry.get("file_size_limit")
    return BucketInfo(
        name=str(entry.get("id") or entry.get("name") or ""),
        public=entry.get("public") is True,
        size_limit_bytes=int(limit) if isinstance(limit, (int, str)) and str(limit).isdigit() else None,
        mime_types=tuple(str(kind) for kind in entry.get("allowed_mime_types") or ()),
    )
