"""The memory tier: blocks in RAM, the least recently used leaving first, bounded in bytes.

Keys are contents by SHA-256 (verified) or by `v-<version>` (still arriving); blocks never change, so
nothing is ever invalidated. Everything is synchronous, hence atomic between checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict

from exaifs.cache.data.blocks import BLOCK_BYTES, Interval, span, split


class MemoryTier:
    """Blocks in RAM.

    Args:
        limit_bytes: the sum of the blocks never passes it; 0 keeps nothing.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._total_bytes = 0

    @property
    def limit_bytes(self) -> int:
        """The bound it was made with."""
        return self._limit_bytes

    @property
    def total_bytes(self) -> int:
        """Sum of the blocks."""
        return self._total_bytes

    @property
    def items(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    def put(self, content: str, block: int, data: bytes) -> int:
        """Keep one block and return how many others had to leave. Larger than the limit: not kept."""
        if len(data) > self._limit_bytes:
            return 0
        self._drop(content, block)
        self._blocks[content, block] = data
        self._total_bytes += len(data)
        evicted = 0
        while self._total_bytes > self._limit_bytes:
            _, oldest = self._blocks.popitem(last=False)
            self._total_bytes -= len(oldest)
            evicted += 1
        return evicted

    def put_range(self, content: str, first_block: int, data: bytes) -> int:
        """Keep the blocks that `data` is made of, the first of them `first_block`."""
        return sum(self.put(content, block, piece) for block, piece in split(first_block, data))

    def get(self, content: str, block: int) -> bytes | None:
        """Return one block and count it as used."""
        data = self._blocks.get((content, block))
        if data is not None:
            self._blocks.move_to_end((content, block))
        return data

    def has(self, content: str, block: int) -> bool:
        """Tell whether a block is there, without counting it as used."""
        return (content, block) in self._blocks

    def read(self, content: str, offset: int, size_bytes: int) -> bytes | None:
        """Return exactly these bytes, of which there is at least one; None when any is not there."""
        first, last = span(offset, size_bytes)
        if (content, first) not in self._blocks:
            return None
        found = [self.get(content, block) for block in range(first, last)]
        pieces = [data for data in found if data is not None]
        if len(pieces) < len(found):
            return None
        start = offset - first * BLOCK_BYTES
        return join(pieces, start, size_bytes)

    def drop(self, content: str, blocks: Interval) -> None:
        """Forget some blocks of one content."""
        for block in range(*blocks):
            self._drop(content, block)

    def clear(self) -> None:
        """Forget everything."""
        self._blocks.clear()
        self._total_bytes = 0

    def _drop(self, content: str, block: int) -> None:
        data = self._blocks.pop((content, block), None)
        if data is not None:
            self._total_bytes -= len(data)


def join(pieces: list[bytes], start: int, size_bytes: int) -> bytes:
    """Return `size_bytes` from `start` on of blocks that follow each other."""
    if len(pieces) == 1:
        data = pieces[0]
        return data if start == 0 and size_bytes == len(data) else data[start : start + size_bytes]
    return b"".join(pieces)[start : start + size_bytes]
