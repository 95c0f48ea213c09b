"""What a contract test needs from a server, whichever it is: clients, other clients, and a clean place."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

import anyio

from exaifs.model import ObjectRecord, ObjectRef, Posix
from exaifs.remote.bodies import BytesBody
from exaifs.remote.interface import ChangePage, Remote, Upload

BadKey = Literal["wrong", "anon", "expired"]


class World(Protocol):
    """One server with a bucket of 50 MiB and one of 1,000 bytes; a test owns one prefix."""

    remote: Remote
    small: Remote
    prefix: str
    """Ends in a slash; nothing is below it when a test starts."""
    is_real: bool
    """Whether this is the real storage server's behaviour: ranges, atomic overwrites."""
    long_components: bool
    """Whether a key's component may pass 255 bytes (not where it becomes a file's name)."""
    resumes: bool
    """Whether a large upload can be taken up again."""

    def stranger(self, key: BadKey) -> AbstractAsyncContextManager[Remote]:
        """Open the bucket with a key that must be refused."""

    async def put_as_other(self, key: str, data: bytes, mime_type: str) -> None:
        """Upload as a client that knows nothing of exaifs."""

    async def fetch(self, url: str) -> bytes:
        """GET a URL without any key."""

    async def delete_conversation(self, continuation_id: str) -> None:
        """Delete the row of a conversation, as a program does."""


def upload_of(
    data: bytes,
    *,
    mime_type: str = "text/plain",
    posix: Posix | None = None,
    xattrs: Mapping[str, bytes] | None = None,
) -> Upload:
    """Return what is known of these bytes when they are sent."""
    return Upload(
        sha256=hashlib.sha256(data).hexdigest(),
        mime_type=mime_type,
        posix=Posix(mode=0o644, uid=1000, gid=1000, mtime_ns=1_700_000_000_123_456_789)
        if posix is None
        else posix,
        write_id=uuid.uuid4().hex,
        xattrs=xattrs or {},
        size_bytes=len(data),
    )


async def write(remote: Remote, key: str, data: bytes, upload: Upload | None = None) -> ObjectRecord:
    """Put and commit, as a close does."""
    upload = upload_of(data) if upload is None else upload
    await remote.objects.put(key, BytesBody(data), upload)
    return await remote.catalog.commit(key, upload)


async def read(remote: Remote, ref: ObjectRef, start: int = 0, stop: int | None = None) -> bytes:
    """Return [start, stop) of a version, cut out of whatever the server sends."""
    end = ref.size_bytes if stop is None else stop
    data = bytearray()
    async with remote.objects.get(ref, start, stop) as download:
        async for chunk in download.chunks():
            data += chunk
        return bytes(data[start - download.start : end - download.start])


async def find(remote: Remote, key: str) -> ObjectRecord | None:
    """Return the record of one key."""
    return (await remote.catalog.stat([key])).get(key)


async def all_changes(remote: Remote, cursor: str) -> tuple[dict[str, ObjectRecord | None], str]:
    """Follow the feed to its end; return the newest state of each key, and the cursor.

    A server may hold the newest entries back until older transactions have ended; callers poll.
    """
    newest: dict[str, ObjectRecord | None] = {}
    while True:
        page: ChangePage = await remote.catalog.changes(cursor)
        assert page.continuous
        newest.update((change.key, change.record) for change in page.changes)
        cursor = page.cursor
        if not page.more:
            return newest, cursor


async def cursor_now(remote: Remote) -> str:
    """Return where the feed stands: what happens from now on comes after it."""
    return (await remote.catalog.changes("")).cursor


async def changes_of(remote: Remote, cursor: str, keys: set[str]) -> dict[str, ObjectRecord | None]:
    """Return what the feed says of these keys, waiting until it has all of them."""
    found: dict[str, ObjectRecord | None] = {}
    with anyio.fail_after(60):
        while not keys <= found.keys():
            more, cursor = await all_changes(remote, cursor)
            found.update((key, record) for key, record in more.items() if key in keys)
            if not keys <= found.keys():
                await anyio.sleep(0.05)
    return found


class NotedMemory:
    """An `UploadMemory` that lives as long as the test."""

    def __init__(self, text: str | None = None) -> None:
        self.text = text

    def load(self) -> str | None:
        """Return the note."""
        return self.text

    def save(self, text: str) -> None:
        """Replace the note."""
        self.text = text

    def forget(self) -> None:
        """Remove the note."""
        self.text = None


class CountedBody:
    """Bytes that count how many of them were taken, and may stop coming.

    Args:
        data: all of it.
        stall_at: after so many bytes nothing more comes; None for all.
    """

    def __init__(self, data: bytes, stall_at: int | None = None) -> None:
        self.size_bytes = len(data)
        self.taken_bytes = 0
        self.stalled = anyio.Event()
        self._data = data
        self._stall_at = stall_at

    def chunks(self, start: int = 0) -> AsyncIterator[bytes]:
        """Start from there, in pieces of no particular size."""
        return _CountedChunks(self, start)

    async def take(self, position: int) -> bytes:
        """Return the piece at a position, and count it."""
        if self._stall_at is not None and position >= self._stall_at:
            self.stalled.set()
            await anyio.sleep_forever()
        chunk = self._data[position : position + 100_000]
        self.taken_bytes += len(chunk)
        return chunk


class _CountedChunks(AsyncIterator[bytes]):
    """As the bodies of exaifs: no generator, so that a server may answer before the last piece."""

    def __init__(self, body: CountedBody, start: int) -> None:
        self._body = body
        self._position = start

    async def __anext__(self) -> bytes:
        if self._position >= self._body.size_bytes:
            raise StopAsyncIteration
        chunk = await self._body.take(self._position)
        self._position += len(chunk)
        return chunk


class StallingBody:
    """A body whose second half never comes."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.stalled = anyio.Event()

    async def chunks(self, start: int = 0) -> AsyncIterator[bytes]:
        """Yield half, then wait for ever."""
        assert start == 0
        yield os.urandom(self.size_bytes // 2)
        self.stalled.set()
        await anyio.sleep_forever()
