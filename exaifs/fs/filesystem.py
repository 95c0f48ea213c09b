"""The file system of one mount, put together bottom-up; knows neither the kernel nor HTTP."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import trio

from exaifs.cache.data.contents import CacheLimits, ContentStore
from exaifs.cache.health import DiskHealth
from exaifs.cache.names.database import open_database
from exaifs.cache.names.index import Index
from exaifs.cache.names.merge import Difference
from exaifs.cache.names.survey import Survey
from exaifs.cache.unsent.journal import Journal, open_journal
from exaifs.cache.unsent.journalfile import DIRECTORY as JOURNAL
from exaifs.config import MIB, Config
from exaifs.fs.contact import Contact
from exaifs.fs.core import Core
from exaifs.fs.janitor import Janitor
from exaifs.fs.operations.files import Files
from exaifs.fs.operations.markers import Markers
from exaifs.fs.operations.namespace import Namespace
from exaifs.fs.operations.provider_ids import OpenProviderIds, OutsideAttributes, ProviderIds
from exaifs.fs.operations.removal import Remover
from exaifs.fs.operations.rename import Renamer
from exaifs.fs.operations.xattrs import Xattrs
from exaifs.fs.report.status import Reporter, Status
from exaifs.fs.report.virtual import STATUS_NAME, SYNC_NAME, VirtualFiles
from exaifs.fs.tables.claims import Claims
from exaifs.fs.tables.counters import AccessCounters
from exaifs.fs.tables.handles import HandleTable
from exaifs.fs.tables.inodes import InodeTable, Ownership
from exaifs.fs.unsent.carrier import Carrier
from exaifs.fs.unsent.changes import Changes
from exaifs.fs.unsent.outbox import Outbox
from exaifs.fs.upstream.directories import Directories
from exaifs.fs.upstream.feed import Feed
from exaifs.fs.upstream.gaps import Gaps
from exaifs.fs.upstream.invalidation import Invalidations
from exaifs.fs.writepath import WritePath, make_directories
from exaifs.model import Attributes, ObjectRef
from exaifs.remote.interface import Hello, Remote

_DAY_S = 86400.0

_JANITOR_PACE = 8.0
"""So much less often than the feed the janitor asks: an idle mount should be nearly silent."""

_FOLLOWED_TIMEOUT_S = 3600.0
"""Names and attributes in the kernel while the feed invalidates them."""


class FileSystem:
    """Names, files and attributes of one bucket.

    Args:
        config: settings.
        remote: the bucket.
        database: from `open_database`.
        contents: the content tiers.
        journal: what is not in Supabase yet.
        contact: whether Supabase answers.
        cache_directory: holds `staging/` and `conflicts/`.
        mountpoint: for the status.
        providers: file ids at providers; None where none is configured.
    """

    def __init__(
        self,
        config: Config,
        remote: Remote,
        database: sqlite3.Connection,
        contents: ContentStore,
        journal: Journal,
        *,
        contact: Contact,
        cache_directory: Path,
        mountpoint: Path | None = None,
        providers: ProviderIds | None = None,
    ) -> None:
        self._freshness_s = config.freshness_s
        self._found_unsent = bool(journal.records)
        self.core = core = _core(config, remote, Index(database), contents, journal, contact=contact)
        contents.damage.watch(self._drop_pages)
        self.survey = Survey(database)
        """What the index holds, in figures."""
        self.invalidations = Invalidations(core.index)
        self.directories = Directories(core, config.freshness_s, self._changed)
        self._gaps = Gaps(self.directories)
        self.writes = WritePath(
            config,
            core,
            self.directories,
            cache_directory=cache_directory,
            on_change=self._changed,
        )
        self.feed = self._new_feed(core, config.freshness_s)
        self._counters = AccessCounters(remote.catalog)
        self._reporter = Reporter(
            config,
            mountpoint,
            cache_directory,
            core=core,
            feed=self.feed,
            survey=self.survey,
            counters=self._counters,
            conflicts=self.writes.conflicts,
            sender=self.writes.sender,
        )
        self._janitor = _janitor(core, config)
        owner = _ownership(config)
        handles, virtual = HandleTable(), self._virtual_files(owner)
        self.namespace = self._new_namespace(handles, virtual)
        self.files = self._new_files(handles, virtual, ask_at_open=config.consistency == "open")
        owners = frozenset({owner.uid, os.getuid()})
        outside = OutsideAttributes(core, providers, owners=owners, url_lifetime_s=config.url_lifetime_s)
        self.xattrs = Xattrs(core, self.namespace, outside, self.writes.keeper)

    def _virtual_files(self, owner: Ownership) -> VirtualFiles:
        shown = {STATUS_NAME: lambda: self.status().to_bytes(), SYNC_NAME: self.writes.sync_now}
        return VirtualFiles(shown, uid=owner.uid, gid=owner.gid, umask=owner.umask)

    def _new_namespace(self, handles: HandleTable, virtual: VirtualFiles) -> Namespace:
        core, directories, writes = self.core, self.directories, self.writes
        markers = Markers(core)
        remover = Remover(core, directories, markers, writes.conflicts)
        return Namespace(
            core,
            handles,
            directories,
            markers=markers,
            publisher=writes.publisher,
            writer=writes.writer,
            remover=remover,
            renamer=Renamer(
                core, directories, markers, remover, keeper=writes.keeper, conflicts=writes.conflicts
            ),
            keeper=writes.keeper,
            virtual=virtual,
        )

    def _new_files(self, handles: HandleTable, virtual: VirtualFiles, *, ask_at_open: bool) -> Files:
        return Files(
            self.core,
            handles,
            self.namespace,
            publisher=self.writes.publisher,
            writer=self.writes.writer,
            counters=self._counters,
            virtual=virtual,
            revalidate=self.directories.revalidate,
            ask_at_open=ask_at_open,
        )

    def _new_feed(self, core: Core, pace_s: float) -> Feed:
        return Feed(
            core,
            pace_s,
            on_hello=lambda hello: self.writes.limit.take(hello.size_limit_bytes),
            on_change=self._changed,
            on_gap=self._gaps.note,
            on_loss=self._distrust,
        )

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        config: Config,
        remote: Remote,
        cache_directory: Path,
        hello: Hello | None,
        mountpoint: Path | None = None,
        *,
        open_providers: OpenProviderIds | None = None,
    ) -> AsyncIterator[FileSystem]:
        """Open database, content tiers and staging in a cache directory that is ours alone.

        Args:
            config: settings.
            remote: the bucket.
            cache_directory: exists, locked by the caller.
            hello: what the server said at mount; None when it could not be asked.
            mountpoint: for the status.
            open_providers: opens the file ids at providers; None where none is configured.
        """
        make_directories(cache_directory)
        health, contact = DiskHealth(), Contact()
        journal, records = open_journal(cache_directory / JOURNAL, health)
        limits = CacheLimits(
            memory_bytes=config.memory_cache_bytes,
            disk_bytes=config.disk_cache_mb * MIB,
            max_age_s=config.cache_age_days * _DAY_S,
        )
        async with AsyncExitStack() as stack:
            stack.callback(journal.close)
            database = stack.enter_context(
                closing(open_database(cache_directory / "index.db", remote.identity))
            )
            contents = await stack.enter_async_context(
                ContentStore.open(
                    cache_directory,
                    database,
                    remote.objects,
                    limits,
                    health,
                    is_away=lambda: contact.offline,
                )
            )
            providers = None
            if open_providers is not None:
                providers = await stack.enter_async_context(open_providers(remote, contents))
            fs = cls(
                config,
                remote,
                database,
                contents,
                journal,
                contact=contact,
                cache_directory=cache_directory,
                mountpoint=mountpoint,
                providers=providers,
            )
            if hello is not None:
                fs.writes.limit.take(hello.size_limit_bytes)
            await fs.writes.adopt(records)
            yield fs

    def entry_timeout_s(self, attributes: Attributes) -> float:
        """How long the kernel may trust a name: long while the feed tells it what changed.

        A directory's name never long: what may have changed while the feed was lost must be asked for then,
        and telling the kernel to forget the name instead takes it from programs that work in the directory.
        """
        return self._freshness_s if stat.S_ISDIR(attributes.mode) else self.attr_timeout_s

    @property
    def attr_timeout_s(self) -> float:
        """How long the kernel may trust attributes."""
        return _FOLLOWED_TIMEOUT_S if self.core.contact.followed else self._freshness_s

    def status(self) -> Status:
        """Return what is to be said about this mount now; takes milliseconds."""
        return self._reporter.snapshot()

    def is_known(self) -> bool:
        """Whether an earlier run left anything to serve, or to send, while Supabase is away."""
        return self.core.index.loaded_at_ns("") is not None or self._found_unsent

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work in the background until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.writes.sender.run)
            await nursery.start(self._counters.run)
            await nursery.start(self.feed.run)
            if self._janitor is not None:
                await nursery.start(self._janitor.run)
            await nursery.start(self._gaps.run)
            task_status.started()

    async def drain(self, deadline_s: float) -> int:
        """Send what waits and the counters; return how many files and operations are left unsent."""
        end = trio.current_time() + deadline_s
        left = await self.writes.sender.drain(deadline_s)
        with trio.move_on_at(end):
            await self._counters.flush()
        return left

    def _changed(self, difference: Difference) -> None:
        self.core.table.apply(difference)
        self.invalidations.note(difference)

    def _drop_pages(self, ref: ObjectRef) -> None:
        """Some of what was read was damaged: have the kernel read it again. The next open does, too."""
        version = ref.version
        self.invalidations.drop_pages(
            inode.ino for inode in self.core.table if inode.opens and inode.entry.version == version
        )

    def _distrust(self) -> None:
        """The feed is lost: have the kernel ask again for all it holds."""
        self.invalidations.distrust(self.core.table.inos())


def _ownership(config: Config) -> Ownership:
    uid = os.getuid() if config.uid is None else config.uid
    gid = os.getgid() if config.gid is None else config.gid
    return Ownership(uid, gid, config.umask)


def _core(
    config: Config,
    remote: Remote,
    index: Index,
    contents: ContentStore,
    journal: Journal,
    *,
    contact: Contact,
) -> Core:
    """Return what all parts work on; changes that cannot be made now wait in the journal."""
    table, outbox = InodeTable(index, _ownership(config)), Outbox(journal, index)
    changes = Changes(Carrier(remote), outbox, index, contact, may_wait=config.may_keep)
    return Core(remote, index, table, contents, contact, Claims(index), changes, config.read_only)


def _janitor(core: Core, config: Config) -> Janitor | None:
    """Return what tidies the bucket; None where that is not this mount's to do."""
    remote = core.remote
    if remote.housekeeping is None or config.read_only:
        return None
    return Janitor(remote.objects, remote.housekeeping, core.contact, _JANITOR_PACE * config.freshness_s)
