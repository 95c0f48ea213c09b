"""The half of `exaifs fsck` that is about the bucket: objects, their rows, and what keeps them in step.

Keys that this host's journal has records of are looked at and left alone: a mount is about to change them.
"""

from __future__ import annotations

from typing import Final

from exaifs.errors import SchemaMissing
from exaifs.names import odd_part
from exaifs.ops.advice import RUN_INIT
from exaifs.ops.fsck_report import Finding, Progress, Report
from exaifs.remote.inspection import Inspection, RowFinding
from exaifs.remote.interface import Remote

SCHEMA_NEEDED: Final = 12
"""The migration with the functions that are called here."""

_WORDS: Final = {
    "object_without_row": "an object without a row",
    "row_without_object": "a row whose object is gone",
    "row_outdated": "a row of another version of the object",
    "row_disagrees": "a row that says another size or ETag than the object has",
    "row_duplicate": "several rows for one object",
    "hash_malformed": "a row whose SHA-256 is none",
    "ids_of_other_content": "a provider's file id that was made from other bytes",
}
_ODD: Final = {
    "empty_segment": "two slashes in a row, or one at an end",
    "dot_segment": "`.` or `..` between slashes",
    "reserved_name": "the name of the hidden directory",
    "long_name": "a name of more than 255 bytes",
}
_IN_THE_WAY: Final = {
    "row_without_object": "Something of the project's own refers to the row: delete that first.",
    "row_duplicate": RUN_INIT,
}


class BucketCheck:
    """One check of a bucket.

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

    async def run(self) -> None:
        """Compare all objects and rows, and repair what may be repaired.

        Raises:
            SchemaMissing: the database has no functions for it.
            RemoteError: Supabase refused or cannot be reached; what was found until then is in the report.
        """
        self._progress.begin(f"objects and rows of the bucket {self._report.bucket}")
        hello = await self._remote.catalog.hello()
        if hello.schema_version < SCHEMA_NEEDED:
            raise SchemaMissing(f"it is of number {hello.schema_version}, and fsck needs {SCHEMA_NEEDED}")
        if not hello.trigger_installed:
            self._note_no_trigger()
        if not hello.bucket_registered:
            await self._follow()
        await self._scan()

    def _note_no_trigger(self) -> None:
        what = "no trigger keeps rows and change log in step with what other clients write"
        self._report.findings.append(
            Finding("bucket", "trigger_missing", "storage.objects", what, advice=RUN_INIT)
        )

    async def _follow(self) -> None:
        finding = Finding(
            "bucket",
            "bucket_not_followed",
            self._report.bucket,
            "the trigger does not follow the bucket: no change log, no rows for what other clients write",
        )
        finding.mend = self._register
        self._report.findings.append(finding)
        if self._report.repair:
            finding.done, finding.outcome = await self._register(), "repaired"

    async def _register(self) -> str:
        await self._inspection.register()
        return "registered, with rows for all objects"

    async def _scan(self) -> None:
        after, unhashed = "", 0
        while True:
            page = await self._inspection.scan(after)
            self._report.checked["keys"] += page.scanned
            self._progress.advance(page.scanned)
            by_key: dict[str, list[Finding]] = {}
            for found in page.findings:
                if found.kind == "hash_missing":
                    unhashed += 1
                elif found.kind == "odd_key":
                    self._note_odd(found.key)
                else:
                    by_key.setdefault(found.key, []).append(self._finding(found))
            for key, findings in by_key.items():
                await self._repair(key, findings)
            if page.next_after is None:
                break
            after = page.next_after
        self._report.checked["objects_without_hash"] += unhashed
        if unhashed:
            what = f"{unhashed} objects of other clients have no SHA-256 in their rows"
            advice = "--deep --repair reads them and notes it."
            self._report.findings.append(
                Finding("bucket", "hash_missing", self._report.bucket, what, "note", advice)
            )

    def _finding(self, found: RowFinding) -> Finding:
        what = _WORDS.get(found.kind, found.kind.replace("_", " "))
        if found.note:
            what += f" ({found.note})"

        async def mend() -> str:
            return (await self._inspection.repair(found.key)).get(found.kind, "")

        return Finding("bucket", found.kind, found.key, what, mend=mend)

    def _note_odd(self, key: str) -> None:
        odd = odd_part(key)
        if odd is not None:
            what = f"a key that no path of a mount can name: {_ODD[odd[1]]}"
            advice = "Mounts do not show it; rename it with another client."
            self._report.findings.append(Finding("bucket", "odd_key", key, what, "note", advice))

    async def _repair(self, key: str, findings: list[Finding]) -> None:
        self._report.findings += findings
        if not self._report.repair:
            return
        done = {}
        if not self._report.unsent.overlaps(key):
            done = await self._inspection.repair(key)
        for finding in findings:
            finding.done = done.get(finding.kind, "")
            finding.outcome = "repaired" if finding.done else "left"
            if finding.done:
                continue
            if self._report.unsent.overlaps(key):
                finding.done = "left alone: a change of it waits in the journal of this host"
            else:
                finding.done = "not repaired: it is otherwise by now, or something is in the way"
                finding.advice = _IN_THE_WAY.get(finding.kind, "")
