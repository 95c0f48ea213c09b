"""Which of what waits `exaifs sync` waits for."""

from __future__ import annotations

import time

from exaifs.ops.sync import Left, Line, Moment


def line(number: int | None = None, since_unix_s: float | None = None) -> Line:
    """Return what waits: a change with a number, or a file since some time."""
    return {"number": number, "since_unix_s": since_unix_s, "path": "x"}


def test_what_was_written_before_the_clock_was_set_back_is_waited_for() -> None:
    """What waits at the first look is waited for, whatever time it is now; what comes after is not."""
    hour_ahead = time.time() + 3600
    moment = Moment.of(Left([line(3), line(since_unix_s=hour_ahead)], [], []))
    assert moment.has(line(since_unix_s=hour_ahead))
    assert moment.has(line(2))
    assert moment.has(line(3))
    assert not moment.has(line(4))
    assert not moment.has(line(since_unix_s=hour_ahead + 0.1))


def test_what_was_open_at_the_first_look_is_waited_for_once_closed() -> None:
    """It was written before; nobody knows when it is closed."""
    moment = Moment.of(Left([], [], [line(since_unix_s=7.0)]))
    assert moment.has(line(since_unix_s=7.0))
    assert not moment.has(line(since_unix_s=8.0))
    assert not moment.has(line(1))


def test_what_was_lost_before_is_not_told_again() -> None:
    """Only what was set aside or given up since the first look keeps a wait from ending well."""
    assert Moment.of(Left([], [], [], [line(2), line(5)])).newest_loss == 5
    assert Moment.of(Left([line(9)], [], [])).newest_loss == 0
