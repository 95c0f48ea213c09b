"""Places for transfers, on a clock that jumps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from exaifs.errors import Unreachable
from exaifs.remote.lanes import Lane


def run_quickly(main: Callable[[], Awaitable[None]]) -> None:
    """Run under trio with a clock that starts at zero and jumps over every wait."""
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def transfer(lane: Lane, *steps_s: float) -> None:
    """Hold a place, and move something after each step."""
    async with lane.place("GET"):
        for step_s in steps_s:
            await trio.sleep(step_s)
            lane.moved()


def test_who_has_a_place_has_the_whole_limit() -> None:
    """Where nobody waits, nothing is taken from the limit."""

    async def main() -> None:
        lane = Lane(1, 10)
        for _ in range(2):
            async with lane.place("GET") as left_s:
                assert left_s == 10
                await trio.sleep(100)

    run_quickly(main)


def test_waiting_while_others_move_costs_nothing() -> None:
    """A slow transfer before us is no reason to give up."""

    async def main() -> None:
        lane = Lane(1, 10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transfer, lane, 9, 9, 9, 9, 9)
            await trio.testing.wait_all_tasks_blocked()
            async with lane.place("GET") as left_s:
                assert trio.current_time() == 45
                assert left_s == 10

    run_quickly(main)


def test_waiting_behind_what_hangs_is_waiting() -> None:
    """Nothing moves: everybody in the queue is told together, and the places are free again."""

    async def main() -> None:
        lane = Lane(2, 10)
        told: list[float] = []

        async def hang() -> None:
            async with lane.place("GET") as left_s:
                await trio.sleep(left_s)

        async def wait() -> None:
            with pytest.raises(Unreachable) as caught:
                async with lane.place("GET"):
                    raise AssertionError("it got a place")
            assert caught.value.waited_out
            told.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang)
            nursery.start_soon(hang)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(30):
                nursery.start_soon(wait)
        assert told == [10] * 30
        async with lane.place("GET"), lane.place("GET") as left_s:
            assert left_s == 10

    run_quickly(main)


def test_what_is_left_of_the_limit() -> None:
    """Who got a place late has the rest of the time for its own transfer."""

    async def main() -> None:
        lane = Lane(1, 10)

        async def hold() -> None:
            async with lane.place("GET"):
                await trio.sleep(4)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await trio.testing.wait_all_tasks_blocked()
            async with lane.place("GET") as left_s:
                assert left_s == 6

    run_quickly(main)


def test_cancellation_gives_the_place_back() -> None:
    """Neither a waiter nor a holder that is cancelled keeps a place."""

    async def main() -> None:
        lane = Lane(1, 10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transfer, lane, 100)
            nursery.start_soon(transfer, lane, 100)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        async with lane.place("GET") as left_s:
            assert left_s == 10

    run_quickly(main)
