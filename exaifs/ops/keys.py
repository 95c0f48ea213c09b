"""What a Supabase key says about itself, read without asking anybody.

A JWT is not verified here, only read: it tells the anon key from the service_role key, an expired one,
and one of another project, before a server answers "not found" or an empty list.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlsplit

WHERE = "the Supabase dashboard, Project Settings > API Keys (service_role, or a secret key sb_secret_...)"
"""Where a working key is found."""


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """The readable part of a key.

    Args:
        kind: `jwt` (legacy keys), `secret`, `publishable`, or `opaque` for anything else.
        role: of a JWT; empty when it names none.
        expires: of a JWT that does.
        project: the project's reference, of a JWT of the hosted service.
    """

    kind: Literal["jwt", "secret", "publishable", "opaque"]
    role: str = ""
    expires: datetime | None = None
    project: str = ""

    @property
    def text(self) -> str:
        """Describe the key without any part of it."""
        match self.kind:
            case "secret":
                return "a secret key"
            case "publishable":
                return "a publishable key"
            case "jwt":
                until = f", valid until {self.expires:%Y-%m-%d}" if self.expires else ""
                return f"a {self.role or 'role-less'} key{until}"
            case "opaque":
                return "a key of unknown form"


def read_key(key: str) -> KeyFacts:
    """Read a key's form and claims."""
    if key.startswith("sb_publishable_"):
        return KeyFacts("publishable", role="anon")
    if key.startswith("sb_secret_"):
        return KeyFacts("secret", role="service_role")
    claims = _claims(key)
    if claims is None:
        return KeyFacts("opaque")
    expires = claims.get("exp")
    return KeyFacts(
        "jwt",
        role=str(claims.get("role") or ""),
        expires=_time(expires) if isinstance(expires, (int, float)) else None,
        project=str(claims.get("ref") or ""),
    )


def objection(facts: KeyFacts, url: str, now: datetime) -> tuple[str, str] | None:
    """Return what is wrong with a key and what to do, or None when nothing can be seen from here."""
    if facts.expires is not None and facts.expires <= now:
        return f"the key expired on {facts.expires:%Y-%m-%d %H:%M} UTC", f"Take a new one from {WHERE}."
    if facts.role == "anon":
        name = "publishable" if facts.kind == "publishable" else "anon"
        return (
            f"this is the {name} key; it would see every bucket as empty",
            f"Set SUPABASE_SERVICE_ROLE_KEY to the service_role or secret key: {WHERE}.",
        )
    if facts.kind == "jwt" and facts.role != "service_role":
        what = f"a key of the role {facts.role!r}" if facts.role else "a key without a role"
        return f"this is {what}, not service_role", f"Take the right one from {WHERE}."
    host = urlsplit(url).hostname or ""
    if facts.project and host.endswith(".supabase.co") and host.partition(".")[0] != facts.project:
        return (
            f"the key belongs to project {facts.project}, the URL to {host.partition('.')[0]}",
            "Take SUPABASE_URL and the key from the same project.",
        )
    return None


def _claims(key: str) -> dict[str, Any] | None:
    parts = key.split(".")
    if len(parts) != 3:  # noqa: PLR2004 - a JSON Web Token has three parts
        return None
    try:
        raw = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        claims = json.loads(raw)
    except ValueError:
        return None
    return claims if isinstance(claims, dict) else None


def _time(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return None
