"""What is remembered of uploads without an answer."""

from __future__ import annotations

from exaifs.fs.staged.traces import Traces


def test_ids_that_were_never_used_are_forgotten() -> None:
    """A thousand fsyncs while Supabase is away name one upload; what was begun stays known."""
    traces = Traces()
    used = traces.new_id()
    traces.begin("a", 1)
    for _ in range(1000):
        newest = traces.new_id()
    assert traces.write_ids == [used, newest]


def test_a_file_that_stays_open_for_weeks_remembers_its_newest_uploads() -> None:
    """Each fsync writes all of it to the journal."""
    traces = Traces()
    for number in range(1000):
        newest = traces.new_id()
        traces.begin(str(number), number)
    assert len(traces.write_ids) == len(traces.sent) == 100
    assert traces.write_ids[-1] == newest
    assert list(traces.sent)[-1] == "999"


def test_what_is_replaced_is_older() -> None:
    """The ids of a file that was renamed over are kept before those of the one that replaces it."""
    replaced, traces = Traces(), Traces()
    first = replaced.new_id()
    replaced.begin("a", 1)
    second = traces.new_id()
    traces.begin("b", 2)
    traces.add(replaced)
    assert traces.write_ids == [first, second]
    assert list(traces.sent) == ["a", "b"]
    assert traces.tried
    assert traces.unanswered


def test_an_id_of_a_replaced_file_is_never_taken_for_one_that_was_not_used() -> None:
    """The new file has none yet: its first one comes after those."""
    replaced, traces = Traces(), Traces()
    first = replaced.new_id()
    replaced.begin("a", 1)
    traces.add(replaced)
    assert traces.write_ids == [first]
    newest = traces.new_id()
    assert traces.write_ids == [first, newest]
