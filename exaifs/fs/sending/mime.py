"""MIME types: by content, with the name as the tie-breaker."""

from __future__ import annotations

import mimetypes

import magic
import structlog

_log = structlog.get_logger(__name__)

SNIFF_BYTES = 8192
"""How much libmagic is shown; it looks no further for the types that matter here."""

_VAGUE = {
    "application/octet-stream",
    "text/plain",
    "application/x-empty",
    "inode/x-empty",
    "application/zip",
}
"""Answers of libmagic that say less than a known extension does."""


def mime_type_of(name: str, head: bytes) -> str:
    """Return a file's MIME type, without parameters.

    Args:
        name: file name; its extension decides where the content does not.
        head: the first `SNIFF_BYTES` of the file.
    """
    by_name = mimetypes.guess_type(name)[0]
    try:
        by_content = str(magic.from_buffer(head, mime=True)) if head else "application/x-empty"
    except magic.MagicException as exc:
        _log.warning("libmagic failed; the name decides", reason=str(exc))
        by_content = "application/octet-stream"
    if by_content in _VAGUE and by_name is not None:
        return by_name
    if by_content in {"application/x-empty", "inode/x-empty"}:
        return "application/octet-stream"
    return by_content
