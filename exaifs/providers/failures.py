"""Answers of providers → the exceptions of `errors`, by table: the only place that knows their shapes.

OpenAI, Kimi     {"error": {"message", "type", "code"}}
Anthropic        {"type": "error", "error": {"type", "message", "details": {"error_code"}}}
Gemini           {"error": {"code", "message", "status", "details": [{"reason"}]}}
GLM              {"code", "message"}, perhaps inside "error"
Mistral          {"detail": [...]} or {"message"}
gateways         HTML
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from exaifs.providers.errors import (
    ProviderBusy,
    ProviderError,
    ProviderFileInvalid,
    ProviderFileTooLarge,
    ProviderKeyRejected,
    ProviderOutage,
    ProviderProtocolError,
    ProviderQuota,
    ProviderRefused,
)

_BY_CODE: Mapping[str, type[ProviderError]] = {
    "request_too_large": ProviderFileTooLarge,
    "file_too_large": ProviderFileTooLarge,
    "435": ProviderFileTooLarge,
    "insufficient_quota": ProviderQuota,
    "exceeded_current_quota_error": ProviderQuota,
    "storage_quota_exceeded": ProviderQuota,
    "billing_error": ProviderQuota,
    "billing_hard_limit_reached": ProviderQuota,
    "1113": ProviderQuota,
    "1304": ProviderQuota,
    "1308": ProviderQuota,
    "1310": ProviderQuota,
    "api_key_invalid": ProviderKeyRejected,
    "invalid_api_key": ProviderKeyRejected,
    "invalid_authentication_error": ProviderKeyRejected,
    "incorrect_api_key_error": ProviderKeyRejected,
    "authentication_error": ProviderKeyRejected,
    **dict.fromkeys(("1000", "1001", "1002", "1003", "1004"), ProviderKeyRejected),
    "content_filter": ProviderRefused,
    "permission_error": ProviderRefused,
    "1301": ProviderRefused,
    "1112": ProviderRefused,
    "1121": ProviderRefused,
    "434": ProviderRefused,
    "1302": ProviderBusy,
    "1303": ProviderBusy,
    "1305": ProviderBusy,
}
"""The provider's own words decide before the status: 429 may be money, 400 may be the key."""

_BY_STATUS: Mapping[int, type[ProviderError]] = {
    401: ProviderKeyRejected,
    402: ProviderQuota,
    403: ProviderRefused,
    404: ProviderProtocolError,
    405: ProviderProtocolError,
    413: ProviderFileTooLarge,
    429: ProviderBusy,
    434: ProviderRefused,
    435: ProviderFileTooLarge,
    507: ProviderQuota,
}

_BY_TEXT: tuple[tuple[re.Pattern[str], type[ProviderError]], ...] = (
    # Kimi tells these apart by their text only.
    (re.compile(r"(?i)max(?:imum)? file count|too many files|number of files"), ProviderQuota),
    (
        re.compile(r"(?i)too large|exceeds? (?:the )?(?:max\w* |size|file size|limit of)"),
        ProviderFileTooLarge,
    ),
    (re.compile(r"(?i)api key not valid"), ProviderKeyRejected),
)

_SURELY_NOT_STORED = frozenset({429, 503, 529})
_CLIENT_ERROR, _SERVER_ERROR = 400, 500
_MESSAGE_CHARS = 300


def failure(
    name: str, status: int, content: bytes, retry_after: str = "", secrets: tuple[str, ...] = ()
) -> ProviderError:
    """Return the error for an answer that is no success.

    Args:
        name: of the provider, for the message.
        status: HTTP status.
        content: the body.
        retry_after: the header.
        secrets: removed from what the provider said; some repeat the key.
    """
    body = json_object(content)
    codes = [] if body is None else list(dict.fromkeys(_codes(body)))
    said = "" if body is None else _message(body)
    for secret in secrets:
        said = said.replace(secret, "[redacted]")
    kind = _kind(status, codes, said)
    named = [code for code in codes if code != str(status)]
    words = [part for part in (*named[:2], said[:_MESSAGE_CHARS]) if part] or [_phrase(status)]
    text = " ".join((str(status), *words)).rstrip()
    help_ = _HELP.get(kind)
    return kind(
        f"{name}: {text}" if help_ is None else f"{name}: {text.rstrip('.')}. {help_}",
        status=status,
        code=codes[0] if codes else "",
        retry_after_s=_seconds(retry_after),
        may_have_landed=status >= _SERVER_ERROR and status not in _SURELY_NOT_STORED,
    )


_HELP: Mapping[type[ProviderError], str] = {
    ProviderKeyRejected: "Set a valid API key for this provider.",
    ProviderQuota: "Free space there (`exaifs provider prune`), or check the account's billing.",
    ProviderProtocolError: "Check the provider's base_url.",
}


def _phrase(status: int) -> str:
    """Return what a status is called, for answers that say nothing else: pages of gateways."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _kind(status: int, codes: list[str], said: str) -> type[ProviderError]:
    for code in codes:
        if code.lower() in _BY_CODE:
            return _BY_CODE[code.lower()]
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status >= _SERVER_ERROR:
        return ProviderOutage
    if status < _CLIENT_ERROR and not codes:
        return ProviderProtocolError
    matching = (kind for pattern, kind in _BY_TEXT if pattern.search(said))
    return next(matching, ProviderFileInvalid)


def json_object(content: bytes) -> Mapping[str, Any] | None:
    """Return the body if it is a JSON object."""
    try:
        value = json.loads(content)
    except ValueError:
        return None
    return value if isinstance(value, Mapping) else None


def is_error(body: Mapping[str, Any]) -> bool:
    """Tell whether a body says that something failed, whatever the status was."""
    return bool(body.get("error")) or ("code" in body and "message" in body)


def _codes(body: Mapping[str, Any]) -> Iterator[str]:
    error = body.get("error")
    for part in (error, body) if isinstance(error, Mapping) else (body,):
        details = part.get("details")
        for detail in details if isinstance(details, list) else [details]:
            if isinstance(detail, Mapping):
                yield from _texts(detail, "error_code", "reason")
        yield from _texts(part, "code", "type", "status")


def _texts(part: Mapping[str, Any], *names: str) -> Iterator[str]:
    for name in names:
        value = part.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and value not in {"", "error"}:
            yield str(value)


def _message(body: Mapping[str, Any]) -> str:
    error = body.get("error")
    found = error.get("message") if isinstance(error, Mapping) else error
    found = found or body.get("message") or body.get("msg") or body.get("detail") or ""
    text = found if isinstance(found, str) else json.dumps(found)
    return " ".join(text.split())


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 <= seconds < 1e6 else None  # noqa: PLR2004 - a number, not infinity and not nonsense
