"""The file system of one mount, put together bottom-up; knows neither the kernel nor HTTP."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import trio

from exaifs.cache.contents import CacheLimits, ContentStore
from exaifs.cache.database import open_database
from exaifs.cache.index import Index
from exaifs.config import MIB, Config
from exaifs.fs.contact import Contact
from exaifs.fs.core import Core
from exaifs.fs.counters import AccessCounters
from exaifs.fs.directories import Directories
from exaifs.fs.files import Files
from exaifs.fs.handles import HandleTable
from exaifs.fs.inodes import InodeTable, Ownership
from exaifs.fs.leftovers import adopt
from exaifs.fs.markers import Markers
from exaifs.fs.namespace import Namespace
from exaifs.fs.publish import Publisher
from exaifs.fs.removal import Remover
from exaifs.fs.rename import Renamer
from exaifs.fs.writing import Writer
from exaifs.fs.xattrs import Xattrs
from exaifs.remote.interface import Hello, Remote

_DAY_S = 86400.0


class FileSystem:
    """Names, files and attributes of one bucket.

    Args:
        config: settings.
        remote: the bucket.
        database: from `open_database`.
        contents: the content tiers.
        staging_directory: for staged files; on the content directory's file system.
        size_limit_bytes: the bucket's limit, where known.
    """

    def __init__(
        self,
        config: Config,
        remote: Remote,
        database: sqlite3.Connection,
        contents: ContentStore,
        *,
        staging_directory: Path,
        size_limit_bytes: int | None,
    ) -> None:
        self._freshness_s = config.freshness_s
        index = Index(database)
        uid = os.getuid() if config.uid is None else config.uid
        gid = os.getgid() if config.gid is None else config.gid
        table = InodeTable(index, Ownership(uid, gid, config.umask))
        self.core = core = Core(remote, index, table, contents, Contact(), config.read_only)
        handles = HandleTable()
        self.directories = Directories(core, config.freshness_s, table.apply)
        markers = Markers(core)
        self._publisher = Publisher(core, size_limit_bytes)
        self._counters = AccessCounters(remote.catalog)
        writer = Writer(contents, self._publisher, staging_directory)
        remover = Remover(core, self.directories, markers)
        self.namespace = Namespace(
            core,
            handles,
            self.directories,
            markers=markers,
            publisher=self._publisher,
            writer=writer,
            remover=remover,
            renamer=Renamer(core, self.directories, markers, remover),
        )
        self.files = Files(
            core,
            handles,
            self.namespace,
            publisher=self._publisher,
            writer=writer,
            counters=self._counters,
        )
        self.xattrs = Xattrs(core, self.namespace)
        if adopt(staging_directory, index, table):
            self._publisher.resume()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, config: Config, remote: Remote, cache_directory: Path, hello: Hello | None
    ) -> AsyncIterator[FileSystem]:
        """Open database, content tiers and staging in a cache directory that is ours alone.

        Args:
            config: settings.
            remote: the bucket.
            cache_directory: exists, locked by the caller.
            hello: what the server said at mount; None when it could not be asked.
        """
        staging = cache_directory / "staging"
        staging.mkdir(mode=0o700, exist_ok=True)
        limits = CacheLimits(
            memory_bytes=config.memory_cache_bytes,
            disk_bytes=config.disk_cache_mb * MIB,
            max_age_s=config.cache_age_days * _DAY_S,
        )
        with closing(open_database(cache_directory / "index.db", remote.identity)) as database:
            async with ContentStore.open(cache_directory, database, remote.objects, limits) as contents:
                limit = None if hello is None else hello.size_limit_bytes
                yield cls(
                    config,
                    remote,
                    database,
                    contents,
                    staging_directory=staging,
                    size_limit_bytes=limit,
                )

    @property
    def entry_timeout_s(self) -> float:
        """How long the kernel may trust a name."""
        return self._freshness_s

    @property
    def attr_timeout_s(self) -> float:
        """How long the kernel may trust attributes."""
        return self._freshness_s

    def is_known(self) -> bool:
        """Whether an earlier run left anything to serve while Supabase is away."""
        return self.core.index.loaded_at_ns("") is not None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work in the background until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._publisher.run)
            await nursery.start(self._counters.run)
            task_status.started()

    async def drain(self, deadline_s: float) -> int:
        """Send what is dirty and the counters; return how many files are left unsent."""
        left = await self._publisher.drain(deadline_s)
        with trio.move_on_after(deadline_s):
            await self._counters.flush()
        return left
