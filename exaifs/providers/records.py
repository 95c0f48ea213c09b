"""The record of a file id, as a row keeps it. Pure values: when it is good, and for what."""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MAX_ID_BYTES = 1024
_MAX_MARGIN_S = 3600.0
_FRESH_UPLOAD_S = 3600.0
"""An upload this young is not checked: it was there a moment ago. Nor is what somebody has just told us:
who sets an attribute finds that value in it."""

_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.\d+)?(?:Z|z|\+00:?00)")


def is_id(value: Any) -> bool:
    """Tell whether this can be a provider's id: printable ASCII, not too long."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= _MAX_ID_BYTES
        and value.isascii()
        and value.isprintable()
        and value == value.strip()
    )


def to_time(seconds: float | None) -> str | None:
    """Write seconds since the epoch as rows keep them."""
    return None if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def from_time(value: Any) -> float | None:
    """Read a time: RFC 3339 in UTC, or seconds since the epoch; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return float(value)
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    try:
        return float(calendar.timegm(time.strptime(f"{match[1]}T{match[2]}", "%Y-%m-%dT%H:%M:%S")))
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class StoredId:
    """An id and what it is good for. Times are seconds since the epoch; None: not known."""

    id: str
    uri: str | None = None
    sha256: str | None = None
    purpose: str | None = None
    account: str | None = None
    size_bytes: int | None = None
    uploaded_at: float | None = None
    expires_at: float | None = None
    """None: does not expire."""
    verified_at: float | None = None
    origin: str | None = None
    """`registered`: made elsewhere and told to us; never deleted at the provider by us."""

    def to_json(self) -> dict[str, Any]:
        """Return what the row keeps."""
        values = {
            "id": self.id,
            "uri": self.uri,
            "sha256": self.sha256,
            "purpose": self.purpose,
            "account": self.account,
            "size": self.size_bytes,
            "uploaded_at": to_time(self.uploaded_at),
            "expires_at": to_time(self.expires_at),
            "verified_at": to_time(self.verified_at),
        }
        return values if self.origin is None else {**values, "origin": self.origin}

    def fits(self, sha256: str | None, account: str | None, purpose: str) -> bool:
        """Tell whether it is for these bytes, this account and this purpose; unknown ones fit."""
        return (
            self.sha256 in {None, sha256}
            and (self.account is None or account is None or self.account == account)
            and self.purpose in {None, purpose}
        )

    def is_expired(self, now: float) -> bool:
        """Tell whether the provider has deleted it by now."""
        return self.expires_at is not None and now >= self.expires_at

    def is_ageing(self, now: float) -> bool:
        """Tell whether it is expired, or so near to it that a new one should be made."""
        if self.expires_at is None:
            return False
        margin_s = _MAX_MARGIN_S
        if self.uploaded_at is not None:
            margin_s = min(margin_s, max(self.expires_at - self.uploaded_at, 0.0) * 0.1)
        return now >= self.expires_at - margin_s

    def is_due(self, now: float, recheck_s: float) -> bool:
        """Tell whether it should be checked at the provider before it is given out."""
        if self.uploaded_at is not None and now - self.uploaded_at < _FRESH_UPLOAD_S:
            return False
        return self.verified_at is None or now - self.verified_at >= recheck_s


def stored_id(value: Any) -> StoredId | None:
    """Read a record, or the plain id of an earlier design; None for what is neither."""
    if isinstance(value, str):
        return StoredId(value) if is_id(value) else None
    if not isinstance(value, Mapping) or not is_id(value.get("id")):
        return None
    size = value.get("size")
    return StoredId(
        id=value["id"],
        uri=_text(value.get("uri")),
        sha256=_text(value.get("sha256")),
        purpose=None if value.get("purpose") is None else str(value["purpose"]),
        account=_text(value.get("account")),
        size_bytes=size if isinstance(size, int) else None,
        uploaded_at=from_time(value.get("uploaded_at")),
        expires_at=from_time(value.get("expires_at")),
        verified_at=from_time(value.get("verified_at")),
        origin=_text(value.get("origin")),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
