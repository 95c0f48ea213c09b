"""A throwaway PostgreSQL cluster, and a Supabase project in a database of it, without any server in front.

`Project` writes to `storage.objects` as the storage server does (one transaction a request, role
service_role) and calls the functions as a mount's requests arrive: as service_role, one jsonb value back.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import md5, sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
from psycopg import sql

from exaifs.remote import schema

BUCKET = "user-files"
MIGRATOR = "hosted_postgres"
"""Stands for the role that people get on a hosted project: no superuser, no owner of `storage`."""

_STORAGE_SCHEMA = Path(__file__).with_name("storage_schema.sql").read_text(encoding="utf-8")
_START_TIMEOUT_S = 120
_STOP_TIMEOUT_S = 60

Json = dict[str, Any]


def server_programs() -> Path | None:
    """Return the directory of initdb and postgres, of the newest version here; None without any."""
    on_path = shutil.which("postgres")
    if on_path is not None:
        return Path(on_path).resolve().parent
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda program: int(program.parts[-3])
    )
    return found[-1].parent if found else None


@contextmanager
def cluster(programs: Path) -> Iterator[str]:
    """Run a private cluster on a unix socket; yield its connection string, without a database.

    PostgreSQL refuses to run as root, so root's is the user postgres's, in a directory that it can reach.
    """
    user = "postgres" if os.geteuid() == 0 else None
    home = Path(mkdtemp(prefix="exaifs-pg-"))
    try:
        if user is not None:
            account = pwd.getpwnam(user)
            os.chown(home, account.pw_uid, account.pw_gid)
        data = home / "data"
        _initialise(programs, data, user)
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    programs / "postgres",
                    "-D",
                    data,
                    "-k",
                    home,
                    "-c",
                    "listen_addresses=",
                    "-c",
                    "fsync=off",
                    # Its transactions hold the change feed back, as any that writes; tests look at once.
                    "-c",
                    "autovacuum=off",
                ],
                user=user,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            address = f"host={home} user=postgres"
            _wait_until_up(f"{address} dbname=postgres", process, home / "log")
            yield address
        finally:
            process.send_signal(signal.SIGQUIT)  # at once: nothing here is worth a checkpoint
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(_STOP_TIMEOUT_S)
    finally:
        shutil.rmtree(home)


def _initialise(programs: Path, data: Path, user: str | None) -> None:
    subprocess.run(
        [
            programs / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "-N",
        ],
        user=user,
        cwd="/",
        check=True,
        capture_output=True,
        timeout=120,
    )


def _wait_until_up(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            psycopg.connect(address).close()
        except psycopg.OperationalError:
            if time.monotonic() > end or process.poll() is not None:
                raise AssertionError(f"PostgreSQL did not start: {log.read_text()}") from None
            time.sleep(0.05)
        else:
            return


def run_script(connection: psycopg.Connection[Any], script: str) -> None:
    """Run many statements in one go."""
    connection.execute(script.encode())


def create_project(cluster_address: str, name: str, template: str | None = None) -> str:
    """Make a database like a project's, or like the template; return its connection string."""
    with psycopg.connect(f"{cluster_address} dbname=postgres", autocommit=True) as connection:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template or "template0")))
    address = f"{cluster_address} dbname={name}"
    if template is None:
        with psycopg.connect(address) as connection:
            run_script(connection, _STORAGE_SCHEMA)
    return address


def migrate(address: str) -> None:
    """Apply all migrations, each in a transaction of its own, as the role that a hosted project gives."""
    with psycopg.connect(address.replace("user=postgres", f"user={MIGRATOR}")) as connection:
        for migration in schema.migrations():
            with connection.transaction():
                run_script(connection, migration.sql)


@dataclass
class Project:
    """One database, as storage server (`put`, `move`, ...) and as mount (`rpc`)."""

    address: str
    admin: psycopg.Connection[Any] = field(init=False)
    """A superuser that commits each statement."""

    def __post_init__(self) -> None:
        self.admin = psycopg.connect(self.address, autocommit=True)

    def close(self) -> None:
        """Close what is open."""
        self.admin.close()

    @contextmanager
    def as_service(self) -> Iterator[psycopg.Connection[Any]]:
        """Open a connection of its own, in a transaction, as service_role."""
        with psycopg.connect(self.address) as connection:
            connection.execute("SET ROLE service_role")
            yield connection

    def one(self, query: LiteralString, *values: Any) -> Any:
        """Return the first value of the first row, as superuser."""
        row = self.admin.execute(query, values).fetchone()
        return None if row is None else row[0]

    def rpc(self, function: str, *values: Any) -> Any:
        """Call a function as service_role."""
        with self.as_service() as connection:
            return call(connection, function, *values)

    def record(self, key: str, bucket: str = BUCKET) -> Json | None:
        """Return the record of one key."""
        records: list[Json] = self.rpc("exaifs_stat", bucket, [key])["records"]
        return records[0] if records else None

    def row(self, key: str, bucket: str = BUCKET) -> Json | None:
        """Return the row of one key, with all its columns."""
        row: Json | None = self.one(
            "SELECT to_jsonb(m) FROM file_metadata m WHERE bucket = %s AND supabase_storage_path = %s",
            bucket,
            key,
        )
        return row

    def log(self) -> list[tuple[str, str]]:
        """Return operation and key of all log entries, in order."""
        return self.admin.execute("SELECT op, key FROM exaifs_change_log ORDER BY seq").fetchall()

    # what the storage server does

    def put(self, key: str, body: bytes = b"", user: Json | None = None, bucket: str = BUCKET) -> None:
        """Create or replace an object; `user` is what the writer sent as x-metadata."""
        with self.as_service() as connection:
            put(connection, key, body, user, bucket)

    def move(self, source: str, target: str, target_bucket: str = BUCKET) -> None:
        """Rename an object."""
        with self.as_service() as connection:
            connection.execute(
                "UPDATE storage.objects SET name = %s, bucket_id = %s, version = %s"
                " WHERE bucket_id = %s AND name = %s",
                (target, target_bucket, str(uuid4()), BUCKET, source),
            )

    def copy(self, source: str, target: str, *, keep_user_metadata: bool = True) -> None:
        """Copy an object over whatever is at the target."""
        with self.as_service() as connection:
            connection.execute(
                "INSERT INTO storage.objects (bucket_id, name, version, metadata, user_metadata)"
                " SELECT bucket_id, %s, %s, metadata, CASE WHEN %s THEN user_metadata ELSE '{}' END"
                " FROM storage.objects WHERE bucket_id = %s AND name = %s"
                " ON CONFLICT (bucket_id, name) DO UPDATE SET version = excluded.version,"
                " metadata = excluded.metadata, user_metadata = excluded.user_metadata",
                (target, str(uuid4()), keep_user_metadata, BUCKET, source),
            )

    def remove(self, keys: Sequence[str], bucket: str = BUCKET) -> None:
        """Delete objects, in one transaction."""
        with self.as_service() as connection:
            connection.execute("SET LOCAL storage.allow_delete_query = 'true'")
            connection.execute(
                "DELETE FROM storage.objects WHERE bucket_id = %s AND name = ANY (%s)", (bucket, list(keys))
            )

    def get(self, key: str) -> None:
        """Read an object, as the embedded server does: it notes the time."""
        with self.as_service() as connection:
            connection.execute(
                "UPDATE storage.objects SET last_accessed_at = clock_timestamp() WHERE name = %s", (key,)
            )


def call(connection: psycopg.Connection[Any], function: str, *values: Any) -> Any:
    """Call a function on a connection; dictionaries are passed as JSON text."""
    values = tuple(json.dumps(value) if isinstance(value, dict) else value for value in values)
    places = sql.SQL(", ").join(sql.Placeholder() * len(values))
    query = sql.SQL("SELECT public.{}({})").format(sql.Identifier(function), places)
    row = connection.execute(query, values).fetchone()
    assert row is not None
    return row[0]


def put(
    connection: psycopg.Connection[Any],
    key: str,
    body: bytes = b"",
    user: Json | None = None,
    bucket: str = BUCKET,
) -> None:
    """Create or replace an object in the connection's transaction."""
    metadata = {
        "size": len(body),
        "eTag": f'"{md5(body, usedforsecurity=False).hexdigest()}"',
        "mimetype": "text/plain",
    }
    connection.execute(
        "INSERT INTO storage.objects (bucket_id, name, version, metadata, user_metadata)"
        " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (bucket_id, name) DO UPDATE SET"
        " version = excluded.version, metadata = excluded.metadata, user_metadata = excluded.user_metadata",
        (bucket, key, str(uuid4()), json.dumps(metadata), json.dumps(user or {})),
    )


def upload_of(body: bytes, write_id: str = "w1", **changes: Any) -> Json:
    """Return what a mount sends along with these bytes, with some fields changed."""
    return {
        "exaifs": 1,
        "sha256": sha256(body).hexdigest(),
        "write_id": write_id,
        "mime": "text/x-test",
        "posix": {"mode": 0o640, "uid": 1, "gid": 2, "mtime_ns": "1700000000123456789", "kind": "file"},
        "xattrs": {"user.a": "AAE="},
        **changes,
    }


def commit_of(body: bytes, write_id: str = "w1", **changes: Any) -> Json:
    """Return the fields of `exaifs_commit` for an upload of these bytes."""
    return {**upload_of(body, write_id), "size": len(body), **changes}
