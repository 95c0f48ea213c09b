"""Where the blocks of a content are held while it arrives: a sparse file, or memory (`memoryspool`).

A spool knows which blocks it has, and hashes them as they come. Blocks of a file stay until the spool goes.
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
    merge_close,
    span,
    split,
)
from exaifs.cache.data.digest import Digest
from exaifs.cache.localfile import (
    LocalFile,
    Threads,
    create,
    unlink_quietly,
    write_at,
)

_BATCH_BYTES = MIB
"""How much is collected before it is written: a thread costs more than the write."""

_HASH_BYTES = 8 * MIB
"""How much is hashed at the most while others wait to write; the rest at the next write, or at the end."""


class Spool(Protocol):
    """Blocks of one content that is not complete yet."""

    @property
    def stored_bytes(self) -> int:
        """What it takes on disk, beside the disk tier's contents."""

    @property
    def window_limit_bytes(self) -> int:
        """How far ahead of a reader it pays to fetch."""

    @property
    def is_whole(self) -> bool:
        """Whether every block came, so that `digest` knows the content."""

    def missing(self, blocks: Interval) -> list[Interval]:
        """Return the blocks that are not there."""

    def held(self, blocks: Interval) -> AbstractContextManager[None]:
        """Return a context manager in which these blocks, once there, do not leave."""

    def put(self, first_block: int, data: bytes) -> bool:
        """Take whole blocks, which are there from now on; True: call `flush` before the next."""

    async def flush(self) -> None:
        """Write what is only in memory where it belongs, and hash what has come without a gap.

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
        """Return the SHA-256 of the whole content, None when some of it did not come yet.

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
        self._blocks = block_count(size_bytes)
        self._threads = threads
        self._digest = Digest()
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
    def is_whole(self) -> bool:
        """Whether every block came."""
        return self._present.total == self._blocks

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
        """Write the pending blocks in a thread, and read back what follows on what is hashed."""
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
            until_bytes = min(self._bytes_in_order(), self._digest.followed_bytes + _HASH_BYTES)
            with self.file.used() as fd:
                await self._threads.run(_write_blocks, fd, batch)
                await self._threads.run(self._digest.read_on, fd, until_bytes)
            for block, piece in batch:
                del self._pending[block]
                self._pending_bytes -= len(piece)

    def _is_closed(self) -> bool:
        return self._closed

    def _bytes_in_order(self) -> int:
        """Return how much is there without a gap."""
        gaps = self._present.missing(0, self._blocks)
        return min(gaps[0][0] * BLOCK_BYTES, self._size_bytes) if gaps else self._size_bytes

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
        """Hash what is not hashed yet; most was, as it came."""
        await self.flush()
        if not self.is_whole or self._pending or self.file is None:
            return None
        async with self._writing:
            with self.file.used() as fd:
                await self._threads.run(self._digest.read_on, fd, self._size_bytes)
        return self._digest.of(self._size_bytes)

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
