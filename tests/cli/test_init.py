"""`exaifs init`: it prints the SQL it applies, twice without harm, and never shows a password."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import psycopg
import pytest

from exaifs.remote.schema import LATEST, as_one_script
from tests.cli.support import exaifs

TABLES = {"conversations", "messages", "files", "conversation_files", "file_metadata", "schema_version"}


def tables_of(url: str) -> set[str]:
    """Return the tables in the schema public."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'")
        return {row[0] for row in rows}


def test_it_prints_the_sql_and_nothing_else_on_stdout() -> None:
    """Without any setting; stdout can be piped into psql, the explanation is on stderr."""
    result = exaifs("init")
    assert result.code == 0
    assert result.stdout == as_one_script()
    assert "SQL editor" in result.stderr
    assert "EXAIFS_DATABASE_URL" in result.stderr


def test_a_reader_that_goes_early_is_no_error() -> None:
    """`exaifs init | head -1` ends quietly."""
    run = subprocess.run(
        ["bash", "-c", "exaifs init 2>/dev/null | head -1; echo ${PIPESTATUS[1]}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.stdout.splitlines()[0].startswith("-- ")
    assert run.stderr == ""


def test_what_is_printed_applies_on_postgres(storage_database: str) -> None:
    """On a PostgreSQL with the tables of the storage server, once and again, keeping rows."""
    script = exaifs("init").stdout
    for _ in range(2):
        with psycopg.connect(storage_database, autocommit=True) as connection:
            connection.execute(script.encode())
            connection.execute(
                "INSERT INTO conversations (continuation_id) VALUES ('kept') ON CONFLICT DO NOTHING"
            )
    assert tables_of(storage_database) >= TABLES
    with psycopg.connect(storage_database) as connection:
        assert connection.execute("SELECT count(*) FROM conversations").fetchone() == (1,)


@pytest.mark.embedded
def test_apply_by_postgres_url_and_create_buckets(
    storage_database: str, embedded_supabase: dict[str, str]
) -> None:
    """The schema goes through Postgres, the buckets through the Storage API; repeating does no harm."""
    env = {**embedded_supabase, "EXAIFS_DATABASE_URL": storage_database}
    bucket = "made-by-init"
    first = exaifs("init", "--apply", "--bucket", bucket, env=env)
    assert first.code == 0, first
    assert first.stdout.count(" applied\n") == LATEST
    second = exaifs("init", "--apply", "--bucket", bucket, env=env)
    assert second.code == 0, second
    assert second.stdout.count(" refreshed\n") == LATEST
    assert tables_of(storage_database) >= TABLES
    password = psycopg.conninfo.conninfo_to_dict(storage_database)["password"]
    assert isinstance(password, str)
    assert password not in first.output + second.output
    key = embedded_supabase["SUPABASE_SERVICE_ROLE_KEY"]
    answer = httpx.get(
        f"{embedded_supabase['SUPABASE_URL']}/storage/v1/bucket/{bucket}",
        headers={"apikey": key, "Authorization": f"Bearer {key}"},
        timeout=120,
        trust_env=False,
    )
    assert answer.json()["public"] is False
    assert "created, private" in first.stdout
    assert "was there" in second.stdout


@pytest.mark.embedded
def test_where_the_sql_was_pasted_no_postgres_url_is_needed(
    embedded_supabase: dict[str, str], tmp_path: Path
) -> None:
    """The schema is seen to be there; the bucket is created and the doctor is content."""
    env = {**embedded_supabase, "FILE_STORAGE_BUCKET": "pasted"}
    result = exaifs("init", "--apply", env=env)
    assert result.code == 0, result
    assert exaifs("doctor", "--cache-dir", str(tmp_path), env=env).code == 0


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (("{password}", "not-the-password"), 3, "refuses the password of"),
        (("postgresql://", "postgresql:/"), 2, "is not a Postgres URL"),
        (("/exaifs_storage", "/postgres"), 2, "not that of a Supabase project"),
        (("{port}", "9"), 3, "cannot connect to the database at 127.0.0.1"),
        (("{password}", "[YOUR-PASSWORD]"), 2, "still says [YOUR-PASSWORD]"),
    ],
)
def test_a_wrong_postgres_url_is_explained(
    storage_database: str,
    embedded_supabase: dict[str, str],
    change: tuple[str, str],
    code: int,
    words: str,
) -> None:
    """Each mistake in its own words, without the password."""
    values = psycopg.conninfo.conninfo_to_dict(storage_database)
    password = str(values["password"])
    old = change[0].format(password=password, port=values["port"])
    url = storage_database.replace(old, change[1], 1)
    assert url != storage_database
    result = exaifs("init", "--apply", env={**embedded_supabase, "EXAIFS_DATABASE_URL": url})
    assert result.code == code, result
    assert words in result.complaint
    assert password not in result.output
    assert "not-the-password" not in result.output


@pytest.mark.embedded
def test_the_direct_host_is_explained(embedded_supabase: dict[str, str]) -> None:
    """Supabase's direct host has an IPv6 address only: the line names the session pooler."""
    url = "postgresql://postgres:hidden-word@db.no-such-project.supabase.co:5432/postgres?connect_timeout=2"
    result = exaifs("init", "--apply", env={**embedded_supabase, "EXAIFS_DATABASE_URL": url})
    assert result.code == 3, result
    assert "IPv6" in result.complaint
    assert "Session pooler" in result.complaint
    assert "hidden-word" not in result.output
