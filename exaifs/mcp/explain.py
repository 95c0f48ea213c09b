"""Errors for models: what happened, and what to do next; without secrets and paths of this host.

What the model can mend itself (a name, a size, a moment) says how. What only the operator can mend says so,
so that the model tells the user instead of trying again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from exaifs.errors import (
    BucketMissing,
    Busy,
    ExaifsError,
    FileTooLarge,
    IntegrityError,
    NoSpace,
    Rejected,
    SchemaMissing,
    Stale,
    Unauthorized,
    Unreachable,
)
from exaifs.mcp.paths import shown
from exaifs.providers.errors import (
    FileChanged,
    ProviderBusy,
    ProviderError,
    ProviderFileInvalid,
    ProviderFileTooLarge,
    ProviderKeyMissing,
    ProviderKeyRejected,
    ProviderOutage,
    ProviderProtocolError,
    ProviderQuota,
    ProviderRefused,
    ProviderTimeout,
    ProviderUnreachable,
)

_OPERATOR: Final = "Tell the user: whoever runs this server must mend it; trying again does not help."
_LOOK: Final = "Try again in a minute; after an upload or a delete look with stat_file first."

_NEXT: Final[tuple[tuple[type[ExaifsError], str], ...]] = (
    (Unreachable, f"Supabase cannot be reached now. {_LOOK}"),
    (Busy, f"Supabase is busy. {_LOOK}"),
    (Unauthorized, f"Supabase refuses this server's key. {_OPERATOR} `exaifs doctor` says more."),
    (BucketMissing, f"The bucket does not exist. {_OPERATOR} `exaifs init --apply` makes it."),
    (SchemaMissing, f"The database lacks exaifs' tables. {_OPERATOR} `exaifs init --apply` adds them."),
    (
        Rejected,
        "Supabase does not take this: the bucket may refuse the MIME type or the name. Try another.",
    ),
    (FileTooLarge, "It is over the bucket's size limit: split it, or store less."),
    (NoSpace, f"The server's cache disk is full. {_OPERATOR}"),
    (Stale, "The file was replaced while it was read: call stat_file, then begin again."),
    (IntegrityError, f"The bytes arrived damaged. Try once more; if it stays: {_OPERATOR}"),
    (ProviderKeyMissing, f"The provider has no API key here. {_OPERATOR} list_providers shows others."),
    (ProviderKeyRejected, f"The provider refuses this server's API key. {_OPERATOR}"),
    (ProviderRefused, "The provider does not permit this file or this account; try another provider."),
    (ProviderFileTooLarge, "Split the file, or use a provider with a larger max_bytes (list_providers)."),
    (ProviderFileInvalid, "The provider does not take such a file; convert it or use another provider."),
    (ProviderQuota, f"The account at the provider is full or out of money. {_OPERATOR}"),
    (ProviderBusy, "The provider asks to slow down. Try again in a minute."),
    (ProviderTimeout, "The upload goes on: call get_provider_file_id again in a minute for its id."),
    (ProviderUnreachable, "The provider cannot be reached now. Try again in a minute."),
    (ProviderOutage, "The provider has a failure of its own. Try again in a minute, or use another."),
    (ProviderProtocolError, f"The provider's answer was not understood. {_OPERATOR}"),
    (FileChanged, "The file was changed meanwhile: call again for its new content."),
)


def explained(error: Exception, redact: Callable[[str], str]) -> str:
    """Return what a model is told of an error.

    Args:
        error: one of ours, or of the operating system.
        redact: removes secrets.
    """
    if isinstance(error, OSError):
        reason = os.strerror(error.errno) if error.errno is not None else type(error).__name__
        return f"The server's cache disk failed ({reason}). {_OPERATOR}"
    if isinstance(error, ProviderKeyMissing):
        return _of(error)  # its own text names files of this host
    said = shown(str(error)).strip().rstrip(".")
    advice = _of(error)
    wait_s = getattr(error, "retry_after_s", None)
    if wait_s is not None:
        advice = f"{advice} It asks to wait {wait_s:g} s."
    return redact(f"{said}. {advice}".strip() if said else advice)


def _of(error: Exception) -> str:
    found = next((advice for kind, advice in _NEXT if isinstance(error, kind)), None)
    if found is not None:
        return found
    return "Try again in a minute; if it stays, tell the user." if isinstance(error, ProviderError) else ""
