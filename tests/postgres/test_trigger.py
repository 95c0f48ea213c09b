"""The trigger on storage.objects."""

from __future__ import annotations

from exaifs.names import PLACEHOLDER, decode_component, encode_name
from tests.support.postgres import Project, commit_of, put, upload_of


def _errors(project: Project) -> int:
    count: int = project.one("SELECT count(*) FROM exaifs_trigger_errors")
    return count


def test_upload_of_ours_is_complete_at_once(project: Project) -> None:
    """One PUT with x-metadata commits object, hash, attributes and log entry together."""
    project.put("d/a.txt", b"hello", upload_of(b"hello"))
    record = project.record("d/a.txt")
    assert record is not None
    row = project.row("d/a.txt")
    assert row is not None
    upload = upload_of(b"hello")
    assert record["sha256"] == upload["sha256"]
    assert (record["posix"], record["xattrs"]) == (upload["posix"], upload["xattrs"])
    assert (record["write_id"], record["mime"], record["size"]) == ("w1", "text/x-test", 5)
    assert record["file_id"] == row["file_id"]
    assert row["metadata"]["version"] == record["version"]
    assert row["metadata"]["etag"] == record["etag"]
    assert row["original_filename"] == "a.txt"
    assert project.log() == [("put", "d/a.txt")]


def test_upload_of_another_client(project: Project) -> None:
    """An object of another client gets a row that does not claim to know more than the server."""
    project.put("theirs", b"abc")
    record = project.record("theirs")
    assert record is not None
    assert (record["sha256"], record["write_id"], record["posix"], record["xattrs"]) == (None, None, {}, {})
    assert (record["size"], record["mime"]) == (3, "text/plain")
    assert record["file_id"] is not None


def test_overwrite_by_another_client(project: Project) -> None:
    """Other bytes: hash, provider ids, time and kind go; owner, mode and the user's attributes stay."""
    project.put("a", b"one", upload_of(b"one"))
    before = project.record("a")
    project.admin.execute("""UPDATE file_metadata SET provider_file_ids = '{"kimi": {"id": "1"}}'""")
    project.put("a", b"two")
    after = project.record("a")
    assert before is not None
    assert after is not None
    assert after["file_id"] == before["file_id"]
    assert after["version"] != before["version"]
    assert (after["sha256"], after["write_id"], after["provider_file_ids"]) == (None, None, {})
    assert after["posix"] == {"mode": 0o640, "uid": 1, "gid": 2}
    assert after["xattrs"] == {"user.a": "AAE="}


def test_same_bytes_keep_hash_and_provider_ids(project: Project) -> None:
    """The same bytes again, from whomever: what is true of the bytes stays."""
    project.put("a", b"one", upload_of(b"one"))
    project.admin.execute("""UPDATE file_metadata SET provider_file_ids = '{"kimi": {"id": "1"}}'""")
    project.put("a", b"one")
    theirs = project.record("a")
    project.put("a", b"one", upload_of(b"one", "w2"))
    ours = project.record("a")
    assert theirs is not None
    assert ours is not None
    for record in (theirs, ours):
        assert record["sha256"] == upload_of(b"one")["sha256"]
        assert record["provider_file_ids"] == {"kimi": {"id": "1"}}
    assert (theirs["write_id"], ours["write_id"]) == (None, "w2")


def test_left_over_metadata_is_not_believed(project: Project) -> None:
    """A server that leaves the last writer's metadata on another writer's bytes vouches for nothing."""
    project.put("a", b"one", upload_of(b"one"))
    project.put("a", b"two", upload_of(b"one"))
    record = project.record("a")
    assert record is not None
    assert (record["sha256"], record["write_id"]) == (None, None)


def test_malformed_metadata_is_ignored(project: Project) -> None:
    """Whatever a client sends as metadata, the upload succeeds and nothing wrong is recorded."""
    project.put("a", b"x", {"exaifs": 1, "sha256": "xyz", "posix": 5, "xattrs": [], "write_id": 7})
    record = project.record("a")
    assert record is not None
    assert (record["sha256"], record["write_id"], record["posix"], record["xattrs"]) == (None, None, {}, {})
    assert _errors(project) == 0


def test_metadata_as_a_json_string(project: Project) -> None:
    """The embedded storage on a PostgreSQL of its own writes JSON as a string; nonsense does no harm."""
    project.put("a", b"abc")
    project.put("b", b"abc")
    project.admin.execute("""
        UPDATE storage.objects SET metadata = to_jsonb(metadata::text), version = 'v2' WHERE name = 'a';
        UPDATE storage.objects SET metadata = '"no JSON"', version = 'v2' WHERE name = 'b'
    """)
    first, second = project.record("a"), project.record("b")
    assert first is not None
    assert second is not None
    assert (first["size"], first["mime"], first["version"]) == (3, "text/plain", "v2")
    assert (second["size"], second["mime"], second["version"]) == (0, "application/octet-stream", "v2")
    assert _errors(project) == 0


def test_move_keeps_the_file(project: Project) -> None:
    """A move changes name and version, nothing else; the feed sees both names."""
    project.put("a.txt", b"x", upload_of(b"x"))
    before = project.record("a.txt")
    project.rpc("exaifs_patch", "user-files", "a.txt", {"posix": {"mode": 0o600}})
    project.move("a.txt", "b/=C3=A9")
    after = project.record("b/=C3=A9")
    assert before is not None
    assert after is not None
    assert project.record("a.txt") is None
    assert project.row("a.txt") is None
    changed = {"key", "version", "updated_ns", "posix"}
    assert {k: v for k, v in after.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }
    assert after["posix"] == {**before["posix"], "mode": 0o600}
    row = project.row("b/=C3=A9")
    assert row is not None
    assert row["original_filename"] == "é"
    assert project.log()[-2:] == [("delete", "a.txt"), ("put", "b/=C3=A9")]


def test_move_between_buckets(project: Project) -> None:
    """A file keeps its row between followed buckets, and leaves it when it goes out of sight."""
    project.put("a", b"x", upload_of(b"x"))
    before = project.record("a")
    project.move("a", "a", "generated-files")
    after = project.record("a", "generated-files")
    assert before is not None
    assert after is not None
    assert after["file_id"] == before["file_id"]
    project.put("b", b"x")
    project.move("b", "b", "other")
    assert project.row("b") is None
    assert project.row("b", "other") is None


def test_copy_takes_attributes_along(project: Project) -> None:
    """A copy is a file of its own, with the source's bytes and metadata."""
    project.put("a", b"x", upload_of(b"x"))
    project.copy("a", "b")
    source, copy = project.record("a"), project.record("b")
    assert source is not None
    assert copy is not None
    assert copy["file_id"] != source["file_id"]
    assert (copy["sha256"], copy["posix"]) == (source["sha256"], source["posix"])


def test_bulk_delete_is_one_transaction(project: Project) -> None:
    """Deleting many objects drops their rows and logs each, all with one transaction id."""
    for key in ("a", "b", "c", "stays"):
        project.put(key)
    project.remove(["a", "b", "c", "missing"])
    assert sorted(project.log()[4:]) == [("delete", "a"), ("delete", "b"), ("delete", "c")]
    assert project.one("SELECT count(DISTINCT txid) FROM exaifs_change_log WHERE op = 'delete'") == 1
    assert project.one("SELECT count(*) FROM file_metadata") == 1


def test_read_on_the_embedded_server_changes_nothing(project: Project) -> None:
    """Stamping last_accessed_at at every GET is no change of the object."""
    project.put("a", b"x")
    row = project.row("a")
    project.get("a")
    assert project.log() == [("put", "a")]
    assert project.row("a") == row


def test_folder_marker_has_a_row(project: Project) -> None:
    """The marker of a folder is an object like any other: its row keeps the folder's attributes."""
    key = f"dir/{PLACEHOLDER}"
    project.put(key, b"", upload_of(b"", posix={"mode": 0o750, "kind": "dir"}))
    listing = project.rpc("exaifs_list_directory", "user-files", "", "", 10)
    assert [folder["name"] for folder in listing["folders"]] == ["dir"]
    assert listing["folders"][0]["marker"] == project.record(key)
    assert listing["folders"][0]["marker"]["posix"] == {"mode": 0o750, "kind": "dir"}


def test_other_buckets_are_left_alone(project: Project) -> None:
    """Buckets that nobody registered have no rows and no log entries."""
    project.put("a", b"x", bucket="other")
    assert project.log() == []
    assert project.row("a", "other") is None


def test_a_failing_row_never_fails_the_write(project: Project) -> None:
    """A column gone: the object is stored, the change is logged, the error is recorded."""
    project.put("a", b"1")
    project.put("b", b"1")
    project.admin.execute("ALTER TABLE file_metadata RENAME COLUMN supabase_storage_path TO other")
    project.put("a", b"2")
    project.put("c", b"3")
    project.move("c", "d")
    project.remove(["b"])
    assert project.one("SELECT string_agg(name, ',' ORDER BY name) FROM storage.objects") == "a,d"
    assert project.log()[2:] == [("put", "a"), ("put", "c"), ("delete", "c"), ("put", "d"), ("delete", "b")]
    found = project.admin.execute(
        "SELECT operation, key, sqlstate FROM exaifs_trigger_errors ORDER BY id"
    ).fetchall()
    assert [row[:2] for row in found] == [
        ("row UPDATE", "a"),
        ("row INSERT", "c"),
        ("row UPDATE", "d"),
        ("row DELETE", "b"),
    ]
    assert project.rpc("exaifs_hello", "user-files")["trigger_errors"] == 4


def test_a_failing_log_never_fails_the_write_or_the_row(project: Project) -> None:
    """The log gone: object and row are stored all the same."""
    project.admin.execute("ALTER TABLE exaifs_change_log RENAME COLUMN op TO other")
    project.put("a", b"1", upload_of(b"1"))
    assert project.record("a") is not None
    assert project.one("SELECT operation FROM exaifs_trigger_errors") == "log INSERT"


def test_nothing_left_to_work_with(project: Project) -> None:
    """Without a single table of ours, also without the one for errors, storage works."""
    project.admin.execute(
        "DROP TABLE exaifs_trigger_errors, exaifs_change_log, exaifs_buckets, file_metadata CASCADE"
    )
    project.put("a", b"1")
    project.remove(["a"])


def test_swallowed_errors_are_bounded(project: Project) -> None:
    """However often the trigger fails, its notes do not fill the disk."""
    project.admin.execute("ALTER TABLE exaifs_change_log RENAME COLUMN op TO other")
    with project.as_service() as connection:
        for _ in range(600):
            put(connection, "a", b"1")
    assert 200 <= _errors(project) <= 250


def test_names_are_decoded_as_in_python(project: Project) -> None:
    """`original_filename` is the name that the mount shows; what is not UTF-8 stays encoded."""
    names = [
        "é",
        "日本語 (1).txt",
        "a=41",
        "100%",
        "=",
        "=41",
        PLACEHOLDER,
        "x" + PLACEHOLDER,
        "tab\t",
        "a'b\\c",
    ]
    components = [encode_name(name) for name in names]
    components += ["=41", "=2E", "=2E=2E", "a=2Fb", "=00", "=C3", "=ff", "=C3=A9=", "..."]
    for component in components:
        shown = decode_component(component)
        is_utf8 = shown.encode("utf-8", "surrogateescape").decode("utf-8", "replace") == shown
        expected = shown if is_utf8 else component
        assert project.one("SELECT exaifs_decode_name(%s)", component) == expected


def test_row_of_a_given_project_is_believed_if_it_fits(project: Project) -> None:
    """A project's own code writes its row before the upload: hash and ids are kept if the size is right."""
    project.admin.execute(
        "INSERT INTO file_metadata (original_filename, file_size, supabase_storage_path, file_hash,"
        " provider_file_ids)"
        """ VALUES ('My file', 3, 'a', %s, '{"glm": "f1"}'), ('Other', 99, 'b', %s, '{"glm": "f2"}')""",
        (commit_of(b"abc")["sha256"], commit_of(b"old")["sha256"]),
    )
    project.put("a", b"abc")
    project.put("b", b"new")
    first, second, row = project.record("a"), project.record("b"), project.row("a")
    assert first is not None
    assert second is not None
    assert row is not None
    assert (first["sha256"], first["provider_file_ids"]) == (commit_of(b"abc")["sha256"], {"glm": "f1"})
    assert (second["sha256"], second["provider_file_ids"]) == (None, {})
    assert row["original_filename"] == "My file"
