"""After a move of ours: the same bytes have another key and version, and keep their inodes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from exaifs.cache.names.entries import Entry, own_write, with_marker
from exaifs.fs.core import Core
from exaifs.fs.upstream.directories import Directories
from exaifs.model import Ino, ObjectRecord
from exaifs.names import PLACEHOLDER, split_key


class Relocation:
    """Takes the new versions of moved objects into the index of one mount.

    Args:
        core: index, inodes and contents.
        directories: told what names stand for other inodes now.
    """

    def __init__(self, core: Core, directories: Directories) -> None:
        self._index = core.index
        self._table = core.table
        self._contents = core.contents
        self._directories = directories

    def moved(self, entry: Entry, record: ObjectRecord) -> Entry:
        """Return a renamed entry in its new version; bytes that another host changed are a new inode."""
        fresh = own_write(entry, record)
        if entry.size_bytes == record.size_bytes and (
            entry.sha256 == record.sha256
            if entry.sha256 is not None and record.sha256 is not None
            else entry.etag == record.etag
        ):
            return fresh
        return replace(fresh, ino=self._index.allocate_ino())

    def take_on(
        self,
        record: ObjectRecord,
        old_key: str,
        key: str | None = None,
        *,
        waiting: Collection[Ino] = (),
    ) -> Entry | None:
        """Note the new version of an object.

        Args:
            record: of the object, where it is now.
            old_key: where it was.
            key: what it is called here, if later moves wait; as the record says, if not given.
            waiting: what has changes that wait to be carried out.

        Returns:
            The file's entry before that; None if nothing was noted of a file.
        """
        key = record.key if key is None else key
        parent, component = split_key(key)
        if component == PLACEHOLDER:
            directory = self._index.directory(parent)
            if directory is not None and not directory.marker:
                self._table.put(with_marker(directory, record))
            return None
        entry = self._index.file(parent, component)
        if entry is None or entry.pending:
            return None
        if entry.file_id is not None and record.file_id is not None and entry.file_id != record.file_id:
            return None  # another file has the name here; what became of this one waits, too
        self.take_on_entry(entry, record, old_key, attributes_wait=entry.ino in waiting)
        return entry

    def take_on_entry(
        self, entry: Entry, record: ObjectRecord, old_key: str, *, attributes_wait: bool = False
    ) -> None:
        """Note the new version of an object that is known to be this entry.

        Args:
            entry: as it is here.
            record: of the object, where it is now.
            old_key: where it was.
            attributes_wait: whether the attributes here are newer than those of the row.
        """
        if attributes_wait:
            record = replace(record, posix=entry.posix, xattrs=entry.xattrs)
        inode = self._table.live(entry.ino)
        dirty = inode is not None and inode.dirty
        if dirty and not entry.is_object_of(record):
            # Another host changed what these bytes are to replace: whoever sends them must look.
            self._index.contest(entry.key)
            return
        fresh = own_write(entry, record) if dirty else self.moved(entry, record)
        if fresh.ino != entry.ino:
            self._index.put(fresh)
            self._directories.replaced(entry, fresh)
            return
        self._contents.rekey(replace(entry.ref, key=old_key), fresh.ref)
        self._index.put(fresh)
        if inode is not None:
            inode.entry = (
                replace(inode.entry, version=fresh.version, etag=fresh.etag) if inode.dirty else fresh
            )

    def drop_unmoved(self, prefix: str, moved: Collection[str]) -> None:
        """Forget names and markers that the bucket had no more: its log says so of the old names only."""
        self._drop_marker(self._index.directory(prefix), moved)
        there = {key[: end + 1] for key in moved for end in range(len(prefix), len(key)) if key[end] == "/"}
        for entry in self._index.below(prefix):
            inode = self._table.live(entry.ino)
            if entry.pending or entry.key in moved or (inode is not None and inode.dirty):
                continue
            if entry.is_dir and (entry.key in there or self._index.holds_pending(entry.key)):
                self._drop_marker(entry, moved)
                continue
            self._index.remove(entry)
            self._directories.removed(entry)

    def _drop_marker(self, directory: Entry | None, moved: Collection[str]) -> None:
        """Note that a directory has no marker; one that waits to be written says so when it is."""
        if directory is None or directory.pending or not directory.marker:
            return
        if directory.marker_key not in moved:
            self._table.put(with_marker(directory, None))
