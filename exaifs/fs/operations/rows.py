"""Changes to rows alone: attributes and extended attributes of what is in the bucket."""

from __future__ import annotations

from dataclasses import replace

from exaifs.cache.names.entries import Entry
from exaifs.errors import NotFound
from exaifs.fs.core import Core
from exaifs.fs.operations.markers import Markers
from exaifs.fs.tables.inodes import Inode
from exaifs.remote.interface import RowPatch


class Rows:
    """Patches rows of one mount.

    Args:
        core: the bucket, and the index that takes the answers.
        markers: their rows keep what belongs to directories.
    """

    def __init__(self, core: Core, markers: Markers) -> None:
        self._changes = core.changes
        self._table = core.table
        self._claims = core.claims
        self._markers = markers

    async def patch(self, inode: Inode, patch: RowPatch) -> None:
        """Change a row, or have that wait; a directory gets a marker for it first. Its lock is held.

        Raises:
            NotFound: it was removed meanwhile.
        """
        if inode.entry.is_dir:
            await self._mark(inode)
        async with self._claims.held(lambda: (_row_key(inode),)):
            # A directory rename, waited for above, may have read the entry again.
            patched = _patched(inode.entry, patch)
            record = await self._changes.patch(patched, patch)
            if record is not None:
                file_id = record.file_id or patched.file_id
                patched = replace(patched, xattrs=record.xattrs, file_id=file_id)
            inode.entry = patched
            self._table.store(inode)

    async def _mark(self, directory: Inode) -> None:
        """Give a directory the marker whose row keeps its attributes."""
        while True:
            key = directory.entry.key
            marked = await self._markers.ensure(key)
            if marked is not None:
                directory.entry = replace(directory.entry, marker=True, file_id=marked.file_id)
                return
            if directory.unlinked or directory.entry.key == key:
                raise NotFound("the directory was removed")


def _patched(entry: Entry, patch: RowPatch) -> Entry:
    xattrs = {**entry.xattrs, **patch.set_xattrs}
    left = {name: value for name, value in xattrs.items() if name not in patch.drop_xattrs}
    return replace(entry, posix=patch.posix or entry.posix, xattrs=left)


def _row_key(inode: Inode) -> str:
    """Return the key of the object whose row keeps an inode's attributes."""
    return inode.entry.marker_key if inode.entry.is_dir else inode.entry.key
