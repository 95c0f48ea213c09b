from collections import OrderedDict

from hypothesis import given, strategies as st

from exaifs.cache.data.blocks import BLOCK_BYTES
from exaifs.cache.data.memory import MemoryTier


def test_a_range_is_read_back_from_its_blocks() -> None:
    """What was put is read back at any offset; a read of which a block is not there gives nothing."""
    data = bytes(range(256)) * (BLOCK_BYTES * 5 // 2 // 256)
    memory = MemoryTier(10 * BLOCK_BYTES)
    memory.put_range("content", 0, data)
    assert memory.read("content", 0, len(data)) == data
    assert memory.read("content", BLOCK_BYTES - 3, 7) == data[BLOCK_BYTES - 3 : BLOCK_BYTES + 4]
    assert memory.read("content", 5, 1) == data[5:6]
    assert memory.read("other", 0, 1) is None
    memory.drop("content", (1, 2))
    assert memory.read("content", BLOCK_BYTES - 3, 7) is None
    assert memory.read("content", 0, 7) == data[:7]
    memory.clear()
    assert (memory.total_bytes, memory.items) == (0, 0)


def test_the_least_recently_used_leaves_first() -> None:
    """Reading a block saves it; the one not used for longest goes when room is needed."""
    memory = MemoryTier(3)
    for block in range(3):
        memory.put("content", block, b"x")
    assert memory.get("content", 0) == b"x"
    assert memory.put("content", 3, b"x") == 1
    assert [memory.has("content", block) for block in range(4)] == [True, False, True, True]


def test_what_is_larger_than_the_tier_is_not_kept() -> None:
    """A block that would need more than the limit pushes nothing out."""
    memory = MemoryTier(10)
    memory.put("small", 0, b"12345")
    assert memory.put("large", 0, b"12345678901") == 0
    assert memory.has("small", 0)
    assert not memory.has("large", 0)
    assert MemoryTier(0).put("any", 0, b"1") == 0


@given(
    st.integers(0, 30),
    st.lists(st.tuples(st.integers(0, 8), st.one_of(st.none(), st.integers(1, 12))), max_size=60),
)
def test_it_behaves_as_an_ordered_dictionary_with_a_limit(
    limit: int, steps: list[tuple[int, int | None]]
) -> None:
    """Over any sequence of puts and gets it holds what a plain LRU holds, and never more than the limit."""
    memory, model = MemoryTier(limit), OrderedDict[int, int]()
    for block, size in steps:
        if size is None:
            found = memory.get("content", block)
            assert (None if found is None else len(found)) == model.get(block)
            if block in model:
                model.move_to_end(block)
        else:
            memory.put("content", block, b"x" * size)
            if size <= limit:
                model.pop(block, None)
                model[block] = size
                while sum(model.values()) > limit:
                    model.popitem(last=False)
        assert memory.total_bytes == sum(model.values()) <= limit
        assert memory.items == len(model)
