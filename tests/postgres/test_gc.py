"""What `exaifs gc` may delete: orphans, expired files, rows without an object; and nothing else."""

from __future__ import annotations

import psycopg
import pytest

from tests.postgres.test_conversations import file_id
from tests.postgres.test_janitor import LEASE_S, delete_conversation, settle
from tests.postgres.test_migrations import EARLIER_TABLES
from tests.support.postgres import BUCKET, MIGRATOR, Json, Project, migrate, run_script

DAY_S = 86_400


def age(project: Project, days: int = 40) -> None:
    """Make everything so old."""
    project.admin.execute(
        "ALTER TABLE storage.objects DISABLE TRIGGER USER; ALTER TABLE file_metadata DISABLE TRIGGER USER"
    )
    for table, columns in (
        ("storage.objects", ("created_at", "updated_at")),
        ("file_metadata", ("created_at", "updated_at", "upload_date")),
        ("files", ("created_at",)),
    ):
        for column in columns:
            statement = f"UPDATE {table} SET {column} = now() - interval '{days} days'"  # noqa: S608 - ours
            project.admin.execute(statement.encode())
    project.admin.execute(
        "ALTER TABLE storage.objects ENABLE TRIGGER USER; ALTER TABLE file_metadata ENABLE TRIGGER USER"
    )


def annotate(project: Project, key: str, **fields: object) -> None:
    """Set metadata, as programs do."""
    project.rpc("exaifs_annotate", BUCKET, key, fields)


def scan(project: Project, older_s: int = 30 * DAY_S, limit: int = 1000) -> list[Json]:
    """Return all findings, page by page."""
    found: list[Json] = []
    after: str | None = ""
    while after is not None:
        page = project.rpc("exaifs_gc_scan", BUCKET, older_s, after, limit)
        assert page["scanned"] <= limit
        found += page["findings"]
        after = page["next"]
    return found


def kinds(project: Project, older_s: int = 30 * DAY_S) -> dict[str, str]:
    """Return the kind of each finding by its key."""
    return {finding["key"]: finding["kind"] for finding in scan(project, older_s)}


def forget_conversation(project: Project, continuation_id: str) -> None:
    """Delete a conversation past its trigger, as a restored table or TRUNCATE does."""
    project.admin.execute("ALTER TABLE conversations DISABLE TRIGGER USER")
    delete_conversation(project, continuation_id)
    project.admin.execute("ALTER TABLE conversations ENABLE TRIGGER USER")


def test_orphans(project: Project) -> None:
    """In the directory of a conversation that is gone, or made by a program for none; only if old."""
    for key in (
        "uploads/gone/a",
        "uploads/lives/a",
        "docs/mine",
        "uploads/loose",
        "cache/1/x",
        "made",
        "mine",
    ):
        project.put(key, b"x")
    for key in ("cache/1/x", "made", "mine"):
        annotate(project, key, file_type="generated" if key == "made" else "cache")
    project.put("uploads/gone/.emptyFolderPlaceholder")
    project.move("mine", "docs/moved by hand")
    project.put("cache/1/linked", b"x")
    annotate(project, "cache/1/linked", file_type="cache")
    project.rpc("exaifs_link_conversation", BUCKET, file_id(project, "cache/1/linked"), "lives")
    forget_conversation(project, "gone")
    assert kinds(project) == {}
    age(project)
    assert kinds(project) == {"uploads/gone/a": "orphan", "cache/1/x": "orphan", "made": "orphan"}
    assert kinds(project, 50 * DAY_S) == {}
    project.rpc("exaifs_touch", BUCKET, ["made"], [1], [str(2**60)])
    assert "made" not in kinds(project)  # read lately
    found = [finding for finding in scan(project, limit=2) if finding["key"] == "cache/1/x"]
    assert [(finding["size"], finding["note"][4]) for finding in found] == [(1, "-")]


def test_expired(project: Project) -> None:
    """A time that is past, whoever has the file; nonsense is shown, and protects the file."""
    values = {
        "past": "2020-01-31T12:00:00Z",
        "zone": "2020-01-31t12:00:00.5+02:00",
        "future": "2999-01-31T12:00:00Z",
        "day": "2020-01-31",
        "words": "yesterday",
        "wrong": "2020-02-31T12:00:00Z",
        "local": "2020-01-31T12:00:00",
        "number": 1580000000,
        "infinite": "-infinity",
        "none": None,
        "empty": "",
    }
    for name, value in values.items():
        project.put(f"uploads/c1/{name}", b"x")
        annotate(project, f"uploads/c1/{name}", expires_at=value)
    found = {key.rpartition("/")[2]: kind for key, kind in kinds(project).items()}
    malformed = ("day", "words", "wrong", "local", "number", "infinite", "empty")
    assert found == {"past": "expired", "zone": "expired", **dict.fromkeys(malformed, "malformed")}
    forget_conversation(project, "c1")
    age(project)
    after = {key.rpartition("/")[2]: kind for key, kind in kinds(project).items()}
    assert after == {**found, "none": "orphan"}


def test_rows_without_object(project: Project) -> None:
    """Rows of both tables whose object is gone, only if old; a file that was renamed has its object."""
    project.put("a", b"x")
    project.put("uploads/c1/b", b"x")
    project.rpc("exaifs_link_conversation", BUCKET, file_id(project, "uploads/c1/b"), "c2")
    project.rpc("exaifs_link_conversation", BUCKET, file_id(project, "a"), "c2")
    project.admin.execute(
        "INSERT INTO file_metadata (original_filename, file_size, supabase_storage_path)"
        " VALUES ('n', 7, 'nowhere')"
    )
    project.remove(["uploads/c1/b"])
    page = project.rpc("exaifs_gc_entries", BUCKET, DAY_S, "", 1000)
    assert (kinds(project), page["findings"], page["scanned"]) == ({}, [], 2)
    age(project)
    assert kinds(project) == {"nowhere": "row"}
    found: list[Json] = []
    after: str | None = ""
    while after is not None:
        page = project.rpc("exaifs_gc_entries", BUCKET, DAY_S, after, 1)
        found += page["findings"]
        after = page["next"]
    assert [finding["key"] for finding in found] == ["uploads/c1/b"]
    entry = found[0]["version"]
    project.put("nowhere", b"it comes")
    assert project.rpc("exaifs_gc_drop_rows", BUCKET, DAY_S, ["nowhere", "a"], [entry]) == {
        "keys": [],
        "entries": [entry],
    }
    assert project.row("nowhere") is not None
    project.admin.execute(
        "INSERT INTO file_metadata (original_filename, file_size, supabase_storage_path)"
        " VALUES ('x', 7, 'x')"
    )
    dropped = project.rpc("exaifs_gc_drop_rows", BUCKET, 0, ["x", "a"], [])
    assert (dropped, project.row("x"), project.row("a") is None) == (
        {"keys": ["x"], "entries": []},
        None,
        False,
    )
    assert project.one("SELECT count(*) FROM files") == 1


def condemn(project: Project, findings: list[Json], older_s: int = 30 * DAY_S) -> list[str]:
    """Take what was found."""
    keys: list[str] = project.rpc(
        "exaifs_gc_condemn",
        BUCKET,
        older_s,
        [finding["key"] for finding in findings],
        [finding["version"] for finding in findings],
        LEASE_S,
    )["keys"]
    return keys


@pytest.mark.parametrize("change", ["write", "link", "conversation", "annotate", "nothing"])
def test_condemned_only_while_it_qualifies(project: Project, change: str) -> None:
    """Found and then written, linked, or given time: it stays; all do, if the conversation is back."""
    for key in ("uploads/gone/a", "uploads/gone/b"):
        project.put(key, b"x")
    file = file_id(project, "uploads/gone/a")
    forget_conversation(project, "gone")
    age(project)
    findings = scan(project)
    assert len(findings) == 2
    if change == "write":
        project.put("uploads/gone/a", b"x")
    elif change == "link":
        project.rpc("exaifs_link_conversation", BUCKET, file, "c2")
    elif change == "conversation":
        project.admin.execute("INSERT INTO conversations (continuation_id) VALUES ('gone')")
    elif change == "annotate":
        annotate(project, "uploads/gone/a", expires_at="2999-01-01T00:00:00Z")
    expected = {
        "nothing": ["uploads/gone/a", "uploads/gone/b"],
        "link": ["uploads/gone/b"],
        "annotate": ["uploads/gone/b"],
    }
    assert condemn(project, findings) == expected.get(change, [])


def test_condemned_then_written(project: Project) -> None:
    """Between SQL's word and the Storage API's deed the file is replaced: the new one stays."""
    project.put("a", b"x")
    project.put("b", b"x")
    for key in ("a", "b"):
        annotate(project, key, expires_at="2020-01-01T00:00:00Z")
    assert condemn(project, scan(project)) == ["a", "b"]
    project.put("a", b"new")
    project.remove(["a", "b"])
    assert project.record("a") is not None
    assert project.record("b") is None
    assert settle(project, ["a", "b"]) == {"gone": ["b"], "kept": ["a"]}


def test_expired_and_linked(project: Project) -> None:
    """An expired file goes although a conversation has it."""
    project.put("uploads/c1/a", b"x")
    annotate(project, "uploads/c1/a", expires_at="2020-01-01T00:00:00Z")
    assert condemn(project, scan(project)) == ["uploads/c1/a"]
    project.remove(["uploads/c1/a"])
    assert project.record("uploads/c1/a") is None


def test_the_queue_is_shown(project: Project) -> None:
    """What waits to be deleted, without what was written since."""
    for name in "abc":
        project.put(f"uploads/c1/{name}", b"xyz")
    delete_conversation(project, "c1")
    project.put("uploads/c1/b", b"new")
    page = project.rpc("exaifs_gc_queue", BUCKET, "", 2)
    assert [(one["key"], one["size"], one["note"]) for one in page["findings"]] == [
        ("uploads/c1/a", 3, "conversation c1")
    ]
    page = project.rpc("exaifs_gc_queue", BUCKET, page["next"], 2)
    assert ([one["key"] for one in page["findings"]], page["next"]) == (["uploads/c1/c"], None)


def test_without_conversation_tables(bare_project: Project) -> None:
    """Where there are no conversations at all, nothing is an orphan."""
    migrate(bare_project.address)
    bare_project.put("uploads/c1/a", b"x")
    bare_project.admin.execute("DROP TABLE conversation_files, messages, conversations, files CASCADE")
    bare_project.admin.execute("UPDATE storage.objects SET updated_at = '2020-01-01'")
    assert kinds(bare_project, 0) == {}
    assert bare_project.rpc("exaifs_gc_entries", BUCKET, 0, "", 10)["findings"] == []
    bare_project.put("uploads/c1/a", b"y")
    assert bare_project.one("SELECT message FROM exaifs_trigger_errors") is None


def test_tables_of_the_project(bare_project: Project) -> None:
    """Tables with fewer columns: links count, rows without an age stay."""
    with psycopg.connect(bare_project.address.replace("user=postgres", f"user={MIGRATOR}")) as connection:
        run_script(connection, EARLIER_TABLES)
    migrate(bare_project.address)
    bare_project.put("uploads/c7/a", b"x")
    assert bare_project.one("SELECT count(*) FROM conversation_files") == 1
    assert kinds(bare_project, 0) == {}
    bare_project.admin.execute("INSERT INTO files (storage_path, original_name) VALUES ('nowhere', 'n')")
    assert bare_project.rpc("exaifs_gc_entries", BUCKET, 0, "", 10)["findings"] == []
    bare_project.admin.execute("DELETE FROM conversations WHERE continuation_id = 'c7'")
    assert bare_project.rpc("exaifs_take_deletions", BUCKET, 10, 60)["keys"] == ["uploads/c7/a"]
    assert bare_project.one("SELECT message FROM exaifs_trigger_errors") is None
