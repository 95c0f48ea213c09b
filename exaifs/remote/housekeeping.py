"""Deleting what is to go, through the SQL functions of migration 0011."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from exaifs.remote.session import Session
from exaifs.remote.upkeep import Finding, FindingPage, Settled
from exaifs.remote.wire import foreign_answer, list_of, next_from_json


class SupabaseHousekeeping:
    """`interface.Housekeeping` on a Supabase project."""

    def __init__(self, session: Session, bucket: str) -> None:
        self._session = session
        self._bucket = bucket

    async def take_deletions(self, limit: int, lease_s: int) -> tuple[tuple[str, ...], bool]:
        """See `interface.Housekeeping`. An answer that is lost leaves a lease that nobody uses."""
        answer = await self._call("exaifs_take_deletions", p_limit=limit, p_lease_s=lease_s)
        return _texts(answer, "keys"), answer.get("more") is True

    async def settle_deletions(self, keys: Sequence[str]) -> Settled:
        """See `interface.Housekeeping`."""
        answer = await self._call("exaifs_settle_deletions", p_keys=list(keys))
        return Settled(frozenset(_texts(answer, "gone")), frozenset(_texts(answer, "kept")))

    async def trim_log(self, keep_hours: int) -> int:
        """See `interface.Housekeeping`. The log is one for all buckets."""
        params = {"p_keep_hours": keep_hours}
        return _count(await self._session.ask("exaifs_trim_log", params), "deleted")

    async def scan(
        self, what: Literal["files", "entries", "queue"], older_s: int, after: str, limit: int
    ) -> FindingPage:
        """See `interface.Housekeeping`."""
        params: dict[str, Any] = {"p_after": after, "p_limit": limit}
        match what:
            case "files":
                answer = await self._call("exaifs_gc_scan", p_older_s=older_s, **params)
            case "entries":
                answer = await self._call("exaifs_gc_entries", p_older_s=older_s, **params)
            case "queue":
                answer = await self._call("exaifs_gc_queue", **params)
        findings = tuple(_finding(value) for value in list_of(answer, "findings"))
        return FindingPage(findings, _count(answer, "scanned"), next_from_json(answer))

    async def condemn(self, findings: Sequence[Finding], older_s: int, lease_s: int) -> tuple[str, ...]:
        """See `interface.Housekeeping`."""
        answer = await self._call(
            "exaifs_gc_condemn",
            p_older_s=older_s,
            p_keys=[finding.key for finding in findings],
            p_versions=[finding.version for finding in findings],
            p_lease_s=lease_s,
        )
        return _texts(answer, "keys")

    async def drop_rows(self, findings: Sequence[Finding], older_s: int) -> tuple[Finding, ...]:
        """See `interface.Housekeeping`."""
        answer = await self._call(
            "exaifs_gc_drop_rows",
            p_older_s=older_s,
            p_keys=[finding.key for finding in findings if finding.kind == "row"],
            p_entries=[finding.version for finding in findings if finding.kind == "entry"],
        )
        keys, entries = set(_texts(answer, "keys")), set(_texts(answer, "entries"))
        return tuple(
            finding
            for finding in findings
            if (finding.version in entries if finding.kind == "entry" else finding.key in keys)
        )

    async def _call(self, function: str, **params: Any) -> Mapping[str, Any]:
        return await self._session.ask(function, {"p_bucket": self._bucket, **params})


def _texts(answer: Mapping[str, Any], name: str) -> tuple[str, ...]:
    return tuple(value for value in list_of(answer, name) if isinstance(value, str))


def _count(answer: Mapping[str, Any], name: str) -> int:
    value = answer.get(name)
    if not isinstance(value, int):
        raise foreign_answer(name)
    return value


def _finding(value: Any) -> Finding:
    found = value if isinstance(value, Mapping) else {}
    texts = [found.get(name) for name in ("kind", "key", "version")]
    size_bytes, note = found.get("size"), found.get("note")
    if not all(isinstance(text, str) for text in texts) or not isinstance(size_bytes, int):
        raise foreign_answer("findings")
    kind, key, version = map(str, texts)
    return Finding(kind, key, version, size_bytes, note if isinstance(note, str) else "")
