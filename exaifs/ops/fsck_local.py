"""The half of `exaifs fsck` that is about this host: cache, journal, index and conflicts of one bucket.

A daemon that runs holds its cache directory; then everything is only looked at. Otherwise, with `--repair`,
the directory is locked as a daemon would lock it, until the repairs are done.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from exaifs.cache.directory import checked_directory
from exaifs.cache.inspection import IndexFile
from exaifs.errors import ExaifsError
from exaifs.ops.fsck_conflicts import check_conflicts
from exaifs.ops.fsck_contents import Place, check_contents
from exaifs.ops.fsck_index import INDEX_NAME, check_index_file, check_names
from exaifs.ops.fsck_journal import check_journal, read_state
from exaifs.ops.fsck_report import Area, Finding, Progress, Report
from exaifs.processes import LOCK_NAME

_CLIENTS: Final = "clients"
_CLIENT_INDEX: Final = "contents.sqlite3"
_CLIENT_LOCK: Final = "lock"
"""As `cache.clients` names them."""


class LocalCheck:
    """One check of a cache directory.

    Args:
        report: gets the findings; its cache directory exists.
        identity: names project and bucket.
        progress: told how far it is.
    """

    def __init__(self, report: Report, identity: str, progress: Progress) -> None:
        self._report = report
        self._directory = report.cache_directory
        self._identity = identity
        self._progress = progress

    async def run(self) -> None:
        """Check everything, and repair what may be repaired. What cannot be read is a finding."""
        await self._run()
        if self._report.mounted_at is None and self._is_mounted():
            # Since we looked: what a daemon has under way was judged as if it were left over.
            self._report.begin_anew()
            await self._run()

    def _is_mounted(self) -> bool:
        with checked_directory(self._directory, LOCK_NAME, hold=False) as mounted_at:
            return mounted_at is not None and not self._report.repair

    async def _run(self) -> None:
        report = self._report
        with ExitStack() as stack:
            mounted_at = stack.enter_context(
                checked_directory(self._directory, LOCK_NAME, hold=report.repair)
            )
            report.mounted_at = mounted_at
            mounted = mounted_at is not None
            index = await self._index(self._directory / INDEX_NAME, in_use=mounted)
            await self._contents(Place(self._directory, index, mounted))
            await self._clients(stack)
            state = read_state(self._directory)
            findings = check_journal(self._directory, state, report, self._progress, mounted=mounted)
            await self._take("journal", findings, in_use=mounted)
            state = read_state(self._directory)
            for key in state.keys:
                report.unsent.add(key)
            if index is not None:
                known = None if mounted or state.problem is not None else state.inos
                names = check_names(index, report, known, mounted=mounted)
                await self._take("index", names, in_use=mounted)
            kept = check_conflicts(self._directory, report, self._progress, mounted=mounted)
            await self._take("conflicts", kept, in_use=mounted)

    async def _index(self, path: Path, *, in_use: bool) -> IndexFile | None:
        index, findings = await check_index_file(path, self._identity, self._progress)
        for finding in findings:
            await self._judge(finding, in_use=in_use)
        return index

    async def _contents(self, place: Place) -> None:
        findings = check_contents(place, self._report, self._progress)
        await self._take("cache", findings, in_use=place.in_use)

    async def _clients(self, stack: ExitStack) -> None:
        """Check what programs beside a mount have; each holds its own place."""
        for directory in sorted((self._directory / _CLIENTS).glob("*")):
            in_use = (
                stack.enter_context(checked_directory(directory, _CLIENT_LOCK, hold=self._report.repair))
                is not None
            )
            index = await self._index(directory / _CLIENT_INDEX, in_use=in_use)
            await self._contents(Place(directory, index, in_use))

    async def _take(self, area: Area, findings: AsyncIterator[Finding], *, in_use: bool) -> None:
        try:
            async for finding in findings:
                await self._judge(finding, in_use=in_use)
        except (OSError, ExaifsError) as exc:
            what = f"it cannot be checked to its end: {exc}"
            self._report.findings.append(
                Finding(area, "not_checked", str(self._directory), what, advice="Look at the disk.")
            )

    async def _judge(self, finding: Finding, *, in_use: bool) -> None:
        report = self._report
        report.findings.append(finding)
        if not report.repair or finding.mend is None:
            return
        if in_use:
            finding.outcome = "left"
            finding.done = "not repaired: it is in use; unmount first, then run it again"
            return
        try:
            finding.done = await finding.mend()
            finding.outcome = "repaired"
        except (OSError, ExaifsError) as exc:
            finding.outcome = "left"
            finding.done = f"cannot be repaired: {exc}"
