"""What mounts write to rows: commit, patch, carry, touch."""

from __future__ import annotations

import threading

from tests.support.postgres import BUCKET, Json, Project, call, commit_of, put, upload_of


def _commit(project: Project, key: str, fields: Json) -> Json | None:
    record: Json | None = project.rpc("exaifs_commit", BUCKET, key, fields)
    return record


def test_commit_where_metadata_was_kept(project: Project) -> None:
    """The trigger has done it all: commit only adds the cache path, and logs nothing."""
    project.put("a", b"x", upload_of(b"x"))
    before, log = project.record("a"), project.log()
    assert _commit(project, "a", commit_of(b"x", local_cache_path="blobs/ab")) == before
    row = project.row("a")
    assert row is not None
    assert row["local_cache_path"] == "blobs/ab"
    assert project.log() == log


def test_commit_where_metadata_was_dropped(project: Project) -> None:
    """Commit completes the row, once: repeating it changes nothing and logs nothing."""
    project.put("a", b"hello")
    fields = commit_of(b"hello", local_cache_path="blobs/ab")
    record = _commit(project, "a", fields)
    assert record is not None
    assert (record["sha256"], record["write_id"], record["mime"]) == (fields["sha256"], "w1", "text/x-test")
    assert (record["posix"], record["xattrs"]) == (fields["posix"], fields["xattrs"])
    assert record == project.record("a")
    log = project.log()
    assert log == [("put", "a"), ("row", "a")]
    assert _commit(project, "a", fields) == record
    assert project.log() == log


def test_commit_after_a_foreign_write(project: Project) -> None:
    """Who comes too late changes nothing and sees the other's write id."""
    project.put("kept", b"ours", upload_of(b"ours"))
    project.put("kept", b"them", upload_of(b"them", "w2"))
    project.put("dropped", b"them")
    _commit(project, "dropped", commit_of(b"them", "w2"))
    for key in ("kept", "dropped"):
        before = project.row(key)
        record = _commit(project, key, commit_of(b"ours", "w1", local_cache_path="blobs/ab"))
        assert record is not None
        assert (record["write_id"], record["sha256"]) == ("w2", upload_of(b"them")["sha256"])
        assert project.row(key) == before


def test_commit_of_another_size(project: Project) -> None:
    """An object of another size is not what we uploaded, and does not get our hash."""
    project.put("a", b"something longer")
    record = _commit(project, "a", commit_of(b"x"))
    assert record is not None
    assert (record["sha256"], record["write_id"]) == (None, None)


def test_commit_of_a_deleted_object(project: Project) -> None:
    """Null says that the object is gone; no row is made."""
    assert _commit(project, "gone", commit_of(b"x")) is None
    assert project.row("gone") is None


def test_patch_merges(project: Project) -> None:
    """What is not named stays; time and user are set one by one."""
    project.put("a", b"x", upload_of(b"x"))
    fields = {
        "posix": {"mtime_ns": "1800000000999999999"},
        "set_xattrs": {"user.b": "Qg==", "user.c": ""},
        "drop_xattrs": ["user.a", "user.none"],
    }
    record = project.rpc("exaifs_patch", BUCKET, "a", fields)
    assert record["posix"] == {**upload_of(b"x")["posix"], "mtime_ns": "1800000000999999999"}
    assert record["xattrs"] == {"user.b": "Qg==", "user.c": ""}
    assert record["sha256"] == upload_of(b"x")["sha256"]
    assert record == project.record("a")
    assert project.rpc("exaifs_patch", BUCKET, "gone", fields) is None


def test_patch_makes_a_missing_row(project: Project) -> None:
    """An object without a row gets one."""
    project.put("a", b"x")
    project.admin.execute("DELETE FROM file_metadata")
    record = project.rpc("exaifs_patch", BUCKET, "a", {"posix": {"mode": 0o600}})
    assert record["posix"] == {"mode": 0o600}
    assert record["file_id"] is not None


def test_patches_at_the_same_time(project: Project) -> None:
    """Two patches of one row both take effect: the later waits, and builds on the earlier."""
    project.put("a", b"x")
    with project.as_service() as first:
        call(first, "exaifs_patch", BUCKET, "a", {"set_xattrs": {"user.1": "MQ=="}})
        second = threading.Thread(
            target=project.rpc,
            args=("exaifs_patch", BUCKET, "a", {"set_xattrs": {"user.2": "Mg=="}}),
            daemon=True,
        )
        second.start()
        while project.one("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == 0:
            assert second.is_alive()
        first.commit()
    second.join(60)
    record = project.record("a")
    assert record is not None
    assert record["xattrs"] == {"user.1": "MQ==", "user.2": "Mg=="}


def test_row_of_another_version_counts_for_nothing(project: Project) -> None:
    """Written past the trigger: hash, time, attributes and ids are not shown; owner and mode are."""
    project.put("a", b"x", upload_of(b"x"))
    project.admin.execute("""
        UPDATE file_metadata SET provider_file_ids = '{"kimi": "f"}';
        ALTER TABLE storage.objects DISABLE TRIGGER exaifs_on_object;
    """)
    project.put("a", b"other")
    record = project.record("a")
    assert record is not None
    assert (record["sha256"], record["write_id"], record["xattrs"], record["provider_file_ids"]) == (
        None,
        None,
        {},
        {},
    )
    assert record["posix"] == {"mode": 0o640, "uid": 1, "gid": 2}
    assert record["mime"] == "text/plain"
    assert project.rpc("exaifs_backfill", BUCKET) == {"rows": 1}
    assert project.rpc("exaifs_backfill", BUCKET) == {"rows": 0}
    refreshed = project.record("a")
    assert refreshed is not None
    assert refreshed["xattrs"] == {"user.a": "AAE="}


def _carried(project: Project, *, keep_user_metadata: bool) -> tuple[Json, Json]:
    """Rename `s` over `t` by copy and carry; return the source before and the target after."""
    project.put("s", b"source", upload_of(b"source") if keep_user_metadata else None)
    if not keep_user_metadata:
        _commit(project, "s", commit_of(b"source"))
    project.put("t", b"target", upload_of(b"target", "w9"))
    project.rpc("exaifs_patch", BUCKET, "s", {"posix": {"mode": 0o600}, "set_xattrs": {"user.z": "eg=="}})
    project.admin.execute(
        """UPDATE file_metadata SET provider_file_ids = '{"kimi": "f"}' WHERE supabase_storage_path = 's'"""
    )
    source = project.record("s")
    project.copy("s", "t", keep_user_metadata=keep_user_metadata)
    carried = project.rpc("exaifs_carry_row", BUCKET, "s", "t")
    assert carried == project.record("t")
    assert source is not None
    return source, carried


def test_carry_row(project: Project) -> None:
    """After a rename over a file the target is the source: id, hash, attributes, provider ids."""
    source, carried = _carried(project, keep_user_metadata=True)
    own = {"key", "version", "created_ns", "updated_ns"}
    assert {k: v for k, v in carried.items() if k not in own} == {
        k: v for k, v in source.items() if k not in own
    }
    assert project.row("s") is None
    assert project.log()[-2:] == [("row", "s"), ("row", "t")]
    # The answer may be lost: again, before and after the source is deleted.
    assert project.rpc("exaifs_carry_row", BUCKET, "s", "t") == carried
    project.remove(["s"])
    assert project.rpc("exaifs_carry_row", BUCKET, "s", "t") == carried


def test_carry_row_where_metadata_is_dropped(project: Project) -> None:
    """The same on a server whose copies lose the metadata."""
    source, carried = _carried(project, keep_user_metadata=False)
    assert (carried["file_id"], carried["sha256"]) == (source["file_id"], source["sha256"])
    assert (carried["posix"], carried["provider_file_ids"]) == (source["posix"], {"kimi": "f"})


def test_carry_row_of_a_source_written_meanwhile(project: Project) -> None:
    """The source changed after the copy: the target must not get the hash of bytes it does not have."""
    project.put("s", b"first", upload_of(b"first"))
    project.copy("s", "t", keep_user_metadata=False)
    project.put("s", b"other", upload_of(b"other", "w2"))
    carried = project.rpc("exaifs_carry_row", BUCKET, "s", "t")
    assert (carried["sha256"], carried["write_id"], carried["provider_file_ids"]) == (None, None, {})


def test_carry_row_to_nothing(project: Project) -> None:
    """Without a target nothing is carried, and the source keeps its row."""
    project.put("s", b"x", upload_of(b"x"))
    before = project.record("s")
    assert project.rpc("exaifs_carry_row", BUCKET, "s", "t") is None
    assert project.record("s") == before


def test_touch(project: Project) -> None:
    """Counters add up, times only go forward, and neither changes updated_at, log or record."""
    project.put("a", b"x")
    project.put("b", b"x")
    before, record, log = project.row("a"), project.record("a"), project.log()
    later = ["1900000000123456789", "1800000000000000000", "1"]
    assert project.rpc("exaifs_touch", BUCKET, ["a", "a", "missing"], [2, 3, 1], later) == {"updated": 1}
    assert project.rpc("exaifs_touch", BUCKET, ["a"], [1], ["1000000000000000000"]) == {"updated": 1}
    after = project.row("a")
    assert before is not None
    assert after is not None
    assert after["access_count"] == before["access_count"] + 6
    assert (
        project.one("SELECT extract(epoch FROM max(last_accessed))::text FROM file_metadata")
        == "1900000000.123456"
    )
    assert after["updated_at"] == before["updated_at"]
    assert (project.record("a"), project.log()) == (record, log)
    assert project.rpc("exaifs_touch", BUCKET, [], [], []) == {"updated": 0}


def test_touch_waits_for_nobody(project: Project) -> None:
    """A row that a writer holds is left out: counters must not wait, nor deadlock with a bulk delete."""
    project.put("a", b"x")
    project.put("b", b"x")
    with project.as_service() as writer:
        put(writer, "a", b"y")
        assert project.rpc("exaifs_touch", BUCKET, ["a", "b"], [1, 1], ["1", "1"]) == {"updated": 1}
