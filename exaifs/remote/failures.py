"""Foreign failures → the tree of `exaifs.errors`, by table: the only place that knows their shapes.

Storage answers most errors with HTTP 400 and the true status as text in the body; PostgREST uses
SQLSTATEs and its own codes; gateways answer HTML. Messages say what to do next and never hold a key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from exaifs.errors import (
    BucketMissing,
    Busy,
    ExaifsError,
    Exists,
    FileTooLarge,
    IntegrityError,
    KeyExpired,
    NoSpace,
    NotFound,
    Rejected,
    RemoteError,
    SchemaMissing,
    Unauthorized,
    Unreachable,
)

KEY_HELP = (
    "Set SUPABASE_SERVICE_ROLE_KEY to the service_role (or secret) key of this project: "
    "Supabase dashboard, Project Settings > API Keys."
)
SCHEMA_HELP = "Run `exaifs init --apply` once for this project."
PAUSED_HELP = "The project is paused: open it in the Supabase dashboard and choose Restore."

_MESSAGE_CHARS = 200
_SERVER_ERROR = 500
PAUSED = 540
"""Status of the hosted gateway for a paused project (Supabase documentation, HTTP status codes)."""

_TEMPORARY = frozenset({408, 423, 425, 429, 499})
"""Below 500; from there on all count as temporary (544 is the storage server's database timeout)."""

_BUSY_SQLSTATES = ("40001", "40P01", "53", "55P03", "57014", "57P0", "PGRST00")
"""Serialization, deadlock, no resources, lock or statement timeout, shutdown, no connection."""

SCHEMA_CODES = frozenset({"PGRST202", "PGRST205", "42883", "42P01", "3F000"})
"""Unknown function or table, as PostgREST and as PostgreSQL say it."""

KEY_CODES = frozenset({"42501", "PGRST301", "PGRST302", "PGRST303", "InvalidJWT", "AccessDenied"})
"""The token is refused, or its role may not."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What a server said when it did not do as asked."""

    status: int
    """The true one: storage's `statusCode` where there is one."""
    code: str = ""
    message: str = ""
    retry_after_s: float | None = None
    from_supabase: bool = True
    """Whether the body was JSON, as all of Supabase's own errors are."""

    def __str__(self) -> str:
        return " ".join(part for part in (str(self.status), self.code, self.message) if part)


def failure_of(response: httpx.Response) -> Failure:
    """Read an error answer; its body must be there already."""
    body = _json_object(response.content)
    if body is None:
        return Failure(response.status_code, retry_after_s=_retry_after_s(response), from_supabase=False)
    return Failure(
        status=_status(body, response.status_code),
        code=str(body.get("code") or body.get("error") or ""),
        message=str(body.get("message") or body.get("msg") or "")[:_MESSAGE_CHARS],
        retry_after_s=_retry_after_s(response),
    )


def _json_object(content: bytes) -> Mapping[str, Any] | None:
    try:
        value = json.loads(content)
    except ValueError:
        return None
    return value if isinstance(value, Mapping) else None


def _status(body: Mapping[str, Any], http_status: int) -> int:
    text = str(body.get("statusCode") or "")
    return int(text) if text.isascii() and text.isdigit() else http_status


def _retry_after_s(response: httpx.Response) -> float | None:
    """Read either form of Retry-After: seconds, or a date (RFC 9110, section 10.2.3)."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    when = _date(text)
    if when is None:
        return None
    # Meant by the server's clock, which it tells; ours may be wrong.
    now = _date(response.headers.get("date", "")) or datetime.now(UTC)
    return max(0.0, (when - now).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


def storage_error(what: str, failure: Failure) -> ExaifsError:
    """Return the error for an answer of the storage server, or of a gateway before it."""
    text = f"{what}: {failure}"
    # Checked first: a gateway that refuses a large body says so with a page of its own.
    if failure.status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        return FileTooLarge(f"{text}: over the size limit of the bucket or the project")
    general = _general_error(what, failure)
    if general is not None:
        return general
    match failure.status:
        case httpx.codes.NOT_FOUND:
            return _storage_not_found(text, failure)
        case httpx.codes.CONFLICT:
            return Exists(text)
        case httpx.codes.PAYMENT_REQUIRED | httpx.codes.INSUFFICIENT_STORAGE:
            return NoSpace(f"{text}: a quota of the project is used up, see Billing in the dashboard")
        case _:
            return Rejected(text)


def _storage_not_found(text: str, failure: Failure) -> ExaifsError:
    if not failure.code:
        return _nobody_there(text)
    if failure.code == "NoSuchBucket" or "bucket not found" in failure.message.lower():
        return BucketMissing(f"{text}. `exaifs init --apply` creates the bucket.")
    return NotFound(text)


def rest_error(what: str, failure: Failure) -> ExaifsError:
    """Return the error for an answer of PostgREST, or of a gateway before it."""
    if failure.code in SCHEMA_CODES:
        return SchemaMissing(f"{what}: exaifs is not installed in the database. {SCHEMA_HELP}")
    if failure.code.startswith(_BUSY_SQLSTATES):
        return Busy(f"{what}: {failure}", failure.retry_after_s)
    general = _general_error(what, failure)
    if general is not None:
        return general
    if failure.status == httpx.codes.NOT_FOUND and not failure.code:
        return _nobody_there(f"{what}: {failure}")
    return RemoteError(f"{what}: {failure}")


def _nobody_there(text: str) -> ExaifsError:
    """Return the error for a gateway without a Supabase behind it, whose own 404 all have a code."""
    return Unreachable(f"{text}: no Supabase at this address. Check SUPABASE_URL.")


def _general_error(what: str, failure: Failure) -> ExaifsError | None:
    if _is_about_the_key(failure):
        return _key_error(failure.message.lower())
    if failure.status == PAUSED:
        return Unreachable(f"{what}: {PAUSED_HELP}")
    if failure.status == httpx.codes.INSUFFICIENT_STORAGE:
        return None
    if failure.status in _TEMPORARY or failure.status >= _SERVER_ERROR:
        return Busy(f"{what}: the server is busy or out of order ({failure})", failure.retry_after_s)
    if not failure.from_supabase:
        return Unreachable(
            f"{what}: status {failure.status} from something that is not Supabase. "
            "Check SUPABASE_URL, and any proxy in between."
        )
    return None


def _key_error(message: str) -> Unauthorized:
    if "expired" in message or "exp" in message.replace('"', " ").split():
        return KeyExpired(f"the key has expired. {KEY_HELP}")
    return Unauthorized(f"Supabase refused the key. {KEY_HELP}")


def _is_about_the_key(failure: Failure) -> bool:
    if failure.code in KEY_CODES:
        return True
    if failure.status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        return failure.from_supabase
    # The storage server without any key at all: a schema error of its HTTP framework.
    return failure.status == httpx.codes.BAD_REQUEST and "'authorization'" in failure.message


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Translate everything httpx raises.

    Raises:
        Unreachable: no connection, no answer in time, or a broken one.
        IntegrityError: the body to upload had another length than announced.
    """
    try:
        yield
    except httpx.TimeoutException as exc:
        raise Unreachable(f"{what}: no answer in time ({type(exc).__name__})") from exc
    except httpx.ConnectError as exc:
        raise Unreachable(f"{what}: cannot connect to {_server(exc)} ({exc})") from exc
    except httpx.LocalProtocolError as exc:
        raise IntegrityError(f"{what}: the request could not be sent as announced ({exc})") from exc
    except httpx.HTTPError as exc:
        raise Unreachable(f"{what}: the connection broke ({type(exc).__name__} {exc})") from exc


def _server(exc: httpx.RequestError) -> str:
    """Name the server that a request was for, without what else its URL says."""
    try:
        url = exc.request.url
    except RuntimeError:  # it was not sent by a client
        return "Supabase"
    return url.netloc.decode("ascii", "replace").rpartition("@")[2]
