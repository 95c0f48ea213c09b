"""Bodies to upload: bytes in memory, or a part of the local disk.

Their iterators are plain objects, not generators: an upload that ends early leaves nothing behind that
somebody would have to close.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import anyio.to_thread

from exaifs.errors import IntegrityError
from exaifs.remote.interface import Body, SeekableBody

Progress = Callable[[int, int], None]
"""Told how many bytes are done, and of how many; never less than before."""

_CHUNK_BYTES = 256 * 1024
_INLINE_BYTES = 64 * 1024
"""A file this small is read on the event loop: it was written a moment ago and is in the page cache."""


@dataclass(frozen=True, slots=True)
class BytesBody:
    """Bytes in memory."""

    data: bytes

    @property
    def size_bytes(self) -> int:
        """Number of bytes."""
        return len(self.data)

    def chunks(self, start: int = 0) -> AsyncIterator[bytes]:
        """Start from this byte."""
        return _BytesChunks(memoryview(self.data)[start:])


class _BytesChunks(AsyncIterator[bytes]):
    def __init__(self, left: memoryview) -> None:
        self._left = left

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        chunk, self._left = self._left[:_CHUNK_BYTES], self._left[_CHUNK_BYTES:]
        return bytes(chunk)


@dataclass(frozen=True, slots=True)
class FileBody:
    """The first `size_bytes` of an open file, read with pread(2): the file's position is not used.

    The caller keeps the descriptor open, and the bytes unchanged, until the upload is over.
    """

    fd: int
    size_bytes: int

    def chunks(self, start: int = 0) -> AsyncIterator[bytes]:
        """Start from this byte.

        Raises (from the iterator):
            IntegrityError: the file is shorter than it was said to be.
        """
        return _FileChunks(self.fd, self.size_bytes, start)


class _FileChunks(AsyncIterator[bytes]):
    def __init__(self, fd: int, size_bytes: int, start: int) -> None:
        self._fd = fd
        self._size_bytes = size_bytes
        self._position = start

    async def __anext__(self) -> bytes:
        wanted = min(_CHUNK_BYTES, self._size_bytes - self._position)
        if wanted == 0:
            raise StopAsyncIteration
        if self._size_bytes <= _INLINE_BYTES:
            chunk = os.pread(self._fd, wanted, self._position)
        else:
            chunk = await anyio.to_thread.run_sync(os.pread, self._fd, wanted, self._position)
        if not chunk:
            raise IntegrityError(
                f"a file to upload ended at byte {self._position} of {self._size_bytes}: "
                "something else changed it"
            )
        self._position += len(chunk)
        return chunk


class ReportingBody:
    """A body that tells how far it was read; when it is repeated, nothing until it is further.

    Args:
        body: the bytes.
        progress: told of each chunk as it is read, that is a little before it is sent.
    """

    def __init__(self, body: Body, progress: Progress) -> None:
        self._body = body
        self._progress = progress
        self._told_bytes = 0

    @property
    def size_bytes(self) -> int:
        """As the body's."""
        return self._body.size_bytes

    def chunks(self) -> AsyncIterator[bytes]:
        """Start again from the first byte."""
        return _ReportingChunks(self._body.chunks(), self._tell, 0)

    def _tell(self, done_bytes: int) -> None:
        if done_bytes > self._told_bytes:
            self._told_bytes = done_bytes
            self._progress(done_bytes, self.size_bytes)


class ReportingSeekableBody(ReportingBody):
    """The same for a body that can be taken up in the middle.

    Args:
        body: the bytes.
        progress: told of each chunk as it is read.
    """

    def __init__(self, body: SeekableBody, progress: Progress) -> None:
        super().__init__(body, progress)
        self._seekable = body

    def chunks(self, start: int = 0) -> AsyncIterator[bytes]:
        """Start from this byte."""
        return _ReportingChunks(self._seekable.chunks(start), self._tell, start)


class _ReportingChunks(AsyncIterator[bytes]):
    def __init__(self, chunks: AsyncIterator[bytes], tell: Callable[[int], None], start: int) -> None:
        self._chunks = chunks
        self._tell = tell
        self._done_bytes = start

    async def __anext__(self) -> bytes:
        chunk = await anext(self._chunks)
        self._done_bytes += len(chunk)
        self._tell(self._done_bytes)
        return chunk
