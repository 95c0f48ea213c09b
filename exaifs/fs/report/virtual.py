"""The hidden directory in the mount's root: what the daemon says about itself, as files.

`/.exaifs/status.json` holds the status at the moment it is opened, `/.exaifs/sync` what waits to be sent;
opening that also has it tried at once. The directory is not listed, so `find`, `du` and `rm -r *` never
meet it; nothing in it can be changed (EPERM), and no object of the bucket is reachable by its name.
Nothing here waits for Supabase, so it works while that is away.

Inode and handle numbers are in a range of their own, above all that the index and the handle table count
up to: `namespace` and `files` ask `is_virtual` and pass those on to here.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping

from exaifs.errors import BadHandle, IsADirectory, NotADirectory, NotFound, NotPermitted
from exaifs.fs.tables.handles import DirectoryEntry, OpenedFile
from exaifs.model import ROOT_INO, Attributes, Handle, Ino
from exaifs.names import RESERVED_NAME, check_name

STATUS_NAME = "status.json"
SYNC_NAME = "sync"

_FIRST = 1 << 62
_DIRECTORY = Ino((1 << 63) - 1)
_BELIEVED_S = 1.0
"""How long the kernel may keep attributes of what changes all the time."""


def is_virtual(number: int) -> bool:
    """Tell whether an inode or handle number belongs to the hidden directory."""
    return number >= _FIRST


def check_new_name(parent: Ino, name: str) -> None:
    """Refuse what no directory may hold, and what the hidden directory's place is.

    Raises:
        NotPermitted: the hidden directory, or in it.
        NameTooLong, InvalidArgument: see `names.check_name`.
    """
    check_name(name)
    check_changeable(parent, name)


def check_changeable(parent: Ino, name: str) -> None:
    """Refuse to remove or rename the hidden directory and what is in it.

    Raises:
        NotPermitted: it is that.
    """
    if is_virtual(parent) or (parent == ROOT_INO and name == RESERVED_NAME):
        raise NotPermitted(f"{RESERVED_NAME} is made by exaifs and cannot be changed")


class VirtualFiles:
    """The hidden directory of one mount.

    Args:
        contents: what makes the content of each file, by name, whenever it is opened.
        uid: owner.
        gid: group.
        umask: taken from the permission bits.
    """

    def __init__(
        self, contents: Mapping[str, Callable[[], bytes]], *, uid: int, gid: int, umask: int
    ) -> None:
        self._contents = contents
        self._inos = {name: Ino(_DIRECTORY - 1 - number) for number, name in enumerate(contents)}
        self._names = {ino: name for name, ino in self._inos.items()}
        self._uid = uid
        self._gid = gid
        self._umask = umask
        self._next = _FIRST
        self._open: dict[Handle, bytes | None] = {}
        self._sizes_bytes: dict[Ino, int] = {}

    def lookup(self, parent: Ino, name: str) -> Attributes | None:
        """Return the attributes of a name that belongs here; None: it does not.

        Raises:
            NotFound: not in the hidden directory.
        """
        if parent == ROOT_INO:
            return self.getattr(_DIRECTORY) if name == RESERVED_NAME else None
        if not is_virtual(parent):
            return None
        if parent != _DIRECTORY:
            raise NotADirectory(f"{self._name(parent)} is a file")
        known = {".": _DIRECTORY, **self._inos}
        if name not in known:
            raise NotFound(f"no {name!r} in {RESERVED_NAME}")
        return self.getattr(known[name])

    def getattr(self, ino: Ino) -> Attributes:
        """Return the attributes; the size is that of the newest content that was made."""
        is_dir = ino == _DIRECTORY
        if self._names.get(ino) == STATUS_NAME and ino not in self._sizes_bytes:
            self._render(ino)  # a size of 0 would make some programs read nothing
        now_ns = time.time_ns()
        return Attributes(
            ino=ino,
            mode=(stat.S_IFDIR | 0o555 if is_dir else stat.S_IFREG | 0o444) & ~self._umask,
            nlink=2 if is_dir else 1,
            uid=self._uid,
            gid=self._gid,
            size_bytes=self._sizes_bytes.get(ino, 0),
            atime_ns=now_ns,
            mtime_ns=now_ns,
            ctime_ns=now_ns,
            timeout_s=_BELIEVED_S,
        )

    def opendir(self, ino: Ino) -> Handle:
        """Open the directory."""
        if ino != _DIRECTORY:
            raise NotADirectory(f"{self._name(ino)} is a file")
        return self._allocate(None)

    def readdir(self, after: int) -> Iterator[DirectoryEntry]:
        """Return the names after a cookie."""
        names = ((".", _DIRECTORY), ("..", _DIRECTORY), *self._inos.items())
        for cookie, (name, ino) in enumerate(names, start=1):
            if cookie > after:
                yield DirectoryEntry(name, self.getattr(ino), cookie, None)

    def open(self, ino: Ino, flags: int) -> OpenedFile:
        """Open a file: its content is made now.

        Raises:
            NotPermitted: for writing.
            IsADirectory: as it says.
        """
        if ino == _DIRECTORY:
            raise IsADirectory(f"{RESERVED_NAME} is a directory")
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise NotPermitted(f"{self._name(ino)} is made by exaifs and cannot be written")
        data = self._render(ino)
        # Past the page cache: the kernel then reads to the end whatever size it was told.
        return OpenedFile(self._allocate(data), keep_cache=False, direct_io=True)

    def read(self, fh: Handle, offset: int, size_bytes: int) -> bytes:
        """Return bytes of the content as it was at open."""
        data = self._open.get(fh)
        if data is None:
            raise BadHandle(f"file handle {fh} is not open")
        return data[offset : offset + size_bytes]

    def release(self, fh: Handle) -> None:
        """Close a file or the directory."""
        self._open.pop(fh, None)

    def _render(self, ino: Ino) -> bytes:
        data = self._contents[self._name(ino)]()
        self._sizes_bytes[ino] = len(data)
        return data

    def _name(self, ino: Ino) -> str:
        return self._names.get(ino, RESERVED_NAME)

    def _allocate(self, content: bytes | None) -> Handle:
        handle = Handle(self._next)
        self._next += 1
        self._open[handle] = content
        return handle
