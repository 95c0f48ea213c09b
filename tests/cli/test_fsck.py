"""`exaifs fsck` as people run it: on the embedded Supabase, with damage made past exaifs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from exaifs.cache.directory import directory_of
from exaifs.cache.names.entries import Entry
from exaifs.cache.unsent.conflicts import DIRECTORY, list_conflicts
from exaifs.cache.unsent.intents import Remove, to_record
from exaifs.cache.unsent.journalfile import HEADER, LOG_NAME, encode
from exaifs.model import Ino
from exaifs.remote.session import identity_of
from tests.cli.conftest import Stranger
from tests.cli.support import Result, exaifs
from tests.support.ports import own_port

OTHER = "f" * 64


class Project:
    """A bucket and its rows, past exaifs."""

    def __init__(self, bucket: str, http: httpx.Client) -> None:
        self.bucket = bucket
        self._http = http

    def put(self, key: str, data: bytes) -> None:
        """Upload as another client, which says no hash."""
        path = f"/storage/v1/object/{self.bucket}/{key}"
        self._http.post(path, content=data, headers={"x-upsert": "true"}).raise_for_status()

    def row(self, key: str) -> dict[str, Any]:
        """Return the one row of a key."""
        answer = self._http.get("/rest/v1/file_metadata", params=self._where(key)).raise_for_status()
        (row,) = answer.json()
        assert isinstance(row, dict)
        return row

    def change(self, key: str, **columns: Any) -> None:
        """Change a row."""
        self._http.patch("/rest/v1/file_metadata", params=self._where(key), json=columns).raise_for_status()

    def drop(self, key: str) -> None:
        """Delete a row."""
        self._http.delete("/rest/v1/file_metadata", params=self._where(key)).raise_for_status()

    def insert(self, key: str, **columns: Any) -> None:
        """Make a row of an object that is not there."""
        row = {
            "bucket": self.bucket,
            "supabase_storage_path": key,
            "original_filename": key,
            "file_size": 1,
        }
        self._http.post("/rest/v1/file_metadata", json={**row, **columns}).raise_for_status()

    def unregister(self) -> None:
        """Have the trigger follow the bucket no more."""
        where = {"bucket_id": f"eq.{self.bucket}"}
        self._http.delete("/rest/v1/exaifs_buckets", params=where).raise_for_status()

    def _where(self, key: str) -> dict[str, str]:
        return {"bucket": f"eq.{self.bucket}", "supabase_storage_path": f"eq.{key}"}


@pytest.fixture
def env(fresh_bucket: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The settings of a mount of a bucket of this test."""
    return {**fresh_bucket, "FILE_CACHE_DIR": str(tmp_path / "cache")}


@pytest.fixture
def project(env: dict[str, str]) -> Iterator[Project]:
    """The bucket."""
    key = env["SUPABASE_SERVICE_ROLE_KEY"]
    headers = {"apikey": key, "Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=env["SUPABASE_URL"], headers=headers, timeout=120, trust_env=False) as http:
        yield Project(env["FILE_STORAGE_BUCKET"], http)


def fsck(env: dict[str, str], *flags: str) -> Result:
    """Run it with JSON on stdout."""
    return exaifs("fsck", "--json", "-", *flags, env=env)


def kinds(result: Result, severity: str = "problem") -> list[str]:
    """Return what was found."""
    return sorted(each["kind"] for each in result.json["findings"] if each["severity"] == severity)


def cache_of(env: dict[str, str]) -> Path:
    """Return the cache directory of the bucket, made if it is missing."""
    identity = identity_of(env["SUPABASE_URL"], env["FILE_STORAGE_BUCKET"])
    directory = directory_of(Path(env["FILE_CACHE_DIR"]), identity)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@pytest.mark.embedded
def test_all_in_order(env: dict[str, str], project: Project, tmp_path: Path) -> None:
    """Exit code 0, in words, as JSON in a file, and with all bytes read; notes do not count."""
    project.put("d/a", b"12345")
    project.put("a//b", b"")
    result = exaifs("fsck", "--json", str(tmp_path / "report.json"), env=env)
    assert result.code == 0, result
    assert result.stdout.splitlines()[-1].startswith("clean, 3 notes; looked at 2 keys")
    assert "checking objects and rows" in result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["format"], report["clean"], report["bucket_checked"]) == (1, True, True)
    assert {each["kind"] for each in report["findings"]} == {
        "no_cache_directory",
        "odd_key",
        "hash_missing",
    }
    assert not Path(env["FILE_CACHE_DIR"]).exists()
    deep = fsck(env, "--deep")
    assert (deep.code, deep.json["checked"]["objects_read"]) == (0, 2)


DAMAGE: dict[str, Callable[[Project], None]] = {
    "object_without_row": lambda project: project.drop("a"),
    "row_without_object": lambda project: project.insert("gone", metadata={"version": "v"}),
    "row_outdated": lambda project: project.change("a", metadata={"version": "v"}),
    "row_disagrees": lambda project: project.change("a", file_size=6),
    "hash_malformed": lambda project: project.change("a", file_hash="nonsense"),
    "ids_of_other_content": lambda project: project.change(
        "a", file_hash="a" * 64, provider_file_ids={"kimi": {"id": "1", "sha256": OTHER}}
    ),
    "bucket_not_followed": lambda project: project.unregister(),
}


@pytest.mark.embedded
@pytest.mark.parametrize("kind", DAMAGE)
def test_rows(env: dict[str, str], project: Project, kind: str) -> None:
    """Found without a change, repaired, clean; the object and the other row are as they were."""
    project.put("a", b"12345")
    project.put("b", b"other")
    other = project.row("b")
    DAMAGE[kind](project)
    result = fsck(env)
    assert (result.code, kinds(result)) == (1, [kind]), result
    assert result.json["repaired"] == 0
    result = fsck(env, "--repair")
    assert result.code == 0, result
    (finding,) = (each for each in result.json["findings"] if each["severity"] == "problem")
    assert (finding["kind"], finding["outcome"], bool(finding["done"])) == (kind, "repaired", True)
    assert fsck(env).code == 0
    assert project.row("a")["file_size"] == 5
    assert project.row("b") == other


@pytest.mark.embedded
def test_hashes(env: dict[str, str], project: Project) -> None:
    """With --deep wrong hashes are found and set right, missing ones noted; the second run is clean."""
    project.put("wrong", b"12345")
    project.put("missing", b"12345")
    project.put("empty", b"")
    project.change("wrong", file_hash=OTHER, provider_file_ids={"kimi": {"id": "1", "sha256": OTHER}})
    assert fsck(env).code == 0
    result = fsck(env, "--deep")
    assert (result.code, kinds(result)) == (1, ["hash_wrong"]), result
    assert project.row("missing")["file_hash"] is None
    result = fsck(env, "--deep", "--repair")
    assert result.code == 0, result
    assert kinds(result, "note").count("hash_missing") == 2
    digest = hashlib.sha256(b"12345").hexdigest()
    assert project.row("wrong")["file_hash"] == project.row("missing")["file_hash"] == digest
    assert project.row("wrong")["provider_file_ids"] == {}
    result = fsck(env, "--deep")
    assert (result.code, kinds(result, "note")) == (0, ["no_cache_directory"])


@pytest.mark.embedded
def test_damaged_bytes(env: dict[str, str], project: Project, stranger: Stranger) -> None:
    """Bytes that are not what was uploaded are no row's fault: it is said, and no hash is changed."""
    project.put("a", b"12345")
    digest = hashlib.sha256(b"12345").hexdigest()
    project.change("a", file_hash=digest)
    damaging = {**env, "SUPABASE_URL": stranger.falsifying(env["SUPABASE_URL"])}
    result = fsck(damaging, "--deep", "--repair")
    assert (result.code, kinds(result)) == (1, ["bytes_damaged"]), result
    assert project.row("a")["file_hash"] == digest
    copy = cache_of(damaging) / "content" / digest[:2] / digest
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"12345")
    result = fsck(damaging, "--deep")
    (finding,) = (each for each in result.json["findings"] if each["severity"] == "problem")
    assert str(copy) in finding["advice"]


@pytest.mark.embedded
def test_a_project_without_trigger_or_of_an_older_schema(
    env: dict[str, str], project: Project, stranger: Stranger
) -> None:
    """Only `exaifs init` can mend that, and it is said."""
    project.put("a", b"12345")

    def proxied(**facts: Any) -> dict[str, str]:
        def change(_method: str, path: str, content: bytes) -> bytes:
            if not path.endswith("/rpc/exaifs_hello"):
                return content
            return json.dumps(json.loads(content) | facts).encode()

        return {**env, "SUPABASE_URL": stranger.changing(env["SUPABASE_URL"], change)}

    result = fsck(proxied(trigger_installed=False), "--repair")
    assert (result.code, kinds(result)) == (1, ["trigger_missing"]), result
    (finding,) = (each for each in result.json["findings"] if each["severity"] == "problem")
    assert "exaifs init --apply" in finding["advice"]
    result = fsck(proxied(schema_version=9))
    assert result.code == 1
    assert "exaifs init --apply" in result.stderr.splitlines()[-1]


@pytest.mark.embedded
def test_what_waits_in_the_journal_is_left_alone(env: dict[str, str], project: Project) -> None:
    """A key that a mount is about to change is found, and not repaired."""
    project.put("a", b"12345")
    project.drop("a")
    journal = cache_of(env) / "journal"
    journal.mkdir()
    entry = Entry(parent="", name="a", component="a", kind="file", ino=Ino(7), version="v")
    (journal / LOG_NAME).write_bytes(HEADER + encode({1: to_record(Remove(entry))}, ()))
    result = fsck(env, "--repair")
    assert result.code == 1, result
    (finding,) = (each for each in result.json["findings"] if each["severity"] == "problem")
    assert (finding["kind"], finding["outcome"]) == ("object_without_row", "left")
    assert "waits in the journal" in finding["done"]


def test_this_host_alone(tmp_path: Path) -> None:
    """--local needs no key and asks nobody; damage is shown, repaired, and shown no more."""
    env = {
        "SUPABASE_URL": f"http://127.0.0.1:{own_port()}",
        "FILE_CACHE_DIR": str(tmp_path / "cache"),
        "FILE_STORAGE_BUCKET": "user-files",
    }
    directory = cache_of(env)
    content = directory / "content" / "aa" / ("a" * 64)
    content.parent.mkdir(parents=True)
    content.write_bytes(b"damaged")
    (directory / "staging").mkdir()
    (directory / "staging" / "x.data").write_bytes(b"bytes")
    result = exaifs("fsck", "--local", env=env)
    assert result.code == 1, result
    assert f"problem   cache     {content}: a cached content is damaged" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("2 problems, 0 notes; ")
    assert "--repair" in result.stderr
    result = exaifs("fsck", "--local", "--repair", env=env)
    assert result.code == 0, result
    assert result.stdout.splitlines()[-1].startswith("2 repaired, nothing left")
    assert [each.path for each in list_conflicts(directory / DIRECTORY)] == [None]
    result = exaifs("fsck", "--local", env=env)
    assert (result.code, result.stdout.splitlines()[-1][:5]) == (0, "clean")


def test_supabase_away(stranger: Stranger, tmp_path: Path) -> None:
    """This host is checked first; then exit code 3, or 2 without a key."""
    env = {"SUPABASE_URL": f"http://127.0.0.1:{own_port()}", "FILE_CACHE_DIR": str(tmp_path / "cache")}
    assert exaifs("fsck", env=env).code == 2
    assert exaifs("fsck", "--local", "--deep", env=env).code == 2
    assert exaifs("fsck", "--local").code == 2
    env["SUPABASE_SERVICE_ROLE_KEY"] = "sb_secret_0123456789abcdefghij"
    result = fsck({**env, "EXAIFS_REQUEST_TIMEOUT_S": "1"})
    assert result.code == 3, result
    assert result.json["bucket_checked"] is False
    assert result.json["clean"] is False
    assert "was not checked to its end" in result.stderr
    told = exaifs("fsck", env={**env, "EXAIFS_REQUEST_TIMEOUT_S": "1"})
    assert (told.code, "clean" in told.stdout, "no problems so far" in told.stdout) == (3, False, True), (
        told
    )
    page = stranger.answering(200, "text/html", b"<h1>hello</h1>")
    assert exaifs("fsck", env={**env, "SUPABASE_URL": page}).code == 3
