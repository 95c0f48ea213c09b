"""The blocks of a content that arrives while there is no disk for it.

They leave as the memory tier needs room, except those that a reader waits for right now.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from exaifs.cache.data.blocks import (
    BLOCK_BYTES,
    MIB,
    Interval,
    IntervalSet,
    block_count,
    block_size,
    span,
    split,
)
from exaifs.cache.data.digest import Digest
from exaifs.cache.data.memory import MemoryTier, join
from exaifs.cache.localfile import Threads

_BATCH_BYTES = MIB
"""How much is collected before it is hashed."""


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
        self._blocks = block_count(size_bytes)
        self._wanted: list[Interval] = []
        self._held: dict[int, bytes] = {}
        self._digest = Digest()
        self._hashing = anyio.Lock()
        self._in_order = 0  # blocks that came without a gap, and may have left
        self._unhashed: list[bytes] = []  # the last of them
        self._follow()

    @property
    def stored_bytes(self) -> int:
        """Nothing."""
        return 0

    @property
    def is_whole(self) -> bool:
        """Whether every block came, in an order in which it could be hashed before it left."""
        return self._in_order == self._blocks

    @property
    def window_limit_bytes(self) -> int:
        """A quarter of the tier, so that read-ahead does not push itself out."""
        return self._memory.limit_bytes // 4

    def missing(self, blocks: Interval) -> list[Interval]:
        """Return the blocks that are not there."""
        present = IntervalSet()
        for block in range(*blocks):
            if self._has(block):
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

    def _has(self, block: int) -> bool:
        return block in self._held or self._memory.has(self._content, block)

    def _get(self, block: int) -> bytes | None:
        return self._memory.get(self._content, block) or self._held.get(block)

    def _is_wanted(self, block: int) -> bool:
        return any(start <= block < stop for start, stop in self._wanted)

    def put(self, first_block: int, data: bytes) -> bool:
        """Keep blocks in the tier, and those that somebody waits for in any case."""
        for block, piece in split(first_block, data):
            if block == self._in_order:
                self._in_order += 1
                self._unhashed.append(piece)
            self._memory.put(self._content, block, piece)
            if self._is_wanted(block):
                self._held[block] = piece
        self._follow()
        return len(self._unhashed) * BLOCK_BYTES >= _BATCH_BYTES

    def _follow(self) -> None:
        """Take along, to be hashed, what came before its turn and is still here."""
        while self._in_order < self._blocks and (piece := self._get(self._in_order)) is not None:
            self._in_order += 1
            self._unhashed.append(piece)

    async def flush(self) -> None:
        """Hash what has come, in a thread; memory is where the blocks belong."""
        async with self._hashing:
            pieces = list(self._unhashed)
            if pieces:
                await self._threads.run(_follow_all, self._digest, pieces)
                # Not before: who is cancelled before the thread began has hashed nothing.
                del self._unhashed[: len(pieces)]

    def read_nowait(self, offset: int, size_bytes: int) -> bytes | None:
        """Join the blocks."""
        first, last = span(offset, size_bytes)
        pieces: list[bytes] = []
        for block in range(first, last):
            data = self._get(block)
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
        """Hash what is not hashed yet; what left again was hashed before."""
        await self.flush()
        return self._digest.of(self._size_bytes)

    def rename(self, content: str) -> None:
        """Give the blocks that are there another key: that of the verified content."""
        for block in range(self._blocks):
            data = self._get(block)
            if data is not None and len(data) == block_size(block, self._size_bytes):
                self._memory.put(content, block, data)
        self._memory.drop(self._content, (0, self._blocks))
        self._content = content

    def close(self) -> Path | None:
        """Do nothing: the tier drops what it needs to."""
        return None

    def clear(self) -> None:
        """Forget every block: they were wrong."""
        self._memory.drop(self._content, (0, self._blocks))
        self._held.clear()


def _follow_all(digest: Digest, pieces: list[bytes]) -> None:
    for piece in pieces:
        digest.follow(digest.followed_bytes, piece)
