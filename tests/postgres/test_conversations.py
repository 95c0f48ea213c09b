"""Files in uploads/{continuation_id}/ belong to that conversation, whoever wrote them and however."""

from __future__ import annotations

import threading

import pytest

from exaifs.remote import schema
from tests.support.postgres import BUCKET, Project, commit_of, run_script, upload_of


def links(project: Project) -> set[tuple[str, str]]:
    """Return continuation id and path of every link."""
    return set(
        project.admin.execute(
            "SELECT c.continuation_id, f.storage_path FROM conversation_files l"
            " JOIN conversations c ON c.id = l.conversation_id JOIN files f ON f.id = l.file_id"
        ).fetchall()
    )


def entry(project: Project, key: str) -> tuple[str, str | None, int, str] | None:
    """Return what the table files says of a path: id, type, size, who made it."""
    found: tuple[str, str | None, int, str] | None = project.admin.execute(
        "SELECT id::text, mime_type, size_bytes, file_type FROM files WHERE storage_path = %s", (key,)
    ).fetchone()
    return found


@pytest.fixture(autouse=True)
def nothing_swallowed(project: Project) -> object:
    """No trigger had anything to record."""
    yield
    assert project.admin.execute("SELECT operation, message FROM exaifs_trigger_errors").fetchall() == []


def file_id(project: Project, key: str) -> str:
    """Return the id of the file at a key."""
    row = project.row(key)
    assert row is not None
    return str(row["file_id"])


def test_every_writer_links(project: Project) -> None:
    """A mount, a program and the dashboard; in directories below; with one id in both tables."""
    project.put("uploads/c1/mount", b"x", upload_of(b"x"))
    project.put("uploads/c1/deep/er/dashboard", b"abc")
    project.put("uploads/caf=C3=A9 1/copy", b"x")
    for key in ("uploads/loose", "docs/c1/x", "uploads/c9/.emptyFolderPlaceholder", "up/uploads/c1/x"):
        project.put(key)
    assert links(project) == {
        ("c1", "uploads/c1/mount"),
        ("c1", "uploads/c1/deep/er/dashboard"),
        ("café 1", "uploads/caf=C3=A9 1/copy"),
    }
    assert entry(project, "uploads/c1/mount") == (
        file_id(project, "uploads/c1/mount"),
        "text/x-test",
        1,
        "user_upload",
    )
    row = project.row("uploads/c1/mount")
    assert row is not None
    assert row["metadata"]["continuation_id"] == "c1"


def test_what_the_conversations_know_follows(project: Project) -> None:
    """Size, type and who made a file are those of its row, also when they become known later."""
    project.put("uploads/c1/a", b"x")
    project.put("uploads/c1/a", b"longer", upload_of(b"longer", mime="text/y"))
    project.rpc("exaifs_annotate", BUCKET, "uploads/c1/a", {"file_type": "generated"})
    assert entry(project, "uploads/c1/a") == (
        file_id(project, "uploads/c1/a"),
        "text/y",
        6,
        "generated",
    )
    project.rpc("exaifs_annotate", BUCKET, "uploads/c1/a", {"file_type": "nonsense"})
    found = entry(project, "uploads/c1/a")
    assert found is not None
    assert found[3] == "user_upload"


def test_moving(project: Project) -> None:
    """A file belongs where it is: moved to another conversation's directory, or out of all of them."""
    project.put("uploads/c1/a", b"x")
    file = file_id(project, "uploads/c1/a")
    project.move("uploads/c1/a", "uploads/c2/b")
    assert links(project) == {("c2", "uploads/c2/b")}
    project.rpc("exaifs_link_conversation", BUCKET, file, "c3")
    project.move("uploads/c2/b", "kept/b")
    assert links(project) == {("c3", "kept/b")}
    row = project.row("kept/b")
    assert row is not None
    assert "continuation_id" not in row["metadata"]
    project.move("kept/b", "uploads/c4/b")
    assert links(project) == {("c3", "uploads/c4/b"), ("c4", "uploads/c4/b")}
    assert project.one("SELECT count(*) FROM files") == 1


def test_renaming_over_a_file(project: Project) -> None:
    """The file that takes the place belongs to the directory; who else had the old one has the new one."""
    project.put("uploads/c1/a", b"old")
    project.rpc("exaifs_link_conversation", BUCKET, file_id(project, "uploads/c1/a"), "c2")
    project.put("uploads/c1/.a.tmp", b"new")
    new = file_id(project, "uploads/c1/.a.tmp")
    project.copy("uploads/c1/.a.tmp", "uploads/c1/a")
    project.rpc("exaifs_carry_row", BUCKET, "uploads/c1/.a.tmp", "uploads/c1/a")
    project.remove(["uploads/c1/.a.tmp"])
    assert links(project) == {("c1", "uploads/c1/a"), ("c2", "uploads/c1/a")}
    assert file_id(project, "uploads/c1/a") == new
    assert project.one("SELECT count(*) FROM files") == 1


def test_deleting_a_file(project: Project) -> None:
    """Its link goes; the conversation stays; what another conversation knows stays until gc."""
    project.put("uploads/c1/a")
    project.put("uploads/c1/b")
    project.rpc("exaifs_link_conversation", BUCKET, file_id(project, "uploads/c1/b"), "c2")
    project.remove(["uploads/c1/a", "uploads/c1/b"])
    assert links(project) == {("c2", "uploads/c1/b")}
    assert project.one("SELECT count(*) FROM conversations") == 2


def test_where_the_trigger_is_missing(project: Project) -> None:
    """The commit that makes the row links, too."""
    project.admin.execute("DROP TRIGGER exaifs_on_object ON storage.objects")
    project.put("uploads/c1/a", b"x")
    assert links(project) == set()
    project.rpc("exaifs_commit", BUCKET, "uploads/c1/a", commit_of(b"x"))
    assert links(project) == {("c1", "uploads/c1/a")}


def test_writing_while_the_conversation_is_deleted(project: Project) -> None:
    """Who writes waits; then the conversation is made anew, with the new file in it."""
    project.put("uploads/c1/old", b"x")
    with project.as_service() as connection:
        connection.execute("DELETE FROM public.conversations WHERE continuation_id = 'c1'")
        writer = threading.Thread(target=lambda: project.put("uploads/c1/new", b"y"), daemon=True)
        writer.start()
        while project.one("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == 0:
            assert writer.is_alive()
        connection.commit()
    writer.join(60)
    assert links(project) == {("c1", "uploads/c1/new")}
    assert project.one("SELECT string_agg(key, ',') FROM exaifs_delete_queue") == "uploads/c1/old"


def test_users_of_the_project(project: Project) -> None:
    """A role that the project lets write rows can do so; it links nothing by that."""
    project.put("uploads/c1/a", b"x")
    project.admin.execute(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON file_metadata TO authenticated;"
        "CREATE POLICY users ON file_metadata FOR ALL TO authenticated USING (true) WITH CHECK (true)"
    )
    with project.as_service() as connection:
        connection.execute("RESET ROLE; SET ROLE authenticated")
        connection.execute(
            "INSERT INTO public.file_metadata (original_filename, file_size, supabase_storage_path)"
            " VALUES ('b', 1, 'uploads/c2/b')"
        )
        connection.execute(
            "UPDATE public.file_metadata SET supabase_storage_path = 'uploads/c3/b'"
            " WHERE supabase_storage_path = 'uploads/c2/b'"
        )
        connection.execute("DELETE FROM public.file_metadata WHERE supabase_storage_path = 'uploads/c3/b'")
    assert links(project) == {("c1", "uploads/c1/a")}


def test_an_earlier_project(project: Project) -> None:
    """Files from before are linked when the migration comes; one left by a deleted conversation is not."""
    project.admin.execute("ALTER TABLE file_metadata DISABLE TRIGGER USER")
    project.put("uploads/c1/a", b"x")
    project.put("uploads/gone/b", b"x")
    project.admin.execute(
        "ALTER TABLE file_metadata ENABLE TRIGGER USER;"
        "INSERT INTO exaifs_delete_queue (bucket, key, object_version, reason)"
        " SELECT bucket_id, name, version, 'x' FROM storage.objects WHERE name = 'uploads/gone/b';"
        "DELETE FROM exaifs_migrations WHERE number >= 10"
    )
    step = next(step for step in schema.migrations() if step.number == 10)
    for _ in range(2):
        run_script(project.admin, step.sql)
        assert links(project) == {("c1", "uploads/c1/a")}
        project.admin.execute("DELETE FROM conversation_files WHERE false")
