"""Names of a directory for readdir(3), read from the index some at a time.

Names come in their order: one that stays in the directory is listed once, whatever changes meanwhile, and
nobody waits while thousands are read.
"""

from __future__ import annotations

from collections.abc import Iterator

from exaifs.cache.names.entries import Entry
from exaifs.fs.core import Core
from exaifs.fs.tables.handles import DirectoryEntry, OpenDirectory

_AT_ONCE = 256
"""Names read at once: about 2 ms."""

_DOTS = (".", "..")


class Lister:
    """Lists directories of one mount."""

    def __init__(self, core: Core) -> None:
        self._index = core.index
        self._table = core.table

    def entries(self, opened: OpenDirectory, after: int) -> Iterator[DirectoryEntry]:
        """Yield what comes after a cookie; 0 begins anew. Take from it without an await between."""
        if after == 0:
            opened.entries, opened.complete = [], False
        for cookie in range(after + 1, len(_DOTS) + 1):
            inode = opened.inode if cookie == 1 else self._table.parent(opened.inode)
            # Of these two the kernel takes number and type only.
            attributes = self._table.attributes(inode, links=1)
            yield DirectoryEntry(_DOTS[cookie - 1], attributes, cookie, None)
        position = max(after - len(_DOTS), 0)
        while position < len(opened.entries) or self._read_on(opened):
            entry = self._current(opened, opened.entries[position])
            position += 1
            if entry is not None:
                attributes = self._table.entry_attributes(entry)
                yield DirectoryEntry(entry.name, attributes, position + len(_DOTS), entry)

    def _read_on(self, opened: OpenDirectory) -> bool:
        """Read the next names; tell whether there were any."""
        if opened.complete or opened.inode.unlinked:
            return False
        last = opened.entries[-1].name if opened.entries else None
        opened.as_of = self._index.generation
        found = self._index.children(opened.inode.entry.key, last, _AT_ONCE)
        opened.entries += found
        opened.complete = len(found) < _AT_ONCE
        return bool(found)

    def _current(self, opened: OpenDirectory, entry: Entry) -> Entry | None:
        """Look again if anything changed: the kernel keeps what it is told, and forgot it before."""
        if opened.as_of == self._index.generation:
            return entry
        return self._index.child(opened.inode.entry.key, entry.name)
