"""Sends staged files to Supabase: hash, compare, copy or upload, then take on the new version.

`close` is what close(2) waits for, with the inode's lock held: writers of that file wait until its bytes
are sent, or kept in the journal where they are to be sent later; nobody else does. `send` is what `sender`
does in the background with what was kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import structlog
import trio

from exaifs.cache.names.entries import own_write
from exaifs.cache.names.merge import Difference, show_directory
from exaifs.cache.names.naming import plain_name, reclaim
from exaifs.errors import (
    Busy,
    ExaifsError,
    FileTooLarge,
    NameTooLong,
    Rejected,
    RemoteError,
    Stale,
    Unreachable,
)
from exaifs.fs.contact import is_away
from exaifs.fs.core import Core
from exaifs.fs.sending.conflicts import Conflicts
from exaifs.fs.sending.contest import Contest, WritePolicy
from exaifs.fs.sending.uploads import Draft, Uploader
from exaifs.fs.staged.limit import SizeLimit
from exaifs.fs.staged.staging import DamagedBytes, Staged
from exaifs.fs.tables.inodes import Inode
from exaifs.fs.unsent.changes import EARLIER_WAITS
from exaifs.fs.unsent.keeping import Keeper
from exaifs.model import ObjectRecord
from exaifs.names import path_of

_log = structlog.get_logger(__name__)

_DAMAGED = "the bytes were damaged on the disk before they were sent"


class Publisher:
    """Publishes inodes of one mount.

    Args:
        core: the bucket, and the index and cache that take the new versions.
        keeper: keeps what cannot be sent now.
        conflicts: keeps what loses.
        policy: what close promises.
        limit: of the bucket.
        on_change: told what names stand for other inodes now.
        on_work: told when there is something to be sent later.
    """

    def __init__(
        self,
        core: Core,
        keeper: Keeper,
        conflicts: Conflicts,
        policy: WritePolicy,
        *,
        limit: SizeLimit,
        on_change: Callable[[Difference], None],
        on_work: Callable[[Inode], None],
    ) -> None:
        self._remote = core.remote
        self._index = core.index
        self._contents = core.contents
        self._table = core.table
        self._contact = core.contact
        self._claims = core.claims
        self._changes = core.changes
        self._outbox = core.changes.outbox
        self._keeper = keeper
        self._conflicts = conflicts
        self._policy = policy
        self._limit = limit
        self._on_change = on_change
        self._on_work = on_work
        self._uploads = Uploader(core, self.check_size)
        self._contest = Contest(core, keeper, conflicts, policy, on_change)
        self._sending: set[trio.CancelScope] = set()

    def check_size(self, inode: Inode, size_bytes: int) -> None:
        """Refuse what the bucket would refuse, before it is written (promise 7).

        Raises:
            FileTooLarge: over the bucket's limit.
        """
        limit = self._limit.size_bytes
        if limit is not None and size_bytes > limit:
            _log.warning(
                "file too large for the bucket",
                path=path_of(inode.entry.key),
                size_bytes=size_bytes,
                limit_bytes=limit,
            )
            raise FileTooLarge(f"{size_bytes} bytes; the bucket takes {limit}")

    # -- what close and fsync wait for -------------------------------------------------------------

    async def close(self, inode: Inode, *, seal: bool = True) -> None:
        """Make good what a close promises; nothing to do when clean. The inode's lock is held.

        Args:
            inode: whose bytes.
            seal: whether bytes that are kept for later must stay as they are: not while more is written.

        Raises:
            ExaifsError: why it could not be done; the bytes stay staged, and are sent when possible.
        """
        if not inode.dirty:
            return
        if self._policy.mode == "back" or self._must_wait(inode):
            await self.keep(inode, seal=seal)
            return
        await self._tell_first(inode)
        try:
            with self._contact.impatient():
                await self._publish_over(inode)
        except ExaifsError as exc:
            if not is_away(exc) or self._policy.offline == "refuse":
                raise
            _log.warning("kept for later", path=path_of(inode.entry.key), reason=str(exc))
            await self.keep(inode, seal=seal)

    async def _tell_first(self, inode: Inode) -> None:
        """Where the journal has older bytes of a file, have it know of those that are sent now.

        Else a next run after a kill would find the newer ones in the bucket, and take them for another
        host's. Where the disk refuses they are sent all the same.
        """
        staged = inode.staged
        if staged is not None and staged.predecessor is not None and not staged.ever_kept:
            with suppress(ExaifsError):
                await self._keeper.keep(inode, acknowledged=False)

    def _must_wait(self, inode: Inode) -> bool:
        """Tell whether the bytes cannot be sent now; what `close` cannot promise then, it raises."""
        try:
            return self._changes.must_wait(inode.entry.key)
        except RemoteError as exc:
            inode.failure = str(exc)
            raise

    async def keep(self, inode: Inode, *, seal: bool = False) -> None:
        """Have the bytes in the journal, and sent in the background; nothing to do when they are.

        Args:
            inode: whose lock is held.
            seal: whether this is a close, so that the bytes must stay as they are.

        Raises:
            NoSpace, ExaifsError: the disk refuses.
        """
        staged = inode.staged
        if staged is None or not inode.dirty:
            return
        if not (staged.kept and staged.acknowledged and staged.sealed >= seal):
            await self._contents.with_room(
                0, lambda: self._keeper.keep(inode, acknowledged=True, seal=seal)
            )
        self._on_work(inode)

    async def close_and_settle(self, inode: Inode) -> None:
        """Do as `close` for a file that nobody has open.

        Raises:
            ExaifsError: as `close`.
        """
        await self.close(inode)
        await self.settle(inode)
        if inode.dirty and inode.opens == 0 and inode.staged is not None:
            inode.staged.rest()

    async def _publish_over(self, inode: Inode) -> None:
        """Publish; what another host wrote since the file was opened loses, and is kept."""
        found = await self._contest.find(inode)
        if found is not None and not await self._contest.resolve(inode, found, ours_is_later=True):
            self._index.doubt_key(inode.entry.key)  # the feed may not have told of it yet
            raise Stale("another host wrote this file since it was opened; see `exaifs conflicts`")
        await self.publish(inode)

    async def publish(self, inode: Inode, there: ObjectRecord | None = None) -> None:
        """Bring an inode's staged bytes into the bucket and its row; nothing to do when clean.

        Args:
            inode: whose lock is held.
            there: what was found in the bucket a moment ago, if somebody looked.

        Raises:
            ExaifsError: why it could not be done; the bytes stay staged.
        """
        staged = inode.staged
        if staged is None or not staged.dirty or inode.unlinked:
            return
        inode.uploading = True
        try:
            draft = await self._uploads.draft(inode, staged)
            async with self._claims.held(lambda: (inode.entry.key,)):
                if not inode.dirty:
                    return  # a name that stood for another file by now was removed; see `Remover.abandon`
                if self._outbox.overlaps(inode.entry.key):
                    raise Busy(EARLIER_WAITS)
                record = await self._send(inode, draft, there)
                await self._keep_overtaken(inode, draft, record)
                self._take_on(inode, draft, record)
        except DamagedBytes:
            await self._contest.set_aside(inode, staged, _DAMAGED)
            raise
        except ExaifsError as exc:
            inode.failure = str(exc)
            staged.refused = isinstance(exc, FileTooLarge | NameTooLong | Rejected)
            self._contact.note(exc)
            raise
        except OSError as exc:
            inode.failure = str(exc)
            raise ExaifsError(f"the staged copy cannot be read: {exc}") from exc
        finally:
            inode.uploading = False
        inode.failure = None
        staged.attempts = 0
        staged.uploads.unanswered = False
        self._contact.succeeded()
        if staged.ever_kept or staged.predecessor is not None:
            await self._keeper.note_sent(inode, staged)  # before the staged file goes elsewhere

    async def _send(self, inode: Inode, draft: Draft, there: ObjectRecord | None) -> ObjectRecord:
        with trio.CancelScope() as scope:
            self._sending.add(scope)
            try:
                return await self._uploads.send(inode, draft, there)
            finally:
                self._sending.discard(scope)
        raise Unreachable("no answer before the end")

    def stop_waiting(self) -> None:
        """Have what is being sent now fail as if Supabase were away: the end has come."""
        for scope in self._sending:
            scope.cancel()

    async def _keep_overtaken(self, inode: Inode, draft: Draft, record: ObjectRecord) -> None:
        """Keep a copy of bytes that another host, not seeing them, replaced before the answer came."""
        if record.sha256 != draft.upload.sha256:
            why = "another host wrote the file at the same time; its file stands"
            await self._conflicts.keep_copy(draft.staged, inode.entry.key, why, record)

    def _take_on(self, inode: Inode, draft: Draft, record: ObjectRecord) -> None:
        """The bucket has it: the inode keeps its number and shows the new version."""
        staged, upload = draft.staged, draft.upload
        entry = own_write(inode.entry, record)
        if record.sha256 != upload.sha256:
            # Another host has written since. The feed will tell; until then this inode has its own bytes.
            entry = replace(
                entry,
                version=f"replaced-{upload.write_id}",
                sha256=upload.sha256,
                etag="",
                size_bytes=staged.size_bytes,
                xattrs=inode.entry.xattrs,
            )
        entry = replace(entry, pending=False, posix=inode.entry.posix)
        # The kernel's pages and the handles stay, and so does what is known of them.
        self._contents.damage.rekey(inode.entry.ref, entry.ref)
        if staged.generation == draft.generation:
            staged.dirty = False
            self._keeper.forget(staged)
        if self._index.directory(entry.parent) is None:
            self._on_change(show_directory(self._index, entry.parent, at_ns=time.time_ns()))
        there = self._index.file(entry.parent, entry.component)
        inode.entry = entry
        self._table.store(inode)
        if there is not None and there.ino != inode.ino:
            self._on_change(Difference(removed=[there], added=[entry]))
        if entry.name != (name := plain_name(entry)):
            # Who took that from it may have left it to the file that was there in between.
            difference = Difference()
            difference.moved(reclaim(self._index, entry.parent, name))
            self._on_change(difference)
        _log.debug("published", path=path_of(entry.key), size_bytes=record.size_bytes, ino=inode.ino)

    async def settle(self, inode: Inode) -> None:
        """After the last close: a clean staged copy becomes cached content, a removed one goes."""
        staged = inode.staged
        if staged is None or inode.opens or (staged.dirty and not inode.unlinked):
            return
        inode.staged = None
        sha256 = inode.entry.sha256
        keep = not inode.unlinked and sha256 is not None and inode.entry.size_bytes == staged.size_bytes
        staged.close(keep_file=keep or staged.record_lingers)
        if keep and sha256 is not None and not staged.record_lingers:
            await self._contents.adopt(staged.path, sha256, staged.size_bytes)

    # -- what the sender does ----------------------------------------------------------------------

    async def finish(self, inode: Inode) -> None:
        """After the last close: send or keep what a memory map dirtied late, give the rest to the cache.

        Nothing is raised, as nobody would be told: what cannot be sent is kept and tried again.
        """
        async with inode.lock:
            if inode.opens:
                return
            try:
                if inode.failure is None:
                    await self.close(inode)
                await self.settle(inode)
            except ExaifsError as exc:
                _log.warning("will be sent later", path=path_of(inode.entry.key), reason=str(exc))
            await self.keep_unsent(inode)

    async def keep_unsent(self, inode: Inode) -> None:
        """Make what is dirty survive the end of this process, whether or not anybody was told it is safe.

        Nothing is raised: the bytes stay staged.
        """
        staged = inode.staged
        if staged is None or not inode.dirty:
            return
        try:
            if not staged.kept:
                await self._keeper.keep(inode, acknowledged=False)
        except ExaifsError as exc:
            _log.error(
                "unsent file would not survive a restart: the cache disk fails",
                path=path_of(inode.entry.key),
                reason=str(exc),
            )
        else:
            if inode.opens == 0:
                staged.rest()
        self._on_work(inode)

    async def send(self, inode: Inode) -> None:
        """Publish what was kept, unless another host's later close has won meanwhile. The lock is held.

        Raises:
            ExaifsError: it could not be done.
        """
        staged = inode.staged
        if staged is None or not inode.dirty:
            return
        record = None
        if staged.ever_kept:
            with self._index.view() as view:
                key = inode.entry.key
                record = (await self._remote.catalog.stat([key])).get(key)
                self._contact.succeeded()
                if record is not None and await self._is_foreign(inode, staged, record):
                    known = self._index.is_newer(key, view)
                    ours_is_later = (
                        staged.acknowledged and self._outbox.closed_ns(record) <= staged.closed_ns
                    )
                    if inode.opens and not (ours_is_later and self._policy.conflict != "refuse"):
                        staged.due_at = math.inf  # the last close is still to come, and decides
                        return
                    if not await self._contest.resolve(inode, record, ours_is_later=ours_is_later):
                        self._contest.show_theirs(record, known=known)
                        await self._outbox.sync()
                        return
        await self.publish(inode, record)
        await self.settle(inode)

    async def _is_foreign(self, inode: Inode, staged: Staged, record: ObjectRecord) -> bool:
        try:
            return await self._contest.is_foreign(inode, staged, record)
        except DamagedBytes:
            return False  # nothing of ours can win: `publish` finds it too, and sets it aside
