"""Bytes as models read them: as text where they are text, as base64 otherwise."""

from __future__ import annotations

import re

_TEXT_TYPE = re.compile(
    r"text/.*|.*\+(json|xml|yaml)|application/("
    r"json|ndjson|jsonl|xml|yaml|x-yaml|toml|javascript|ecmascript|typescript|sql|graphql|csv|rtf|x-sh|"
    r"x-shellscript|x-python|x-ruby|x-perl|x-php|x-httpd-php|x-tex|x-ndjson|x-wine-extension-ini)"
)
_UNKNOWN_TYPES = frozenset({"application/octet-stream", "application/x-empty", "inode/symlink"})
_CONTROLS = frozenset(range(32)) - {0x09, 0x0A, 0x0C, 0x0D, 0x1B}
_MAX_CHARACTER_BYTES = 4


def text_of(data: bytes, mime_type: str) -> str | None:
    """Return a file's bytes as text that encodes to the same bytes; None: they are not text."""
    if not _may_be_text(data, mime_type):
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def text_piece(data: bytes, mime_type: str, *, is_end: bool) -> tuple[str, int] | None:
    """Return a piece of a file as text, and how many of its bytes that is; None: it is not text.

    Args:
        data: the piece.
        mime_type: of the file.
        is_end: whether the file ends with it; else a character that is cut off is left for the next piece.
    """
    if is_end:
        text = text_of(data, mime_type)
        return None if text is None else (text, len(data))
    for cut in range(min(_MAX_CHARACTER_BYTES, len(data))):
        length = len(data) - cut
        text = text_of(data[:length], mime_type)
        if text is not None:
            return text, length
    return None


def _may_be_text(data: bytes, mime_type: str) -> bool:
    if mime_type in _UNKNOWN_TYPES:
        return _CONTROLS.isdisjoint(data)
    return _TEXT_TYPE.fullmatch(mime_type) is not None
