"""`exaifs fsck --deep`: reads every object, and compares its SHA-256 with the row's.

An ETag of a plain upload is the MD5 of what the storage server received. So where the hashes differ it
tells who is right: bytes that still are what was received prove the row wrong, others are damaged.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

import anyio

from exaifs.errors import IntegrityError, Stale
from exaifs.model import ObjectRecord
from exaifs.ops.fsck_report import Finding, Progress, Report
from exaifs.remote.inspection import Inspection
from exaifs.remote.interface import Remote

_AT_ONCE: Final = 4
"""Downloads; a mount of the same project wants its connections, too."""

_MD5: Final = re.compile(r'"?([0-9a-f]{32})"?')


@dataclass(frozen=True, slots=True)
class _Digests:
    sha256: str
    md5: str


class DeepCheck:
    """One reading of all bytes of a bucket.

    Args:
        report: gets the findings; knows the keys that are about to change.
        remote: the bucket.
        inspection: the same.
        progress: told how far it is.
    """

    def __init__(self, report: Report, remote: Remote, inspection: Inspection, progress: Progress) -> None:
        self._report = report
        self._remote = remote
        self._inspection = inspection
        self._progress = progress
        self._limit = anyio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Read everything; what is replaced or deleted meanwhile is passed over.

        Raises:
            RemoteError: Supabase refused or cannot be reached; what was found until then is in the report.
        """
        self._progress.begin("the bytes of all objects")
        after = ""
        while True:
            records, next_after = await self._remote.catalog.list_tree("", after)
            async with anyio.create_task_group() as tasks:
                for record in records:
                    tasks.start_soon(self._check, record)
            if next_after is None:
                break
            after = next_after
        # One finding an object now says more than their number.
        if self._report.repair:
            self._report.findings = [
                each
                for each in self._report.findings
                if each.kind != "hash_missing" or each.outcome != "found"
            ]

    async def _check(self, record: ObjectRecord) -> None:
        async with self._limit:
            try:
                found = await self._read(record)
            except Stale:
                return
            except IntegrityError as exc:
                self._damaged(record, str(exc))
                return
        self._report.checked["objects_read"] += 1
        if record.file_id is None or found.sha256 == record.sha256:
            return
        if record.sha256 is None:
            await self._set(record, found, "an object without a SHA-256 in its row", "note", "hash_missing")
            return
        md5 = _MD5.fullmatch(record.etag)
        if md5 is not None and md5[1] == found.md5:
            what = (
                f"a row whose SHA-256 is not that of the bytes: {record.sha256} instead of {found.sha256}"
            )
            await self._set(record, found, what, "problem", "hash_wrong")
        elif md5 is not None:
            self._damaged(record, f"it hashes to {found.sha256} instead of {record.sha256}")
        else:
            self._undecided(record, found)

    async def _read(self, record: ObjectRecord) -> _Digests:
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        async with self._remote.objects.get(record.ref) as download:
            async for chunk in download.chunks():
                sha256.update(chunk)
                md5.update(chunk)
                self._progress.advance(len(chunk))
        return _Digests(sha256.hexdigest(), md5.hexdigest())

    async def _set(
        self, record: ObjectRecord, found: _Digests, what: str, severity: str, kind: str
    ) -> None:
        async def mend() -> str:
            is_set = await self._inspection.set_hash(
                record.key, record.version, record.sha256, found.sha256
            )
            return f"noted {found.sha256}" if is_set else ""

        finding = Finding("bucket", kind, record.key, what, mend=mend)
        finding.severity = "note" if severity == "note" else "problem"
        if not self._report.repair:
            if finding.severity == "problem":
                self._report.findings.append(finding)
            return
        self._report.findings.append(finding)
        if self._report.unsent.overlaps(record.key):
            finding.outcome, finding.done = (
                "left",
                "left alone: a change of it waits in the journal of this host",
            )
            return
        finding.done = await mend()
        finding.outcome = "repaired" if finding.done else "left"
        finding.done = finding.done or "it is otherwise by now"

    def _damaged(self, record: ObjectRecord, why: str) -> None:
        copy = self._report.contents.get(record.sha256 or "")
        advice = (
            "Write the file again from another copy, or restore the project's backup."
            if copy is None
            else f"The cache has the right content: copy {copy} over the file in a mount."
        )
        self._report.findings.append(
            Finding("bucket", "bytes_damaged", record.key, f"an object is damaged: {why}", advice=advice)
        )

    def _undecided(self, record: ObjectRecord, found: _Digests) -> None:
        what = (
            f"bytes and row disagree ({found.sha256} instead of {record.sha256}), and the ETag does not "
            "say which is right"
        )
        advice = "Look at the file; writing it again puts both in step."
        self._report.findings.append(Finding("bucket", "hash_disagrees", record.key, what, advice=advice))
