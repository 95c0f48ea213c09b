"""What clients name files by: paths, `exaifs:///` URIs, and cursors; checked here, whoever checked before.

A path is one below the bucket's root, as below a mountpoint; a slash at its start changes nothing, so no
path ever means a file of this machine. Names may be any Unicode. Names that are not UTF-8 cannot travel as
JSON: their paths are shown with replacement characters, and their URIs name them exactly.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from urllib.parse import quote, unquote_to_bytes

from exaifs.errors import InvalidArgument
from exaifs.handler.destination import key_of
from exaifs.handler.texts import checked
from exaifs.names import RESERVED_NAME

SCHEME = "exaifs:"
ROOT_URI = "exaifs:///"
TEMPLATE = "exaifs:///{+path}"

_HASH_DIGITS = 12


def path_of_argument(argument: str) -> str:
    """Return the path that a client names, by itself or by its URI: never empty, no slash at an end.

    Raises:
        InvalidArgument: no file of the bucket can be there; says why.
        NameTooLong: a name over 255 bytes, or a path too long for the store.
    """
    if argument.startswith(SCHEME):
        return path_of_uri(argument)
    return _normalised(checked(argument, "path"))


def path_of_uri(uri: str) -> str:
    """Return the path in an `exaifs:///` URI, percent-decoded once and then checked like any other.

    Raises:
        InvalidArgument, NameTooLong: as above, or another scheme.
    """
    checked(uri, "URI")
    if not uri.startswith(ROOT_URI):
        raise InvalidArgument(f"not a URI of this server: they look like {ROOT_URI}reports/q3.pdf")
    raw = unquote_to_bytes(uri.removeprefix(ROOT_URI))
    if b"\0" in raw:
        raise InvalidArgument("path must not contain NUL characters")
    return _normalised(os.fsdecode(raw))


def _normalised(path: str) -> str:
    plain = path.removeprefix("/")
    if not plain:
        raise InvalidArgument("a path is needed, such as reports/q3.pdf; list_files shows what there is")
    if plain.endswith("/"):
        raise InvalidArgument(
            f"{shown(path)!r} names a directory: name a file, or use list_files(prefix=...)"
        )
    _check_segments(plain.split("/"), path)
    key_of(plain)
    return plain


def _check_segments(segments: list[str], path: str) -> None:
    for segment in segments:
        if segment in {"", ".", ".."}:
            kind = "an empty segment" if not segment else f"the segment {segment!r}"
            raise InvalidArgument(
                f"{shown(path)!r} has {kind}: write the path from the bucket's root, such as reports/q3.pdf"
            )
    if segments[0] == RESERVED_NAME:
        raise InvalidArgument(f"{RESERVED_NAME} is reserved")


def prefix_of_argument(argument: str) -> str:
    """Return what paths shall start with; empty for all.

    Raises:
        InvalidArgument: no path starts with it.
    """
    if argument.startswith(SCHEME):
        if not argument.startswith(ROOT_URI):
            raise InvalidArgument(f"not a URI of this server: they look like {ROOT_URI}reports/")
        argument = os.fsdecode(unquote_to_bytes(argument.removeprefix(ROOT_URI)))
        if "\0" in argument:
            raise InvalidArgument("prefix must not contain NUL characters")
    else:
        checked(argument, "prefix")
    plain = argument.removeprefix("/")
    *folders, partial = plain.split("/")
    if partial in {".", ".."} or any(folder in {"", ".", ".."} for folder in folders):
        raise InvalidArgument(
            f"no path starts with {shown(argument)!r}: use '' for everything, 'reports/' for a directory"
        )
    return plain


def is_nameable(path: str) -> bool:
    """Tell whether a path that the bucket has can be given to a tool; odd keys of other clients cannot."""
    segments = path.split("/")
    return segments[0] != RESERVED_NAME and not any(
        part in {"", ".", ".."} or "\0" in part for part in segments
    )


def uri_of(path: str) -> str:
    """Return the URI that names a path exactly."""
    return ROOT_URI + quote(os.fsencode(path), safe="/")


def shown(path: str) -> str:
    """Return a path as JSON can carry it: bytes that are not UTF-8 become replacement characters."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def cursor_of(question: str, after: str | None) -> str | None:
    """Wrap where a list goes on, for the client to give back; None at the end.

    Args:
        question: what was asked; the cursor is good for the same only.
        after: the catalog's own cursor.
    """
    if after is None:
        return None
    value = json.dumps([_digest(question), after]).encode()
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


def after_of(question: str, cursor: str) -> str | None:
    """Return the catalog's cursor in one of ours; None: from the start.

    Raises:
        InvalidArgument: not a cursor for this question.
    """
    if not cursor:
        return None
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        digest, after = json.loads(raw)
    except (ValueError, TypeError):
        digest, after = "", None
    if digest != _digest(question) or not isinstance(after, str):
        raise InvalidArgument(
            "not a cursor of this list: give next_cursor of the answer before with the same arguments, or "
            "leave it out to start again"
        )
    return after


def _digest(question: str) -> str:
    return hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_DIGITS]
