"""Open files and directories by handle number; synchronous, so no lock."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from exaifs.cache.names.entries import Entry
from exaifs.errors import BadHandle
from exaifs.fs.tables.inodes import Inode
from exaifs.model import Attributes, Handle, ObjectRef


@dataclass(slots=True, eq=False)
class OpenFile:
    """One open(2) of a file."""

    handle: Handle
    inode: Inode
    flags: int
    pinned: ObjectRef | None = None
    """Content that must stay in the cache while this is open."""
    was_read: bool = False
    damage_seen: int = 0
    """`Damage.found` when it was opened."""
    changed: bool = False
    """Whether opening it made or emptied the file."""

    @property
    def readable(self) -> bool:
        """Whether the flags allow reading."""
        return self.flags & os.O_ACCMODE in (os.O_RDONLY, os.O_RDWR)

    @property
    def writable(self) -> bool:
        """Whether the flags allow writing."""
        return self.flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)

    @property
    def answerable(self) -> bool:
        """Whether its close must see the bytes sent; a reader's is not answerable for what others wrote."""
        return self.writable or self.changed


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """What the kernel is told of a new handle."""

    handle: Handle
    keep_cache: bool
    direct_io: bool = False


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One name of a listing; `cookie` is where the listing goes on after it."""

    name: str
    attributes: Attributes
    cookie: int
    entry: Entry | None
    """None for `.` and `..`, which the kernel does not count as look-ups."""


@dataclass(slots=True, eq=False)
class OpenDirectory:
    """One opendir(3): what was listed so far, so that a listing can go on from any cookie."""

    handle: Handle
    inode: Inode
    entries: list[Entry] = field(default_factory=list)
    complete: bool = False
    as_of: int = 0
    """`Index.generation` when the last of the entries were read."""


class HandleTable:
    """Hands out handle numbers, never the same one twice."""

    def __init__(self) -> None:
        self._next = 1
        self._files: dict[Handle, OpenFile] = {}
        self._directories: dict[Handle, OpenDirectory] = {}

    def open_file(self, inode: Inode, flags: int) -> OpenFile:
        """Make a handle for a file."""
        opened = OpenFile(self._allocate(), inode, flags)
        self._files[opened.handle] = opened
        inode.opens += 1
        inode.writers += opened.writable
        return opened

    def open_directory(self, inode: Inode) -> OpenDirectory:
        """Make a handle for a directory."""
        opened = OpenDirectory(self._allocate(), inode)
        self._directories[opened.handle] = opened
        inode.opens += 1
        return opened

    def file(self, handle: Handle) -> OpenFile:
        """Return an open file.

        Raises:
            BadHandle: it is not open.
        """
        try:
            return self._files[handle]
        except KeyError:
            raise BadHandle(f"file handle {handle} is not open") from None

    def directory(self, handle: Handle) -> OpenDirectory:
        """Return an open directory.

        Raises:
            BadHandle: it is not open.
        """
        try:
            return self._directories[handle]
        except KeyError:
            raise BadHandle(f"directory handle {handle} is not open") from None

    def close_file(self, handle: Handle) -> OpenFile:
        """Forget an open file."""
        opened = self.file(handle)
        del self._files[handle]
        opened.inode.opens -= 1
        opened.inode.writers -= opened.writable
        return opened

    def close_directory(self, handle: Handle) -> OpenDirectory:
        """Forget an open directory."""
        opened = self.directory(handle)
        del self._directories[handle]
        opened.inode.opens -= 1
        return opened

    def _allocate(self) -> Handle:
        handle = Handle(self._next)
        self._next += 1
        return handle
