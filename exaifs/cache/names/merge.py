"""Takes what Supabase answers (listings, records) into the local index, one transaction an answer.

An entry keeps its inode number while its content is the one this host wrote or saw; a file that another
host replaced gets a new one, as after a rename over it. What changed is returned, so that the caller can
tell the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import structlog

from exaifs.cache.names.entries import Entry, from_record, with_marker
from exaifs.cache.names.index import Index
from exaifs.cache.names.naming import Move, place, reclaim
from exaifs.cache.names.recency import View
from exaifs.model import ObjectRecord
from exaifs.names import PLACEHOLDER, OddKind, decode_component, odd_part, oddity, path_of, split_key
from exaifs.remote.interface import Change, Folder

_log = structlog.get_logger(__name__)

_DROPPED_AT_ONCE = 500
"""Names forgotten in one transaction, about 20 ms."""


@dataclass(slots=True)
class Difference:
    """What a merge changed, for invalidating kernel caches."""

    added: list[Entry] = field(default_factory=list)
    removed: list[Entry] = field(default_factory=list)
    """Names that are gone, or whose inode was replaced (then also in `added`)."""
    changed: list[Entry] = field(default_factory=list)
    """Same inode, other attributes."""

    def moved(self, moves: Iterable[Move]) -> None:
        """Note inodes that stand under another name now; see `naming`."""
        for old, new in moves:
            self.removed.append(old)
            self.added.append(new)


@dataclass(frozen=True, slots=True)
class _Merge:
    """One answer being taken in."""

    index: Index
    view: View
    at_ns: int
    difference: Difference = field(default_factory=Difference)
    hidden: set[str] = field(default_factory=set)
    """Folders that could not be shown, because something newer was known of them."""
    is_listing: bool = False
    left: set[str] = field(default_factory=set)
    """Keys that a listing left alone, as they were being changed or are of unsent files."""

    def is_newer(self, key: str) -> bool:
        """Tell whether this answer must leave a key alone.

        Of files the feed asks again what a listing left alone. Of directories only a listing says it.
        """
        newer = self.index.is_newer(key, self.view)
        if newer and self.is_listing:
            if self.index.is_claimed(key):
                self.index.leave(key)
                self.left.add(key)
            elif key.endswith("/"):
                self.index.outdate_listing(split_key(key[:-1])[0])
        return newer

    def write(self, entry: Entry) -> None:
        # Answers that were asked for before this one came must not undo it.
        self.index.touch(entry.key)
        self.index.write(entry)

    def delete(self, entry: Entry) -> None:
        self.index.touch(entry.key)
        self.index.delete(entry)
        self.difference.removed.append(entry)
        self.difference.moved(reclaim(self.index, entry.parent, entry.name))

    def add(self, entry: Entry) -> None:
        self.index.touch(entry.key)
        placed, moves = place(self.index, entry)
        self.difference.moved(moves)
        self.difference.added.append(placed)

    def folder(self, prefix: str, folder: Folder) -> None:
        key = f"{prefix}{folder.component}/" if folder.component else ""
        # Its marker is all that an empty directory has: made, changed and removed apart from its name.
        if self.is_newer(key) or self.is_newer(key + PLACEHOLDER):
            return
        known = self.index.directory(key)
        if known is None:
            self._new_folder(prefix, folder)
            return
        self.change(known, with_marker(known, folder.marker))

    def change(self, known: Entry, entry: Entry) -> None:
        if entry != known:
            self.write(entry)
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
        self.add(with_marker(fresh, folder.marker))

    def object(self, record: ObjectRecord) -> None:
        parent, component = split_key(record.key)
        known = self.index.file(parent, component)
        if self.is_newer(record.key):
            return
        if known is not None and (known.pending or self.index.is_own(known, record)):
            self.index.contest(record.key, ask_again=self.is_listing)
            self.left.add(record.key)
            return
        if known is None:
            name, ino = decode_component(component), self.index.allocate_ino()
            self.add(from_record(record, parent=parent, component=component, name=name, ino=ino))
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
        self.write(entry)
        if same:
            self.difference.changed.append(entry)
        else:
            self.difference.removed.append(known)
            self.difference.added.append(entry)

    def drop(self, stale: Iterable[str]) -> None:
        """Forget keys a complete listing no longer names, unless newer or with unsent files below."""
        for key in stale:
            # Read again: an entry may have another name by now.
            entry = self.index.directory(key) if key.endswith("/") else self.index.file(*split_key(key))
            if entry is None or entry.pending or self.is_newer(key):
                continue
            if entry.is_dir and self.is_newer(entry.marker_key):
                continue
            if not (entry.is_dir and self.index.holds_pending(key)):
                self.delete(entry)
            elif entry.marker:
                # It is there only as long as what is unsent, and must not be thought to outlive that.
                self.change(entry, with_marker(entry, None))


class DirectoryMerge:
    """Takes in the complete listing of one directory, page by page: nobody waits long for a large one.

    A page is one transaction; what it says is true whether or not the listing comes to its end. Only the
    end proves what is absent, and marks the directory loaded.

    Args:
        index: takes it in.
        prefix: of the directory.
        view: when the listing was asked for.
        at_ns: the same by the wall clock.
    """

    def __init__(self, index: Index, prefix: str, *, view: View, at_ns: int) -> None:
        self._index = index
        self._prefix = prefix
        self._view = view
        self._at_ns = at_ns
        self._unseen = index.keys(prefix)
        self._odd: dict[str, OddKind] = {}
        self._left: set[str] = set()

    def page(self, records: Iterable[ObjectRecord], folders: Iterable[Folder]) -> Difference:
        """Take in some of the names, but not the last; folders that cannot be shown are passed over."""
        merge = _Merge(self._index, self._view, self._at_ns, is_listing=True, left=self._left)
        with self._index.transaction():
            self._take(merge, records, folders)
        return merge.difference

    def _take(self, merge: _Merge, records: Iterable[ObjectRecord], folders: Iterable[Folder]) -> None:
        for folder in folders:
            if oddity(self._prefix, folder.component) is None:
                self._unseen.discard(f"{self._prefix}{folder.component}/")
                merge.folder(self._prefix, folder)
        for record in records:
            self._record(merge, record)

    def _record(self, merge: _Merge, record: ObjectRecord) -> None:
        component = record.key[len(self._prefix) :]
        if component == PLACEHOLDER:
            above, name = split_key(self._prefix[:-1])
            merge.folder(above, Folder(name, record))
            return
        kind = oddity(self._prefix, component)
        if kind is None:
            self._unseen.discard(record.key)
            merge.object(record)
        else:
            self._odd[record.key] = kind

    def finish(
        self, records: Iterable[ObjectRecord], folders: Iterable[Folder], odd_keys: Iterable[str]
    ) -> Iterator[Difference]:
        """Take in the last page, and forget what no page named; the last step marks the directory loaded.

        Args:
            records: of the last page.
            folders: of the last page.
            odd_keys: what is in the folders that cannot be shown.
        """
        unseen: list[str] | None = None
        while True:
            merge = _Merge(self._index, self._view, self._at_ns, is_listing=True, left=self._left)
            with self._index.transaction():
                if unseen is None:
                    self._take(merge, records, folders)
                    unseen = sorted(self._unseen)
                merge.drop(unseen[:_DROPPED_AT_ONCE])
                del unseen[:_DROPPED_AT_ONCE]
                if not unseen:
                    self._note_odd(odd_keys)
                    outdated = self._index.is_outdated(self._prefix, self._view)
                    at_ns = 0 if outdated else self._at_ns
                    self._index.mark_loaded(self._prefix, at_ns, in_part=bool(self._left))
                    self._drop_empty(merge)
            yield merge.difference
            if not unseen:
                return

    def _drop_empty(self, merge: _Merge) -> None:
        """Nothing is in it, and no marker: the directory went with what this listing did not name."""
        marker_key = self._prefix + PLACEHOLDER
        if not any(self._index.is_newer(key, self._view) for key in (self._prefix, marker_key)):
            _prune(merge, self._prefix)

    def _note_odd(self, odd_keys: Iterable[str]) -> None:
        for key in odd_keys:
            kind = oddity(self._prefix, key[len(self._prefix) :].partition("/")[0])
            if kind is not None:
                self._odd[key] = kind
        if self._index.odd_keys.replace(self._prefix, self._odd) and self._odd:
            _log.warning(
                "keys that no path can name are not shown", path=path_of(self._prefix), count=len(self._odd)
            )


def merge_changes(
    index: Index, changes: Iterable[Change], *, view: View, at_ns: int
) -> tuple[Difference, set[str]]:
    """Take in the newest states of objects anywhere in the bucket.

    Only what belongs to a loaded directory is kept; the rest is listed when it is needed.

    Returns:
        What changed, and the keys that were left alone, because something newer was known or because a
        listing that may be older is on its way: they must be asked again.
    """
    merge = _Merge(index, view, at_ns)
    skipped: set[str] = set()
    # What came before what went: a folder whose only file was renamed stays.
    ordered = sorted(changes, key=lambda change: change.record is None)
    with index.transaction():
        for change in ordered:
            parent, component = split_key(change.key)
            subject = parent if component == PLACEHOLDER else change.key
            newer = index.is_newer(subject, view) or index.is_newer(change.key, view)
            known = index.file(parent, component)
            # Of an unsent file: what the bucket has there may show when that is removed.
            pending = known is not None and known.pending
            own = known is not None and change.record is not None and index.is_own(known, change.record)
            if (pending or own) and change.record is not None and not newer:
                index.contest(change.key)
            if newer or pending or own or index.is_being_listed(change.key):
                skipped.add(change.key)
            elif (odd := odd_part(change.key)) is not None:
                _merge_odd_key(merge, *odd, change)
            elif component == PLACEHOLDER:
                _merge_marker(merge, parent, change.record)
            elif change.record is not None:
                if _reveal(merge, parent) or index.file(parent, component) is not None:
                    merge.object(change.record)
            else:
                if known is not None:
                    merge.delete(known)
                _prune(merge, parent)
    skipped |= {change.key for change in ordered if change.key.startswith(tuple(merge.hidden))}
    return merge.difference, skipped


def merge_record(
    index: Index, key: str, record: ObjectRecord | None, *, view: View, at_ns: int
) -> Difference:
    """Take in the newest state of one object, if it is known and nothing newer is; None: it is gone."""
    merge = _Merge(index, view, at_ns)
    known = index.file(*split_key(key))
    if known is None or known.pending or index.is_newer(key, view):
        return merge.difference
    with index.transaction():
        if record is None:
            merge.delete(known)
            _prune(merge, known.parent)
        else:
            merge.object(record)
    return merge.difference


def _merge_odd_key(merge: _Merge, prefix: str, kind: OddKind, change: Change) -> None:
    """Count a key that cannot be shown; the folders on the way to it are shown, as a listing has them."""
    if change.record is None:
        merge.index.odd_keys.drop(change.key)
        _prune(merge, prefix)
    elif _reveal(merge, prefix):
        merge.index.odd_keys.add(prefix, change.key, kind)


def _merge_marker(merge: _Merge, prefix: str, record: ObjectRecord | None) -> None:
    if record is not None:
        _reveal(merge, prefix)
    directory = merge.index.directory(prefix)
    if directory is not None:
        merge.change(directory, with_marker(directory, record))
    if record is None:
        _prune(merge, prefix)


def show_directory(index: Index, prefix: str, *, at_ns: int) -> Difference:
    """Show the folders on the way to a directory in which something was just written from here.

    Another host may have removed its last file meanwhile, and the directory went with it.
    """
    with index.view() as view:
        merge = _Merge(index, view, at_ns)
        with index.transaction():
            _reveal(merge, prefix)
    return merge.difference


def _reveal(merge: _Merge, prefix: str) -> bool:
    """Show the folders on the way to `prefix`; tell whether the directory itself is loaded.

    A folder that a loaded directory did not have was empty until now: all that is in it comes through
    the feed, so it is loaded from the start.
    """
    index = merge.index
    if index.loaded_at_ns(prefix) is not None:
        return True
    if prefix == "":
        return False
    above = split_key(prefix[:-1])[0]
    if not _reveal(merge, above):
        return False
    component = prefix[len(above) : -1]
    if oddity(above, component) is not None or index.directory(prefix) is not None:
        return False
    merge.folder(above, Folder(component, None))
    is_shown = index.directory(prefix) is not None
    if not is_shown:
        merge.hidden.add(prefix)
    # A directory that a gap in the feed expired may have got the folder in that, with more in it.
    if not is_shown or index.loaded_at_ns(above) == 0:
        return False
    index.mark_loaded(prefix, merge.at_ns)
    return True


def _prune(merge: _Merge, prefix: str) -> None:
    """Drop directories that existed only through the objects that left."""
    is_known = True
    while prefix:
        directory = merge.index.directory(prefix)
        if directory is None:  # in one that was never listed
            is_known, prefix = False, split_key(prefix[:-1])[0]
            continue
        if directory.marker or directory.pending:
            return
        above = directory.parent
        if not merge.index.loaded_at_ns(prefix):
            merge.index.doubt(above)  # who knows: look when it is needed
            return
        if not is_known or merge.index.has_children(prefix):
            return
        merge.delete(directory)
        prefix = above
