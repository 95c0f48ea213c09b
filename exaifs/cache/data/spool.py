"""Where the blocks of a content are held while it arrives: a sparse file, or memory.

A spool knows which blocks it has. Blocks of a file stay until the spool goes; blocks in memory leave as
the memory tier needs room, except those that a reader waits for right now.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import anyio

from exaifs.cache.data.blocks import (
    BLOCK_BYTES,
    MIB,
    Interval,
    IntervalSet,
    block_count,
    block_parts,
    block_size,
    merge_close,
    span,
    split,
)
from exaifs.cache.data.memory import MemoryTier, join
from exaifs.cache.localfile import (
    LocalFile,
    Threads,
    create,
    sha256_of_bytes,
    sha256_of_file,
    unlink_quietly,
    write_at,
)

_BATCH_BYTES = MIB
"""How much is collected before it is written: a thread costs more than the write."""


class Spool(Protocol):
    """Blocks of one content that is not complete yet."""

    @property
    def stored_bytes(self) -> int:
        """What it takes on disk, beside the disk tier's contents."""

    @property
    def window_limit_bytes(self) -> int:
        """How far ahead of a reader it pays to fetch."""

    def missing(self, blocks: Interval) -> list[Interval]:
        """Return the blocks that are not there."""

    def held(self, blocks: Interval) -> AbstractContextManager[None]:
        """Return a context manager in which these blocks, once there, do not leave."""

    def put(self, first_block: int, data: bytes) -> bool:
        """Take whole blocks, which are there from now on; True: call `flush` before the next."""

    async def flush(self) -> None:
        """Write what is only in memory where it belongs.

        Raises:
            OSError: the disk refuses; what was put is still readable.
        """

    def read_nowait(self, offset: int, size_bytes: int) -> bytes | None:
        """Return bytes of blocks that are there, or None if that would have to wait for the disk."""

    async def read(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes of blocks that are there.

        Raises:
            OSError: the disk does not give them back.
        """

    async def digest(self) -> str | None:
        """Return the SHA-256 of the whole content, None when some of it is not there (any more).

        Raises:
            OSError: the disk does not give it back.
        """

    def close(self) -> Path | None:
        """Give the spool up and return the file to remove, if there is one."""

    def clear(self) -> None:
        """Forget blocks that turned out to be wrong; called with `close`."""


class DiskSpool:
    """Blocks in a sparse file, the newest still in memory until enough is there to be written.

    Args:
        path: where the file will be made at the first write.
        size_bytes: of the whole content.
        threads: for what may block.
    """

    window_limit_bytes = 1 << 40

    def __init__(self, path: Path, size_bytes: int, threads: Threads) -> None:
        self.path = path
        self.file: LocalFile | None = None
        self.placed = False
        """Whether the file was renamed and is the disk tier's now."""
        self._size_bytes = size_bytes
        self._threads = threads
        self._present = IntervalSet()
        self._pending: dict[int, bytes] = {}  # by block; present, not yet written
        self._pending_bytes = 0
        self._writing = anyio.Lock()
        self._closed = False

    @property
    def stored_bytes(self) -> int:
        """The blocks, as long as the file is not the disk tier's."""
        return (
            0 if self.placed or self._closed else min(self._present.total * BLOCK_BYTES, self._size_bytes)
        )

    @property
    def pending(self) -> list[tuple[int, bytes]]:
        """The blocks that are not written."""
        return list(self._pending.items())

    def missing(self, blocks: Interval) -> list[Interval]:
        """Return the blocks that are not there."""
        return self._present.missing(*blocks)

    @contextmanager
    def held(self, blocks: Interval) -> Iterator[None]:  # noqa: ARG002 - part of the protocol
        """Do nothing: a file's blocks stay."""
        yield

    def put(self, first_block: int, data: bytes) -> bool:
        """Keep blocks in memory, readable at once, until a batch of them is written."""
        for block, piece in split(first_block, data):
            if self._present.missing(block, block + 1):
                self._pending[block] = piece
                self._pending_bytes += len(piece)
                self._present.add(block, block + 1)
        return self._pending_bytes >= _BATCH_BYTES

    async def flush(self) -> None:
        """Write the pending blocks in a thread."""
        async with self._writing:
            if not self._pending or self._closed:
                return
            if self.file is None:
                file = LocalFile(await self._threads.run(create, self.path))
                if self._is_closed():  # meanwhile, by somebody who saw no file to remove
                    file.retire()
                    await self._threads.run(unlink_quietly, self.path)
                    return
                self.file = file
            batch = sorted(self._pending.items())
            with self.file.used() as fd:
                await self._threads.run(_write_blocks, fd, batch)
            for block, piece in batch:
                del self._pending[block]
                self._pending_bytes -= len(piece)

    def _is_closed(self) -> bool:
        return self._closed

    def read_nowait(self, offset: int, size_bytes: int) -> bytes | None:
        """Join pending blocks with what is in the page cache; what was just written is."""
        if self._is_written(span(offset, size_bytes)):
            return None if self.file is None else self.file.read_nowait(offset, size_bytes)
        pieces: list[bytes] = []
        for block, start, count in block_parts(offset, size_bytes):
            piece = self._pending_part(block, start, count)
            if piece is None and self.file is not None:
                piece = self.file.read_nowait(block * BLOCK_BYTES + start, count)
            if piece is None:
                return None
            pieces.append(piece)
        return b"".join(pieces)

    async def read(self, offset: int, size_bytes: int) -> bytes:
        """Join pending blocks with what is read in a thread."""
        if self._is_written(span(offset, size_bytes)):
            return await self._read_file(offset, size_bytes)
        pieces: list[bytes] = []
        for block, start, count in block_parts(offset, size_bytes):
            # Asked for one by one: a block may be written, and leave memory, at every await.
            piece = self._pending_part(block, start, count)
            if piece is None:
                piece = await self._read_file(block * BLOCK_BYTES + start, count)
            pieces.append(piece)
        return b"".join(pieces)

    def _is_written(self, blocks: Interval) -> bool:
        return not self._pending or not any(block in self._pending for block in range(*blocks))

    def _pending_part(self, block: int, start: int, count: int) -> bytes | None:
        piece = self._pending.get(block)
        return None if piece is None else piece[start : start + count]

    async def _read_file(self, offset: int, size_bytes: int) -> bytes:
        if self.file is None:
            raise FileNotFoundError(self.path)
        data = await self.file.read(self._threads, offset, size_bytes)
        if len(data) != size_bytes:
            raise OSError(f"{self.path} became shorter")
        return data

    async def digest(self) -> str | None:
        """Hash the file in a thread."""
        await self.flush()
        if self.file is None or self._pending or self.missing((0, block_count(self._size_bytes))):
            return None
        with self.file.used() as fd:
            return await self._threads.run(sha256_of_file, fd, self._size_bytes)

    def close(self) -> Path | None:
        """Close the file once its readers are done."""
        if self._closed:
            return None
        self._closed = True
        if self.file is None:
            return None
        self.file.retire()
        return None if self.placed else self.path

    def clear(self) -> None:
        """Do nothing: they go with the file."""


def _write_blocks(fd: int, batch: list[tuple[int, bytes]]) -> None:
    """Write sorted blocks, those that follow each other in one go."""
    for first, last in merge_close(((block, block + 1) for block, _ in batch), 0):
        pieces = [piece for block, piece in batch if first <= block < last]
        write_at(fd, first * BLOCK_BYTES, b"".join(pieces))


class MemorySpool:
    """Blocks in the memory tier, and outside it those that somebody waits for.

    Args:
        memory: the tier, which may drop any block at any time.
        content: the key of the blocks in it.
        size_bytes: of the whole content.
        threads: for hashing.
    """

    def __init__(self, memory: MemoryTier, content: str, size_bytes: int, threads: Threads) -> None:
        self._memory = memory
        self._content = content
        self._size_bytes = size_bytes
        self._threads = threads
        self._wanted: list[Interval] = []
        self._held: dict[int, bytes] = {}

    @property
    def stored_bytes(self) -> int:
        """Nothing."""
        return 0

    @property
    def window_limit_bytes(self) -> int:
        """A quarter of the tier, so that read-ahead does not push itself out."""
        return self._memory.limit_bytes // 4

    def missing(self, blocks: Interval) -> list[Interval]:
        """Return the blocks that are not there."""
        present = IntervalSet()
        for block in range(*blocks):
            if block in self._held or self._memory.has(self._content, block):
                present.add(block, block + 1)
        return present.missing(*blocks)

    @contextmanager
    def held(self, blocks: Interval) -> Iterator[None]:
        """Keep these blocks, also those that come later, until the end of the context."""
        self._wanted.append(blocks)
        for block in range(*blocks):
            data = self._memory.get(self._content, block)
            if data is not None:
                self._held[block] = data
        try:
            yield
        finally:
            self._wanted.remove(blocks)
            for block in range(*blocks):
                if not self._is_wanted(block):
                    self._held.pop(block, None)

    def _is_wanted(self, block: int) -> bool:
        return any(start <= block < stop for start, stop in self._wanted)

    def put(self, first_block: int, data: bytes) -> bool:
        """Keep blocks in the tier, and those that somebody waits for in any case."""
        for block, piece in split(first_block, data):
            self._memory.put(self._content, block, piece)
            if self._is_wanted(block):
                self._held[block] = piece
        return False

    async def flush(self) -> None:
        """Do nothing: memory is where they belong."""

    def read_nowait(self, offset: int, size_bytes: int) -> bytes | None:
        """Join the blocks."""
        first, last = span(offset, size_bytes)
        pieces: list[bytes] = []
        for block in range(first, last):
            data = self._memory.get(self._content, block) or self._held.get(block)
            if data is None:
                return None
            pieces.append(data)
        return join(pieces, offset - first * BLOCK_BYTES, size_bytes)

    async def read(self, offset: int, size_bytes: int) -> bytes:
        """Join the blocks."""
        data = self.read_nowait(offset, size_bytes)
        if data is None:
            raise LookupError("a block left while it was wanted")
        return data

    async def digest(self) -> str | None:
        """Hash the blocks in a thread, if all of them are there."""
        data = self.read_nowait(0, self._size_bytes)
        return None if data is None else await self._threads.run(sha256_of_bytes, data)

    def rename(self, content: str) -> None:
        """Give the blocks that are there another key: that of the verified content."""
        for block in range(block_count(self._size_bytes)):
            data = self._memory.get(self._content, block) or self._held.get(block)
            if data is not None and len(data) == block_size(block, self._size_bytes):
                self._memory.put(content, block, data)
        self._memory.drop(self._content, (0, block_count(self._size_bytes)))
        self._content = content

    def close(self) -> Path | None:
        """Do nothing: the tier drops what it needs to."""
        return None

    def clear(self) -> None:
        """Forget every block: they were wrong."""
        self._memory.drop(self._content, (0, block_count(self._size_bytes)))
        self._held.clear()
