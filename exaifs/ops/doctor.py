"""All checks in their order: each says what is wrong and what to do, none hides the next.

A check that rests on a failed one is skipped and says so, so that the first failure is the one to mend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from exaifs.config import Config
from exaifs.errors import ConfigError
from exaifs.ops.checks import Check, Detail, Report, Status
from exaifs.ops.keys import KeyFacts, read_key
from exaifs.ops.local import examine_machine
from exaifs.ops.remote_checks import (
    Findings,
    check_buckets,
    check_database,
    check_setup,
    check_storage,
    check_tables,
)
from exaifs.ops.round_trip import TABLE, check_round_trip
from exaifs.remote.probe import Probe, open_probe

TITLES: Final = {
    "environment": "Environment variables",
    "storage": "Storage client",
    "database": "Database connection",
    "tables": "Tables",
    "buckets": "Buckets",
    "round_trip": "Round trip",
}


async def examine(read_config: Callable[[], Config]) -> Report:
    """Run every check.

    Args:
        read_config: reads the configuration; what it finds wrong is the first check's failure.
    """
    try:
        config = read_config()
    except ConfigError as exc:
        environment = _failed_environment(exc)
        return Report("", "", (environment, *_skip_after(environment)), examine_machine(None))
    environment = check_environment(config)
    machine = examine_machine(config)
    if not environment.passed:
        checks = (environment, *_skip_after(environment))
        return Report(config.supabase_url, config.bucket, checks, machine)
    async with open_probe(config) as probe:
        findings = Findings()
        remote = await _ask_supabase(probe, config, read_key(config.key), findings)
        setup = () if findings.hello is None else await check_setup(probe, findings.hello, config.bucket)
    return Report(config.supabase_url, config.bucket, (environment, *remote), (*machine, *setup))


def check_environment(config: Config) -> Check:
    """Look whether everything needed is named."""
    try:
        config.require_remote()
    except ConfigError as exc:
        return _failed_environment(exc)
    details = (
        Detail("SUPABASE_URL", config.supabase_url),
        Detail("SUPABASE_SERVICE_ROLE_KEY", f"set: {read_key(config.key).text}"),
        Detail("FILE_STORAGE_BUCKET", config.bucket),
        Detail("FILE_CACHE_DIR", str(config.cache_dir)),
    )
    return Check("environment", TITLES["environment"], Status.OK, "all set", details)


def _failed_environment(exc: ConfigError) -> Check:
    what, _, fix = str(exc).partition(". ")
    fix = fix or "Correct it; without it the default holds."
    return Check("environment", TITLES["environment"], Status.FAILED, what.rstrip("."), fix=fix)


async def _ask_supabase(
    probe: Probe, config: Config, key: KeyFacts, findings: Findings
) -> tuple[Check, ...]:
    """Run checks 2 to 6, skipping what a failure makes pointless."""
    storage = await check_storage(probe, config, key, findings)
    if not storage.passed:
        # No answer, or a key that is not believed: every other question would only repeat that.
        return (storage, *_skip_after(storage))
    database = await check_database(probe, config, findings)
    tables = await check_tables(probe, findings)
    buckets = check_buckets(config, findings)
    obstacle = _obstacle(config, findings, database, tables, buckets)
    if obstacle is not None:
        return storage, database, tables, buckets, _skipped("round_trip", obstacle)
    return storage, database, tables, buckets, await check_round_trip(probe, config)


def _obstacle(
    config: Config, findings: Findings, database: Check, tables: Check, buckets: Check
) -> Check | None:
    """Return the failed check without which a round trip cannot work."""
    if findings.hello is None:
        return database
    if TABLE in findings.missing_tables:
        return tables
    if config.bucket not in (findings.buckets or {}):
        return buckets
    return None


def _skip_after(failed: Check) -> tuple[Check, ...]:
    names = list(TITLES)
    return tuple(_skipped(name, failed) for name in names[names.index(failed.name) + 1 :])


def _skipped(name: str, failed: Check) -> Check:
    number = list(TITLES).index(failed.name) + 1
    return Check(name, TITLES[name], Status.SKIPPED, f"not tried, because check {number} failed")
