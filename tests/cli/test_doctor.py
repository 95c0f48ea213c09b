"""`exaifs doctor`: every check green on a good project, and every kind of trouble told apart."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.conftest import BareSupabase, Stranger
from tests.cli.support import Result, clean_environment, exaifs
from tests.support.mounts import wait_until
from tests.support.ports import own_port

NUMBERED = ["environment", "storage", "database", "tables", "buckets", "round_trip"]
TABLES = {"conversations", "messages", "files", "conversation_files", "file_metadata"}
SECRET_KEY = "sb_secret_0123456789abcdefghij"
SERVICE = {"role": "service_role"}


def doctor(env: dict[str, str], cache_dir: Path, *more: str) -> Result:
    """Run the doctor with JSON and a cache directory that can be made."""
    return exaifs("doctor", "--json", "--cache-dir", str(cache_dir), *more, env=env)


def statuses(result: Result) -> list[str]:
    """Return how the numbered checks went, in their order."""
    assert [check["name"] for check in result.json["checks"]] == NUMBERED
    assert [check["number"] for check in result.json["checks"]] == [1, 2, 3, 4, 5, 6]
    return [check["status"] for check in result.json["checks"]]


def troubled(how: str, stranger: Stranger) -> str:
    """Return the URL of a server with this trouble."""
    match how:
        case "html":
            return stranger.answering(200, "text/html", b"<h1>hello</h1>")
        case "silent":
            return stranger.silent()
        case "paused":
            return stranger.answering(540, "text/plain", b"paused")
        case "unknown":
            return "http://no-such-host.invalid."
        case _:
            return f"http://127.0.0.1:{own_port()}"


def get(env: dict[str, str], path: str) -> list[dict[str, object]]:
    """Ask the server past the program under test."""
    key = env["SUPABASE_SERVICE_ROLE_KEY"]
    headers = {"apikey": key, "Authorization": f"Bearer {key}"}
    answer = httpx.get(env["SUPABASE_URL"] + path, headers=headers, timeout=120, trust_env=False)
    rows: list[dict[str, object]] = answer.raise_for_status().json()
    return rows


def objects_in(env: dict[str, str]) -> list[dict[str, object]]:
    """List the bucket past the program under test."""
    answer = httpx.post(
        f"{env['SUPABASE_URL']}/storage/v1/object/list/{env['FILE_STORAGE_BUCKET']}",
        json={"prefix": "", "limit": 100},
        headers={"apikey": env["SUPABASE_SERVICE_ROLE_KEY"]},
        timeout=120,
        trust_env=False,
    )
    found: list[dict[str, object]] = answer.raise_for_status().json()
    return found


@pytest.mark.embedded
def test_a_good_project_passes_every_check(fresh_bucket: dict[str, str], tmp_path: Path) -> None:
    """Exit code 0, six of six, with versions, row counts, privacy and limits; the set-up is fine too."""
    result = doctor(fresh_bucket, tmp_path / "cache")
    assert result.code == 0, result
    assert statuses(result) == ["ok"] * 6
    assert (result.json["passed"], result.json["total"], result.json["ok"]) == (6, 6, True)
    tables = {line["name"]: line["rows"] for line in result.check("tables")["details"]}
    assert tables.keys() == TABLES
    assert all(isinstance(rows, int) for rows in tables.values())
    version = result.check("database")["details"][0]
    assert version["version"] == version["expected"]
    buckets = {line["name"]: line for line in result.check("buckets")["details"]}
    assert buckets.keys() == {"user-files", "generated-files", fresh_bucket["FILE_STORAGE_BUCKET"]}
    assert not any(bucket["public"] for bucket in buckets.values())
    assert buckets["user-files"]["size_limit_bytes"] == 50 * 1024 * 1024
    assert buckets["generated-files"]["size_limit_bytes"] == 10 * 1024 * 1024
    steps = [line["name"] for line in result.check("round_trip")["details"]]
    assert steps == ["upload", "row", "download", "compare", "delete"]
    for name in ("trigger", "trigger_errors", "bucket_registered", "cache_directory"):
        assert result.check(name)["status"] == "ok", result


@pytest.mark.embedded
def test_the_round_trip_leaves_nothing(fresh_bucket: dict[str, str], tmp_path: Path) -> None:
    """Afterwards the bucket is empty and no row names it."""
    assert doctor(fresh_bucket, tmp_path).code == 0
    bucket = fresh_bucket["FILE_STORAGE_BUCKET"]
    assert get(fresh_bucket, f"/rest/v1/file_metadata?bucket=eq.{bucket}&select=file_id") == []
    assert objects_in(fresh_bucket) == []


@pytest.mark.embedded
def test_for_people_there_are_six_numbers_and_a_closing_line(
    fresh_bucket: dict[str, str], tmp_path: Path
) -> None:
    """The text numbers the checks as users know them and ends with `6/6 passed`."""
    result = exaifs("doctor", "--cache-dir", str(tmp_path), env=fresh_bucket)
    assert result.code == 0
    starts = [line[:2] for line in result.stdout.splitlines() if line[:1].isdigit()]
    assert starts == ["1.", "2.", "3.", "4.", "5.", "6.", "6/"]
    assert result.stdout.splitlines()[-1] == "6/6 passed"
    assert result.stderr == ""


def test_without_settings_only_this_machine_is_tested(tmp_path: Path) -> None:
    """The first check names the variable and where its value comes from; the others are skipped."""
    result = doctor({}, tmp_path)
    assert result.code == 1
    assert statuses(result) == ["failed", *["skipped"] * 5]
    assert "SUPABASE_URL" in result.check("environment")["summary"]
    assert "dashboard" in result.check("environment")["fix"]
    assert result.json["passed"] == 0
    assert result.check("fuse_device")["status"] in {"ok", "failed"}


def test_a_wrong_setting_is_a_failed_check_not_a_crash(tmp_path: Path) -> None:
    """A value that does not fit fails check 1 and is named."""
    result = doctor({"MAX_CACHE_SIZE_MB": "lots"}, tmp_path)
    assert result.code == 1
    assert statuses(result)[0] == "failed"
    assert "MAX_CACHE_SIZE_MB" in result.check("environment")["summary"]


@pytest.mark.parametrize("how", ["closed", "html", "silent", "paused", "unknown"])
def test_a_server_that_is_down_or_foreign_is_told_in_five_seconds(
    stranger: Stranger, tmp_path: Path, how: str
) -> None:
    """One line of reason, each kind in its own words, a next step, and no minutes of retries."""
    words = {
        "closed": "refuses the connection",
        "html": "is no Supabase",
        "silent": "does not answer",
        "paused": "the project is paused",
        "unknown": "cannot be resolved",
    }[how]
    env = {"SUPABASE_URL": troubled(how, stranger), "SUPABASE_SERVICE_ROLE_KEY": SECRET_KEY}
    # Whatever else somebody is ready to wait for.
    env |= {"EXAIFS_REQUEST_TIMEOUT_S": "600", "EXAIFS_READ_TIMEOUT_S": "600"}
    started_s = time.monotonic()
    result = doctor(env, tmp_path)
    took_s = time.monotonic() - started_s
    assert result.code == 1
    assert statuses(result) == ["ok", "failed", *["skipped"] * 4]
    assert words in result.check("storage")["summary"]
    assert "SUPABASE_URL" in result.check("storage")["fix"]
    # The doctor itself allows 4 s for an answer, once; the rest is Python on a busy machine.
    assert took_s < 60
    if how == "silent":
        wait_until(lambda: stranger.patience_s, 120, "the doctor lets go")
        (patience_s,) = stranger.patience_s
        assert patience_s < 60


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("claims", "secret", "words"),
    [
        ({"role": "anon"}, None, "this is the anon key"),
        ({"role": "authenticated"}, None, "'authenticated'"),
        ({}, None, "without a role"),
        ({"role": "service_role", "exp": 1_000_000_000}, None, "expired on 2001-09-09"),
        (SERVICE, "a secret of another project, also long enough", "the key is refused"),
    ],
)
def test_every_wrong_key_is_told_apart(
    bare_supabase: BareSupabase,
    tmp_path: Path,
    claims: dict[str, Any],
    secret: str | None,
    words: str,
) -> None:
    """Anon, role-less, expired and foreign keys fail check 2, although some of them list `200 []`."""
    key = bare_supabase.key(**claims) if secret is None else bare_supabase.key(secret=secret, **claims)
    result = doctor(key, tmp_path)
    assert result.code == 1
    assert statuses(result) == ["ok", "failed", *["skipped"] * 4]
    assert words in result.check("storage")["summary"]
    assert "API Keys" in result.check("storage")["fix"]


@pytest.mark.embedded
def test_a_publishable_key_is_no_empty_project(embedded_supabase: dict[str, str], tmp_path: Path) -> None:
    """The new kind of anon key is refused with its name, whatever it can list."""
    env = {**embedded_supabase, "SUPABASE_SERVICE_ROLE_KEY": "sb_publishable_0123456789abcdefghij"}
    result = doctor(env, tmp_path)
    assert statuses(result)[1] == "failed"
    assert "publishable" in result.check("storage")["summary"]


def test_a_refused_secret_key_is_told(stranger: Stranger, tmp_path: Path) -> None:
    """A key that says nothing about itself: what the server said is shown, and where the right one is."""
    url = stranger.answering(401, "application/json", b'{"message":"Invalid API key"}')
    env = {"SUPABASE_URL": url, "SUPABASE_SERVICE_ROLE_KEY": SECRET_KEY}
    result = doctor(env, tmp_path)
    assert "the key is refused: Invalid API key" in result.check("storage")["summary"]
    assert "another project" in result.check("storage")["fix"]


@pytest.mark.embedded
def test_a_missing_schema_is_no_wrong_key(bare_supabase: BareSupabase, tmp_path: Path) -> None:
    """A good key on a project without exaifs: tables and buckets are missing, and the fix is `init`."""
    result = doctor(bare_supabase.key(**SERVICE), tmp_path)
    assert result.code == 1
    assert statuses(result) == ["ok", "ok", "failed", "failed", "failed", "skipped"]
    assert result.json["passed"] == 2
    for name in ("database", "tables"):
        assert "exaifs init" in result.check(name)["fix"]
    assert {line["name"] for line in result.check("tables")["details"]} == TABLES
    assert all(line["status"] == "failed" for line in result.check("tables")["details"])


@pytest.mark.embedded
def test_a_missing_bucket_is_named(embedded_supabase: dict[str, str], tmp_path: Path) -> None:
    """Tables are fine, the bucket is not: the fix creates exactly it, and nothing is uploaded."""
    result = doctor(embedded_supabase, tmp_path, "--bucket", "no-such-bucket")
    assert result.code == 1
    assert statuses(result) == ["ok", "ok", "ok", "ok", "failed", "skipped"]
    assert "no-such-bucket" in result.check("buckets")["summary"]
    assert "exaifs init --apply --bucket no-such-bucket" in result.check("buckets")["fix"]
    assert result.check("bucket_registered")["status"] == "warning"


@pytest.mark.parametrize("what", ["file", "no-parent"])
def test_a_cache_directory_that_cannot_be_used_fails(tmp_path: Path, what: str) -> None:
    """It would stop a mount, so it fails the run even though it is no numbered check."""
    (tmp_path / "file").write_text("x")
    directory = {"file": tmp_path / "file", "no-parent": Path("/proc/no-such-directory/cache")}[what]
    result = doctor({}, directory)
    assert result.check("cache_directory")["status"] == "failed"
    assert "FILE_CACHE_DIR" in result.check("cache_directory")["fix"]


@pytest.mark.embedded
def test_a_machine_that_cannot_mount_fails_although_supabase_is_fine(
    fresh_bucket: dict[str, str], tmp_path: Path
) -> None:
    """Six of six, and still exit code 1, because a mount would not work."""
    (tmp_path / "file").write_text("x")
    result = doctor(fresh_bucket, tmp_path / "file")
    assert result.code == 1
    assert (result.json["passed"], result.json["ok"]) == (6, False)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux")
def test_a_user_who_may_not_write_the_cache_directory_is_told(tmp_path: Path) -> None:
    """A directory of somebody else fails the check and nothing is left in it."""
    directory = tmp_path / "cache"
    directory.mkdir(mode=0o755)
    run = subprocess.run(
        [
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
            *(sys.executable, "-m", "exaifs", "doctor", "--cache-dir", str(directory)),
        ],
        env=clean_environment({"HOME": "/"}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "Permission denied" in run.stderr and "python" in run.stderr:
        pytest.skip("this Python is not readable for other users")
    assert run.returncode == 1
    assert "cache directory" in run.stdout
    assert "ermission denied" in run.stdout
    assert list(directory.iterdir()) == []


@pytest.mark.embedded
def test_a_bucket_that_refuses_the_test_file_is_explained(
    embedded_supabase: dict[str, str], tmp_path: Path
) -> None:
    """A size limit below the test file: the round trip fails at the upload and names the bucket."""
    bucket = "tiny-limit"
    key = embedded_supabase["SUPABASE_SERVICE_ROLE_KEY"]
    httpx.post(
        f"{embedded_supabase['SUPABASE_URL']}/storage/v1/bucket",
        json={"id": bucket, "name": bucket, "public": False, "file_size_limit": 100},
        headers={"apikey": key, "Authorization": f"Bearer {key}"},
        timeout=120,
        trust_env=False,
    ).raise_for_status()
    result = doctor(embedded_supabase, tmp_path, "--bucket", bucket)
    assert statuses(result) == [*["ok"] * 5, "failed"]
    assert result.json["passed"] == 5
    assert "upload failed" in result.check("round_trip")["summary"]
    assert bucket in result.check("round_trip")["fix"]


@pytest.mark.embedded
def test_bytes_changed_on_the_way_are_seen_and_nothing_is_left(
    fresh_bucket: dict[str, str], stranger: Stranger, tmp_path: Path
) -> None:
    """A proxy that changes one byte of a download fails the round trip; object and row are removed."""
    url = stranger.falsifying(fresh_bucket["SUPABASE_URL"])
    result = doctor({**fresh_bucket, "SUPABASE_URL": url}, tmp_path)
    assert result.code == 1
    assert statuses(result) == [*["ok"] * 5, "failed"], result
    assert "proxy" in result.check("round_trip")["fix"]
    bucket = fresh_bucket["FILE_STORAGE_BUCKET"]
    assert get(fresh_bucket, f"/rest/v1/file_metadata?bucket=eq.{bucket}&select=file_id") == []
    assert objects_in(fresh_bucket) == []


@pytest.mark.embedded
def test_errors_inside_the_trigger_are_shown(fresh_bucket: dict[str, str], tmp_path: Path) -> None:
    """They are a warning with the newest one's text: files still go through."""
    key = fresh_bucket["SUPABASE_SERVICE_ROLE_KEY"]
    table = f"{fresh_bucket['SUPABASE_URL']}/rest/v1/exaifs_trigger_errors"
    headers = {"apikey": key, "Authorization": f"Bearer {key}"}
    with httpx.Client(headers=headers, timeout=60, trust_env=False) as client:
        row = {"operation": "row INSERT", "sqlstate": "22001", "message": "told by this test"}
        client.post(table, json=row).raise_for_status()
        try:
            result = doctor(fresh_bucket, tmp_path)
        finally:
            client.delete(table, params={"message": "eq.told by this test"}).raise_for_status()
    assert result.code == 0
    assert result.check("trigger_errors")["status"] == "warning"
    assert "told by this test" in result.check("trigger_errors")["summary"]


def test_ctrl_c_is_one_line_and_exit_code_130(tmp_path: Path) -> None:
    """Interrupted while it waits for an answer: no traceback."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(180)
        env = {
            "SUPABASE_URL": f"http://127.0.0.1:{listener.getsockname()[1]}",
            "SUPABASE_SERVICE_ROLE_KEY": SECRET_KEY,
        }
        with (
            subprocess.Popen(
                [sys.executable, "-m", "exaifs", "doctor", "--cache-dir", str(tmp_path)],
                env=clean_environment(env),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process,
            listener.accept()[0],
        ):
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stderr == "exaifs: interrupted\n"
