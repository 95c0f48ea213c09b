"""Deleting: the queue with its leases, and the guard for what took a condemned file's place."""

from __future__ import annotations

import pytest

from tests.postgres.test_conversations import file_id
from tests.support.postgres import BUCKET, Json, Project

LEASE_S = 60


def delete_conversation(project: Project, continuation_id: str) -> None:
    """Delete its row, as a program does."""
    with project.as_service() as connection:
        connection.execute(
            "DELETE FROM public.conversations WHERE continuation_id = %s", (continuation_id,)
        )


def take(project: Project, limit: int = 100) -> list[str]:
    """Take entries of the queue."""
    keys: list[str] = project.rpc("exaifs_take_deletions", BUCKET, limit, LEASE_S)["keys"]
    return keys


def settle(project: Project, keys: list[str]) -> Json:
    """Say that these were removed."""
    answer: Json = project.rpc("exaifs_settle_deletions", BUCKET, keys)
    return answer


def waiting(project: Project) -> int:
    """Return how many entries the queue has."""
    count: int = project.one("SELECT count(*) FROM exaifs_delete_queue")
    return count


def test_take_remove_settle(project: Project) -> None:
    """Each object is handed out once; when it is gone its entry is, too."""
    for number in range(3):
        project.put(f"uploads/c1/{number}", b"x")
    project.put("uploads/c1/.emptyFolderPlaceholder")
    delete_conversation(project, "c1")
    first, second = take(project, 2), take(project, 100)
    assert len(first) == 2
    assert sorted(first + second) == sorted(
        ["uploads/c1/.emptyFolderPlaceholder", *(f"uploads/c1/{number}" for number in range(3))]
    )
    assert take(project) == []
    project.remove(first + second)
    assert settle(project, first + second) == {"gone": sorted(first + second), "kept": []}
    assert waiting(project) == 0


def test_a_crash_leaves_nothing_stuck(project: Project) -> None:
    """What was taken and never settled is handed out again when the lease is over."""
    project.put("uploads/c1/a", b"x")
    delete_conversation(project, "c1")
    assert take(project) == ["uploads/c1/a"]
    project.admin.execute("UPDATE exaifs_delete_queue SET lease_until = now() - interval '1 second'")
    assert take(project) == ["uploads/c1/a"]


def test_two_at_the_same_time(project: Project) -> None:
    """Who asks while another one's answer is under way gets other entries, and does not wait."""
    for number in range(4):
        project.put(f"uploads/c1/{number}", b"x")
    delete_conversation(project, "c1")
    with project.as_service() as connection:
        row = connection.execute(
            "SELECT public.exaifs_take_deletions(%s, 2, %s)", (BUCKET, LEASE_S)
        ).fetchone()
        assert row is not None
        assert set(row[0]["keys"]).isdisjoint(take(project, 2))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_new_file_at_the_path_stays(project: Project, when: str) -> None:
    """Written before the entry is taken, or in the moment between taking it and deleting the object."""
    project.put("uploads/c1/a", b"x")
    project.put("uploads/c1/b", b"x")
    delete_conversation(project, "c1")
    if when == "before":
        project.put("uploads/c1/a", b"x")
        assert take(project) == ["uploads/c1/b"]
    else:
        assert take(project) == ["uploads/c1/a", "uploads/c1/b"]
        project.put("uploads/c1/a", b"x")
    project.remove(["uploads/c1/a", "uploads/c1/b"] if when == "after" else ["uploads/c1/b"])
    assert project.record("uploads/c1/a") is not None
    assert project.record("uploads/c1/b") is None
    settle(project, ["uploads/c1/a", "uploads/c1/b"])
    assert waiting(project) == 0
    assert project.one("SELECT continuation_id FROM conversations") == "c1"
    project.remove(["uploads/c1/a"])
    assert project.record("uploads/c1/a") is None


@pytest.mark.parametrize("when", ["before", "after"])
def test_linked_again(project: Project, when: str) -> None:
    """A file that another conversation gets meanwhile stays."""
    project.put("uploads/c1/a", b"x")
    delete_conversation(project, "c1")
    if when == "before":
        project.rpc("exaifs_link_conversation", BUCKET, file_id(project, "uploads/c1/a"), "c2")
        assert take(project) == []
        assert waiting(project) == 0
        return
    assert take(project) == ["uploads/c1/a"]
    project.rpc("exaifs_link_conversation", BUCKET, file_id(project, "uploads/c1/a"), "c2")
    project.remove(["uploads/c1/a"])
    assert project.record("uploads/c1/a") is not None
    assert settle(project, ["uploads/c1/a"]) == {"gone": [], "kept": ["uploads/c1/a"]}


def test_what_another_conversation_has_is_not_queued(project: Project) -> None:
    """Linked elsewhere, moved out, or in a directory that only looks alike: not this conversation's."""
    for key in (
        "uploads/=C3=A9 1/mine",
        "uploads/=C3=A9 1/shared",
        "uploads/=C3=A9 1/moved",
        "uploads/=C3=A9 12/x",
    ):
        project.put(key, b"x")
    project.rpc("exaifs_link_conversation", BUCKET, file_id(project, "uploads/=C3=A9 1/shared"), "c2")
    project.move("uploads/=C3=A9 1/moved", "kept")
    delete_conversation(project, "é 1")
    assert take(project) == ["uploads/=C3=A9 1/mine"]
    delete_conversation(project, "c2")
    assert take(project) == ["uploads/=C3=A9 1/shared"]


def test_other_deletions_are_not_hindered(project: Project) -> None:
    """The guard concerns entries somebody works on; others delete what they like."""
    project.put("uploads/c1/a", b"x")
    delete_conversation(project, "c1")
    project.put("uploads/c1/a", b"new")
    project.remove(["uploads/c1/a"])
    assert project.record("uploads/c1/a") is None
    project.admin.execute("ALTER TABLE exaifs_delete_queue RENAME TO other")
    project.put("b", b"x")
    project.remove(["b"])
    assert project.record("b") is None
    assert project.one("SELECT operation FROM exaifs_trigger_errors") == "guard DELETE"
