"""One upload to a provider: what is refused beforehand, its name there, and when it is repeated."""

from __future__ import annotations

import itertools
import re
import secrets
from pathlib import PurePosixPath

import anyio
import structlog

from exaifs.model import ObjectRecord
from exaifs.names import path_of
from exaifs.providers.errors import (
    ProviderBusy,
    ProviderError,
    ProviderFileInvalid,
    ProviderFileTooLarge,
    ProviderOutage,
    ProviderUnreachable,
)
from exaifs.providers.interface import ProviderFile, ProviderFiles, Sending
from exaifs.providers.settings import ProviderSettings
from exaifs.remote.interface import Body

_log = structlog.get_logger(__name__)

_FIRST_DELAY_S = 0.5
_ATTEMPTS = 4
_NAME_CHARS = 150
_EXTENSION_CHARS = 50
_HASH_CHARS = 8

_UNKNOWN_TYPE = "application/octet-stream"
_FORBIDDEN = re.compile(r'[<>:"|?*\\/\x00-\x1f\x7f]')
"""What Anthropic refuses in names; the others lose nothing by it."""


def refusal_of(settings: ProviderSettings, file: ObjectRecord) -> ProviderError | None:
    """Return why the provider is known to refuse a file, before anything is sent; None: it is not."""
    limit = settings.max_bytes_of(file.mime_type)
    if file.size_bytes > limit:
        return ProviderFileTooLarge(f"{settings.name}: {file.size_bytes} bytes; it takes {limit}")
    if file.size_bytes == 0 and not settings.allow_empty:
        return ProviderFileInvalid(f"{settings.name}: it takes no empty files")
    extension = PurePosixPath(path_of(file.key)).suffix.lower().removeprefix(".")
    if settings.extensions is not None and extension not in settings.extensions:
        known = ", ".join(settings.extensions)
        other = extension or "files without an extension"
        return ProviderFileInvalid(f"{settings.name}: it takes {known}, not {other}")
    return None


def sending_of(file: ObjectRecord, sha256: str, purpose: str, body: Body) -> Sending:
    """Describe an upload of a file."""
    return Sending(
        body=body,
        filename=filename_of(file.key, sha256),
        mime_type=mime_type_of(file),
        purpose=purpose,
        token=secrets.token_hex(12),
    )


def mime_type_of(file: ObjectRecord) -> str:
    """Return the MIME type as a header can carry it: other clients write what they like into the row."""
    given = file.mime_type
    return given if "/" in given and given.isascii() and given.isprintable() else _UNKNOWN_TYPE


def filename_of(key: str, sha256: str) -> str:
    """Return the name for a provider: the file's own, with a part of the hash before its extension."""
    name = _FORBIDDEN.sub("_", path_of(key).rpartition("/")[2].encode(errors="replace").decode())
    path = PurePosixPath(name)
    return f"{path.stem[:_NAME_CHARS]}-{sha256[:_HASH_CHARS]}{path.suffix[:_EXTENSION_CHARS]}"


async def send(adapter: ProviderFiles, sending: Sending, give_up_at: float) -> ProviderFile:
    """Upload, and again where that can make no second file.

    That is: nothing was stored (no connection, 429, 503), or the answer was lost and the provider has been
    asked and has no such file, once.

    Args:
        adapter: the provider.
        sending: the file.
        give_up_at: by the event loop's clock; no attempt starts later.

    Raises:
        ProviderError: the last attempt's.
    """
    looked = False
    for attempt in itertools.count():
        try:
            return await adapter.upload(sending)
        except ProviderError as exc:
            if exc.may_have_landed:
                found = None if looked else await _look(adapter, sending, exc)
                if found is not None:
                    return found
                if looked:
                    raise
                looked = True
            elif not isinstance(exc, ProviderBusy | ProviderOutage | ProviderUnreachable):
                raise
            wait_s = max(_FIRST_DELAY_S * 2**attempt, exc.retry_after_s or 0.0)
            if attempt + 1 == _ATTEMPTS or anyio.current_time() + wait_s > give_up_at:
                raise
        await anyio.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


async def _look(adapter: ProviderFiles, sending: Sending, lost: ProviderError) -> ProviderFile | None:
    """Look for a file whose answer was lost.

    Raises:
        ProviderError: the upload's own error: the provider cannot say, so there may be a file nobody knows.
    """
    try:
        found = await adapter.find(sending)
    except ProviderError:
        _log.warning("an upload may have left a file at the provider", reason=str(lost))
        raise lost from None
    if found is not None:
        _log.info("found the file of an upload whose answer was lost")
    return found
