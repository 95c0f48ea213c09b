"""Takes what Supabase answers (listings, records) into the local index, one transaction an answer.

An entry keeps its inode number while its content is the one this host wrote or saw; a file that another
host replaced gets a new one, as after a rename over it. What changed is returned, so that the caller can
tell the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from exaifs.cache.entries import Entry, from_record, with_marker
from exaifs.cache.index import Index, View
from exaifs.model import ObjectRecord
from exaifs.names import PLACEHOLDER, decode_component, is_showable, split_key
from exaifs.remote.interface import Folder

OBJECT_MARK = " (object)"
"""Appended to the name of an object whose key is also a folder; the folder has the plain name."""


@dataclass(slots=True)
class Difference:
    """What a merge changed, for invalidating kernel caches."""

    added: list[Entry] = field(default_factory=list)
    removed: list[Entry] = field(default_factory=list)
    """Names that are gone, or whose inode was replaced (then also in `added`)."""
    changed: list[Entry] = field(default_factory=list)
    """Same inode, other attributes."""
    odd_keys: int = 0
    """Keys that no path can name."""


@dataclass(frozen=True, slots=True)
class _Merge:
    """One answer being taken in."""

    index: Index
    view: View
    at_ns: int
    difference: Difference = field(default_factory=Difference)

    def folder(self, prefix: str, folder: Folder) -> None:
        key = f"{prefix}{folder.component}/" if folder.component else ""
        if self.index.is_newer(key, self.view):
            return
        known = self.index.directory(key)
        if known is None:
            self._new_folder(prefix, folder)
            return
        entry = with_marker(known, folder.marker)
        if entry != known:
            self.index.write(entry)
            self.difference.changed.append(entry)

    def _new_folder(self, prefix: str, folder: Folder) -> None:
        fresh = Entry(
            parent=prefix,
            name=decode_component(folder.component),
            component=folder.component,
            kind="dir",
            ino=self.index.allocate_ino(),
            created_ns=self.at_ns,
            updated_ns=self.at_ns,
            ctime_ns=self.at_ns,
        )
        self._displace(fresh)
        entry = with_marker(fresh, folder.marker)
        self.index.write(entry)
        self.difference.added.append(entry)

    def _displace(self, folder: Entry) -> None:
        """Move an object of the same name out of a folder's way."""
        taken = self.index.child(folder.parent, folder.name)
        if taken is not None:
            marked = replace(taken, name=taken.name + OBJECT_MARK)
            self.index.delete(taken)
            self.index.write(marked)
            self.difference.removed.append(taken)
            self.difference.added.append(marked)

    def object(self, record: ObjectRecord) -> None:
        parent, component = split_key(record.key)
        known = self.index.file(parent, component)
        if self.index.is_newer(record.key, self.view) or (known is not None and known.pending):
            return
        if known is None:
            name = self._free_name(parent, decode_component(component))
            ino = self.index.allocate_ino()
            entry = from_record(record, parent=parent, component=component, name=name, ino=ino)
            self.index.write(entry)
            self.difference.added.append(entry)
        else:
            self._changed_object(known, record)

    def _changed_object(self, known: Entry, record: ObjectRecord) -> None:
        same = known.same_content(record)
        ino = known.ino if same else self.index.allocate_ino()
        entry = from_record(
            record, parent=known.parent, component=known.component, name=known.name, ino=ino
        )
        if same:
            entry = replace(entry, ctime_ns=max(entry.ctime_ns, known.ctime_ns))
        if entry == known:
            return
        self.index.write(entry)
        if same:
            self.difference.changed.append(entry)
        else:
            self.difference.removed.append(known)
            self.difference.added.append(entry)

    def _free_name(self, parent: str, name: str) -> str:
        while self.index.child(parent, name) is not None:
            name += OBJECT_MARK
        return name

    def drop(self, stale: Iterable[Entry]) -> None:
        """Forget what a complete listing no longer names, unless it is newer or holds unsent files."""
        for entry in stale:
            newer = self.index.is_newer(entry.key, self.view)
            if newer or (entry.is_dir and self.index.holds_pending(entry.key)):
                continue
            self.index.delete(entry)
            self.difference.removed.append(entry)


def merge_directory(
    index: Index,
    prefix: str,
    records: Iterable[ObjectRecord],
    folders: Iterable[Folder],
    *,
    view: View,
    at_ns: int,
) -> Difference:
    """Make a directory what a complete listing says, and mark it loaded."""
    merge = _Merge(index, view, at_ns)
    with index.transaction():
        stale = {entry.key: entry for entry in index.children(prefix) if not entry.pending}
        for folder in folders:
            if not is_showable(folder.component):
                merge.difference.odd_keys += 1
                continue
            stale.pop(f"{prefix}{folder.component}/", None)
            merge.folder(prefix, folder)
        for record in records:
            component = record.key[len(prefix) :]
            if component == PLACEHOLDER:
                if prefix == "":
                    merge.folder("", Folder("", record))
            elif not is_showable(component):
                merge.difference.odd_keys += 1
            else:
                stale.pop(record.key, None)
                merge.object(record)
        merge.drop(stale.values())
        index.mark_loaded(prefix, at_ns)
    return merge.difference


def merge_record(index: Index, record: ObjectRecord, view: View, at_ns: int) -> Difference:
    """Take in the newest state of one object whose directory is known."""
    merge = _Merge(index, view, at_ns)
    with index.transaction():
        merge.object(record)
    return merge.difference
