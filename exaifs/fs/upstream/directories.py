"""Loads directories into the index when they are needed, and decides when one must be listed again.

One listing per directory at a time, however many ask. A directory that was loaded once is still served
from the index when Supabase cannot be reached; one that never was gives the error, never an empty
directory (promise 3).
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

import structlog
import trio

from exaifs.cache.names.entries import Entry
from exaifs.cache.names.merge import Difference, DirectoryMerge, merge_record
from exaifs.cache.names.naming import reclaim
from exaifs.cache.names.recency import View
from exaifs.errors import NotFound, RemoteError, Unreachable
from exaifs.fs.core import Core
from exaifs.fs.tables.inodes import Inode
from exaifs.model import ROOT_INO, ObjectRecord
from exaifs.names import oddity, path_of
from exaifs.remote.interface import Folder, Listing

_log = structlog.get_logger(__name__)

_PATIENCE_S = 2.0
"""How long a directory that is known already waits for a page of a new listing."""

_PAGE = 1000
"""PostgREST's default cap on rows; one value a call is not cut by it, but stay below."""


class _LateError(Exception):
    """No answer for as long as somebody waits who has something to fall back on."""


class Directories:
    """Keeps loaded directories fresh enough.

    Args:
        core: whose index takes the listings.
        freshness_s: how old a listing may be before it is asked again.
        on_change: told what a merge changed.
    """

    def __init__(
        self,
        core: Core,
        freshness_s: float,
        on_change: Callable[[Difference], None],
    ) -> None:
        self._index = core.index
        self._catalog = core.remote.catalog
        self._contact = core.contact
        self._claims = core.claims
        self._outbox = core.changes.outbox
        self._freshness_ns = int(freshness_s * 1e9)
        self._on_change = on_change
        self._loading: dict[str, trio.Event] = {}

    def is_fresh(self, prefix: str) -> bool:
        """Tell whether a directory can be answered without asking."""
        loaded_at_ns = self._index.loaded_at_ns(prefix)
        if loaded_at_ns and self._contact.followed:
            return True
        return loaded_at_ns is not None and 0 <= time.time_ns() - loaded_at_ns < self._freshness_ns

    async def ready(self, directory: Inode) -> str:
        """Do as `ensure`, and return the directory's prefix: a rename may change it meanwhile.

        Raises:
            RemoteError: as `ensure`.
        """
        while True:
            prefix = directory.entry.key
            await self.ensure(prefix)
            if directory.entry.key == prefix:
                return prefix

    def check_there(self, directory: Inode) -> None:
        """Refuse to make a name in a directory that is gone, though the kernel holds on to it.

        Raises:
            NotFound: it was removed, here or by another host.
        """
        if directory.unlinked or self._index.directory(directory.entry.key) is None:
            raise NotFound(f"the directory {path_of(directory.entry.key)} was removed")

    async def freshen(self, directory: Entry) -> None:
        """Bring a directory's own attributes up to date; a checkpoint only when they must be asked for.

        Nobody may look up the name of the one that a program works in. Not of the root, through which the
        status is read, and which has no name; nor by the first listing of the directory above, which may
        take as long as any.
        """
        if directory.ino == ROOT_INO or self._index.loaded_at_ns(directory.parent) is None:
            return
        with suppress(RemoteError):  # then they stay what they are known to be
            await self.ensure(directory.parent)

    async def find(self, directory: Inode, name: str) -> Entry:
        """Return what has a name in a directory.

        Raises:
            NotFound: proven absent.
            RemoteError: not known, and Supabase cannot be asked.
        """
        try:
            prefix = await self.ready(directory)
        except RemoteError:
            # Never listed in full; what is known of it, such as unsent files, is there all the same.
            known = self._index.child(directory.entry.key, name)
            if known is None:
                raise
            return known
        entry = self._index.child(prefix, name)
        if entry is None:
            raise NotFound(f"no {name!r} here")
        return entry

    async def ensure(self, prefix: str) -> None:
        """Make sure a directory's names are known and fresh; a checkpoint only when it must ask.

        Raises:
            RemoteError: it was never loaded and Supabase cannot be asked.
        """
        if not self.is_fresh(prefix):
            await self._contact.wait_feed()
        while not self.is_fresh(prefix):
            await self._claims.wait_free(prefix)
            if self._index.directory(prefix) is None:
                return  # renamed or removed meanwhile: nothing is here
            loaded = self._index.loaded_at_ns(prefix) is not None
            if self._index.is_claimed(prefix):
                if loaded:
                    return
                await self._wait_renamed(prefix)
                continue
            if loaded and not self._contact.worth_hoping:
                return
            if not self._contact.worth_trying:
                raise Unreachable("Supabase is away and this directory was never listed")
            running = self._loading.get(prefix)
            if running is not None:
                await running.wait()
                continue
            if await self._refresh(prefix, loaded=loaded):
                return

    async def _wait_renamed(self, prefix: str) -> None:
        """Return once the bucket has a directory where it is here: soon, while Supabase answers.

        Raises:
            Unreachable: its rename still waits.
        """
        if self._outbox.overlaps(prefix) and not self._contact.offline:
            with trio.move_on_after(_PATIENCE_S):
                await self._outbox.wait_settled(prefix)
                return
        raise Unreachable(
            f"{path_of(prefix)} was never listed, and cannot be before Supabase carries out its rename"
        )

    async def _refresh(self, prefix: str, *, loaded: bool) -> bool:
        """Do as `_load`; a directory that is loaded is left as it is where that fails."""
        try:
            # Who has something to fall back on does not wait out a server that hangs.
            return await self._load(prefix, patience_s=_PATIENCE_S if loaded else math.inf)
        except _LateError:
            self._contact.hesitated()
        except RemoteError as exc:
            self._contact.failed(exc)
            if not loaded:
                raise
        except sqlite3.Error as exc:
            if not loaded:
                raise
            _log.warning("the local index cannot be written", path=path_of(prefix), reason=str(exc))
        return True

    async def revalidate(self, inode: Inode) -> None:
        """Ask for the current version of a file, for `consistency=open`: one request.

        What only this host has is not asked for. Where Supabase cannot be asked, or does not answer within
        two seconds, the file stays what it is known to be (promise 3: unreachable is served from what is
        known), and for the next seconds nobody asks. Slow is not away: closes are sent all the same.
        """
        if inode.staged is not None or inode.entry.pending or not self._contact.worth_hoping:
            return
        key = inode.entry.key
        with self._index.view() as view:
            asked_ns = time.time_ns()
            try:
                records = await self._ask_for(key)
            except _LateError:
                self._contact.hesitated()
                return
            except RemoteError as exc:
                self._contact.failed(exc)
                return
            self._contact.succeeded()
            difference = merge_record(self._index, key, records.get(key), view=view, at_ns=asked_ns)
        self._on_change(difference)

    async def _ask_for(self, key: str) -> dict[str, ObjectRecord]:
        with trio.move_on_after(_PATIENCE_S):
            return await self._catalog.stat([key])
        raise _LateError

    def name_freed(self, gone: Entry) -> None:
        """After an entry may have lost its name by what was done here: another key may wait for it."""
        difference = Difference()
        difference.moved(reclaim(self._index, gone.parent, gone.name))
        self._on_change(difference)

    def removed(self, gone: Entry) -> None:
        """A name that was still shown is found to be gone."""
        self._on_change(Difference(removed=[gone]))
        self.name_freed(gone)

    def replaced(self, old: Entry, fresh: Entry) -> None:
        """A name stands for another inode than the one the kernel expects there."""
        self._on_change(Difference(removed=[old], added=[fresh]))

    async def reconcile(self) -> bool:
        """List every directory in doubt once more, one after the other.

        Returns:
            Whether all of them were: where Supabase does not answer, they are listed when needed.
        """
        for prefix in self._index.expired_prefixes():
            # Raised for a directory that went and came back meanwhile, and was not listed since.
            with suppress(RemoteError, sqlite3.Error):
                await self.ensure(prefix)
        return not self._index.expired_prefixes()

    async def _load(self, prefix: str, *, patience_s: float) -> bool:
        """List and merge; False if the directory was renamed or removed meanwhile: look again."""
        done = self._loading[prefix] = trio.Event()
        try:
            with self._index.view(prefix) as view:
                merge = DirectoryMerge(self._index, prefix, view=view, at_ns=time.time_ns())
                return await self._merge_pages(prefix, merge, view, patience_s)
        finally:
            del self._loading[prefix]
            done.set()

    async def _merge_pages(self, prefix: str, merge: DirectoryMerge, view: View, patience_s: float) -> bool:
        odd_keys: list[str] = []
        after: str | None = ""
        while after is not None:
            page = await self._page(prefix, after, patience_s)
            odd_keys += await self._odd_keys(prefix, page.folders)
            if self._is_moved(prefix, view):
                return False
            after = page.next_after
            if after is not None:
                self._on_change(merge.page(page.records, page.folders))
        self._contact.succeeded()
        for difference in merge.finish(page.records, page.folders, odd_keys):
            self._on_change(difference)
            await trio.lowlevel.checkpoint()
            if self._is_moved(prefix, view):
                return False
        return True

    async def _page(self, prefix: str, after: str, patience_s: float) -> Listing:
        with trio.move_on_after(patience_s):
            return await self._catalog.list_directory(prefix, after, _PAGE)
        raise _LateError

    def _is_moved(self, prefix: str, view: View) -> bool:
        """Tell whether a directory was renamed or removed since it was asked for."""
        if prefix == "":
            return False
        return self._index.is_renamed(prefix, view) or self._index.directory(prefix) is None

    async def _odd_keys(self, prefix: str, folders: Iterable[Folder]) -> list[str]:
        """Return what is in folders that cannot be shown: of each at most one page, for the status."""
        keys: list[str] = []
        for folder in folders:
            if oddity(prefix, folder.component) is not None:
                page, _after = await self._catalog.list_tree(f"{prefix}{folder.component}/", "", _PAGE)
                keys += [record.key for record in page]
        return keys


def touched(directory: Entry, now_ns: int) -> Entry:
    """Return a directory's entry after a name in it was made or removed."""
    return replace(directory, ctime_ns=now_ns, posix=replace(directory.posix, mtime_ns=now_ns, kind="dir"))
