"""The numbered checks that ask Supabase: storage, database, tables, buckets.

Each takes what the earlier ones proved and returns a `Check`; none raises for what Supabase answers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import anyio

from exaifs.config import MIB, Config
from exaifs.errors import NotFound, RemoteError, SchemaMissing, Unauthorized
from exaifs.ops.advice import RUN_INIT, explain
from exaifs.ops.checks import Check, Detail, Status
from exaifs.ops.keys import WHERE, KeyFacts, objection
from exaifs.remote.probe import BucketInfo, Probe
from exaifs.remote.schema import BUCKETS, LATEST

TABLES: Final = ("conversations", "messages", "files", "conversation_files", "file_metadata")
TRIGGER_ERRORS: Final = "exaifs_trigger_errors"


@dataclass(slots=True)
class Findings:
    """What the checks so far have learned."""

    hello: Mapping[str, Any] | None = None
    """The answer of `exaifs_hello`, which proves the key."""
    buckets: Mapping[str, BucketInfo] | None = None
    missing_tables: set[str] = field(default_factory=set)


async def check_storage(probe: Probe, config: Config, key: KeyFacts, findings: Findings) -> Check:
    """List the buckets: the first request, so it also tells what is wrong with URL, network and key."""
    name, title = "storage", "Storage client"
    started_s = time.monotonic()
    wrong = objection(key, config.supabase_url, datetime.now(UTC))
    try:
        found = await probe.list_buckets()
    except (RemoteError, NotFound) as exc:
        summary, fix = explain(exc, config)
        return Check(name, title, Status.FAILED, summary, fix=fix)
    if wrong is not None:
        # Such a key gets an empty list and no error: never take that for an empty project.
        return Check(name, title, Status.FAILED, wrong[0], fix=wrong[1])
    findings.buckets = {bucket.name: bucket for bucket in found}
    took_ms = (time.monotonic() - started_s) * 1000
    count = f"{len(found)} bucket{'' if len(found) == 1 else 's'}"
    return Check(name, title, Status.OK, f"connected to {config.supabase_url}, {count}, {took_ms:.0f} ms")


async def check_database(probe: Probe, config: Config, findings: Findings) -> Check:
    """Ask our own function for the schema version: only service_role may, so the key is proven too."""
    name, title = "database", "Database connection"
    try:
        hello = await probe.call("exaifs_hello", p_bucket=config.bucket)
    except SchemaMissing:
        return Check(
            name, title, Status.FAILED, "connected, but the schema of exaifs is not installed", fix=RUN_INIT
        )
    except Unauthorized as exc:
        return Check(
            name,
            title,
            Status.FAILED,
            f"the key may not use the database: {exc}",
            fix=f"Use the service_role or secret key from {WHERE}; if it is that one, run "
            "`exaifs init --apply` again for the rights.",
        )
    except (RemoteError, NotFound) as exc:
        summary, fix = explain(exc, config)
        return Check(name, title, Status.FAILED, summary, fix=fix)
    if not isinstance(hello, Mapping) or not isinstance(hello.get("schema_version"), int):
        summary = "the answer did not come from the functions of exaifs"
        return Check(name, title, Status.FAILED, summary, fix=RUN_INIT)
    findings.hello = hello
    return _schema_version(hello["schema_version"], await _project_version(probe))


async def _project_version(probe: Probe) -> Detail | None:
    """Return the version of the project's own tables, where it keeps one."""
    try:
        rows = await probe.select(
            "schema_version", {"select": "version", "order": "version.desc", "limit": "1"}
        )
    except (RemoteError, NotFound):
        return None
    if not rows:
        return None
    version = rows[0].get("version")
    return Detail("schema_version", f"{version}, of the project's own tables", data={"version": version})


def _schema_version(version: int, project: Detail | None) -> Check:
    name, title = "database", "Database connection"
    ours = Detail("exaifs schema", f"{version}, of {LATEST}", data={"version": version, "expected": LATEST})
    details = (ours,) if project is None else (ours, project)
    if version < LATEST:
        summary = f"connected, schema version {version} is older than this exaifs ({LATEST})"
        return Check(name, title, Status.FAILED, summary, details, fix=RUN_INIT)
    if version > LATEST:
        summary = f"connected, schema version {version} is newer than this exaifs ({LATEST})"
        return Check(name, title, Status.WARNING, summary, details, fix="Upgrade exaifs on this machine.")
    return Check(name, title, Status.OK, f"connected, schema version {version}", details)


async def check_tables(probe: Probe, findings: Findings) -> Check:
    """Count the rows of each table."""
    lines: dict[str, Detail] = {}

    async def count(table: str) -> None:
        lines[table] = await _count(probe, table)

    async with anyio.create_task_group() as group:
        for table in TABLES:
            group.start_soon(count, table)
    details = tuple(lines[table] for table in TABLES)
    failed = [line for line in details if line.status is Status.FAILED]
    findings.missing_tables = {line.name for line in failed}
    name, title = "tables", "Tables"
    if not failed:
        return Check(name, title, Status.OK, f"all {len(TABLES)} there", details)
    names = ", ".join(line.name for line in failed)
    return Check(name, title, Status.FAILED, f"missing or unreadable: {names}", details, fix=RUN_INIT)


async def _count(probe: Probe, table: str) -> Detail:
    try:
        rows = await probe.count_rows(table)
    except SchemaMissing:
        return Detail(table, "does not exist", Status.FAILED)
    except (RemoteError, NotFound) as exc:
        return Detail(table, str(exc), Status.FAILED)
    return Detail(table, f"{rows:,} row{'' if rows == 1 else 's'}", data={"rows": rows})


def check_buckets(config: Config, findings: Findings) -> Check:
    """Look at the buckets exaifs uses, and at the one that is to be mounted."""
    name, title = "buckets", "Buckets"
    buckets = findings.buckets or {}
    details = tuple(_bucket(each, buckets.get(each)) for each in wanted_buckets(config))
    failed = [line.name for line in details if line.status is Status.FAILED]
    if failed:
        seen = "" if buckets else " (the key sees no bucket at all)"
        fix = f"Run `{_init(config.bucket)}`, or create them in the dashboard under Storage, private."
        return Check(name, title, Status.FAILED, f"missing: {', '.join(failed)}{seen}", details, fix=fix)
    if any(line.status is Status.WARNING for line in details):
        fix = "Make it private in the dashboard under Storage, unless everybody may read it."
        return Check(name, title, Status.WARNING, "there, but not all private", details, fix=fix)
    return Check(name, title, Status.OK, f"all {len(details)} there, private", details)


def _init(bucket: str) -> str:
    return "exaifs init --apply" + ("" if bucket in BUCKETS else f" --bucket {bucket}")


def wanted_buckets(config: Config) -> tuple[str, ...]:
    """Return the buckets of the schema and the configured one, each once."""
    return tuple(dict.fromkeys((*BUCKETS, config.bucket)))


def _bucket(name: str, bucket: BucketInfo | None) -> Detail:
    if bucket is None:
        return Detail(name, "does not exist", Status.FAILED)
    limit = bucket.size_limit_bytes
    size = "no size limit of its own" if limit is None else f"files up to {_size(limit)}"
    types = f", only {', '.join(bucket.mime_types)}" if bucket.mime_types else ""
    return Detail(
        name,
        f"{'public' if bucket.public else 'private'}, {size}{types}",
        Status.WARNING if bucket.public else Status.OK,
        {"public": bucket.public, "size_limit_bytes": limit},
    )


def _size(size_bytes: int) -> str:
    return f"{size_bytes / MIB:g} MiB" if size_bytes >= MIB else f"{size_bytes:,} bytes"


async def check_setup(probe: Probe, hello: Mapping[str, Any], bucket: str) -> tuple[Check, ...]:
    """Judge trigger and registration, on which freshness rests: a mount works without, but sees less."""
    return (
        _yes_or_warn(
            "trigger",
            "trigger on storage.objects",
            "keeps rows and change log in step",
            "is not installed: changes by others are seen late, and their rows are missing",
            RUN_INIT,
            yes=hello.get("trigger_installed") is True,
        ),
        await _trigger_errors(probe),
        _yes_or_warn(
            "bucket_registered",
            f"bucket {bucket}",
            "is registered, the trigger follows it",
            "is not registered: the trigger does not follow it, changes by others are seen late",
            f"Run `{_init(bucket)}`.",
            yes=hello.get("bucket_registered") is True,
        ),
    )


async def _trigger_errors(probe: Probe) -> Check:
    """Show what the trigger had to swallow; it never makes an upload fail."""
    name, title = "trigger_errors", "errors inside the trigger"
    try:
        count = await probe.count_rows(TRIGGER_ERRORS)
        query = {"select": "at,operation,message", "order": "id.desc", "limit": "1"}
        newest = await probe.select(TRIGGER_ERRORS, query) if count else []
    except (RemoteError, NotFound) as exc:
        return Check(name, title, Status.WARNING, f"cannot be read: {exc}", fix=RUN_INIT)
    if not newest:
        return Check(name, title, Status.OK, "none")
    last = newest[0]
    summary = f"{count}, the newest at {last.get('at')}: {last.get('operation')}: {last.get('message')}"
    fix = (
        "Run `exaifs init --apply` for the newest functions, then delete the rows of the table "
        f"{TRIGGER_ERRORS}; report what comes back."
    )
    return Check(
        name, title, Status.WARNING, summary, (Detail("count", str(count), data={"rows": count}),), fix
    )


def _yes_or_warn(name: str, title: str, good: str, bad: str, fix: str, *, yes: bool) -> Check:
    if yes:
        return Check(name, title, Status.OK, good)
    return Check(name, title, Status.WARNING, bad, fix=fix)
