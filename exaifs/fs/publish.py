"""Sends staged files to Supabase: hash, compare, copy or upload, then take on the new version.

`publish` is what close(2) waits for, with the inode's lock held: writers of that file wait until its
bytes are sent, nobody else does. What could not be sent stays staged and dirty; `run` tries again in the
background, `drain` before the end.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog
import trio

from exaifs.cache.entries import Entry, own_write
from exaifs.cache.merge import Difference, merge_changes
from exaifs.errors import ExaifsError, FileTooLarge, NameTooLong, NotFound, Rejected, RemoteError
from exaifs.fs.core import Core
from exaifs.fs.inodes import Inode
from exaifs.fs.leftovers import describe, forget, set_aside
from exaifs.fs.mime import SNIFF_BYTES, mime_type_of
from exaifs.fs.staging import Staged
from exaifs.model import ObjectRecord
from exaifs.names import path_of
from exaifs.remote.bodies import FileBody
from exaifs.remote.interface import Change, RowPatch, Upload

_log = structlog.get_logger(__name__)

COPY_MIN_BYTES = 128 * 1024
"""Below this an upload costs less than the three requests of a server-side copy."""

MAX_HEADER_XATTR_BYTES = 4096
"""The server refuses headers over about 16 KB; larger attributes follow in a call of their own."""

_UPLOADS_AT_ONCE = 8
"""Uploads in the background and at the end; the server gains nothing from more (measured)."""

_FIRST_RETRY_S = 1.0
_MAX_RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class _Draft:
    """What is about to be published."""

    staged: Staged
    generation: int
    upload: Upload


class Publisher:
    """Publishes inodes of one mount.

    Args:
        core: the bucket, and the index and cache that take the new versions.
        size_limit_bytes: the bucket's limit, where it has one.
        on_change: told what names stand for other inodes now.
    """

    def __init__(
        self, core: Core, size_limit_bytes: int | None, on_change: Callable[[Difference], None]
    ) -> None:
        self._remote = core.remote
        self._index = core.index
        self._contents = core.contents
        self._table = core.table
        self._contact = core.contact
        self._claims = core.claims
        self.size_limit_bytes = size_limit_bytes
        self._on_change = on_change
        self._wake = trio.Event()

    def check_size(self, inode: Inode, size_bytes: int) -> None:
        """Refuse what the bucket would refuse, before it is written (promise 7).

        Raises:
            FileTooLarge: over the bucket's limit.
        """
        limit = self.size_limit_bytes
        if limit is not None and size_bytes > limit:
            _log.warning(
                "file too large for the bucket",
                path=path_of(inode.entry.key),
                size_bytes=size_bytes,
                limit_bytes=limit,
            )
            raise FileTooLarge(f"{size_bytes} bytes; the bucket takes {limit}")

    async def publish(self, inode: Inode) -> None:
        """Bring an inode's staged bytes into the bucket and its row; nothing to do when clean.

        Raises:
            ExaifsError: why it could not be done; the bytes stay staged.
        """
        staged = inode.staged
        if staged is None or not staged.dirty or inode.unlinked:
            return
        inode.uploading = True
        try:
            draft = await self._draft(inode, staged)
            async with self._claims.held(lambda: (inode.entry.key,)):
                if not inode.dirty:
                    return  # a name that stood for another file by now was removed; see `Remover.abandon`
                self._take_on(inode, draft, await self._send(inode, draft))
        except ExaifsError as exc:
            inode.failure = str(exc)
            staged.refused = isinstance(exc, FileTooLarge | NameTooLong | Rejected)
            if isinstance(exc, RemoteError) and exc.temporary:
                self._contact.failed(exc)
            self._wake.set()
            raise
        except OSError as exc:
            inode.failure = str(exc)
            self._wake.set()
            raise ExaifsError(f"the staged copy cannot be read: {exc}") from exc
        finally:
            inode.uploading = False
        inode.failure = None
        self._contact.succeeded()

    async def _draft(self, inode: Inode, staged: Staged) -> _Draft:
        entry = inode.entry
        generation = staged.generation
        sha256 = await staged.sha256()
        xattrs = entry.xattrs if _small(entry) else {}
        head = staged.read_at(0, SNIFF_BYTES)
        upload = Upload(
            sha256=sha256,
            mime_type=entry.mime_type if entry.kind == "symlink" else mime_type_of(entry.name, head),
            posix=replace(entry.posix, kind=entry.kind, mtime_ns=entry.mtime_ns),
            write_id=staged.write_id(),
            xattrs=xattrs,
            size_bytes=staged.size_bytes,
        )
        return _Draft(staged, generation, upload)

    async def _send(self, inode: Inode, draft: _Draft) -> ObjectRecord:
        """Do the least that puts these bytes under this key."""
        record = await self._unchanged(inode, draft)
        if record is None:
            record = await self._copied(inode, draft)
        if record is None:
            record = await self._uploaded(inode, draft)
        return record

    async def _unchanged(self, inode: Inode, draft: _Draft) -> ObjectRecord | None:
        """Rewriting what is already there costs a row, no bytes."""
        entry = inode.entry
        if entry.pending or entry.sha256 != draft.upload.sha256:
            return None
        try:
            record = await self._remote.catalog.patch(entry.key, RowPatch(posix=draft.upload.posix))
        except NotFound:
            return None
        same = record.sha256 == draft.upload.sha256 and record.size_bytes == draft.staged.size_bytes
        return record if same else None

    async def _copied(self, inode: Inode, draft: _Draft) -> ObjectRecord | None:
        """Content that the bucket has under another key is copied there, not sent."""
        upload, key = draft.upload, inode.entry.key
        if draft.staged.size_bytes < COPY_MIN_BYTES:
            return None
        source = self._index.by_sha256(upload.sha256, upload.mime_type)
        if source is None or source.key == key:
            return None
        catalog = self._remote.catalog
        try:
            await self._remote.objects.copy(source.key, key)
            if not await self._is_certain(source):
                return None
            record = await catalog.commit(key, upload, local_cache_path=_cache_path(upload.sha256))
            if record.sha256 != upload.sha256:
                return None
            # A copy carries the source's attributes; these are this file's.
            patch = RowPatch(
                posix=upload.posix,
                set_xattrs=inode.entry.xattrs,
                drop_xattrs=[name for name in record.xattrs if name not in inode.entry.xattrs],
            )
            return await catalog.patch(key, patch)
        except NotFound:
            return None

    async def _is_certain(self, source: Entry) -> bool:
        """Tell, after a copy, whether what was copied is what we think, by whoever wrote it."""
        record = (await self._remote.catalog.stat([source.key])).get(source.key)
        # Another host may have replaced it meanwhile. A hash without a write id was never compared.
        return record is not None and record.version == source.version and record.write_id is not None

    async def _uploaded(self, inode: Inode, draft: _Draft) -> ObjectRecord:
        entry, upload, staged = inode.entry, draft.upload, draft.staged
        self.check_size(inode, staged.size_bytes)
        await self._remote.objects.put(entry.key, FileBody(staged.fd, staged.size_bytes), upload)
        catalog = self._remote.catalog
        record = await catalog.commit(entry.key, upload, local_cache_path=_cache_path(upload.sha256))
        if entry.xattrs and not upload.xattrs:
            record = await catalog.patch(entry.key, RowPatch(set_xattrs=entry.xattrs))
        return record

    def _take_on(self, inode: Inode, draft: _Draft, record: ObjectRecord) -> None:
        """The bucket has it: the inode keeps its number and shows the new version."""
        staged, upload = draft.staged, draft.upload
        entry = own_write(inode.entry, record)
        if record.sha256 != upload.sha256:
            # Another host has written since. The feed will tell; until then this inode has its own bytes.
            _log.warning("another host wrote this file at the same time", path=path_of(entry.key))
            entry = replace(
                entry,
                version=f"replaced-{upload.write_id}",
                sha256=upload.sha256,
                etag="",
                size_bytes=staged.size_bytes,
                xattrs=inode.entry.xattrs,
            )
        entry = replace(entry, pending=False, posix=inode.entry.posix)
        if staged.generation == draft.generation:
            staged.dirty = False
            if staged.described:
                forget(staged)
                staged.described = False
        there = self._index.file(entry.parent, entry.component)
        inode.entry = entry
        self._table.store(inode)
        if there is not None and there.ino != inode.ino:
            self._on_change(Difference(removed=[there], added=[entry]))
        _log.debug("published", path=path_of(entry.key), size_bytes=record.size_bytes, ino=inode.ino)

    async def settle(self, inode: Inode) -> None:
        """After the last close: a clean staged copy becomes cached content, a removed one goes."""
        staged = inode.staged
        if staged is None or inode.opens or (staged.dirty and not inode.unlinked):
            return
        inode.staged = None
        sha256 = inode.entry.sha256
        keep = not inode.unlinked and sha256 is not None and inode.entry.size_bytes == staged.size_bytes
        staged.close(keep_file=keep)
        if keep and sha256 is not None:
            await self._contents.adopt(staged.path, sha256, staged.size_bytes)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Try again, for ever, what close could not send or what memory maps dirtied late."""
        task_status.started()
        delay_s = _FIRST_RETRY_S
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await trio.sleep(delay_s)
            left = await self.publish_all()
            delay_s = min(delay_s * 2, _MAX_RETRY_S) if left else _FIRST_RETRY_S

    async def finish(self, inode: Inode, *, wrote: bool) -> None:
        """After the last close: send what is still dirty, and give the rest to the cache.

        Nothing is raised, as nobody would be told: what cannot be sent is kept and tried again.

        Args:
            inode: whose last handle was closed.
            wrote: whether that could write, so that a memory map may have dirtied the file after close.
        """
        async with inode.lock:
            if inode.opens:
                return
            try:
                if wrote or inode.failure is None:
                    await self._publish_late(inode)
                await self.settle(inode)
            except ExaifsError as exc:
                _log.warning("will be sent later", path=path_of(inode.entry.key), reason=str(exc))
            if inode.dirty:
                self._wake.set()
                self._keep(inode)

    def _keep(self, inode: Inode) -> None:
        """Make unsent bytes survive the end of this process."""
        try:
            describe(inode)
        except OSError as exc:
            _log.error(
                "unsent file would not survive a restart: the cache disk fails",
                path=path_of(inode.entry.key),
                reason=str(exc),
            )

    def resume(self) -> None:
        """Have `run` send what an earlier run left, or a close could not send."""
        self._wake.set()

    async def publish_all(self, *, only_closed: bool = True) -> int:
        """Publish every dirty inode, several at a time; return how many could not be sent."""
        limiter = trio.CapacityLimiter(_UPLOADS_AT_ONCE)
        left = 0

        async def attempt(inode: Inode) -> None:
            nonlocal left
            async with limiter, inode.lock:
                try:
                    await self._publish_late(inode)
                    await self.settle(inode)
                except (ExaifsError, sqlite3.Error) as exc:
                    left += 1
                    _log.warning("not sent yet", path=path_of(inode.entry.key), reason=str(exc))
            self._table.release(inode)

        async with trio.open_nursery() as nursery:
            for inode in self._table:
                refused = inode.staged is not None and inode.staged.refused
                if inode.dirty and not (only_closed and (inode.opens or refused)):
                    nursery.start_soon(attempt, inode)
        return left

    async def _publish_late(self, inode: Inode) -> None:
        """Publish, unless this file's close has failed and another host's has succeeded since."""
        key, staged = inode.entry.key, inode.staged
        if staged is not None and staged.described and inode.dirty:
            with self._index.view() as view:
                record = (await self._remote.catalog.stat([key])).get(key)
                if record is not None and await self._is_superseded(inode, staged, record):
                    self._set_aside(inode, staged, record, known=self._index.is_newer(key, view))
        await self.publish(inode)

    async def _is_superseded(self, inode: Inode, staged: Staged, record: ObjectRecord) -> bool:
        base = None if inode.entry.pending else inode.entry
        if base is not None and base.same_content(record):
            return False
        if record.write_id in staged.write_ids:
            return False  # an upload of ours whose answer was lost
        if record.sha256 is None:
            # On a server that drops metadata this may be our own upload, cut off before its commit.
            return record.size_bytes != staged.size_bytes
        return record.sha256 != await staged.sha256()

    def _set_aside(self, inode: Inode, staged: Staged, record: ObjectRecord, *, known: bool) -> None:
        """Let the other host's file stand, which was acknowledged; ours was not, and is kept beside."""
        kept_as = set_aside(staged)
        _log.error(
            "another host wrote this file before it could be sent; its bytes are kept aside",
            path=path_of(inode.entry.key),
            kept_as=str(kept_as),
        )
        inode.staged = None
        inode.failure = None
        if inode.entry.pending:
            inode.unlinked = True
            self._index.remove(inode.entry)
        # The kernel must look the name up again, or it would go on with this inode.
        self._on_change(Difference(removed=[inode.entry]))
        if not known:
            with self._index.view() as view:
                change = Change(record.key, record)
                difference, _ = merge_changes(self._index, [change], view=view, at_ns=time.time_ns())
            self._on_change(difference)

    async def drain(self, deadline_s: float) -> int:
        """Publish what is dirty, open or not, for at most so long; return how many files are left."""
        with trio.move_on_after(deadline_s):
            await self.publish_all(only_closed=False)
        left = [inode for inode in self._table if inode.dirty]
        for inode in left:
            assert inode.staged is not None
            self._keep(inode)
            _log.error(
                "not sent before the end; kept for the next mount",
                path=path_of(inode.entry.key),
                kept_as=str(inode.staged.path),
            )
        return len(left)


def _small(entry: Entry) -> bool:
    return sum(len(name) + len(value) for name, value in entry.xattrs.items()) <= MAX_HEADER_XATTR_BYTES


def _cache_path(sha256: str) -> str:
    return f"content/{sha256[:2]}/{sha256}"
