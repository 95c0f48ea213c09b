"""Arithmetic of blocks, intervals and read-ahead: pure, synchronous, without I/O.

Offsets and sizes are bytes; everything named *block* counts blocks of `BLOCK_BYTES`. All intervals are
half-open: (start, stop) holds start and not stop. Called by the downloads and the two local tiers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB

BLOCK_BYTES = 64 * KIB
"""Granularity in which bytes are counted as there, handed to readers, and kept in memory."""

SMALL_BYTES = MIB
"""A file up to this size is fetched whole, in one request."""

MIN_WINDOW_BYTES = 128 * KIB
"""The least that is asked for: the kernel's own default read-ahead."""

MAX_WINDOW_BYTES = 8 * MIB
"""The most that one request asks for."""

MERGE_GAP_BYTES = 128 * KIB
"""Fetching so many bytes again costs less than another request."""

MISS_COST_BYTES = 4 * MIB
"""What one request for a random read is worth in bytes: 40 ms at 100 MB/s.

Once the random reads of a content have cost as much as its missing rest would, the rest is fetched.
"""

_MIN_WINDOW_BLOCKS = MIN_WINDOW_BYTES // BLOCK_BYTES
_STREAMS = 8
"""How many sequential readers of one content are told apart."""
_GROWTH = 4
"""A window is at most so many times what its reader has read in sequence: bounded waste."""

Interval = tuple[int, int]


def block_count(size_bytes: int) -> int:
    """Return how many blocks hold so many bytes; the last may be short."""
    return -(-size_bytes // BLOCK_BYTES)


def span(offset: int, size_bytes: int) -> Interval:
    """Return the blocks that a read of at least one byte touches."""
    return offset // BLOCK_BYTES, block_count(offset + size_bytes)


def clip(offset: int, size_bytes: int, total_bytes: int) -> int:
    """Return how many bytes of a read lie inside the file: 0 at its end and beyond."""
    return max(0, min(size_bytes, total_bytes - offset))


def block_size(block: int, total_bytes: int) -> int:
    """Return the bytes of one block; short only at the end of the file."""
    return min(BLOCK_BYTES, total_bytes - block * BLOCK_BYTES)


def byte_range(blocks: Interval, total_bytes: int) -> Interval:
    """Return the bytes that some blocks hold."""
    return blocks[0] * BLOCK_BYTES, min(blocks[1] * BLOCK_BYTES, total_bytes)


def block_parts(offset: int, size_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Yield (block, offset in it, bytes of it) for each block of a read of at least one byte."""
    stop = offset + size_bytes
    while offset < stop:
        block, start = divmod(offset, BLOCK_BYTES)
        count = min(BLOCK_BYTES - start, stop - offset)
        yield block, start, count
        offset += count


def split(first_block: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks that whole blocks in one piece are made of, with their numbers."""
    for block, start in enumerate(range(0, len(data), BLOCK_BYTES), first_block):
        yield block, data[start : start + BLOCK_BYTES]


def widen(blocks: Interval, total_blocks: int) -> Interval:
    """Grow an interval to aligned windows of the least size worth a request."""
    start = blocks[0] - blocks[0] % _MIN_WINDOW_BLOCKS
    stop = -(-blocks[1] // _MIN_WINDOW_BLOCKS) * _MIN_WINDOW_BLOCKS
    return start, min(stop, total_blocks)


def overlaps(first: Interval, second: Interval) -> bool:
    """Tell whether two intervals share anything."""
    return first[0] < second[1] and second[0] < first[1]


def total(intervals: Iterable[Interval]) -> int:
    """Return how many integers lie in disjoint intervals."""
    return sum(stop - start for start, stop in intervals)


def merge_close(intervals: Iterable[Interval], gap: int, apart: Sequence[Interval] = ()) -> list[Interval]:
    """Join sorted, disjoint intervals whose distance is at most `gap`, unless one of `apart` is between."""
    merged: list[Interval] = []
    for start, stop in intervals:
        between = (merged[-1][1], start) if merged else (start, start)
        if merged and start - between[0] <= gap and not any(overlaps(between, taken) for taken in apart):
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged


def subtract(intervals: Iterable[Interval], taken: Iterable[Interval]) -> list[Interval]:
    """Return what of sorted, disjoint intervals lies in none of `taken` (any order, may overlap)."""
    rest = list(intervals)
    for start, stop in taken:
        pieces: list[Interval] = []
        for left, right in rest:
            if left < min(right, start):
                pieces.append((left, min(right, start)))
            if max(left, stop) < right:
                pieces.append((max(left, stop), right))
        rest = pieces if start < stop else rest
    return rest


def cut(intervals: Iterable[Interval], maximum: int) -> Iterator[Interval]:
    """Yield the intervals in pieces of at most `maximum`."""
    for start, stop in intervals:
        for left in range(start, stop, maximum):
            yield left, min(left + maximum, stop)


class IntervalSet:
    """A set of integers as sorted, disjoint, never touching intervals."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self._total = 0

    @property
    def total(self) -> int:
        """How many integers are in the set."""
        return self._total

    def __iter__(self) -> Iterator[Interval]:
        return iter(zip(self._starts, self._stops, strict=True))

    def add(self, start: int, stop: int) -> None:
        """Add an interval; what is there already stays."""
        if start >= stop:
            return
        # Everything that overlaps or touches [start, stop) is replaced by one interval.
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
            self._total -= sum(self._stops[first:last]) - sum(self._starts[first:last])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]
        self._total += stop - start

    def missing(self, start: int, stop: int) -> list[Interval]:
        """Return the parts of an interval that are not in the set, in order."""
        gaps: list[Interval] = []
        index = bisect_right(self._stops, start)
        while start < stop:
            if index == len(self._starts) or self._starts[index] >= stop:
                gaps.append((start, stop))
                break
            if start < self._starts[index]:
                gaps.append((start, self._starts[index]))
            start = self._stops[index]
            index += 1
        return gaps

    def clear(self) -> None:
        """Forget everything."""
        self._starts.clear()
        self._stops.clear()
        self._total = 0


@dataclass(slots=True)
class _Stream:
    """One reader that goes forward."""

    position: int
    consumed: int


class ReadAhead:
    """Guesses from the reads of one content how far ahead to fetch.

    Several readers of one content are told apart by where they are. The kernel sends the reads of one
    reader slightly out of order, so a read near a reader's position counts as its next.
    """

    def __init__(self) -> None:
        self._streams: list[_Stream] = []  # the most recently used last
        self._misses = 0

    def observe(self, offset: int, size_bytes: int) -> int | None:
        """Note a read and return how many bytes beyond its end should be there.

        None for a jump: a read that continues no other and is not at the start of the file.
        """
        stop = offset + size_bytes
        slack = 2 * size_bytes + MIN_WINDOW_BYTES
        for index in range(len(self._streams) - 1, -1, -1):
            stream = self._streams[index]
            if abs(offset - stream.position) <= slack:
                stream.consumed += max(0, stop - stream.position)
                stream.position = max(stream.position, stop)
                self._streams.append(self._streams.pop(index))
                return min(MAX_WINDOW_BYTES, max(MIN_WINDOW_BYTES, _GROWTH * stream.consumed))
        self._streams.append(_Stream(stop, size_bytes))
        del self._streams[:-_STREAMS]
        if offset == 0:
            return max(0, MIN_WINDOW_BYTES - size_bytes)
        return None

    def note_miss(self, missing_bytes: int) -> bool:
        """Count a jump to bytes that are not there, and tell whether to fetch the whole rest now."""
        self._misses += 1
        return self._misses * MISS_COST_BYTES >= missing_bytes


class Assembler:
    """Cuts a stream of chunks into whole blocks.

    Args:
        start: offset of the first byte; on a block's border.
        stop: offset behind the last byte; on a block's border or the end of the file.
    """

    def __init__(self, start: int, stop: int) -> None:
        self._pending = bytearray()
        self._position = start
        self._stop = stop

    @property
    def missing_bytes(self) -> int:
        """How many bytes are still to come; negative when too many came."""
        return self._stop - self._position - len(self._pending)

    @property
    def ready(self) -> Interval:
        """The blocks that `take` would return."""
        first = block_count(self._position)  # behind a short last block, too
        if self.missing_bytes <= 0:
            return first, block_count(self._stop)
        return first, first + len(self._pending) // BLOCK_BYTES

    def feed(self, chunk: bytes) -> None:
        """Add the bytes that come next."""
        self._pending += chunk

    def take(self) -> bytes:
        """Remove and return the bytes of the blocks that are `ready`."""
        _, last = self.ready
        count = max(0, min(last * BLOCK_BYTES, self._stop) - self._position)
        data = bytes(memoryview(self._pending)[:count])
        del self._pending[:count]
        self._position += count
        return data
