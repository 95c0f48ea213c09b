"""Text that the database can hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from exaifs.errors import InvalidArgument


def checked(text: str, what: str) -> str:
    """Refuse text that no row can hold.

    Raises:
        InvalidArgument: NUL, or half of a surrogate pair, which JSON can spell but no UTF-8 has.
    """
    if "\0" in text:
        raise InvalidArgument(f"{what} must not contain NUL characters")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidArgument(f"{what} must be Unicode text: it has half of a surrogate pair")
    return text


def texts_of(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value, the names of fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from texts_of(name)
            yield from texts_of(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_of(inner)
