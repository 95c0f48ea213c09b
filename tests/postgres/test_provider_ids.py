"""Provider file ids in rows: one winner, valid for bytes, shared by files with the same content."""

from __future__ import annotations

import threading
from typing import Any

from tests.support.postgres import BUCKET, Json, Project, call, upload_of

DIGEST = upload_of(b"x")["sha256"]


def record_of(file_id: str, **changes: Any) -> Json:
    """Return what a mount stores."""
    return {
        "id": file_id,
        "sha256": DIGEST,
        "purpose": "file-extract",
        "account": "a1",
        "size": 1,
        "uploaded_at": "2026-01-01T00:00:00Z",
        "expires_at": None,
        **changes,
    }


def set_id(
    project: Project,
    key: str,
    record: Json,
    *,
    expected: str = "",
    version: str = "",
    provider: str = "kimi",
) -> Json:
    """Store a record; return the function's answer."""
    answer: Json = project.rpc(
        "exaifs_set_provider_id", BUCKET, key, provider, record, DIGEST, expected, version
    )
    return answer


def ids(project: Project, key: str) -> Json:
    """Return what the record of a file shows."""
    record = project.record(key)
    assert record is not None
    found: Json = record["provider_file_ids"]
    return found


def test_one_key_is_set_and_the_others_stay(project: Project) -> None:
    """Each provider's record is set on its own; the feed hears of it; repeating changes nothing."""
    project.put("a", b"x", upload_of(b"x"))
    first = set_id(project, "a", record_of("k1"))
    assert (first["stored"], first["current"]) == (True, record_of("k1"))
    assert first["record"] == project.record("a")
    set_id(project, "a", record_of("o1"), provider="openai")
    assert ids(project, "a") == {"kimi": record_of("k1"), "openai": record_of("o1")}
    log = project.log()
    assert log == [("put", "a"), ("row", "a"), ("row", "a")]
    assert set_id(project, "a", record_of("k1"))["stored"] is True
    assert project.log() == log


def test_who_comes_second_learns_the_first(project: Project) -> None:
    """An id that is still good is not replaced, whichever file with these bytes has it."""
    project.put("a", b"x", upload_of(b"x"))
    project.put("b", b"x", upload_of(b"x"))
    set_id(project, "a", record_of("k1"))
    for key in ("a", "b"):
        answer = set_id(project, key, record_of("k2"))
        assert (answer["stored"], answer["current"]["id"]) == (False, "k1")
    assert ids(project, "b") == {}
    assert set_id(project, "b", record_of("k1"))["stored"] is True


def test_what_was_rejected_may_be_replaced(project: Project) -> None:
    """The expected id, an expired one, another account's and another purpose's stand in nobody's way."""
    project.put("a", b"x", upload_of(b"x"))
    project.put("b", b"x", upload_of(b"x"))
    set_id(project, "a", record_of("k1"))
    assert set_id(project, "b", record_of("k2"), expected="k1")["stored"] is True
    set_id(project, "a", record_of("k3", account="a2"))
    assert set_id(project, "a", record_of("k4", purpose="image"), expected="k2")["stored"] is True
    project.rpc("exaifs_forget_provider_id", BUCKET, "b", "kimi", "")
    set_id(project, "b", record_of("k5", expires_at="2020-01-01T00:00:00Z"))
    assert set_id(project, "b", record_of("k6"))["stored"] is True
    assert set_id(project, "b", record_of("k7", origin="registered"))["stored"] is True


def test_only_for_the_bytes_it_was_made_from(project: Project) -> None:
    """Other bytes meanwhile, or no file at all: nothing is stored. A rename is followed."""
    project.put("a", b"x", upload_of(b"x"))
    project.move("a", "renamed")
    assert set_id(project, "a", record_of("k1"))["record"]["key"] == "renamed"
    assert "kimi" in ids(project, "renamed")
    project.put("renamed", b"other", upload_of(b"other", "w2"))
    nothing = {"stored": False, "current": None, "record": None}
    assert ids(project, "renamed") == {}
    assert set_id(project, "renamed", record_of("k2")) == nothing
    assert set_id(project, "missing", record_of("k2")) == nothing


def test_a_row_without_a_hash_gets_one(project: Project) -> None:
    """Another client's object: the version that was read vouches for the hash."""
    project.put("theirs", b"x")
    record = project.record("theirs")
    assert record is not None
    assert set_id(project, "theirs", record_of("k1"), version="another")["stored"] is False
    assert set_id(project, "theirs", record_of("k1"), version=record["version"])["stored"] is True
    after = project.record("theirs")
    assert after is not None
    assert (after["sha256"], after["provider_file_ids"]["kimi"]["id"]) == (DIGEST, "k1")


def test_plain_ids_of_an_earlier_design(project: Project) -> None:
    """An upload gives way to one, an id that is told does not; one found alive is not ours to delete."""
    for key, held in (("a", "old"), ("b", "no\nid"), ("c", "other")):
        project.put(key, b"x", upload_of(b"x"))
        project.admin.execute(
            "UPDATE file_metadata SET provider_file_ids = jsonb_build_object('kimi', %s::text)"
            " WHERE supabase_storage_path = %s",
            (held, key),
        )
    made = set_id(project, "a", record_of("k1"))
    assert (made["stored"], made["current"]) == (False, "old")
    assert set_id(project, "b", record_of("k2"))["stored"] is True
    checked = {
        "id": "old",
        "account": "a1",
        "purpose": "file-extract",
        "verified_at": "2026-01-01T00:00:00Z",
    }
    assert set_id(project, "a", checked)["stored"] is True
    assert set_id(project, "c", record_of("told", origin="registered"))["stored"] is True
    for key in ("a", "c"):
        project.rpc("exaifs_forget_provider_id", BUCKET, key, "kimi", "")
    unused = project.rpc("exaifs_unused_provider_files", "kimi", "a1", 0)["files"]
    assert [file["id"] for file in unused] == ["k1"]


def test_found_by_content(project: Project) -> None:
    """What one file has is found for every file with the same bytes; text of an earlier design too."""
    for key in ("a", "b", "c"):
        project.put(key, b"x", upload_of(b"x"))
    set_id(project, "a", record_of("k1"))
    set_id(project, "b", record_of("k1"))
    project.admin.execute(
        """UPDATE file_metadata SET provider_file_ids = '{"kimi": "old", "x": 1}'"""
        " WHERE supabase_storage_path = 'c'"
    )
    found = project.rpc("exaifs_find_provider_ids", DIGEST, "kimi")["records"]
    assert len(found) == 2
    assert "old" in found
    assert record_of("k1") in found
    assert project.rpc("exaifs_find_provider_ids", DIGEST, "x") == {"records": []}
    assert project.rpc("exaifs_find_provider_ids", "0" * 64, "kimi") == {"records": []}
    assert set_id(project, "c", record_of("k1"))["current"] == "old"
    assert set_id(project, "c", record_of("k1"), expected="old")["stored"] is True


def test_forgetting_reaches_every_copy(project: Project) -> None:
    """An id is forgotten for all files with these bytes, and only that id."""
    for key in ("a", "b", "c"):
        project.put(key, b"x", upload_of(b"x"))
        set_id(project, key, record_of("k1"))
    project.put("other", b"y", upload_of(b"y"))
    set_id(project, "c", record_of("k2"), expected="k1")
    record = project.rpc("exaifs_forget_provider_id", BUCKET, "a", "kimi", "")
    assert record == project.record("a")
    assert (ids(project, "a"), ids(project, "b"), ids(project, "c")["kimi"]["id"]) == ({}, {}, "k2")
    assert project.rpc("exaifs_forget_provider_id", BUCKET, "missing", "kimi", "") is None
    log = project.log()
    project.rpc("exaifs_forget_provider_id", BUCKET, "other", "kimi", "")
    assert project.log() == log


def test_what_nobody_has_any_more_is_known(project: Project) -> None:
    """Uploads are remembered after their bytes are gone, until they are deleted at the provider too."""
    project.put("a", b"x", upload_of(b"x"))
    set_id(project, "a", record_of("k1"))
    set_id(project, "a", record_of("loser"))
    set_id(project, "a", record_of("elsewhere", origin="registered"), expected="k1")

    def unused(older_s: int = 0, account: str = "a1") -> list[str]:
        files = project.rpc("exaifs_unused_provider_files", "kimi", account, older_s)["files"]
        return [file["id"] for file in files]

    assert sorted(unused()) == ["k1", "loser"]
    assert unused(older_s=3600) == []
    assert unused(account="a2") == []
    set_id(project, "a", record_of("k1"), expected="elsewhere")
    assert unused() == ["loser"]
    assert project.rpc("exaifs_drop_provider_file", "kimi", "a1", "loser") == {"dropped": True}
    project.remove(["a"])
    assert unused() == ["k1"]


def test_two_hosts_at_the_same_time(project: Project) -> None:
    """Of two that store at the same time, for two names of one content, one wins and the other hears."""
    project.put("a", b"x", upload_of(b"x"))
    project.put("b", b"x", upload_of(b"x"))
    answers: list[Json] = []
    with project.as_service() as first:
        held = call(first, "exaifs_set_provider_id", BUCKET, "a", "kimi", record_of("k1"), DIGEST, "", "")
        second = threading.Thread(
            target=lambda: answers.append(set_id(project, "b", record_of("k2"))), daemon=True
        )
        second.start()
        while project.one("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == 0:
            assert second.is_alive()
        first.commit()
    second.join(60)
    assert held["stored"] is True
    assert [(answer["stored"], answer["current"]["id"]) for answer in answers] == [(False, "k1")]
