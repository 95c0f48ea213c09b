"""`init`: the schema into a database, the buckets into the Storage API. Repeating it does no harm.

Every migration runs in a transaction of its own and records itself; all of them run every time, which
also repairs functions and rights that somebody changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import anyio
import psycopg
from psycopg.conninfo import conninfo_to_dict

from exaifs.config import MIB, Config
from exaifs.errors import ConfigError, ExaifsError, SchemaMissing, Unauthorized, Unreachable
from exaifs.ops.advice import advised
from exaifs.remote.probe import Probe, open_probe
from exaifs.remote.schema import BUCKETS, LATEST, migrations

CONNECT_TIMEOUT_S: Final = 10
LOCK_TIMEOUT_MS: Final = 15_000
"""The trigger needs a lock on storage.objects for a moment; an upload that long is not waited for."""
RELOAD_TIMEOUT_S: Final = 20.0
"""PostgREST reads the schema again within a second or two of being told."""

WHERE_IS_THE_URL: Final = (
    "In the dashboard press Connect and copy the URI under Session pooler, with the database password in "
    "it (Project Settings > Database resets a lost one)."
)
_ADVISORY_LOCK: Final = 0x65786169
"""The letters `exai`: one `init` at a time."""

Say = Callable[[str, str], None]
"""Called with what was worked on and what happened to it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a database URL leads, without its password."""

    host: str
    user: str

    @property
    def is_direct_host(self) -> bool:
        """Whether this is Supabase's direct host, which has an IPv6 address only."""
        return self.host.startswith("db.") and self.host.endswith(".supabase.co")


def apply_schema(database_url: str, say: Say) -> None:
    """Run the migrations through Postgres. Blocks; a repeated call refreshes everything.

    Raises:
        ConfigError: the URL is none.
        Unreachable: no connection.
        Unauthorized: user, password or rights are not enough.
        ExaifsError: a migration failed; those before it stay applied.
    """
    target = _target(database_url)
    with _connect(database_url, target) as connection:
        connection.add_notice_handler(
            lambda notice: (
                say("note", notice.message_primary or "")
                if notice.severity_nonlocalized == "WARNING"
                else None
            )
        )
        _check_is_supabase(connection, target)
        before = _applied(connection)
        for migration in migrations():
            _apply(connection, migration.name, migration.sql)
            done = "refreshed" if migration.number in before else "applied"
            say(f"{migration.number:04} {migration.name}", done)
        connection.execute("NOTIFY pgrst, 'reload schema'")


def _target(database_url: str) -> Target:
    problem = (
        "EXAIFS_DATABASE_URL is not a Postgres URL (postgresql://...). "
        f"{WHERE_IS_THE_URL} In the password write @ : / # % as %40 %3A %2F %23 %25."
    )
    try:
        # libpq's own message would repeat the URL, password and all.
        values = conninfo_to_dict(database_url)
    except psycopg.Error:
        raise ConfigError(problem) from None
    if "[YOUR-PASSWORD]" in database_url:
        raise ConfigError(
            "EXAIFS_DATABASE_URL still says [YOUR-PASSWORD]: put the database password there. "
            f"{WHERE_IS_THE_URL}"
        )
    return Target(str(values.get("host") or "localhost"), str(values.get("user") or ""))


def _connect(database_url: str, target: Target) -> psycopg.Connection[Any]:
    try:
        return psycopg.connect(
            database_url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="exaifs init",
            prepare_threshold=None,  # a pooler in transaction mode knows no prepared statements
        )
    except psycopg.Error as exc:
        raise _connection_error(_without_password(str(exc), database_url), target) from None


def _connection_error(said: str, target: Target) -> ExaifsError:
    """Turn libpq's words into the next step."""
    where = f"the database at {target.host}"
    if "password authentication failed" in said or "no password supplied" in said:
        return Unauthorized(
            f"{where} refuses the password of {target.user}. Put the right one into EXAIFS_DATABASE_URL, "
            "with special characters as %XX; Project Settings > Database resets it."
        )
    if "enant or user not found" in said or "enant/user" in said:
        return Unauthorized(
            f"{where} does not know the user {target.user}. At the pooler the user is postgres.PROJECT, "
            f"and the region must be the project's. {WHERE_IS_THE_URL}"
        )
    if target.is_direct_host:
        return Unreachable(
            f"cannot connect to {where}: the direct host has only an IPv6 address, which this network may "
            f"not reach. Use the session pooler instead. {WHERE_IS_THE_URL}"
        )
    reason = " ".join(said.partition("Is the server running")[0].split())
    return Unreachable(
        f"cannot connect to {where}: {reason}. Check EXAIFS_DATABASE_URL, the network, and that the "
        "project is not paused."
    )


def _without_password(text: str, database_url: str) -> str:
    try:
        password = urlsplit(database_url).password or ""
    except ValueError:
        password = ""
    for secret in (database_url, password, unquote(password)):
        if secret:
            text = text.replace(secret, "[redacted]")
    return text


def _check_is_supabase(connection: psycopg.Connection[Any], target: Target) -> None:
    row = connection.execute(
        "SELECT to_regrole('service_role') IS NOT NULL AND to_regclass('storage.objects') IS NOT NULL"
    ).fetchone()
    if row is None or not row[0]:
        raise ConfigError(
            f"the database at {target.host} is not that of a Supabase project (no role service_role, or no "
            f"Storage). {WHERE_IS_THE_URL}"
        )


def _applied(connection: psycopg.Connection[Any]) -> set[int]:
    found = connection.execute("SELECT to_regclass('public.exaifs_migrations') IS NOT NULL").fetchone()
    if found is None or not found[0]:
        return set()
    return {row[0] for row in connection.execute("SELECT number FROM public.exaifs_migrations")}


def _apply(connection: psycopg.Connection[Any], name: str, sql: str) -> None:
    try:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}".encode())
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_ADVISORY_LOCK,))
            connection.execute(sql.encode())
    except psycopg.errors.LockNotAvailable:
        raise ExaifsError(
            f"{name}: another program holds a table that the schema needs. Nothing of this step was kept; "
            "run `exaifs init --apply` again in a minute."
        ) from None
    except psycopg.errors.InsufficientPrivilege as exc:
        raise Unauthorized(
            f"{name}: {_diagnosis(exc)}. Use the URL of the user postgres, who owns the project's tables."
        ) from None
    except psycopg.OperationalError as exc:
        raise Unreachable(
            f"{name}: the connection to the database broke ({_diagnosis(exc)}). Run it again; what was "
            "applied stays."
        ) from None
    except psycopg.Error as exc:
        raise ExaifsError(
            f"{name} cannot be applied: {_diagnosis(exc)}. Nothing of this step was kept. If the project "
            "has tables of the same names in another shape, rename them; otherwise report this."
        ) from None


def _diagnosis(exc: psycopg.Error) -> str:
    said = exc.diag.message_primary or type(exc).__name__
    return f"{said} ({exc.diag.message_hint})" if exc.diag.message_hint else said


async def schema_is_there(config: Config) -> bool:
    """Tell whether the newest schema answers already, for example because the SQL was pasted.

    Raises:
        RemoteError: Supabase cannot be asked.
    """
    with advised(config):
        async with open_probe(config) as probe:
            try:
                hello = await probe.call("exaifs_hello", p_bucket=config.bucket)
            except SchemaMissing:
                return False
    return isinstance(hello, Mapping) and int(hello.get("schema_version") or 0) >= LATEST


async def create_buckets(config: Config, say: Say) -> None:
    """Create the buckets that are missing, private, and have the trigger follow each of them.

    Raises:
        SchemaMissing: the functions did not appear within `RELOAD_TIMEOUT_S`.
        RemoteError: Supabase refused or cannot be reached.
    """
    with advised(config):
        async with open_probe(config) as probe:
            existing = {bucket.name for bucket in await probe.list_buckets()}
            for name in dict.fromkeys((*BUCKETS, config.bucket)):
                created = name not in existing and await probe.create_bucket(name, BUCKETS.get(name))
                await _register(probe, name)
                say(name, _created(name) if created else "was there, left as it is")


def _created(name: str) -> str:
    limit = BUCKETS.get(name)
    return "created, private" + ("" if limit is None else f", files up to {limit // MIB} MiB")


async def _register(probe: Probe, bucket: str) -> None:
    """Have the trigger follow a bucket; waits while PostgREST does not know the function yet."""
    give_up_s = time.monotonic() + RELOAD_TIMEOUT_S
    while True:
        try:
            await probe.call("exaifs_register_bucket", p_bucket=bucket)
        except SchemaMissing:
            if time.monotonic() > give_up_s:
                raise SchemaMissing(
                    "the schema is applied, but the API does not show it. Is EXAIFS_DATABASE_URL of the "
                    "same project as SUPABASE_URL? If so, restart the project in the dashboard and retry."
                ) from None
            await anyio.sleep(0.5)
        else:
            return
