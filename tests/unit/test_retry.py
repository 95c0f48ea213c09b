"""The retry policy, on a clock that jumps: no test here waits."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from exaifs.errors import Busy, ExaifsError, NotFound, RemoteError, Unauthorized, Unreachable
from exaifs.remote.retry import Progress, RetryPolicy

POLICY = RetryPolicy(attempts=4, first_delay_s=1.0, max_delay_s=3.0, total_s=60.0, jitter=lambda: 0.0)


class Attempts:
    """Fails with the given errors, then succeeds; notes when it was called."""

    def __init__(self, *errors: ExaifsError, takes_s: float = 0.0) -> None:
        self._errors = list(errors)
        self._takes_s = takes_s
        self.times_s: list[float] = []

    async def __call__(self) -> str:
        self.times_s.append(trio.current_time())
        await trio.sleep(self._takes_s)
        if self._errors:
            raise self._errors.pop(0)
        return "done"


def run_quickly(main: Callable[[], Awaitable[None]]) -> None:
    """Run under trio with a clock that starts at zero and jumps over every wait."""
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_success_is_returned_at_once() -> None:
    """A call that succeeds is made once."""

    async def main() -> None:
        attempts = Attempts()
        assert await POLICY.run("call", attempts) == "done"
        assert attempts.times_s == [0.0]

    run_quickly(main)


def test_temporary_errors_are_repeated_with_growing_delays() -> None:
    """Waits double up to the longest; here each is exactly half of it, as the jitter says."""

    async def main() -> None:
        attempts = Attempts(Unreachable("1"), Busy("2"), Unreachable("3"))
        assert await POLICY.run("call", attempts) == "done"
        assert attempts.times_s == [0.0, 0.5, 1.5, 3.0]

    run_quickly(main)


def test_attempts_are_limited() -> None:
    """The last attempt's error is raised."""

    async def main() -> None:
        attempts = Attempts(*(Unreachable(str(number)) for number in range(9)))
        with pytest.raises(Unreachable, match="3"):
            await POLICY.run("call", attempts)
        assert len(attempts.times_s) == 4

    run_quickly(main)


@pytest.mark.parametrize("error", [NotFound("x"), Unauthorized("x"), RemoteError("x")])
def test_lasting_errors_are_not_repeated(error: ExaifsError) -> None:
    """What will not change by waiting is raised at once."""

    async def main() -> None:
        attempts = Attempts(error)
        with pytest.raises(type(error)):
            await POLICY.run("call", attempts)
        assert attempts.times_s == [0.0]

    run_quickly(main)


def test_the_server_decides_how_long_to_wait_at_least() -> None:
    """A Retry-After longer than our own delay is obeyed."""

    async def main() -> None:
        attempts = Attempts(Busy("later", retry_after_s=7.0))
        await POLICY.run("call", attempts)
        assert attempts.times_s == [0.0, 7.0]

    run_quickly(main)


def test_nobody_waits_longer_than_the_total_limit() -> None:
    """A wait that would end too late is not begun, and an attempt that takes too long is ended."""

    async def main() -> None:
        attempts = Attempts(Busy("later", retry_after_s=61.0))
        with pytest.raises(Busy):
            await POLICY.run("call", attempts)
        assert trio.current_time() == 0.0

        slow = Attempts(Unreachable("1"), Unreachable("2"), Unreachable("3"), takes_s=40.0)
        with pytest.raises(Unreachable, match="1") as caught:
            await POLICY.run("call", slow)
        assert trio.current_time() == 60.0
        assert caught.value.waited_out

        with pytest.raises(Unreachable, match="call: no answer in 60 s"):
            await POLICY.run("call", trio.sleep_forever)
        assert trio.current_time() == 120.0

    run_quickly(main)


def test_cancellation_passes() -> None:
    """Neither an attempt nor a wait holds a cancelled task back."""

    async def main() -> None:
        attempts = Attempts(*(Unreachable("x") for _ in range(9)), takes_s=0.4)
        with trio.move_on_after(0.6) as scope:  # in the middle of the first wait
            await POLICY.run("call", attempts)
        assert scope.cancelled_caught
        assert trio.current_time() == pytest.approx(0.6)

    run_quickly(main)


def test_jitter_stays_between_half_and_whole() -> None:
    """Waits differ, so that many clients do not come back together."""
    policy = RetryPolicy(first_delay_s=1.0, jitter=random.Random(1).random)
    delays_s = [policy.delay_s(1, Unreachable("x")) for _ in range(100)]
    assert min(delays_s) >= 0.5
    assert max(delays_s) <= 1.0
    assert max(delays_s) - min(delays_s) > 0.3


class Sender:
    """Moves to the given positions one after another, a second each, then stands still or fails."""

    def __init__(self, *attempts: list[int], confirms: bool = False, hangs: bool = False) -> None:
        self._attempts = list(attempts)
        self._confirms = confirms
        self._hangs = hangs
        self.progress = Progress()
        self.count = 0

    async def __call__(self) -> str:
        self.count += 1
        if not self._attempts:
            return "done"
        for position in self._attempts.pop(0):
            await trio.sleep(1)
            (self.progress.confirmed if self._confirms else self.progress.moved)(position)
        if self._hangs:
            await trio.sleep_forever()
        raise Unreachable("cut")


def test_a_transfer_may_take_its_time_while_it_moves() -> None:
    """The total limit counts from the last byte that moved."""

    async def main() -> None:
        sender = Sender(list(range(1, 200)), hangs=True)
        with pytest.raises(Unreachable, match="no answer in 60 s"):
            await POLICY.run("PUT", sender, sender.progress)
        assert trio.current_time() == 199 + 60

    run_quickly(main)


def test_attempts_count_from_the_last_confirmed_byte() -> None:
    """As long as the server keeps more each time, any number of attempts is made."""

    async def main() -> None:
        sender = Sender(*([number] for number in range(1, 50)), confirms=True)
        assert await POLICY.run("PUT", sender, sender.progress) == "done"
        stuck = Sender(*([7] for _ in range(50)), confirms=True)
        with pytest.raises(Unreachable, match="cut"):
            await POLICY.run("PUT", stuck, stuck.progress)
        assert stuck.count == 4

    run_quickly(main)


def test_bytes_that_are_sent_again_are_no_progress() -> None:
    """They only stop the clock: it goes on from where the earlier attempts left it."""

    async def main() -> None:
        patient = RetryPolicy(
            attempts=99, first_delay_s=20.0, max_delay_s=20.0, total_s=60.0, jitter=lambda: 0
        )
        sender = Sender(*([1, 2, 3] for _ in range(99)))
        with pytest.raises(Unreachable, match="cut"):
            await patient.run("PUT", sender, sender.progress)
        # Of every round only the wait of 10 s counts.
        assert trio.current_time() == pytest.approx(6 * 3 + 5 * 10)

    run_quickly(main)


def test_a_call_that_must_not_be_repeated() -> None:
    """Its time is limited all the same."""

    async def main() -> None:
        attempts = Attempts(Unreachable("1"))
        with pytest.raises(Unreachable, match="1"):
            await POLICY.once().run("call", attempts)
        assert len(attempts.times_s) == 1
        with pytest.raises(Unreachable, match="no answer"):
            await POLICY.once().within(5.0).run("call", trio.sleep_forever)
        assert trio.current_time() == 5.0

    run_quickly(main)
