"""The retry policy, on a clock that jumps: no test here waits."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from exaifs.errors import Busy, ExaifsError, NotFound, RemoteError, Unauthorized, Unreachable
from exaifs.remote.retry import RetryPolicy

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


def test_no_attempt_starts_after_the_total_limit() -> None:
    """A wait that would end too late is not begun."""

    async def main() -> None:
        attempts = Attempts(Busy("later", retry_after_s=61.0))
        with pytest.raises(Busy):
            await POLICY.run("call", attempts)
        assert trio.current_time() == 0.0

        slow = Attempts(Unreachable("1"), Unreachable("2"), Unreachable("3"), takes_s=40.0)
        with pytest.raises(Unreachable, match="2"):
            await POLICY.run("call", slow)

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
