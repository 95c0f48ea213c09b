"""`user.exai.provider.NAME` and `user.exai.url`: the attributes that may ask somebody outside.

Listing never asks; reading a provider's name may upload the file there. Who does that is given from outside
(`ProviderIds`), so that nothing here knows providers or HTTP.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Protocol

from exaifs.cache.data.contents import ContentStore
from exaifs.errors import NoAttribute, NotSupported, Stale, TryAgain
from exaifs.fs.core import Core
from exaifs.fs.tables.inodes import Inode
from exaifs.model import Ino, ObjectRecord
from exaifs.remote.interface import Remote

PREFIX = "user.exai.provider."
URL = "user.exai.url"

_REMEMBERED_URLS = 256


class ProviderIds(Protocol):
    """File ids at providers; attributes are named as below `PREFIX`."""

    def listed(self, file: ObjectRecord) -> Mapping[str, bytes]:
        """Return what can be read without any request."""

    async def value(
        self, file: ObjectRecord, attribute: str, *, is_owner: bool
    ) -> tuple[bytes, ObjectRecord | None]:
        """Return a value, and the file's record if it was changed for that.

        Raises:
            NoAttribute: there is none.
            ExaifsError: with the errno of the reason.
        """

    async def register(self, file: ObjectRecord, attribute: str, value: bytes) -> ObjectRecord | None:
        """Store an id that was made elsewhere."""

    async def forget(self, file: ObjectRecord, attribute: str) -> ObjectRecord | None:
        """Forget an id."""


OpenProviderIds = Callable[[Remote, ContentStore], AbstractAsyncContextManager[ProviderIds]]
"""Opens them over a mount's rows and contents."""


class OutsideAttributes:
    """The attributes of one mount that may ask somebody outside.

    Args:
        core: rows and inodes.
        ids: file ids at providers; None: no provider is configured.
        owners: users whose reads may send files away.
        url_lifetime_s: of a signed URL.
    """

    def __init__(
        self, core: Core, ids: ProviderIds | None, *, owners: frozenset[int], url_lifetime_s: int
    ) -> None:
        self._core = core
        self._ids = ids
        self._owners = owners
        self._url_lifetime_s = url_lifetime_s
        self._urls: OrderedDict[tuple[str, str], tuple[float, bytes]] = OrderedDict()
        """By key and version: when it was made (monotonic seconds), and the URL."""

    @staticmethod
    def has(name: str) -> bool:
        """Tell whether an attribute is one of these."""
        return name == URL or name.startswith(PREFIX)

    def listed(self, inode: Inode) -> dict[str, bytes]:
        """Return what listxattr names: stored ids that are good; never the URL, which is a secret."""
        entry = inode.entry
        if self._ids is None or not entry.provider_file_ids or not _is_sent_file(inode):
            return {}
        return {f"{PREFIX}{name}": value for name, value in self._ids.listed(_record(inode)).items()}

    async def get(self, ino: Ino, name: str, uid: int | None) -> bytes:
        """Return a value.

        Args:
            ino: whose.
            name: one for which `has` holds.
            uid: who asks; None: the daemon itself.

        Raises:
            NoAttribute: there is none.
            TryAgain: the file has unsent changes.
            ExaifsError: why there is no id.
        """
        inode = self._core.table.peek(ino)
        if inode.entry.kind != "file" or inode.unlinked or (name != URL and self._ids is None):
            raise NoAttribute(f"no attribute {name!r}")
        if not _is_sent_file(inode):
            raise TryAgain("the file has unsent changes; it has no id and no URL until it is closed")
        if name == URL:
            return await self._url(inode)
        assert self._ids is not None
        is_owner = uid is None or uid in self._owners
        value, record = await self._ids.value(_record(inode), name.removeprefix(PREFIX), is_owner=is_owner)
        self._take(ino, record)
        return value

    async def set(self, ino: Ino, name: str, value: bytes) -> None:
        """Store an id that was made elsewhere.

        Raises:
            NotSupported: not one that can be set, or not now: a file that is being written has no id.
            InvalidArgument: not an id, or one of other bytes.
        """
        inode = self._core.table.peek(ino)
        if self._ids is None or name == URL or inode.entry.kind != "file" or not _is_sent_file(inode):
            raise NotSupported(f"{name} cannot be set")
        self._take(ino, await self._ids.register(_record(inode), name.removeprefix(PREFIX), value))

    async def remove(self, ino: Ino, name: str) -> None:
        """Forget an id.

        Raises:
            NoAttribute: there is none.
            NotSupported: not one that can be removed.
        """
        inode = self._core.table.peek(ino)
        if name == URL:
            raise NotSupported(f"{name} cannot be removed")
        if self._ids is None or inode.entry.kind != "file" or not _is_sent_file(inode):
            raise NoAttribute(f"no attribute {name!r}")
        self._take(ino, await self._ids.forget(_record(inode), name.removeprefix(PREFIX)))

    def _take(self, ino: Ino, record: ObjectRecord | None) -> None:
        """Take on a record, if it describes the file as it is now; else the feed brings what is true."""
        if record is None:
            return
        try:
            inode = self._core.table.peek(ino)
        except Stale:
            return
        entry = inode.entry
        if (entry.key, entry.version) == (record.key, record.version) and _is_sent_file(inode):
            ids, sha256 = record.provider_file_ids, record.sha256 or entry.sha256
            self._core.table.put(replace(entry, provider_file_ids=ids, sha256=sha256))

    async def _url(self, inode: Inode) -> bytes:
        """Return a signed URL; the same for a while, because callers ask for its size first."""
        key = (inode.entry.key, inode.entry.version)
        now = time.monotonic()
        made_at, url = self._urls.get(key, (0.0, b""))
        if not url or now - made_at > self._url_lifetime_s / 10:
            signed = await self._core.remote.objects.signed_url(inode.entry.key, self._url_lifetime_s)
            url = signed.encode()
            self._urls[key] = (now, url)
            self._urls.move_to_end(key)
            if len(self._urls) > _REMEMBERED_URLS:
                self._urls.popitem(last=False)
        return url


def _is_sent_file(inode: Inode) -> bool:
    """Tell whether the bucket has the file's bytes."""
    return not (inode.dirty or inode.entry.pending or inode.unlinked or inode.entry.kind != "file")


def _record(inode: Inode) -> ObjectRecord:
    entry = inode.entry
    return ObjectRecord(
        key=entry.key,
        version=entry.version,
        size_bytes=entry.size_bytes,
        mime_type=entry.mime_type,
        etag=entry.etag,
        sha256=entry.sha256,
        provider_file_ids=entry.provider_file_ids,
    )
