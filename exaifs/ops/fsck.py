"""What `exaifs fsck` does: compares bucket, rows, cache and journal, and repairs what loses nothing."""

from __future__ import annotations

from exaifs.config import Config
from exaifs.errors import RemoteError
from exaifs.ops.conflicts import directory_of_settings
from exaifs.ops.fsck_bucket import BucketCheck
from exaifs.ops.fsck_deep import DeepCheck
from exaifs.ops.fsck_local import LocalCheck
from exaifs.ops.fsck_report import Finding, Progress, Report
from exaifs.remote.client import remote_of
from exaifs.remote.inspection import Inspection
from exaifs.remote.session import identity_of, open_session


async def check(
    config: Config, progress: Progress, *, repair: bool, deep: bool, local_only: bool
) -> Report:
    """Run every check: first this host's, which tells what is about to change in the bucket.

    Args:
        config: names the project, unless only this host is checked the key, too.
        progress: told how far it is.
        repair: whether to repair.
        deep: whether to read all objects.
        local_only: whether to leave the bucket out.

    Raises:
        ConfigError: server or key missing.
    """
    if not local_only:
        config.require_remote()
    directory = directory_of_settings(config)
    report = Report(config.supabase_url, config.bucket, directory, repair=repair)
    if directory.is_dir():
        identity = identity_of(config.supabase_url, config.bucket)
        await LocalCheck(report, identity, progress).run()
    else:
        what = "there is no cache directory: nothing was ever mounted here with these settings"
        report.findings.append(Finding("cache", "no_cache_directory", str(directory), what, "note"))
    if not local_only:
        try:
            await _check_bucket(config, report, progress, deep=deep)
            report.is_remote_checked = True
        except* RemoteError as group:
            report.remote_problem = _first(group)
    return report


async def _check_bucket(config: Config, report: Report, progress: Progress, *, deep: bool) -> None:
    async with open_session(config) as session:
        remote = remote_of(session, config.bucket)
        inspection = Inspection(session, config.bucket)
        await BucketCheck(report, remote, inspection, progress).run()
        if deep:
            await DeepCheck(report, remote, inspection, progress).run()


def _first(group: BaseExceptionGroup[RemoteError]) -> RemoteError:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
