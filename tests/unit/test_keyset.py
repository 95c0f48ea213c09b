"""Sets of keys and prefixes, held against the plain definition."""

from __future__ import annotations

from hypothesis import given, strategies as st

from exaifs.cache.names.keyset import KeySet, prefixes_above

keys = st.lists(st.sampled_from("ab"), min_size=1, max_size=4).flatmap(
    lambda parts: st.sampled_from(["/".join(parts), "/".join(parts) + "/"])
)


def lies_below(key: str, prefix: str) -> bool:
    """Tell whether a key is a prefix, or below it."""
    return key == prefix or (prefix.endswith("/") and key.startswith(prefix))


@given(added=st.lists(keys, max_size=6), key=keys, data=st.data())
def test_it_answers_as_its_definition(added: list[str], key: str, data: st.DataObject) -> None:
    """Covers: in the set, or below a prefix in it. Overlaps: or above something in it."""
    found = KeySet()
    for one in added:
        found.add(one)
    for one in data.draw(st.lists(st.sampled_from(added), unique=True) if added else st.just([])):
        found.discard(one)
        added.remove(one)
    assert bool(found) == bool(added)
    assert found.covers(key) == any(lies_below(key, one) for one in added)
    assert found.overlaps(key) == any(lies_below(key, one) or lies_below(one, key) for one in added)


def test_a_key_counts_as_often_as_it_was_added() -> None:
    """Two operations may be about one key: it is free when both are done."""
    found = KeySet()
    found.add("d/f")
    found.add("d/f")
    found.discard("d/f")
    assert found.covers("d/f")
    assert found.overlaps("d/")
    found.discard("d/f")
    assert not found.overlaps("d/f")
    assert not found.overlaps("d/")


def test_the_prefixes_above_a_key() -> None:
    """From the top; a prefix is not above itself."""
    assert list(prefixes_above("a/b/c")) == ["a/", "a/b/"]
    assert list(prefixes_above("a/b/")) == ["a/"]
    assert list(prefixes_above("a")) == []
