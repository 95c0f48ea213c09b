"""What programs ask without a mount: files by id and content, their metadata, their conversations."""

from __future__ import annotations

import threading

import psycopg

from tests.postgres.test_migrations import EARLIER_TABLES
from tests.support.postgres import BUCKET, MIGRATOR, Json, Project, migrate, run_script, upload_of

DIGEST = upload_of(b"x")["sha256"]


def file_of(project: Project, key: str) -> Json:
    """Return a file by its key."""
    file: Json | None = project.rpc("exaifs_file", BUCKET, "", key)
    assert file is not None
    return file


def test_by_id_or_by_key(project: Project) -> None:
    """A file is found by id wherever it was moved; absent ones, and other buckets', are null."""
    project.put("a", b"x", upload_of(b"x"))
    record = project.record("a")
    assert record is not None
    assert file_of(project, "a") == {**record, "metadata": {}}
    project.move("a", "d/b")
    assert project.rpc("exaifs_file", BUCKET, record["file_id"].upper(), "")["key"] == "d/b"
    for file_id in ("", "no uuid", "00000000-0000-4000-8000-000000000000"):
        assert project.rpc("exaifs_file", BUCKET, file_id, "") is None
    assert project.rpc("exaifs_file", "other", record["file_id"], "") is None
    assert project.rpc("exaifs_file", BUCKET, "", "a") is None


def test_annotating(project: Project) -> None:
    """Keys are merged, null takes one away, those of exaifs stay; the feed hears nothing."""
    project.put("a", b"x", upload_of(b"x"))
    before, log = project.record("a"), project.log()
    fields = {"topic": "tax", "n": 1, "version": "mine", "posix": {}, "write_id": "w9"}
    assert project.rpc("exaifs_annotate", BUCKET, "a", fields)["metadata"] == {"topic": "tax", "n": 1}
    found = project.rpc("exaifs_annotate", BUCKET, "a", {"n": None, "more": {"b": [2]}})
    assert found["metadata"] == {"topic": "tax", "more": {"b": [2]}}
    assert (project.record("a"), project.log()) == (before, log)
    project.put("a", b"other", upload_of(b"other", "w2"))
    assert file_of(project, "a")["metadata"] == {"topic": "tax", "more": {"b": [2]}}
    assert project.rpc("exaifs_annotate", BUCKET, "none", {}) is None


def test_by_content(project: Project) -> None:
    """Objects with these bytes and this type, if who wrote them has hashed them."""
    for key in ("b", "a"):
        project.put(key, b"x", upload_of(b"x"))
    project.put("theirs", b"x")
    project.put("typed", b"x", upload_of(b"x", mime="text/other"))
    found = project.rpc("exaifs_find_content", BUCKET, DIGEST, "text/x-test")["records"]
    assert [record["key"] for record in found] == ["a", "b"]
    assert project.rpc("exaifs_find_content", BUCKET, "0" * 64, "text/x-test") == {"records": []}


def _pages(project: Project, function: str, query: str, limit: int) -> list[list[str]]:
    pages, after = [], ""
    while True:
        page = project.rpc(function, BUCKET, query, after, limit)
        pages.append([file["key"] for file in page["files"]])
        if page["next"] is None:
            return pages
        after = page["next"]


def test_listing(project: Project) -> None:
    """Pages of a prefix in key order; folder markers are left out."""
    for key in ("d/a", "d/b", "d/c/d", "e"):
        project.put(key, b"x", upload_of(b"x"))
    project.put("d/empty/.emptyFolderPlaceholder")
    assert _pages(project, "exaifs_list_files", "d/", 2) == [["d/a", "d/b"], ["d/c/d"]]
    assert _pages(project, "exaifs_list_files", "none", 2) == [[]]


def test_searching(project: Project) -> None:
    """By part of the name, start of the MIME type, or start of the hash; wildcards are letters."""
    project.put("d/Report=C3=A9.txt", b"x", upload_of(b"x"))
    project.put("d/100%.png", b"y", upload_of(b"y", mime="image/png"))
    assert _pages(project, "exaifs_search_files", "REPORTÉ", 9) == [["d/Report=C3=A9.txt"]]
    assert _pages(project, "exaifs_search_files", "%", 9) == [["d/100%.png"]]
    assert _pages(project, "exaifs_search_files", "image/", 9) == [["d/100%.png"]]
    assert _pages(project, "exaifs_search_files", DIGEST[:8], 9) == [["d/Report=C3=A9.txt"]]
    assert _pages(project, "exaifs_search_files", "", 1) == [["d/100%.png"], ["d/Report=C3=A9.txt"]]


def test_linking(project: Project) -> None:
    """The conversation's row is made once; links are made once; ids agree in both tables."""
    project.put("made/a", b"x", upload_of(b"x"))
    file_id = file_of(project, "made/a")["file_id"]
    project.rpc("exaifs_annotate", BUCKET, "made/a", {"file_type": "generated"})
    first = project.rpc("exaifs_link_conversation", BUCKET, file_id, "c1")
    again = project.rpc("exaifs_link_conversation", BUCKET, file_id, "c1")
    other = project.rpc("exaifs_link_conversation", BUCKET, file_id, "c2")
    assert (first["linked"], again["linked"], other["linked"]) == (True, False, True)
    assert first["conversation_id"] == again["conversation_id"] != other["conversation_id"]
    assert project.one("SELECT count(*) FROM conversations") == 2
    assert project.one("SELECT f.id::text || f.file_type || f.storage_path FROM files f") == (
        f"{file_id}generatedmade/a"
    )
    assert file_of(project, "made/a")["metadata"]["continuation_id"] == "c1"
    assert project.rpc("exaifs_link_conversation", BUCKET, "no uuid", "c1") is None
    project.move("made/a", "moved")
    project.rpc("exaifs_link_conversation", BUCKET, file_id, "c3")
    assert project.one("SELECT storage_path FROM files") == "moved"


def test_linking_after_the_file_was_made_anew(project: Project) -> None:
    """Another file at a path that the conversations know already takes over its row there."""
    project.put("a", b"x", upload_of(b"x"))
    project.rpc("exaifs_link_conversation", BUCKET, file_of(project, "a")["file_id"], "c1")
    project.remove(["a"])
    project.put("a", b"y", upload_of(b"y"))
    assert (
        project.rpc("exaifs_link_conversation", BUCKET, file_of(project, "a")["file_id"], "c1")["linked"]
        is False
    )
    assert project.one("SELECT count(*) FROM files") == 1


def test_linking_in_tables_of_the_project(bare_project: Project) -> None:
    """Tables with fewer columns than ours are filled as far as they go."""
    with psycopg.connect(bare_project.address.replace("user=postgres", f"user={MIGRATOR}")) as connection:
        run_script(connection, EARLIER_TABLES)
    migrate(bare_project.address)
    bare_project.put("a", b"x", upload_of(b"x"))
    file_id = file_of(bare_project, "a")["file_id"]
    assert bare_project.rpc("exaifs_link_conversation", BUCKET, file_id, "c1")["linked"] is True
    assert bare_project.one("SELECT original_name FROM files WHERE id::text = %s", file_id) == "a"


def test_linking_while_the_conversation_is_deleted(project: Project) -> None:
    """Who links and who deletes wait for each other: a link that was reported is there, or went with it."""
    project.put("a", b"x", upload_of(b"x"))
    file_id = file_of(project, "a")["file_id"]
    project.rpc("exaifs_link_conversation", BUCKET, file_id, "c1")
    answers: list[Json] = []
    with project.as_service() as connection:
        connection.execute("DELETE FROM public.conversations WHERE continuation_id = 'c1'")
        second = threading.Thread(
            target=lambda: answers.append(project.rpc("exaifs_link_conversation", BUCKET, file_id, "c1")),
            daemon=True,
        )
        second.start()
        while project.one("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == 0:
            assert second.is_alive()
        connection.commit()
    second.join(60)
    assert [answer["linked"] for answer in answers] == [True]
    assert project.one("SELECT count(*) FROM conversation_files") == 1
