"""Uploads: a private copy of the file, and the least that puts its bytes under a key.

The copy is what is hashed and sent, so nobody can change the file between the two; afterwards it becomes
cached content. Uploads to one key go one after the other, and so do those of one large content, so that the
later ones find what the first has sent.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import anyio

from exaifs.cache.localfile import (
    Threads,
    copy_contents,
    create,
    is_out_of_space,
    read_at,
    sha256_of_file,
    unlink_quietly,
    write_at,
)
from exaifs.errors import (
    Exists,
    FileTooLarge,
    IsADirectory,
    NoSpace,
    NotADirectory,
    NotFound,
    NotPermitted,
)
from exaifs.fs.sending.mime import SNIFF_BYTES, mime_type_of
from exaifs.handler.greeting import Greeting
from exaifs.model import ObjectRecord, Posix
from exaifs.names import path_of
from exaifs.remote.bodies import FileBody, Progress, ReportingSeekableBody
from exaifs.remote.files import FileCatalog
from exaifs.remote.interface import Remote, RowPatch, Upload
from exaifs.turns import Turns

COPY_MIN_BYTES = 128 * 1024
"""Below this an upload costs less than the requests of a server-side copy."""

_PERMISSIONS = 0o777
_BYTES_MODE = 0o644
"""Of a file that was no file before."""

Outcome = Literal["created", "replaced", "unchanged"]
"""`unchanged`: the same bytes were there already, and were not sent."""


@dataclass(frozen=True, slots=True)
class Staged:
    """A private copy of a local file, open for reading."""

    path: Path
    fd: int
    size_bytes: int
    sha256: str
    upload: Upload
    names_type: bool = False
    """Whether the caller named the MIME type: then the same bytes with another type are sent again."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of an upload."""

    record: ObjectRecord
    outcome: Outcome


@asynccontextmanager
async def staged_copy(source: Path, target: Path, threads: Threads) -> AsyncGenerator[Staged]:
    """Copy a local file; what is left of the copy afterwards is removed.

    Raises:
        OSError: the file cannot be read, as open(2) says.
        IsADirectory, NotPermitted: it is no regular file.
        NoSpace: the cache disk has no room for the copy.
    """
    async with _staged(target, threads, partial(_stage, source, target)) as staged:
        yield staged


@asynccontextmanager
async def staged_bytes(
    data: bytes, name: str, mime_type: str | None, target: Path, threads: Threads
) -> AsyncGenerator[Staged]:
    """Write bytes where they can be sent from; what is left of them afterwards is removed.

    Args:
        data: all of the file.
        name: of the file; with the bytes it tells the MIME type.
        mime_type: the caller's own; None: found out.
        target: in the cache's staging directory.
        threads: for the disk.

    Raises:
        NoSpace: the cache disk has no room.
    """
    async with _staged(target, threads, partial(_stage_bytes, data, name, mime_type, target)) as staged:
        yield staged


@asynccontextmanager
async def _staged(target: Path, threads: Threads, stage: Callable[[], Staged]) -> AsyncGenerator[Staged]:
    staged: Staged | None = None
    try:
        staged = await threads.run(stage)
        yield staged
    finally:
        if staged is not None:
            os.close(staged.fd)
        with anyio.CancelScope(shield=True):
            await threads.run(unlink_quietly, target)


def _stage(source: Path, target: Path) -> Staged:
    status = source.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectory(f"{source} is a directory; upload its files one by one")
    if not stat.S_ISREG(status.st_mode):
        raise NotPermitted(f"{source} is no regular file")
    posix = Posix(mode=status.st_mode & _PERMISSIONS, mtime_ns=status.st_mtime_ns)
    with _filled(target, partial(copy_contents, source)) as fd:
        return _described(target, fd, source.name, None, posix)


def _stage_bytes(data: bytes, name: str, mime_type: str | None, target: Path) -> Staged:
    posix = Posix(mode=_BYTES_MODE, mtime_ns=time.time_ns())
    with _filled(target, lambda fd: write_at(fd, 0, data)) as fd:
        return _described(target, fd, name, mime_type, posix)


@contextmanager
def _filled(target: Path, fill: Callable[[int], object]) -> Iterator[int]:
    """Make a file and fill it; it stays open unless something goes wrong."""
    fd = create(target)
    try:
        fill(fd)
        yield fd
    except OSError as exc:
        os.close(fd)
        if is_out_of_space(exc):
            raise NoSpace("no room on the cache disk for the copy that is sent") from exc
        raise


def _described(target: Path, fd: int, name: str, mime_type: str | None, posix: Posix) -> Staged:
    size_bytes = os.fstat(fd).st_size
    sha256 = sha256_of_file(fd, size_bytes)
    upload = Upload(
        sha256=sha256,
        mime_type=mime_type or mime_type_of(name, read_at(fd, 0, SNIFF_BYTES)),
        posix=posix,
        write_id=secrets.token_hex(16),
        size_bytes=size_bytes,
    )
    return Staged(target, fd, size_bytes, sha256, upload, names_type=mime_type is not None)


def _is_stored(staged: Staged, record: ObjectRecord) -> bool:
    """Tell whether a record is of these bytes, and of the type that the caller named."""
    same = (record.sha256, record.size_bytes) == (staged.sha256, staged.size_bytes)
    return same and (not staged.names_type or record.mime_type == staged.upload.mime_type)


class Sender:
    """Brings staged files into the bucket.

    Args:
        remote: the bucket.
        files: finds content.
        greeting: knows the bucket's limit.
    """

    def __init__(self, remote: Remote, files: FileCatalog, greeting: Greeting) -> None:
        self._remote = remote
        self._files = files
        self._greeting = greeting
        self._turns = Turns()

    async def send(self, staged: Staged, key: str, progress: Progress, *, replace: bool = True) -> Sent:
        """Put these bytes under a key; tell whether they were not there before.

        Args:
            staged: the bytes.
            key: where.
            progress: told what is sent.
            replace: whether other bytes that are there may be replaced. Checked right before the upload;
                between two hosts it is best effort, because the store has no call that does both.

        Raises:
            Exists: other bytes are there.
            IsADirectory, NotADirectory: the file would hide others, or be hidden by one.
            FileTooLarge: over the bucket's limit.
            RemoteError: why it could not be done.
        """
        large = staged.size_bytes >= COPY_MIN_BYTES
        # Always in this order, so that nobody waits in a circle.
        async with (
            self._turns.taken(f"content {staged.sha256}") if large else nullcontext(),
            self._turns.taken(f"key {key}"),
        ):
            record = await self._look(key)
            if record is not None and _is_stored(staged, record):
                sent = Sent(record, "unchanged")
            elif record is not None and not replace:
                raise Exists(f"{key} is there, with other bytes")
            else:
                outcome: Outcome = "created" if record is None else "replaced"
                copied = await self._copied(staged, key) if large else None
                sent = Sent(copied or await self._uploaded(staged, key, progress), outcome)
        progress(staged.size_bytes, staged.size_bytes)
        return sent

    async def _look(self, key: str) -> ObjectRecord | None:
        """Return what is under a key.

        The store keeps a file beside a directory of its name, but no path shows both.

        Raises:
            NotADirectory: one of its directories is a file.
            IsADirectory: files are below it.
        """
        parts = key.split("/")
        parents = ["/".join(parts[:count]) for count in range(1, len(parts))]
        found = await self._remote.catalog.stat([key, *parents])
        if key in found:
            return found[key]
        for parent in parents:
            if parent in found:
                raise NotADirectory(
                    f"{path_of(parent)!r} is a file, so nothing can be below it: choose another directory"
                )
        below, _ = await self._remote.catalog.list_tree(f"{key}/", limit=1)
        if below:
            path = path_of(key)
            raise IsADirectory(f"{path!r} is a directory: name a file in it, such as {path + '/NAME'!r}")
        return None

    async def _copied(self, staged: Staged, key: str) -> ObjectRecord | None:
        """Content that the bucket has under another key is copied there, not sent."""
        upload, catalog = staged.upload, self._remote.catalog
        for source in await self._files.find_content(upload.sha256, upload.mime_type):
            if source.key == key or (source.sha256, source.size_bytes) != (
                upload.sha256,
                staged.size_bytes,
            ):
                continue
            try:
                await self._remote.objects.copy(source.key, key)
                # Somebody may have replaced the source just before it was copied.
                after = (await catalog.stat([source.key])).get(source.key)
                if after is None or after.version != source.version:
                    continue
                record = await catalog.commit(key, upload)
                if record.sha256 != upload.sha256:
                    continue
                # A copy carries the source's attributes; these are this file's.
                patch = RowPatch(posix=upload.posix, drop_xattrs=list(record.xattrs))
                return await catalog.patch(key, patch)
            except NotFound:
                continue
        return None

    async def _uploaded(self, staged: Staged, key: str, progress: Progress) -> ObjectRecord:
        limit = (await self._greeting.hello()).size_limit_bytes
        if limit is not None and staged.size_bytes > limit:
            raise FileTooLarge(f"{staged.size_bytes} bytes; the bucket takes {limit}")
        body = ReportingSeekableBody(FileBody(staged.fd, staged.size_bytes), progress)
        await self._remote.objects.put(key, body, staged.upload)
        return await self._remote.catalog.commit(key, staged.upload)
