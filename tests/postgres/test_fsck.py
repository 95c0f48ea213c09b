"""The SQL of `exaifs fsck`: each kind of damage is found, mended without loss, and found no more."""

from __future__ import annotations

from hashlib import sha256

from psycopg.types.json import Jsonb

from tests.support.postgres import BUCKET, Json, Project, upload_of

OTHER = "f" * 64


def found(project: Project, after: str = "", limit: int = 1000) -> list[tuple[str, str]]:
    """Return kind and key of the findings."""
    answer = project.rpc("exaifs_fsck_scan", BUCKET, after, limit)
    return [(finding["kind"], finding["key"]) for finding in answer["findings"]]


def mend(project: Project, key: str) -> list[str]:
    """Repair a key; return the kinds of what was done."""
    return [done["kind"] for done in project.rpc("exaifs_fsck_repair", BUCKET, key)["done"]]


def row_of(project: Project, key: str) -> Json:
    """Return the row, which is there."""
    row = project.row(key)
    assert row is not None
    return row


def test_a_bucket_in_order(project: Project) -> None:
    """Nothing is found where the trigger did its work, in pages of any size."""
    for number in range(25):
        project.put(f"d/{number:02}", b"x" * number, upload_of(b"x" * number, f"w{number}"))
    project.move("d/03", "e/03")
    project.remove(["d/04"])
    assert found(project) == []
    after, scanned = "", 0
    while True:
        page = project.rpc("exaifs_fsck_scan", BUCKET, after, 7)
        scanned += page["scanned"]
        if page["next"] is None:
            break
        after = page["next"]
    assert scanned == 24


def test_an_object_without_a_row(project: Project) -> None:
    """The row is made as the trigger would have; another host learns of it."""
    project.put("a", b"12345", upload_of(b"12345"))
    project.admin.execute("DELETE FROM file_metadata")
    assert found(project) == [("object_without_row", "a")]
    assert mend(project, "a") == ["object_without_row"]
    assert found(project) == []
    assert row_of(project, "a")["file_hash"] == sha256(b"12345").hexdigest()
    assert project.log()[-1] == ("row", "a")


def test_a_row_without_an_object(project: Project) -> None:
    """It is deleted; but one that may come before its upload only after an hour."""
    project.put("a", b"1", upload_of(b"1"))
    project.admin.execute("ALTER TABLE storage.objects DISABLE TRIGGER exaifs_on_object")
    project.remove(["a"])
    project.admin.execute(
        "INSERT INTO file_metadata (original_filename, file_size, supabase_storage_path)"
        " VALUES ('x', 1, 'young')"
    )
    assert found(project) == [("row_without_object", "a")]
    assert mend(project, "young") == []
    project.admin.execute(
        "UPDATE file_metadata SET created_at = now() - interval '2 hours', upload_date = created_at"
        " WHERE supabase_storage_path = 'young'"
    )
    project.admin.execute("ALTER TABLE file_metadata DISABLE TRIGGER exaifs_file_metadata_updated_at")
    project.admin.execute("UPDATE file_metadata SET updated_at = created_at, upload_date = created_at")
    assert found(project)[-1] == ("row_without_object", "young")
    assert mend(project, "a") == mend(project, "young") == ["row_without_object"]
    assert found(project) == []
    assert project.one("SELECT count(*) FROM file_metadata") == 0


def test_a_row_something_else_refers_to_stays(project: Project) -> None:
    """A table of the project's own keeps it, and it is found again."""
    project.put("a", b"1")
    project.admin.execute(
        "CREATE TABLE theirs (file_id uuid REFERENCES file_metadata);"
        "INSERT INTO theirs SELECT file_id FROM file_metadata;"
        "ALTER TABLE storage.objects DISABLE TRIGGER exaifs_on_object"
    )
    project.remove(["a"])
    assert mend(project, "a") == []
    assert ("row_without_object", "a") in found(project)


def test_rows_that_say_something_else(project: Project) -> None:
    """Another version, size or ETag: the row is made from the object; file id and attributes stay."""
    for key in ("etag", "size", "version"):
        project.put(key, b"123", upload_of(b"123", key))
    before = row_of(project, "size")["file_id"]
    project.admin.execute(
        'UPDATE file_metadata SET metadata = metadata || \'{"etag": "other"}\''
        " WHERE supabase_storage_path = 'etag';"
        "UPDATE file_metadata SET file_size = 4 WHERE supabase_storage_path = 'size';"
        'UPDATE file_metadata SET metadata = metadata || \'{"version": "v0"}\''
        " WHERE supabase_storage_path = 'version'"
    )
    assert found(project) == [
        ("row_disagrees", "etag"),
        ("row_disagrees", "size"),
        ("row_outdated", "version"),
    ]
    for key in ("etag", "size", "version"):
        assert len(mend(project, key)) == 1
    assert [kind for kind, _key in found(project) if kind != "hash_missing"] == []
    row = row_of(project, "size")
    assert (row["file_id"], row["file_size"], row["metadata"]["posix"]["mode"]) == (before, 3, 0o640)


def test_several_rows_for_one_path(project: Project) -> None:
    """The one that describes the object stays, the others are set aside, nothing is deleted."""
    project.put("a", b"123", upload_of(b"123"))
    good = row_of(project, "a")["file_id"]
    project.admin.execute(
        "DROP INDEX file_metadata_bucket_path_key;"
        "INSERT INTO file_metadata (original_filename, file_size, supabase_storage_path, file_hash)"
        " SELECT 'a', 9, 'a', repeat('e', 64) FROM generate_series(1, 2)"
    )
    assert found(project) == [("row_duplicate", "a")]
    assert mend(project, "a") == ["row_duplicate"]
    assert found(project) == []
    assert row_of(project, "a")["file_id"] == good
    assert project.one("SELECT count(*) FROM file_metadata WHERE starts_with(bucket, 'duplicate:')") == 2


def test_hashes(project: Project) -> None:
    """What is no hash is taken away; what is missing is set for the version that was read, and no other."""
    project.put("a", b"123", upload_of(b"123"))
    project.put("b", b"123")
    project.admin.execute(
        "UPDATE file_metadata SET file_hash = 'nonsense' WHERE supabase_storage_path = 'a'"
    )
    assert found(project) == [("hash_malformed", "a"), ("hash_missing", "b")]
    assert mend(project, "a") == ["hash_malformed"]
    assert mend(project, "b") == []
    assert found(project) == [("hash_missing", "a"), ("hash_missing", "b")]
    version = row_of(project, "b")["metadata"]["version"]
    digest = sha256(b"123").hexdigest()
    set_hash = "exaifs_fsck_set_hash"
    assert project.rpc(set_hash, BUCKET, "b", "older", "", digest) == {"set": False}
    assert project.rpc(set_hash, BUCKET, "b", version, OTHER, digest) == {"set": False}
    assert project.rpc(set_hash, BUCKET, "no", version, "", digest) == {"set": False}
    assert project.rpc(set_hash, BUCKET, "b", version, "", digest) == {"set": True}
    assert found(project) == [("hash_missing", "a")]
    assert project.log()[-1] == ("row", "b")


def test_a_wrong_hash_takes_its_ids_along(project: Project) -> None:
    """Ids of the bytes that are really there stay, those of the hash that was wrong go."""
    digest = sha256(b"123").hexdigest()
    project.put("a", b"123", upload_of(b"123", sha256=OTHER))
    ids = {"one": {"id": "1", "sha256": OTHER}, "two": {"id": "2", "sha256": digest}, "old": "3"}
    project.admin.execute("UPDATE file_metadata SET provider_file_ids = %s", (Jsonb(ids),))
    version = row_of(project, "a")["metadata"]["version"]
    assert project.rpc("exaifs_fsck_set_hash", BUCKET, "a", version, OTHER, digest) == {"set": True}
    assert row_of(project, "a")["provider_file_ids"] == {"two": ids["two"]}
    assert found(project) == []


def test_ids_of_other_content(project: Project) -> None:
    """A record that was made from other bytes is taken away, the others stay."""
    project.put("a", b"123", upload_of(b"123"))
    good = {"id": "2", "sha256": sha256(b"123").hexdigest()}
    ids = {"kimi": {"id": "1", "sha256": OTHER}, "openai": good, "old": "3"}
    project.admin.execute("UPDATE file_metadata SET provider_file_ids = %s", (Jsonb(ids),))
    answer = project.rpc("exaifs_fsck_scan", BUCKET, "", 10)
    assert answer["findings"] == [{"kind": "ids_of_other_content", "key": "a", "note": "kimi 1"}]
    assert mend(project, "a") == ["ids_of_other_content"]
    assert row_of(project, "a")["provider_file_ids"] == {"openai": good, "old": "3"}
    assert found(project) == []


def test_keys_that_no_path_names(project: Project) -> None:
    """All that may be one is named; ordinary keys with dots are not."""
    odd = ["../x", ".exaifs/x", "/a", "a/", "a//b", "a/./b", "l" * 300]
    for key in [*odd, "...", ".a", "a.", "a/.exaifs", "a/..b/c"]:
        project.put(key, b"", upload_of(b"", key))
    assert sorted(key for kind, key in found(project) if kind == "odd_key") == sorted(odd)


def test_other_buckets_are_left_alone(project: Project) -> None:
    """What is wrong there is not found here."""
    project.put("a", b"1", bucket="generated-files")
    project.admin.execute("DELETE FROM file_metadata")
    assert found(project) == []


def test_only_the_service_role_may(project: Project) -> None:
    """The functions are for service_role alone."""
    granted = project.admin.execute(
        "SELECT r.rolname FROM pg_proc p, pg_roles r WHERE starts_with(p.proname, 'exaifs_fsck_')"
        " AND r.rolname IN ('anon', 'authenticated', 'service_role')"
        " AND has_function_privilege(r.oid, p.oid, 'EXECUTE')"
    ).fetchall()
    assert {name for (name,) in granted} == {"service_role"}
