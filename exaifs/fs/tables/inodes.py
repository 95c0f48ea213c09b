"""Inodes in use or with unsent bytes: entry, lookup count, staged copy, lock.

Of what the kernel merely knows only the look-ups are counted; all else stays in the index. The table is
changed only by synchronous methods and needs no lock; an inode's own lock serialises what changes its
bytes or its name. Two locks at once are taken only in ascending order of inode numbers (rename), and an
inode's lock is the only one held over the network.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import structlog
import trio

from exaifs.cache.names.entries import Entry
from exaifs.cache.names.index import Index
from exaifs.cache.names.merge import Difference
from exaifs.errors import NotADirectory, Stale
from exaifs.fs.tables.atimes import AccessTimes
from exaifs.model import ROOT_INO, AttributeChange, Attributes, Ino, ObjectRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from exaifs.fs.staged.staging import Staged

_log = structlog.get_logger(__name__)

_SPARE_REFERENCES = 10_000
"""Room that the count of look-ups may keep unused, about 1 MB."""

_TYPE_BITS = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "symlink": stat.S_IFLNK}


@dataclass(frozen=True, slots=True)
class Ownership:
    """What files show whose attributes were never recorded."""

    uid: int
    gid: int
    umask: int

    def mode(self, entry: Entry) -> int:
        """Return permission bits and file type."""
        bits = entry.posix.mode
        if bits is None:
            bits = {"file": 0o666, "dir": 0o777, "symlink": 0o777}[entry.kind]
            if entry.kind != "symlink":
                bits &= ~self.umask
        return bits | _TYPE_BITS[entry.kind]


class Inode:
    """One file, directory or symbolic link that is in use."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.lock = trio.Lock()
        """Guards `staged` and the entry's name against publish, write, rename and unlink."""
        self.lookups = 0
        self.opens = 0
        self.writers = 0
        """How many of `opens` may write, so that a close with their bytes will follow."""
        self.unlinked = False
        """Removed on this host: nothing of it may be published."""
        self.staged: Staged | None = None
        self.failure: str | None = None
        """Why the last attempt to publish failed."""
        self.uploading = False

    def __repr__(self) -> str:
        return f"<Inode {self.entry.ino} {self.entry.key!r} lookups={self.lookups} opens={self.opens}>"

    @property
    def ino(self) -> Ino:
        """Inode number."""
        return self.entry.ino

    @property
    def dirty(self) -> bool:
        """Whether there are bytes or attributes that only this host has."""
        return self.staged is not None and self.staged.dirty and not self.unlinked

    @property
    def may_be_stored(self) -> bool:
        """Whether the bucket has, or may have, an object of this key from here."""
        return not self.entry.pending or (self.staged is not None and self.staged.uploads.tried)

    @property
    def is_promised(self) -> bool:
        """Whether somebody was told that unsent bytes are safe; they may be older than the newest."""
        kept = None if self.staged is None or self.unlinked else self.staged.newest_kept
        return kept is not None and kept.acknowledged

    @property
    def size_bytes(self) -> int:
        """Size that readers and writers of this host see."""
        return self.entry.size_bytes if self.staged is None else self.staged.size_bytes

    def change_posix(self, change: AttributeChange, now_ns: int) -> None:
        """Take on permission bits, owner and times; the size is the staged copy's."""
        posix = self.entry.posix
        self.entry = replace(
            self.entry,
            ctime_ns=now_ns,
            posix=replace(
                posix,
                mode=posix.mode if change.mode is None else change.mode & 0o7777,
                uid=posix.uid if change.uid is None else change.uid,
                gid=posix.gid if change.gid is None else change.gid,
                mtime_ns=posix.mtime_ns if change.mtime_ns is None else change.mtime_ns,
                kind=self.entry.kind,
            ),
        )


class InodeTable:
    """Inodes by number.

    Args:
        index: where the entries live.
        ownership: for attributes that were never recorded.
    """

    def __init__(self, index: Index, ownership: Ownership) -> None:
        self._index = index
        self._ownership = ownership
        self.atimes = AccessTimes()
        # Mutable state, changed without an await. An inode is in `_inodes`, or its look-ups are in
        # `_references`; `_idle` finds one of the latter again that a task still holds.
        self._inodes: dict[Ino, Inode] = {}
        self._references: dict[Ino, int] = {}
        self._forgotten = 0
        self._idle: WeakValueDictionary[Ino, Inode] = WeakValueDictionary()
        index.recognise_by(self._is_sent)

    def _is_sent(self, ino: Ino, record: ObjectRecord) -> bool:
        """Tell whether an object is, or on servers that keep no write ids may be, of unsent bytes here."""
        inode = self._inodes.get(ino)
        return (
            inode is not None
            and inode.dirty
            and inode.staged is not None
            and inode.staged.uploads.may_be(record)
        )

    def __iter__(self) -> Iterator[Inode]:
        return iter(list(self._inodes.values()))

    def get(self, ino: Ino) -> Inode:
        """Return the inode of that number, making it from the index when needed.

        Raises:
            Stale: the number is no longer anything.
        """
        inode = self._inodes.get(ino)
        return self._use(self._entry(ino)) if inode is None else inode

    def peek(self, ino: Ino) -> Inode:
        """Return the inode of that number for reading only, now: it need not be in the table.

        Raises:
            Stale: the number is no longer anything.
        """
        inode = self._inodes.get(ino)
        return Inode(self._entry(ino)) if inode is None else inode

    def _entry(self, ino: Ino) -> Entry:
        entry = self._index.by_ino(ino)
        if entry is None:
            raise Stale(f"inode {ino} is gone")
        return entry

    def _use(self, entry: Entry) -> Inode:
        inode = self._idle.pop(entry.ino, None)
        if inode is None:
            inode = Inode(entry)
        inode.entry = entry
        inode.lookups = self._references.pop(entry.ino, 0)
        self._inodes[entry.ino] = inode
        return inode

    def of(self, entry: Entry) -> Inode:
        """Return the inode of an entry that was just read from the index."""
        inode = self._inodes.get(entry.ino)
        return self._use(entry) if inode is None else inode

    def directory(self, ino: Ino) -> Inode:
        """Return a directory's inode.

        Raises:
            NotADirectory: it is something else.
        """
        inode = self.get(ino)
        if not inode.entry.is_dir:
            raise NotADirectory(f"inode {ino} is not a directory")
        return inode

    def parent(self, directory: Inode) -> Inode:
        """Return the directory above one; the root is above itself."""
        entry = self._index.directory(directory.entry.parent)
        return self.get(ROOT_INO) if entry is None else self.of(entry)

    def inos(self) -> list[Ino]:
        """Return the numbers of all inodes that are in use or that the kernel knows."""
        return [*self._inodes, *self._references]

    def count_lookup(self, entry: Entry) -> None:
        """The kernel learns of an entry that was just read from the index."""
        inode = self._inodes.get(entry.ino)
        if inode is None:
            self._references[entry.ino] = self._references.get(entry.ino, 0) + 1
        else:
            inode.lookups += 1

    def live(self, ino: Ino) -> Inode | None:
        """Return an inode only if it is in the table."""
        return self._inodes.get(ino)

    def below(self, prefix: str) -> list[Inode]:
        """Return the inodes in use under a directory, in ascending order."""
        found = [i for i in self if i.entry.key.startswith(prefix) and i.ino != ROOT_INO and not i.unlinked]
        return sorted(found, key=lambda inode: inode.ino)

    def attributes(self, inode: Inode, *, links: int | None = None) -> Attributes:
        """Return what stat shows now; with the number of links counted, unless it is given."""
        entry = inode.entry
        posix = entry.posix
        if links is None:
            links = self._links(entry) if entry.is_dir else 1
        return Attributes(
            ino=entry.ino,
            mode=self._ownership.mode(entry),
            nlink=0 if inode.unlinked else links,
            uid=self._ownership.uid if posix.uid is None else posix.uid,
            gid=self._ownership.gid if posix.gid is None else posix.gid,
            size_bytes=inode.size_bytes,
            atime_ns=self.atimes.of(entry),
            mtime_ns=entry.mtime_ns,
            ctime_ns=max(entry.ctime_ns, entry.updated_ns),
        )

    def _links(self, directory: Entry) -> int:
        # Unknown below: 1 tells find(1) not to count on the number of subdirectories.
        loaded = self._index.loaded_at_ns(directory.key) is not None
        return 2 + self._index.subdirectory_count(directory.key) if loaded else 1

    def entry_attributes(self, entry: Entry) -> Attributes:
        """Return what stat shows for a name in a listing, whether or not the inode is in use."""
        return self.attributes(self._inodes.get(entry.ino) or Inode(entry))

    def change_posix(self, inode: Inode, change: AttributeChange, now_ns: int) -> None:
        """Take on permission bits, owner and times, atime in memory only."""
        if change.atime_ns is not None:
            self.atimes.set(inode.ino, change.atime_ns)
        elif change.mtime_ns is not None:
            self.atimes.set(inode.ino, self.atimes.of(inode.entry))
        inode.change_posix(change, now_ns)

    def store(self, inode: Inode) -> None:
        """Write an inode's entry to the index, unless it was removed."""
        if not inode.unlinked:
            self._index.put(inode.entry)

    def put(self, entry: Entry) -> None:
        """Write an entry to the index, and to its inode if that is in use."""
        self._index.put(entry)
        inode = self._inodes.get(entry.ino)
        if inode is not None:
            inode.entry = entry

    def refresh(self, inodes: Iterable[Inode]) -> None:
        """Read entries again whose names changed underneath (directory rename)."""
        for inode in inodes:
            entry = self._index.by_ino(inode.ino)
            if entry is not None:
                # Attributes of a dirty inode are newer than the index.
                inode.entry = (
                    replace(inode.entry, parent=entry.parent, name=entry.name, component=entry.component)
                    if inode.dirty
                    else entry
                )

    def apply(self, difference: Difference) -> None:
        """Take in what another host changed; replaced files keep serving the version they had."""
        for entry in difference.removed:
            if entry.ino in self._references:
                self._use(entry)
        moved = (inode for entry in difference.added if (inode := self._inodes.get(entry.ino)) is not None)
        self.refresh(moved)
        for entry in difference.changed:
            inode = self._inodes.get(entry.ino)
            if inode is not None and not inode.dirty:
                inode.entry = entry

    def is_replaced(self, inode: Inode) -> bool:
        """Whether another host removed or replaced the file whose bytes this inode still shows."""
        if inode.unlinked or inode.staged is not None or inode.ino == ROOT_INO:
            return False
        current = self._index.child(inode.entry.parent, inode.entry.name)
        return current is None or current.ino != inode.ino

    def forget(self, ino: Ino, count: int) -> None:
        """The kernel drops `count` of its references."""
        inode = self._inodes.get(ino)
        if inode is None:
            self._forget_idle(ino, count)
        else:
            inode.lookups -= count
            if inode.lookups < 0:
                _log.warning("the kernel forgot more than it looked up", ino=ino, lookups=inode.lookups)
                inode.lookups = 0
            self.release(inode)
        if ino not in self._inodes and ino not in self._references:
            self.atimes.forget(ino)

    def _forget_idle(self, ino: Ino, count: int) -> None:
        self._forgotten += 1
        if self._forgotten > len(self._references) + _SPARE_REFERENCES:
            # A dictionary never gives back room by itself.
            self._references = dict(self._references)
            self._forgotten = 0
        left = self._references.pop(ino, 0) - count
        if left > 0:
            self._references[ino] = left
        elif left < 0 and ino != ROOT_INO:
            _log.warning("the kernel forgot more than it looked up", ino=ino, lookups=left)

    def release(self, inode: Inode) -> None:
        """Drop an inode from the table once nobody uses it; what the kernel knows is still counted."""
        if inode.opens or inode.staged is not None or inode.ino == ROOT_INO:
            return
        if inode.lookups == 0:
            self._inodes.pop(inode.ino, None)
        elif inode.ino in self._inodes and not (
            inode.lock.locked() or inode.unlinked or self.is_replaced(inode)
        ):
            del self._inodes[inode.ino]
            self._references[inode.ino] = inode.lookups
            self._idle[inode.ino] = inode


@asynccontextmanager
async def locked(*inodes: Inode | None) -> AsyncIterator[None]:
    """Hold the locks of several inodes, taken in ascending order."""
    unique = {inode.ino: inode for inode in inodes if inode is not None}
    async with AsyncExitStack() as stack:
        for ino in sorted(unique):
            await stack.enter_async_context(unique[ino].lock)
        yield
