"""What exists near a path that does not: so that a model finds the right name without a search."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from exaifs.errors import NotFound
from exaifs.handler.destination import key_of
from exaifs.mcp.paths import shown
from exaifs.names import PLACEHOLDER, decode_component, split_key
from exaifs.remote.interface import Catalog

_LOOKED_AT = 1000
_NAMED = 5
_LIKENESS = 0.5


@dataclass(frozen=True, slots=True)
class _Names:
    """What a directory holds; directories end in a slash."""

    names: Sequence[str]
    more: bool
    exists: bool
    """Whether it is there, if only by the marker that keeps an empty one."""


async def _names_in(catalog: Catalog, prefix: str) -> _Names:
    listing = await catalog.list_directory(prefix, limit=_LOOKED_AT)
    components = [split_key(record.key)[1] for record in listing.records]
    files = [decode_component(component) for component in components if component != PLACEHOLDER]
    folders = [f"{decode_component(folder.component)}/" for folder in listing.folders]
    return _Names(
        [shown(name) for name in (*folders, *files)],
        listing.next_after is not None,
        exists=bool(components or folders),
    )


async def not_found(catalog: Catalog, path: str) -> NotFound:
    """Return the error for a file that does not exist, which names what does."""
    key = key_of(path)
    parts = path.split("/")
    ends = {key_of(end): end for end in ("/".join(parts[first:]) for first in range(1, len(parts)))}
    there = await catalog.stat(list(ends)) if ends else {}
    if there:
        # Somebody's path on a host, through a mount: its end is the one that is meant.
        end = next(end for key, end in ends.items() if key in there)
        return NotFound(
            f"there is no file {shown(path)!r}, but {shown(end)!r}: paths are below the bucket's root"
        )
    if (await _names_in(catalog, f"{key}/")).exists:
        return NotFound(
            f"{shown(path)!r} is a directory, not a file: list_files(prefix={shown(path) + '/'!r})"
        )
    folders = path.split("/")[:-1]
    name = path.rpartition("/")[2]
    while True:
        where = "".join(f"{folder}/" for folder in folders)
        found = await _names_in(catalog, "".join(f"{part}/" for part in _components(where)))
        if found.names or not folders:
            break
        name = folders.pop()
    if not found.names:
        return NotFound(f"there is no file {shown(path)!r}: the bucket has no files yet")
    close = _close(name, found.names) or found.names[:_NAMED]
    place = f"{shown(where)!r}" if where else "the bucket's root"
    rest = len(found.names) - len(close)
    more = f", and {rest}{' or more' if found.more else ''} others" if rest else ""
    return NotFound(
        f"there is no file {shown(path)!r}. In {place}: {', '.join(map(repr, close))}{more}. "
        f"list_files(prefix={shown(where)!r}) shows all, search_files finds names anywhere"
    )


def _close(name: str, names: Sequence[str]) -> list[str]:
    """Return the names most like one, whatever the case of their letters."""
    folded: dict[str, list[str]] = {}
    for each in names:
        folded.setdefault(each.casefold(), []).append(each)
    likest = difflib.get_close_matches(name.casefold(), folded, _NAMED, _LIKENESS)
    return [each for like in likest for each in folded[like]][:_NAMED]


def _components(path: str) -> list[str]:
    return key_of(path.removesuffix("/")).split("/") if path else []
