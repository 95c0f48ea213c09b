"""The change feed: nothing is missed, and what was missed is said."""

from __future__ import annotations

from typing import LiteralString

import pytest

from tests.support.postgres import BUCKET, Json, Project, migrate, put, upload_of

DISABLE: LiteralString = "ALTER TABLE storage.objects DISABLE TRIGGER exaifs_on_object"


def _page(project: Project, cursor: str, limit: int = 100) -> Json:
    page: Json = project.rpc("exaifs_changes", BUCKET, cursor, limit)
    return page


def _now(project: Project) -> str:
    cursor: str = project.rpc("exaifs_hello", BUCKET)["cursor"]
    return cursor


def _keys(page: Json) -> list[str]:
    return [change["key"] for change in page["changes"]]


def test_each_key_once_in_its_state_now(project: Project) -> None:
    """Many changes of one key are one entry; what is gone has no record."""
    cursor = _now(project)
    for key in ("a", "b", "a", "c"):
        project.put(key, key.encode())
    project.remove(["b"])
    page = _page(project, cursor)
    assert _keys(page) == ["a", "c", "b"]
    assert [change["record"] for change in page["changes"]] == [
        project.record("a"),
        project.record("c"),
        None,
    ]
    assert (page["more"], page["continuous"]) == (False, True)
    again = _page(project, page["cursor"])
    assert (again["changes"], again["cursor"]) == ([], page["cursor"])


def test_rows_are_changes_too(project: Project) -> None:
    """A patch shows in the feed; access counters do not."""
    project.put("a", b"x")
    cursor = _now(project)
    project.rpc("exaifs_touch", BUCKET, ["a"], [3], ["1900000000000000000"])
    assert _page(project, cursor)["changes"] == []
    project.rpc("exaifs_patch", BUCKET, "a", {"posix": {"mode": 0o600}})
    assert _keys(_page(project, cursor)) == ["a"]
    assert project.log()[-1] == ("row", "a")


def test_pages(project: Project) -> None:
    """Pages of any size go through the log in order, and say when they are through."""
    cursor = _now(project)
    keys = [f"k{number}" for number in range(7)]
    for key in keys:
        project.put(key)
    for limit in (1, 2, 7, 100):
        position, found, more = cursor, list[str](), True
        while more:
            page = _page(project, position, limit)
            assert len(page["changes"]) <= limit
            found += _keys(page)
            position, more = page["cursor"], page["more"]
        assert found == keys


def test_one_transaction_over_several_pages(project: Project) -> None:
    """A bulk operation larger than a page is read to its end."""
    keys = [f"k{number:03}" for number in range(25)]
    for key in keys:
        project.put(key)
    cursor = _now(project)
    project.remove(keys)
    found, more = list[str](), True
    while more:
        page = _page(project, cursor, 10)
        found += _keys(page)
        cursor, more = page["cursor"], page["more"]
    assert sorted(found) == keys


def test_a_transaction_still_running_is_never_skipped(project: Project) -> None:
    """What began earlier and commits later is still delivered: the feed waits below it."""
    cursor = _now(project)
    with project.as_service() as slow:
        put(slow, "slow", b"x")
        project.put("fast", b"x")
        page = _page(project, cursor)
        assert (page["changes"], page["continuous"], page["more"]) == ([], True, False)
        # A mount that starts now must not lose it either.
        fresh = _now(project)
        assert _page(project, "")["continuous"] is True
        slow.commit()
    assert sorted(_keys(_page(project, page["cursor"]))) == ["fast", "slow"]
    assert "slow" in _keys(_page(project, fresh))


def test_order_is_that_of_transactions(project: Project) -> None:
    """Two transactions interleaved in time are read one after the other; the record is the newest."""
    cursor = _now(project)
    with project.as_service() as first:
        put(first, "x", b"1")
        with project.as_service() as second:
            put(second, "y", b"2")
            second.commit()
        put(first, "z", b"3")
        first.commit()
    assert _keys(_page(project, cursor)) == ["x", "z", "y"]


def test_trimmed_past_the_cursor(project: Project) -> None:
    """Who was away longer than the log is kept is told to list again; who was not reads on."""
    old = _now(project)
    project.put("a")
    project.put("b")
    read = _page(project, old)["cursor"]
    assert project.rpc("exaifs_trim_log", 24) == {"deleted": 0}
    project.admin.execute("UPDATE exaifs_change_log SET at = now() - interval '2 days'")
    project.put("c")
    assert project.rpc("exaifs_trim_log", 24) == {"deleted": 2}
    page = _page(project, old)
    assert (page["continuous"], page["changes"], page["more"]) == (False, [], False)
    assert _page(project, page["cursor"])["continuous"] is True
    assert _keys(_page(project, read)) == ["c"]
    assert _page(project, read)["continuous"] is True


def test_trimming_is_by_bucket(project: Project) -> None:
    """A quiet bucket's cursor stays good, however much of another bucket's log is trimmed."""
    quiet = _now(project)
    project.put("a", bucket="generated-files")
    project.admin.execute("UPDATE exaifs_change_log SET at = now() - interval '2 days'")
    assert project.rpc("exaifs_trim_log", 1) == {"deleted": 1}
    assert _page(project, quiet)["continuous"] is True


def test_trimming_leaves_no_hole(project: Project) -> None:
    """Entries go from the beginning only: one that is young keeps all after it, however old."""
    cursor = _now(project)
    for key in ("a", "b", "c"):
        project.put(key)
    project.admin.execute(
        "UPDATE exaifs_change_log SET at = now() - interval '2 days' WHERE key IN ('a', 'c')"
    )
    project.rpc("exaifs_trim_log", 1)
    assert [key for _, key in project.log()] == ["b", "c"]
    assert _page(project, cursor)["continuous"] is False


def test_cursor_of_another_log(project: Project) -> None:
    """A cursor of another project, or no cursor at all, is not continuous, and no error."""
    cursor = _now(project)
    identity, txid, seq = cursor.split(":")
    foreign = (
        "0" * 32 + f":{txid}:{seq}",
        "nonsense",
        "1:2",
        f"{identity}:9999999999999999999:1",
        f"{identity}:-1:1",
    )
    for other in foreign:
        page = _page(project, other)
        assert page["continuous"] is False
        assert _page(project, page["cursor"])["continuous"] is True
    project.admin.execute("UPDATE exaifs_log_state SET log_id = gen_random_uuid()")
    assert _page(project, cursor)["continuous"] is False


def test_cursor_from_the_future(project: Project) -> None:
    """A database restored to an earlier time does not know the cursor's transaction yet."""
    identity, txid, seq = _now(project).split(":")
    assert _page(project, f"{identity}:{int(txid) + 1000}:{seq}")["continuous"] is False


def test_empty_cursor_starts_now(project: Project) -> None:
    """Without a cursor nothing of the past is delivered, and nothing after is missed."""
    project.put("before")
    page = _page(project, "")
    assert (page["changes"], page["continuous"]) == ([], True)
    project.put("after", b"x", upload_of(b"x"))
    assert _keys(_page(project, page["cursor"])) == ["after"]


@pytest.mark.parametrize("how", ["DROP TRIGGER exaifs_on_object ON storage.objects", DISABLE])
def test_a_trigger_that_was_gone_is_a_gap(project: Project, how: LiteralString) -> None:
    """Set again, a cursor from before has missed what happened meanwhile; set twice, nothing."""
    project.put("a", b"1")
    cursor = _now(project)
    migrate(project.address)
    assert _page(project, cursor)["continuous"]
    project.admin.execute(how)
    project.put("b", b"2")
    project.remove(["a"])
    assert _page(project, cursor)["continuous"]
    migrate(project.address)
    page = _page(project, cursor)
    assert (page["continuous"], page["changes"]) == (False, [])
    project.put("c", b"3")
    assert _keys(_page(project, page["cursor"])) == ["c"]
    migrate(project.address)
    assert _page(project, page["cursor"])["continuous"]
