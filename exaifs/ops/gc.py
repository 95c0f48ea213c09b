"""What `exaifs gc` does: find what nobody needs any more, and delete it if it is still so.

Which files those are is decided in SQL (migration 0011), once when they are found and again when they are
deleted, so that it runs beside any number of mounts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from exaifs.config import Config
from exaifs.errors import RemoteError
from exaifs.names import path_of
from exaifs.remote.client import open_remote
from exaifs.remote.interface import Remote
from exaifs.remote.upkeep import Finding, Housekeeping

FILES: Final = ("queued", "expired", "orphan")
"""Kinds of findings that are files."""

ROWS: Final = ("row", "entry")
"""Kinds that are rows without a file."""

_PAGE: Final = 1000
_BATCH: Final = 100
_LEASE_S: Final = 180

Tell = Callable[[int], None]
"""Called with how many were looked at, or are done with."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found."""

    findings: Sequence[Finding]
    """Each file once."""
    scanned: int
    """How many rows were looked at."""

    def of(self, *kinds: str) -> list[Finding]:
        """Return the findings of some kinds."""
        return [finding for finding in self.findings if finding.kind in kinds]


@dataclass(slots=True)
class Outcome:
    """What became of the findings."""

    deleted: list[Finding] = field(default_factory=list)
    kept: list[Finding] = field(default_factory=list)
    """Written, linked or referred to since; or a mount is deleting it."""
    failed: list[tuple[Finding, str]] = field(default_factory=list)
    """With the reason."""


class Collector:
    """`exaifs gc` on one bucket. Opened by `open`."""

    def __init__(self, remote: Remote, housekeeping: Housekeeping, older_s: int) -> None:
        self._remote = remote
        self._housekeeping = housekeeping
        self._older_s = older_s

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Config, older_s: int) -> AsyncIterator[Collector]:
        """Connect, and prove the key.

        Args:
            config: names the bucket.
            older_s: leave orphans and rows that are younger, in seconds.

        Raises:
            ConfigError: no project is named.
            RemoteError: it cannot be asked.
        """
        async with open_remote(config) as remote:
            await remote.catalog.hello()
            assert remote.housekeeping is not None
            yield cls(remote, remote.housekeeping, older_s)

    async def survey(self, tell: Tell) -> Survey:
        """Look at all rows of the bucket; nothing is changed."""
        queued, scanned = await self._scan("queue", 0, tell)
        files, scanned = await self._scan("files", scanned, tell)
        entries, scanned = await self._scan("entries", scanned, tell)
        waiting = {finding.key for finding in queued}
        others = [finding for finding in files if finding.kind not in FILES or finding.key not in waiting]
        return Survey([*queued, *others, *entries], scanned)

    async def _scan(
        self, what: Literal["queue", "files", "entries"], scanned: int, tell: Tell
    ) -> tuple[list[Finding], int]:
        found: list[Finding] = []
        after: str | None = ""
        while after is not None:
            page = await self._housekeeping.scan(what, self._older_s, after, _PAGE)
            found += page.findings
            scanned += page.scanned
            after = page.next_after
            tell(scanned)
        return found, scanned

    async def delete(self, survey: Survey, tell: Tell) -> Outcome:
        """Delete what was found, as far as it still can go.

        Raises:
            RemoteError: Supabase cannot be asked any more; what is done is done.
        """
        outcome = Outcome()

        def told() -> None:
            tell(len(outcome.deleted) + len(outcome.kept) + len(outcome.failed))

        await self._delete_queued(survey.of("queued"), outcome, told)
        for batch in _batches(survey.of("expired", "orphan")):
            keys = await self._housekeeping.condemn(batch, self._older_s, _LEASE_S)
            await self._remove(batch, keys, outcome)
            told()
        for batch in _batches(survey.of(*ROWS)):
            dropped = await self._housekeeping.drop_rows(batch, self._older_s)
            outcome.deleted += [finding for finding in batch if finding in dropped]
            outcome.kept += [finding for finding in batch if finding not in dropped]
            told()
        return outcome

    async def _delete_queued(
        self, findings: Sequence[Finding], outcome: Outcome, told: Callable[[], None]
    ) -> None:
        left = {finding.key: finding for finding in findings}
        more = bool(left)
        while more:
            keys, more = await self._housekeeping.take_deletions(_BATCH, _LEASE_S)
            # What was queued since is deleted as well, and not reported: nobody was shown it.
            batch = [left.pop(key) for key in keys if key in left]
            await self._remove(batch, keys, outcome)
            told()
        outcome.kept += left.values()

    async def _remove(self, batch: Iterable[Finding], keys: Sequence[str], outcome: Outcome) -> None:
        """Remove objects that are taken, and sort the findings by what became of them."""
        reason = "the storage server did not delete it"
        if keys:
            try:
                await self._remote.objects.remove(keys)
            except RemoteError as exc:
                reason = str(exc)
        settled = await self._housekeeping.settle_deletions(keys)
        for finding in batch:
            if finding.key in settled.gone:
                outcome.deleted.append(finding)
            elif finding.key in settled.kept or finding.key not in keys:
                outcome.kept.append(finding)
            else:
                outcome.failed.append((finding, reason))


def _batches(findings: Sequence[Finding]) -> Iterator[Sequence[Finding]]:
    for position in range(0, len(findings), _BATCH):
        yield findings[position : position + _BATCH]


def report(survey: Survey, outcome: Outcome | None, *, bucket: str, older_s: int) -> dict[str, Any]:
    """Return all of it for programs; without an outcome nothing was deleted."""
    done = outcome or Outcome()
    result = {id(finding): "deleted" for finding in done.deleted}
    result |= {id(finding): "kept" for finding in done.kept}
    reasons = {id(finding): reason for finding, reason in done.failed}
    return {
        "bucket": bucket,
        "dry_run": outcome is None,
        "older_than_s": older_s,
        "scanned": survey.scanned,
        "found": {kind: totals(survey.of(kind)) for kind in (*FILES, *ROWS, "malformed")},
        "deleted": totals(done.deleted),
        "kept": totals(done.kept),
        "failed": totals([finding for finding, _ in done.failed]),
        "findings": [
            {
                "kind": finding.kind,
                "key": finding.key,
                "path": path_of(finding.key),
                "size_bytes": finding.size_bytes,
                "note": finding.note,
                "result": "failed" if id(finding) in reasons else result.get(id(finding), "found"),
                "reason": reasons.get(id(finding)),
            }
            for finding in survey.findings
        ],
    }


def totals(findings: Sequence[Finding]) -> dict[str, int]:
    """Return how many there are, and their bytes."""
    return {"count": len(findings), "bytes": sum(finding.size_bytes for finding in findings)}
