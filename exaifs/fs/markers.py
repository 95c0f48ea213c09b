"""Folder markers: the 0-byte objects that make an empty directory survive, and keep its attributes.

Supabase has no folders. `mkdir` writes `.emptyFolderPlaceholder`, as the dashboard does; a directory that
exists only through its files gets one before its last file leaves, or when it needs attributes of its own.
"""

from __future__ import annotations

import hashlib
import secrets

from exaifs.cache.entries import Entry, with_marker
from exaifs.fs.core import Core
from exaifs.model import Posix
from exaifs.remote.bodies import BytesBody
from exaifs.remote.interface import Upload

_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()

# Buckets may restrict MIME types; the dashboard's own markers have this one.
_MIME = "application/octet-stream"


class Markers:
    """Writes and removes the markers of one bucket.

    Args:
        core: the bucket, and the index that takes the directories' entries.
    """

    def __init__(self, core: Core) -> None:
        self._remote = core.remote
        self._index = core.index
        self._table = core.table
        self._claims = core.claims

    async def write(self, directory: Entry, posix: Posix) -> Entry:
        """Put a directory's marker and return its entry, not yet in the index."""
        upload = Upload(_EMPTY_SHA256, _MIME, posix, secrets.token_hex(16), size_bytes=0)
        await self._remote.objects.put(directory.marker_key, BytesBody(b""), upload)
        record = await self._remote.catalog.commit(directory.marker_key, upload)
        return with_marker(directory, record)

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
            marked = await self.write(directory, directory.posix)
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
            await self._remote.objects.remove([directory.marker_key])
