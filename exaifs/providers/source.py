"""Bytes to upload: through the cache of a mount, or straight from the bucket.

Iterators are plain objects that hold nothing open between two chunks, so an upload may end anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from exaifs.cache.data.contents import ContentStore
from exaifs.cache.data.damage import Damage
from exaifs.errors import IntegrityError
from exaifs.model import ObjectRef
from exaifs.remote.interface import Body, ObjectStore

_CHUNK_BYTES = 256 * 1024
_RANGE_BYTES = 4 * 1024 * 1024

Read = Callable[[ObjectRef, int, int], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class _RefBody:
    ref: ObjectRef
    read: Read
    step_bytes: int
    damage: Damage = field(default_factory=Damage)

    @property
    def size_bytes(self) -> int:
        """Exact size."""
        return self.ref.size_bytes

    def chunks(self) -> AsyncIterator[bytes]:
        """Start from the first byte."""
        return _Chunks(self)


class _Chunks(AsyncIterator[bytes]):
    def __init__(self, body: _RefBody) -> None:
        self._body = body
        self._offset = 0
        self._moment = body.damage.found

    async def __anext__(self) -> bytes:
        left = self._body.size_bytes - self._offset
        if left == 0:
            raise StopAsyncIteration
        wanted = min(left, self._body.step_bytes)
        data = await self._body.read(self._body.ref, self._offset, wanted)
        if len(data) != wanted:
            raise IntegrityError(f"{self._body.ref.key!r} ended early")
        if self._body.damage.since(self._body.ref, self._moment):
            raise IntegrityError(f"{self._body.ref.key!r} came damaged, and was sent in part")
        self._offset += wanted
        return data


class CachedContents:
    """`interface.Contents` from a mount's content store: what is cached is not fetched again."""

    def __init__(self, contents: ContentStore) -> None:
        self._contents = contents

    async def sha256(self, ref: ObjectRef) -> str:
        """See `interface.Contents`."""
        known = self._contents.sha256_of(ref)
        if known is None:
            self._contents.pin(ref)
            try:
                await self._contents.materialize(ref)
                known = self._contents.sha256_of(ref)
            finally:
                self._contents.unpin(ref)
        assert known is not None, "a complete content was hashed"
        return known

    def body(self, ref: ObjectRef) -> Body:
        """See `interface.Contents`."""
        return _RefBody(ref, self._contents.read, _CHUNK_BYTES, self._contents.damage)


class BucketContents:
    """`interface.Contents` without a cache, for commands that run beside a mount."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    async def sha256(self, ref: ObjectRef) -> str:
        """See `interface.Contents`."""
        digest = hashlib.sha256()
        async for chunk in self.body(ref).chunks():
            digest.update(chunk)
        return digest.hexdigest()

    def body(self, ref: ObjectRef) -> Body:
        """See `interface.Contents`."""
        return _RefBody(ref, self._read, _RANGE_BYTES)

    async def _read(self, ref: ObjectRef, offset: int, size_bytes: int) -> bytes:
        data = bytearray()
        async with self._objects.get(ref, offset, offset + size_bytes) as download:
            async for chunk in download.chunks():
                data += chunk
                if download.start + len(data) >= offset + size_bytes:
                    break
            skipped = offset - download.start
            return bytes(data[skipped : skipped + size_bytes])
