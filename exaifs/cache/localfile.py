"""Local files as the cache uses them: descriptors that outlive their eviction, hashing, copying.

The functions block and belong in a thread (`Threads.run`), except where a docstring says that they do
not wait.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from exaifs.cache.data.blocks import MIB
from exaifs.cache.data.digest import Digest

T = TypeVar("T")

_FICLONE = 0x40049409
"""ioctl_ficlone(2): share the extents instead of copying."""

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Threads:
    """The one way of the cache to block: worker threads under a limit of their own.

    A thread that has begun is always waited for, so what it did is known even when its caller was
    cancelled: the line behind `await run(...)` runs.
    """

    def __init__(self, limit: int = 8) -> None:
        self._limiter = anyio.CapacityLimiter(limit)

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Run `function(*args)` in a thread."""
        return await anyio.to_thread.run_sync(function, *args, limiter=self._limiter)


class LocalFile:
    """An open descriptor, closed when all its owners have retired it and nobody uses it any more.

    A descriptor closed under a reader could be another file's by the time the reader's thread runs.
    No `await` happens inside, so no lock is needed.
    """

    nowait_supported = True
    """Whether the file system knows RWF_NOWAIT (tmpfs and some overlays do not)."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._owners = 1
        self._users = 0

    @contextmanager
    def used(self) -> Iterator[int]:
        """Keep the descriptor open meanwhile."""
        self._users += 1
        try:
            yield self.fd
        finally:
            self._users -= 1
            self._close_if_done()

    def share(self) -> LocalFile:
        """Add an owner, who will `retire` it too."""
        self._owners += 1
        return self

    def retire(self) -> None:
        """Give it up; closed once no owner and no user is left."""
        self._owners -= 1
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._owners <= 0 and self._users == 0 and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def read_nowait(self, offset: int, size_bytes: int) -> bytes | None:
        """Return exactly these bytes if the kernel has them in its page cache; never waits for a disk."""
        if not self.nowait_supported:
            return None
        buffer = bytearray(size_bytes)
        try:
            count = os.preadv(self.fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError as exc:
            if exc.errno in {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}:
                self.nowait_supported = False
            return None  # anything real comes back from the read that waits
        return bytes(buffer) if count == size_bytes else None

    async def read(self, threads: Threads, offset: int, size_bytes: int) -> bytes:
        """Return these bytes; fewer only where the file ends.

        Raises:
            OSError: the disk cannot read them.
        """
        with self.used() as fd:
            return await threads.run(read_at, fd, offset, size_bytes)


def read_at(fd: int, offset: int, size_bytes: int) -> bytes:
    """Read until `size_bytes` are there or the file ends."""
    data = os.pread(fd, size_bytes, offset)
    if len(data) == size_bytes or not data:
        return data
    pieces = [data]
    while data and sum(map(len, pieces)) < size_bytes:
        done = sum(map(len, pieces))
        data = os.pread(fd, size_bytes - done, offset + done)
        pieces.append(data)
    return b"".join(pieces)


def write_at(fd: int, offset: int, data: bytes) -> None:
    """Write everything, or raise."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count


def create(path: Path) -> int:
    """Make a new file for reading and writing, only for the owner."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def write_new(path: Path, data: bytes) -> None:
    """Make a new file with this content; what was begun is removed on failure."""
    fd = create(path)
    try:
        write_at(fd, 0, data)
    except OSError:
        unlink_quietly(path)
        raise
    finally:
        os.close(fd)


def sha256_of_bytes(data: bytes) -> str:
    """Return the SHA-256 as lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(fd: int, size_bytes: int) -> str:
    """Hash the first `size_bytes` of a file; fewer where it ends, so that the digest differs then."""
    digest = hashlib.sha256()
    buffer = bytearray(MIB)
    view = memoryview(buffer)
    offset = 0
    while offset < size_bytes:
        count = os.preadv(fd, [view[: min(MIB, size_bytes - offset)]], offset)
        if count == 0:
            break
        digest.update(view[:count])
        offset += count
    return digest.hexdigest()


def copy_contents(source: Path, target_fd: int) -> Digest:
    """Copy a file to the start of another, which is empty, and read what arrived there.

    Returns:
        The digest of the whole, which says whether it is what it should be.
    """
    _copy(source, target_fd)
    return Digest.of_file(target_fd)


def _copy(source: Path, target_fd: int) -> None:
    """Copy by shared extents, in the kernel, or by hand."""
    source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.ioctl(target_fd, _FICLONE, source_fd)
            return
        size_bytes = os.fstat(source_fd).st_size
        offset = 0
        with suppress(OSError):  # across file systems, or an old kernel: the loop below goes on
            while offset < size_bytes:
                count = os.copy_file_range(source_fd, target_fd, size_bytes - offset, offset, offset)
                if count == 0:
                    break
                offset += count
        while data := os.pread(source_fd, MIB, offset):
            write_at(target_fd, offset, data)
            offset += len(data)
    finally:
        os.close(source_fd)


def unlink_quietly(path: Path) -> None:
    """Remove a file of the cache; one that cannot be removed is left to the janitor."""
    with suppress(OSError):
        path.unlink()


def is_out_of_space(exc: OSError) -> bool:
    """Tell whether more room would cure it."""
    return exc.errno in _NO_SPACE
