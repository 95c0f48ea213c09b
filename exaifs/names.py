r"""Names on disk ↔ keys in the bucket, reversibly, on a store that takes only some ASCII.

Supabase Storage refuses every non-ASCII character and ``" # % < > [ ] \\ ^ ` { | } ~``; the embedded
server mangles ``? % #`` on top. So each byte of a name outside the safe set becomes ``=XX`` (capital
hex), a literal ``=`` is escaped only where two capital hex digits follow, and a name that would read as
Supabase's own folder marker starts with ``=2E``. Ordinary names are their own keys.

Names are `str` as `os.fsdecode` makes them, so names that are not UTF-8 survive too.
"""

from __future__ import annotations

import os
import re
from typing import Literal

from exaifs.errors import InvalidArgument, NameTooLong

PLACEHOLDER = ".emptyFolderPlaceholder"
"""Supabase's convention for an empty folder: a 0-byte object of this name inside it."""

OBJECT_MARK = " (object)"
"""Appended to the name of an object whose plain name another key has; see `cache.naming`."""

RESERVED_NAME = ".exaifs"
"""In the root of a mount: what the daemon says about itself. Keys below it are not shown."""

OddKind = Literal["empty_segment", "dot_segment", "reserved_name", "long_name"]
"""Why no path of a mount can name a key: `//` or a slash at an end, `.` or `..` between slashes,
`RESERVED_NAME` at the top, or a name of more than 255 bytes."""

MAX_NAME_BYTES = 255
"""NAME_MAX of Linux."""

MAX_KEY_BYTES = 900
"""S3 takes 1,024 bytes for project, bucket, key and version together; what is left for the key."""

_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.!*'() &$@;:+,=")
_ESCAPE = re.compile(rb"=([0-9A-F]{2})")
_HEX = frozenset(b"0123456789ABCDEF")


def encode_name(name: str) -> str:
    """Return the key component that stands for one file name.

    Raises:
        InvalidArgument: half of a surrogate pair, which no name has.
    """
    raw = _bytes_of(name)
    out = bytearray()
    for position, byte in enumerate(raw):
        literal_equals = byte == ord("=") and _looks_escaped(raw, position)
        if byte in _SAFE and not literal_equals:
            out.append(byte)
        else:
            out += b"=%02X" % byte
    component = out.decode("ascii")
    if component.endswith(PLACEHOLDER):
        component = component[: -len(PLACEHOLDER)] + "=2E" + PLACEHOLDER[1:]
    return component


def _bytes_of(name: str) -> bytes:
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        raise InvalidArgument(f"not a file name: {name!a}") from None


def _looks_escaped(raw: bytes, position: int) -> bool:
    following = raw[position + 1 : position + 3]
    return len(following) == 2 and all(byte in _HEX for byte in following)  # noqa: PLR2004 - two digits


def decode_component(component: str) -> str:
    """Return the file name that a key component shows as.

    A component that `encode_name` would not have made (another client's `=41`) is shown as it is.
    """
    raw = _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), component.encode("utf-8"))
    name = os.fsdecode(raw)
    if "/" in name or "\0" in name or name in {"", ".", ".."} or encode_name(name) != component:
        return component
    return name


def is_showable(component: str) -> bool:
    """Tell whether a key component can be a file name at all."""
    return component not in {"", ".", ".."} and "\0" not in component


def oddity(prefix: str, component: str) -> OddKind | None:
    """Say why the key component in the directory `prefix` cannot be shown; None: it can be."""
    if component in {".", ".."}:
        return "dot_segment"
    if not is_showable(component):
        return "empty_segment"
    if prefix == "" and component == RESERVED_NAME:
        return "reserved_name"
    if len(component) > MAX_NAME_BYTES and len(os.fsencode(decode_component(component))) > MAX_NAME_BYTES:
        return "long_name"
    return None


def odd_part(key: str) -> tuple[str, OddKind] | None:
    """Find the first part of a key that cannot be shown: the directory it would be in, and why."""
    start = 0
    while True:
        prefix = key[:start]
        end = key.find("/", start)
        kind = oddity(prefix, key[start:] if end < 0 else key[start:end])
        if kind is not None:
            return prefix, kind
        if end < 0:
            return None
        start = end + 1


def check_name(name: str) -> None:
    """Refuse what no directory may hold.

    Raises:
        NameTooLong: more than 255 bytes.
        InvalidArgument: empty, `.`, `..`, with a slash, or what `os.fsencode` does not take.
    """
    if len(_bytes_of(name)) > MAX_NAME_BYTES:
        raise NameTooLong(f"a name of more than {MAX_NAME_BYTES} bytes")
    if "/" in name or not is_showable(name):
        raise InvalidArgument(f"not a file name: {name!r}")


def child_key(parent_prefix: str, name: str) -> str:
    """Return the key of `name` in the directory whose keys start with `parent_prefix`.

    Args:
        parent_prefix: empty for the root, else ending in a slash.
        name: a file name, see `check_name`.

    Raises:
        NameTooLong: the key, with room for a folder marker, passes `MAX_KEY_BYTES`.
    """
    check_name(name)
    key = parent_prefix + encode_name(name)
    if len(key.encode()) > MAX_KEY_BYTES:
        raise NameTooLong(f"the object key of {name!r} passes {MAX_KEY_BYTES} bytes")
    return key


def split_key(key: str) -> tuple[str, str]:
    """Split a key into its directory's prefix (empty or ending in a slash) and its last component."""
    head, slash, tail = key.rpartition("/")
    return head + slash, tail


def path_of(key: str) -> str:
    """Return the path relative to the mount that a key shows as, for logs and messages."""
    return "/".join(decode_component(part) for part in key.split("/"))
