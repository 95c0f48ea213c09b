"""Which operations may run side by side, against the definition."""

from __future__ import annotations

import random

from hypothesis import given, strategies as st

from exaifs.cache.unsent.ordering import Ordering

KEYS = ("a", "d/", "d/a", "d/b", "d/e/", "d/e/a", "e/", "e/a")


def touch(one: str, other: str) -> bool:
    """Tell whether two keys are the same, or one is above the other."""
    return one == other or any(
        above.endswith("/") and below.startswith(above) for above, below in ((one, other), (other, one))
    )


def touches_from_above(keys: list[str], key: str) -> bool:
    """Tell whether one of the keys is this one, or above it."""
    return any(one == key or (one.endswith("/") and key.startswith(one)) for one in keys)


@given(
    operations=st.lists(st.lists(st.sampled_from(KEYS), min_size=1, max_size=2, unique=True), max_size=12),
    chance=st.randoms(use_true_random=False),
)
def test_an_operation_waits_for_every_earlier_one_that_touches_its_keys(
    operations: list[list[str]], chance: random.Random
) -> None:
    """And for no other, in whatever order the ready ones are done."""
    ordering = Ordering()
    live = dict(enumerate(operations))
    for number, keys in live.items():
        ordering.add(number, keys)
    while live:
        expected = [
            number
            for number, keys in live.items()
            if not any(
                earlier < number and any(touch(one, other) for one in keys for other in others)
                for earlier, others in live.items()
            )
        ]
        assert ordering.ready() == expected
        for key in KEYS:
            touching = [number for number, keys in live.items() if touches_from_above(keys, key)]
            assert ordering.latest(key) == sorted(touching, reverse=True)[:2]
        done = chance.choice(expected)
        ordering.remove(done)
        del live[done]
    assert ordering.ready() == []
