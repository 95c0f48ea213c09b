"""Which name each key of a directory shows as, when several would have the same.

A name is a function of what the bucket holds, whatever order it became known in: so two hosts, or one
host before and after a listing, agree. A key's plain name is its decoded component. Where two keys have
the same plain name, the one that `encode_name` would have made wins over a raw one, then the folder over
the object; the loser shows with `OBJECT_MARK`, until the winner is gone: then it has its plain name back.
A key whose plain name merely looks marked wins over one that is marked.

These functions move rows of the index and return what moved; the inode stays the same.
"""

from __future__ import annotations

from dataclasses import replace

from exaifs.cache.names.entries import Entry
from exaifs.cache.names.index import Index
from exaifs.names import OBJECT_MARK, decode_component, encode_name

Move = tuple[Entry, Entry]
"""An entry under its old and its new name."""


def plain_name(entry: Entry) -> str:
    """Return the name an entry has unless another key needs it."""
    return decode_component(entry.component)


def place(index: Index, entry: Entry) -> tuple[Entry, list[Move]]:
    """Write an entry that is not in the index under the name it is due.

    Returns:
        The entry as it was written, and whom it moved.
    """
    moves: list[Move] = []
    placed = _place(index, entry, moves)
    return placed, moves


def _place(index: Index, entry: Entry, moves: list[Move]) -> Entry:
    name = plain_name(entry)
    while True:
        holder = index.child(entry.parent, name)
        named = replace(entry, name=name)
        if holder is None or _due(named, name) > _due(holder, name):
            break
        name += OBJECT_MARK
    if holder is not None:
        index.delete(holder, keep_below=True)
    index.write(named)
    if holder is not None:
        moves.append((holder, _place(index, holder, moves)))
    return named


def reclaim(index: Index, parent: str, name: str) -> list[Move]:
    """If a name is free now: give it to the marked key that is due, and so on."""
    moves: list[Move] = []
    while index.child(parent, name) is None:
        claimants = _claimants(index, parent, name)
        if not claimants:
            break
        best = max(claimants, key=lambda entry: _due(entry, name))
        moved = replace(best, name=name)
        index.delete(best, keep_below=True)
        index.write(moved)
        moves.append((best, moved))
        name = best.name
    return moves


def _claimants(index: Index, parent: str, name: str) -> list[Entry]:
    """Return the entries that would rather have this name than the one they have."""
    found = []
    longer = name + OBJECT_MARK
    while (entry := index.child(parent, longer)) is not None:
        # Its choices are its plain name, and that with one mark more each.
        if name.startswith(plain_name(entry)) and entry.name != plain_name(entry):
            found.append(entry)
        longer += OBJECT_MARK
    return found


def _due(entry: Entry, name: str) -> tuple[bool, bool, bool, str]:
    """Order those who could have a name; the greatest has it."""
    plain = plain_name(entry)
    return plain == name, encode_name(plain) == entry.component, entry.is_dir, entry.component
