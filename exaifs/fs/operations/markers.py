"""Folder markers: the 0-byte objects that make an empty directory survive, and keep its attributes.

Supabase has no folders. `mkdir` writes `.emptyFolderPlaceholder`, as the dashboard does; a directory that
exists only through its files gets one before its last file leaves, or when it needs attributes of its own.
"""

from __future__ import annotations

from dataclasses import replace

from exaifs.cache.names.entries import Entry, with_marker
from exaifs.fs.core import Core


class Markers:
    """Writes and removes the markers of one bucket.

    Args:
        core: the bucket, and the index that takes the directories' entries.
    """

    def __init__(self, core: Core) -> None:
        self._index = core.index
        self._table = core.table
        self._claims = core.claims
        self._changes = core.changes

    async def make(self, directory: Entry) -> Entry:
        """Mark a directory that was just made here, and return its entry, not yet in the index.

        It stays pending while its marker waits to be written.
        """
        record = await self._changes.mark(directory, directory.posix, is_new=True)
        if record is None:
            return replace(directory, marker=True)
        return replace(with_marker(directory, record), pending=False, posix=directory.posix)

    async def ensure(self, prefix: str) -> Entry | None:
        """Give a directory a marker if it has none; return its newest entry."""
        directory = self._index.directory(prefix)
        if directory is None or directory.marker:
            return directory
        marker_key = directory.marker_key
        async with self._claims.held(lambda: (marker_key,)):
            directory = self._index.directory(prefix)
            if directory is None or directory.marker:
                return directory
            record = await self._changes.mark(directory, directory.posix, is_new=False)
            # Names may have come and gone meanwhile, and changed the directory's times.
            directory = self._index.directory(prefix) or directory
            marked = replace(directory, marker=True) if record is None else with_marker(directory, record)
            if self._index.directory(prefix) is not None:
                self._table.put(marked)
        return marked

    async def keep_without(self, entry: Entry) -> None:
        """Call before `entry` leaves its directory, which must not vanish with its last name."""
        if entry.parent == "":
            return
        if not self._index.has_other(entry):
            await self.ensure(entry.parent)

    async def remove(self, directory: Entry) -> None:
        """Delete a directory's marker, if it has one."""
        if directory.marker:
            await self._changes.unmark(directory)
