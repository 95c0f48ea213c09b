"""What the daemon says about itself: `FileSystem.status()`, `.exaifs/status.json` and `exaifs status`.

A snapshot costs milliseconds and no request; whoever reads it computes nothing.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from exaifs import __version__
from exaifs.cache.data.contents import CacheStatistics
from exaifs.cache.names.survey import IndexSize, OddNames, Survey
from exaifs.config import Config
from exaifs.fs.core import Core
from exaifs.fs.sending.conflicts import Conflicts
from exaifs.fs.sending.sender import Sender
from exaifs.fs.tables.counters import AccessCounters
from exaifs.fs.tables.inodes import Inode
from exaifs.fs.upstream.feed import Feed

State = Literal["online", "catching-up", "degraded", "offline"]

_FORMAT = 1
_SAMPLE = 20
"""Odd keys named of each kind."""
_NS = 1e9


@dataclass(frozen=True, slots=True)
class MountFacts:
    """Which mount this is; see `Status`."""

    bucket: str
    mountpoint: str | None
    server_url: str
    version: str
    pid: int
    started_unix_s: float
    uptime_s: float
    read_only: bool
    freshness_s: float
    consistency: str
    cache_directory: str


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """Contact with Supabase; see `Status`."""

    last_answer_unix_s: float | None
    last_answer_age_s: float | None
    offline_since_unix_s: float | None
    offline_s: float | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class FeedStatus:
    """The change feed; see `Status`."""

    live: bool
    lag_s: float | None
    changes_seen: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class TierStatus:
    """One tier of the cache; see `Status`."""

    limit_bytes: int
    size_bytes: int
    items: int
    hits: int
    hit_rate: float | None


@dataclass(frozen=True, slots=True)
class RemoteReads:
    """What no tier had; see `Status`."""

    reads: int
    share: float | None
    requests: int
    fetched_bytes: int


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """Contents; see `Status`."""

    memory: TierStatus
    disk: TierStatus
    remote: RemoteReads
    hit_rate: float | None
    evictions: int
    disk_disabled: str | None


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """What only this host has; see `Status`."""

    dirty_open: int
    waiting: int
    waiting_bytes: int
    changes_waiting: int
    failed: int
    oldest_unsent_unix_s: float | None
    oldest_unsent_age_s: float | None
    last_error: str | None
    changes_failing: int
    changes_given_up: int
    change_problem: str | None


@dataclass(frozen=True, slots=True)
class ConflictsStatus:
    """Bytes that lost to another host's; see `Status`."""

    waiting: int
    seen: int


@dataclass(frozen=True, slots=True)
class Status:
    """A mount at one moment.

    The JSON has these names. Times ending in `_unix_s` are seconds since the epoch by this host's clock,
    other `_s` are durations in seconds, `_bytes` bytes, rates and shares lie between 0 and 1; null means
    that there is nothing to say. Names may be added while `format` stays 1.

    - `format`: 1. `at_unix_s`: when this was true.
    - `state`: `online`; `catching-up`: after the start or a gap in the log, directories are being brought
      up to date; `degraded`: it works, but `reason` says what does not; `offline`: Supabase does not answer
      since `server.offline_since_unix_s`, what is known is served.
    - `mount`: `server_url` without secrets; `freshness_s`: pace of the feed, and how old a listing gets
      without it; `consistency`: `feed`, or `open` when every open asks for the current version;
      `cache_directory`: of this bucket, where what is unsent and what lost a conflict is kept.
    - `server`: when it last answered a question about names or took a file; `problem`: its last error.
    - `feed`: `live`: loaded directories are kept true by it; `lag_s`: since the log was last read to its
      end; `changes_seen`: since the start; `problem`: why it is not followed (schema, bucket, network).
    - `index`: entries known, directories loaded, those to be listed once more, size of the database file.
    - `cache`: reads answered by `memory`, then `disk`, then `remote`. A tier's `hit_rate` is its share of
      the reads that came to it, `cache.hit_rate` that of both tiers of all reads, `remote.share` the rest.
      `limit_bytes`: the most a tier may hold; of `memory` perhaps less than configured (control groups).
      `evictions` from both tiers. `disk_disabled`: what failed on the local disk.
    - `queue`: files with bytes or attributes that are not in Supabase yet: `dirty_open` while a program has
      them open, `waiting` afterwards, with `waiting_bytes` in both; `failed`: those of both whose last
      attempt failed, with `last_error` of the newest of them; `oldest_unsent_unix_s`: since when the oldest
      of all is unsent. `changes_waiting`: changes of names and attributes to be carried out;
      `changes_failing`: those of them that were tried in vain; `changes_given_up`: since the start, as
      Supabase will never carry them out: nothing was deleted or replaced, and the names show what the
      bucket has; `change_problem`: names one of them, and why: failing, else given up. `.exaifs/sync` lists
      all that waits.
    - `conflicts`: `waiting` for somebody's decision (`exaifs conflicts`), whenever they happened; `seen`
      since the start, also those of which no bytes had to be kept.
    - `odd_keys`: by kind `count` and the first 20 `names`, as far as directories are loaded. Not shown,
      named by key: `empty_segment` (`//`, or a slash at either end), `dot_segment` (`.` or `..`),
      `reserved_name` (`.exaifs` at the top is this directory), `long_name` (over 255 bytes); below one
      folder of these at most 1,000 are counted. Shown as `NAME (object)`, named by path:
      `file_and_folder` (the key is also a folder, which has the plain name), `same_name` (another key is
      the plain name's own).
    - `access_counters_waiting`: files whose reads are not counted in their rows yet.
    """

    format: int
    at_unix_s: float
    state: State
    reason: str | None
    mount: MountFacts
    server: ServerStatus
    feed: FeedStatus
    index: IndexSize
    cache: CacheStatus
    queue: QueueStatus
    conflicts: ConflictsStatus
    odd_keys: dict[str, OddNames]
    access_counters_waiting: int

    def to_json(self) -> dict[str, Any]:
        """Return the snapshot as plain values."""
        return asdict(self)

    def to_bytes(self) -> bytes:
        """Return the snapshot as the text of a JSON file; ASCII, so that any name survives."""
        return json.dumps(self.to_json(), indent=2).encode() + b"\n"


class Reporter:
    """Makes snapshots of one mount.

    Args:
        config: settings; no secret is taken from it.
        mountpoint: where it is mounted, if it is.
        cache_directory: of the bucket.
        core: contact, inodes, contents.
        feed: the change feed.
        survey: of the index.
        counters: reads to be counted.
        conflicts: bytes that were kept aside.
        sender: knows what cannot be carried out.
    """

    def __init__(
        self,
        config: Config,
        mountpoint: Path | None,
        cache_directory: Path,
        *,
        core: Core,
        feed: Feed,
        survey: Survey,
        counters: AccessCounters,
        conflicts: Conflicts,
        sender: Sender,
    ) -> None:
        self._config = config
        self._mountpoint = mountpoint
        self._cache_directory = cache_directory
        self._core = core
        self._feed = feed
        self._survey = survey
        self._counters = counters
        self._conflicts = conflicts
        self._sender = sender
        self._started_ns = time.time_ns()

    def snapshot(self) -> Status:
        """Return what is true now."""
        now_ns = time.time_ns()
        size = self._survey.size()
        cache = _cache(self._core.contents.statistics())
        state, reason = self._judge(size, cache)
        return Status(
            format=_FORMAT,
            at_unix_s=now_ns / _NS,
            state=state,
            reason=reason,
            mount=self._mount(now_ns),
            server=self._server(now_ns),
            feed=self._feed_status(),
            index=size,
            cache=cache,
            queue=_queue(
                [inode for inode in self._core.table if inode.dirty],
                len(self._core.changes.outbox.operations),
                self._sender,
                now_ns,
            ),
            conflicts=ConflictsStatus(self._conflicts.waiting(), self._conflicts.seen),
            odd_keys={str(kind): names for kind, names in self._survey.odd_names(_SAMPLE).items()},
            access_counters_waiting=self._counters.waiting,
        )

    def _judge(self, size: IndexSize, cache: CacheStatus) -> tuple[State, str | None]:
        contact, feed = self._core.contact, self._feed
        if contact.offline_since_ns is not None:
            # A server that answers, and refuses, is not away.
            away = contact.problem is None or contact.problem.temporary
            return "offline" if away else "degraded", str(contact.problem)
        if feed.problem is not None and not feed.starting:
            return "degraded", f"no change feed: {feed.problem}"
        if cache.disk_disabled is not None:
            return "degraded", f"no disk cache: {cache.disk_disabled}"
        if not feed.starting and not contact.followed:
            return "degraded", "the change feed is late"
        if feed.starting or size.directories_to_list_again:
            left = size.directories_to_list_again
            return "catching-up", f"{left} directories to list again" if left else "reading the change log"
        return "online", None

    def _mount(self, now_ns: int) -> MountFacts:
        config = self._config
        return MountFacts(
            bucket=self._core.remote.bucket,
            mountpoint=None if self._mountpoint is None else os.fspath(self._mountpoint),
            server_url=config.supabase_url,
            version=__version__,
            pid=os.getpid(),
            started_unix_s=self._started_ns / _NS,
            uptime_s=(now_ns - self._started_ns) / _NS,
            read_only=config.read_only,
            freshness_s=config.freshness_s,
            consistency=config.consistency,
            cache_directory=os.fspath(self._cache_directory.absolute()),
        )

    def _server(self, now_ns: int) -> ServerStatus:
        contact = self._core.contact
        last_ns, since_ns = contact.last_answer_ns, contact.offline_since_ns
        return ServerStatus(
            last_answer_unix_s=_unix_s(last_ns),
            last_answer_age_s=_age_s(last_ns, now_ns),
            offline_since_unix_s=_unix_s(since_ns),
            offline_s=_age_s(since_ns, now_ns),
            problem=None if contact.problem is None else str(contact.problem),
        )

    def _feed_status(self) -> FeedStatus:
        feed = self._feed
        return FeedStatus(
            live=self._core.contact.followed,
            lag_s=feed.lag_s,
            changes_seen=feed.changes_seen,
            problem=None if feed.starting else feed.problem,
        )


def _cache(counted: CacheStatistics) -> CacheStatus:
    below_memory = counted.disk_hits + counted.remote_reads
    reads = counted.memory_hits + below_memory
    return CacheStatus(
        memory=TierStatus(
            counted.memory_limit_bytes,
            counted.memory_bytes,
            counted.memory_items,
            counted.memory_hits,
            _share(counted.memory_hits, reads),
        ),
        disk=TierStatus(
            counted.disk_limit_bytes,
            counted.disk_bytes,
            counted.disk_items,
            counted.disk_hits,
            _share(counted.disk_hits, below_memory),
        ),
        remote=RemoteReads(
            counted.remote_reads,
            _share(counted.remote_reads, reads),
            counted.requests,
            counted.bytes_fetched,
        ),
        hit_rate=_share(counted.memory_hits + counted.disk_hits, reads),
        evictions=counted.evictions,
        disk_disabled=counted.disk_disabled,
    )


def _queue(dirty: list[Inode], changes: int, sender: Sender, now_ns: int) -> QueueStatus:
    since = {inode: inode.staged.dirty_since_ns for inode in dirty if inode.staged is not None}
    failed = [inode for inode in dirty if inode.failure is not None]
    newest = max(failed, key=lambda inode: since[inode], default=None)
    oldest_ns = min(since.values(), default=None)
    return QueueStatus(
        dirty_open=sum(inode.opens > 0 for inode in dirty),
        waiting=sum(inode.opens == 0 for inode in dirty),
        waiting_bytes=sum(inode.size_bytes for inode in dirty),
        changes_waiting=changes,
        failed=len(failed),
        oldest_unsent_unix_s=_unix_s(oldest_ns),
        oldest_unsent_age_s=_age_s(oldest_ns, now_ns),
        last_error=None if newest is None else newest.failure,
        changes_failing=len(sender.problems),
        changes_given_up=sender.given_up,
        change_problem=sender.change_problem,
    )


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _unix_s(when_ns: int | None) -> float | None:
    return None if when_ns is None else when_ns / _NS


def _age_s(when_ns: int | None, now_ns: int) -> float | None:
    return None if when_ns is None else max(0.0, (now_ns - when_ns) / _NS)
