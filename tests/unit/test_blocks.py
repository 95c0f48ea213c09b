from itertools import pairwise

from hypothesis import given, strategies as st

from exaifs.cache.data.blocks import (
    BLOCK_BYTES,
    MAX_WINDOW_BYTES,
    MIN_WINDOW_BYTES,
    MISS_COST_BYTES,
    Assembler,
    Interval,
    IntervalSet,
    ReadAhead,
    block_count,
    block_parts,
    byte_range,
    clip,
    cut,
    merge_close,
    overlaps,
    span,
    split,
    subtract,
    total,
    widen,
)

MIB = 1024 * 1024

offsets = st.integers(0, 40)
intervals = st.tuples(offsets, offsets).map(lambda pair: (min(pair), max(pair)))


def numbers(parts: list[Interval]) -> set[int]:
    """Return all integers in some intervals."""
    return {number for start, stop in parts for number in range(start, stop)}


def sorted_disjoint(parts: list[Interval]) -> list[Interval]:
    """Return the same integers in sorted, disjoint intervals."""
    present = IntervalSet()
    for start, stop in parts:
        present.add(start, stop)
    return list(present)


@given(st.lists(intervals), intervals)
def test_an_interval_set_is_a_set_of_integers(added: list[Interval], asked: Interval) -> None:
    """An IntervalSet knows exactly what was added, whatever the order, in the fewest intervals."""
    present = IntervalSet()
    for start, stop in added:
        present.add(start, stop)
    expected = numbers(added)
    assert numbers(list(present)) == expected
    assert present.total == len(expected)
    assert numbers(present.missing(*asked)) == set(range(*asked)) - expected
    kept = list(present)
    assert all(left[1] < right[0] for left, right in pairwise(kept))
    present.clear()
    assert present.missing(0, 3) == [(0, 3)]


@given(st.lists(intervals), st.lists(intervals))
def test_subtract_leaves_what_nobody_took(parts: list[Interval], taken: list[Interval]) -> None:
    """Subtracting leaves exactly what lies in none of the others."""
    parts = sorted_disjoint(parts)
    rest = subtract(parts, taken)
    assert numbers(rest) == numbers(parts) - numbers(taken)
    assert total(rest) == len(numbers(rest))
    assert all(start < stop for start, stop in rest)


@given(st.lists(intervals), st.integers(0, 5), st.lists(intervals, max_size=2))
def test_merging_bridges_small_gaps_but_not_what_is_apart(
    parts: list[Interval], gap: int, apart: list[Interval]
) -> None:
    """Merging loses nothing, adds gaps of at most the given size, and never an interval kept apart."""
    parts = sorted_disjoint(parts)
    apart = subtract(apart[:1], parts) + subtract(apart[1:], parts)
    merged = merge_close(parts, gap, apart)
    assert numbers(merged) >= numbers(parts)
    assert not numbers(merged) & numbers(apart)
    added = sorted_disjoint([(number, number + 1) for number in numbers(merged) - numbers(parts)])
    assert all(stop - start <= gap for start, stop in added)


@given(st.lists(intervals), st.integers(1, 7))
def test_cutting_keeps_everything_in_small_pieces(parts: list[Interval], maximum: int) -> None:
    """Cut pieces hold the same numbers, in order, none longer than allowed."""
    parts = sorted_disjoint(parts)
    pieces = list(cut(parts, maximum))
    assert numbers(pieces) == numbers(parts)
    assert total(pieces) == total(parts)
    assert all(stop - start <= maximum for start, stop in pieces)


@given(st.integers(0, 20 * MIB), st.integers(1, 3 * MIB), st.integers(1, 22 * MIB))
def test_the_blocks_of_a_read_hold_its_bytes(offset: int, size_bytes: int, file_bytes: int) -> None:
    """A read touches the fewest blocks that hold it, and its parts add up to it."""
    size_bytes = clip(offset, size_bytes, file_bytes)
    if size_bytes == 0:
        assert offset >= file_bytes
        return
    blocks = span(offset, size_bytes)
    start, stop = byte_range(blocks, file_bytes)
    assert start <= offset < start + BLOCK_BYTES
    assert stop - BLOCK_BYTES < offset + size_bytes <= stop
    parts = list(block_parts(offset, size_bytes))
    assert [block for block, _, _ in parts] == list(range(*blocks))
    assert sum(count for _, _, count in parts) == size_bytes
    wide = widen(blocks, block_count(file_bytes))
    assert wide[0] <= blocks[0] < blocks[1] <= wide[1] <= block_count(file_bytes)


@given(st.lists(st.binary(max_size=3 * BLOCK_BYTES // 2), max_size=6), st.integers(0, 3))
def test_an_assembler_gives_back_the_stream_in_whole_blocks(chunks: list[bytes], first: int) -> None:
    """However a stream is chopped, whole blocks come out in order, and the last may be short."""
    stream = b"".join(chunks)
    start = first * BLOCK_BYTES
    assembler = Assembler(start, start + len(stream))
    out: dict[int, bytes] = {}
    for chunk in chunks:
        assembler.feed(chunk)
        block, _ = assembler.ready
        out.update(split(block, assembler.take()))
    assert assembler.missing_bytes == 0
    assert list(out) == list(range(first, first + block_count(len(stream))))
    assert b"".join(out.values()) == stream


def test_an_assembler_counts_what_is_missing_and_what_is_too_much() -> None:
    """The bytes still to come are known at any time; more than announced makes them negative."""
    assembler = Assembler(0, 10)
    assembler.feed(b"1234")
    assert (assembler.missing_bytes, assembler.ready) == (6, (0, 0))
    assembler.feed(b"567890!")
    assert assembler.missing_bytes == -1


class TestReadAhead:
    def test_the_first_read_asks_for_little(self) -> None:
        """`head -c 4096` fetches one small window."""
        assert ReadAhead().observe(0, 4096) == MIN_WINDOW_BYTES - 4096

    def test_the_window_grows_with_what_was_read(self) -> None:
        """A sequential reader soon gets the largest window, and never over four times what it read."""
        ahead = ReadAhead()
        windows = [ahead.observe(offset, 128 * 1024) or 0 for offset in range(0, 20 * MIB, 128 * 1024)]
        assert windows == sorted(windows)
        assert windows[-1] == MAX_WINDOW_BYTES
        assert all(window <= 4 * 128 * 1024 * (index + 1) for index, window in enumerate(windows))
        assert windows.index(MAX_WINDOW_BYTES) <= 16

    def test_a_jump_asks_for_nothing_more(self) -> None:
        """A read elsewhere is no sequence."""
        ahead = ReadAhead()
        ahead.observe(0, 4096)
        assert ahead.observe(10 * MIB, 4096) is None

    def test_two_readers_are_told_apart(self) -> None:
        """Two sequential readers of one content both keep their windows."""
        ahead = ReadAhead()
        for step in range(8):
            first = ahead.observe(step * MIB, MIB)
            second = ahead.observe(100 * MIB + step * MIB, MIB)
        assert first == MAX_WINDOW_BYTES
        assert second == MAX_WINDOW_BYTES

    def test_reads_out_of_order_are_still_a_sequence(self) -> None:
        """The kernel sends the reads of one reader in parallel; their order means nothing."""
        ahead = ReadAhead()
        order = [0, 1, 3, 2, 5, 4, 7, 6]
        assert None not in [ahead.observe(step * 128 * 1024, 128 * 1024) for step in order]

    def test_random_readers_get_everything_once_that_is_cheaper(self) -> None:
        """After as many misses as the rest of the file is worth, the rest is fetched."""
        ahead = ReadAhead()
        answers = [ahead.note_miss(50 * MIB) for _ in range(20)]
        assert answers.index(True) == -(-50 * MIB // MISS_COST_BYTES) - 1
        assert not ReadAhead().note_miss(5000 * MIB)


@given(intervals, intervals)
def test_overlap_is_a_shared_number(first: Interval, second: Interval) -> None:
    """Two intervals overlap when a number is in both."""
    if first[0] < first[1] and second[0] < second[1]:
        assert overlaps(first, second) == bool(numbers([first]) & numbers([second]))
