"""Brings staged bytes under their key with the least that does it: nothing, a copy there, or a PUT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from exaifs.cache.names.entries import Entry
from exaifs.cache.unsent.uploadmemory import FileUploadMemory
from exaifs.errors import NotFound
from exaifs.fs.core import Core
from exaifs.fs.sending.mime import SNIFF_BYTES, mime_type_of
from exaifs.fs.staged.staging import Staged
from exaifs.fs.tables.inodes import Inode
from exaifs.model import ObjectRecord
from exaifs.remote.bodies import FileBody
from exaifs.remote.interface import RowPatch, Upload

COPY_MIN_BYTES = 128 * 1024
"""Below this an upload costs less than the three requests of a server-side copy."""

MAX_HEADER_XATTR_BYTES = 4096
"""The server refuses headers over about 16 KB; larger attributes follow in a call of their own."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What is about to be published."""

    staged: Staged
    generation: int
    upload: Upload


class Uploader:
    """Uploads of one mount. Whoever calls holds the inode's lock and its key's claim.

    Args:
        core: the bucket, and the index that knows what content it has.
        check_size: refuses what the bucket would refuse.
    """

    def __init__(self, core: Core, check_size: Callable[[Inode, int], None]) -> None:
        self._remote = core.remote
        self._index = core.index
        self._outbox = core.changes.outbox
        self._check_size = check_size

    async def draft(self, inode: Inode, staged: Staged) -> Draft:
        """Say what is to be sent: digest, type, attributes.

        Raises:
            DamagedBytes: they are not what was kept.
        """
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
        return Draft(staged, generation, upload)

    async def send(self, inode: Inode, draft: Draft, there: ObjectRecord | None) -> ObjectRecord:
        """Do the least that puts these bytes under this key, and return the record.

        Args:
            inode: whose key.
            draft: of its bytes.
            there: what was found in the bucket a moment ago, if somebody looked.
        """
        if (
            there is not None
            and there.write_id == draft.upload.write_id
            and there.sha256 == draft.upload.sha256
        ):
            # Sent by an attempt whose answer was lost, or just before a crash.
            return await self._with_attributes(inode, there)
        record = await self._unchanged(inode, draft)
        if record is None:
            record = await self._copied(inode, draft)
        if record is None:
            record = await self._uploaded(inode, draft)
        return record

    async def _unchanged(self, inode: Inode, draft: Draft) -> ObjectRecord | None:
        """Rewriting what is already there costs a row, no bytes."""
        entry = inode.entry
        if entry.pending or entry.sha256 != draft.upload.sha256:
            return None
        try:
            record = await self._remote.catalog.patch(entry.key, RowPatch(posix=draft.upload.posix))
        except NotFound:
            return None
        same = record.sha256 == draft.upload.sha256 and record.size_bytes == draft.staged.size_bytes
        return await self._with_attributes(inode, record) if same else None

    async def _with_attributes(self, inode: Inode, record: ObjectRecord) -> ObjectRecord:
        """Give a row this file's extended attributes: it may be that of a file it was renamed over."""
        xattrs = inode.entry.xattrs
        if dict(record.xattrs) == dict(xattrs):
            return record
        dropped = [name for name in record.xattrs if name not in xattrs]
        return await self._remote.catalog.patch(
            record.key, RowPatch(set_xattrs=xattrs, drop_xattrs=dropped)
        )

    async def _copied(self, inode: Inode, draft: Draft) -> ObjectRecord | None:
        """Content that the bucket has under another key is copied there, not sent."""
        upload, key = draft.upload, inode.entry.key
        if draft.staged.size_bytes < COPY_MIN_BYTES:
            return None
        source = self._index.by_sha256(upload.sha256, upload.mime_type)
        if source is None or source.key == key or self._outbox.overlaps(source.key):
            return None
        catalog = self._remote.catalog
        draft.staged.note_sending(upload.sha256)
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

    async def _uploaded(self, inode: Inode, draft: Draft) -> ObjectRecord:
        entry, upload, staged = inode.entry, draft.upload, draft.staged
        self._check_size(inode, staged.size_bytes)
        staged.note_sending(upload.sha256)
        body, memory = FileBody(staged.fd, staged.size_bytes), FileUploadMemory(staged.memory_path)
        await self._remote.objects.put(entry.key, body, upload, memory=memory)
        catalog = self._remote.catalog
        record = await catalog.commit(entry.key, upload, local_cache_path=_cache_path(upload.sha256))
        if entry.xattrs and not upload.xattrs:
            record = await catalog.patch(entry.key, RowPatch(set_xattrs=entry.xattrs))
        return record


def _small(entry: Entry) -> bool:
    return sum(len(name) + len(value) for name, value in entry.xattrs.items()) <= MAX_HEADER_XATTR_BYTES


def _cache_path(sha256: str) -> str:
    return f"content/{sha256[:2]}/{sha256}"
