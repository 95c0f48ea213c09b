"""The files of one bucket for programs: what `UnifiedFileHandler` does, over any remote.

Runs under asyncio and trio. Bytes come through the tiers of a cache of its own; what a mount on the same
directory has is taken over, see `cache.clients`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from exaifs.cache.clients import ClientCache
from exaifs.cache.data.blocks import MIB
from exaifs.cache.data.contents import CacheLimits
from exaifs.cache.localfile import Threads
from exaifs.config import Config
from exaifs.errors import (
    ExaifsError,
    IntegrityError,
    InvalidArgument,
    NotFound,
    ReadOnly,
    RemoteError,
    Stale,
)
from exaifs.handler.cleaning import DAY_S, clean
from exaifs.handler.destination import Wish, key_of, prefix_of, wish_of
from exaifs.handler.greeting import Greeting
from exaifs.handler.ids import FileIds
from exaifs.handler.info import FileInfo, FilePage, info_of, page_of
from exaifs.handler.partfile import PartFile
from exaifs.handler.place import check_place
from exaifs.handler.sending import Outcome, Sender, Sent, Staged, staged_bytes, staged_copy
from exaifs.handler.texts import checked
from exaifs.model import ObjectRef
from exaifs.names import check_name
from exaifs.providers.service import ProviderService
from exaifs.providers.settings import load_providers
from exaifs.providers.source import CachedContents
from exaifs.remote.bodies import Progress
from exaifs.remote.files import FileCatalog, FileRow, FileRows
from exaifs.remote.interface import Remote

_STEP_BYTES = MIB
_ATTEMPTS = 4
"""How often a file is looked at again that others keep replacing while it is read."""

_MAX_PAGE = 1000
_FILE_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class FileService:
    """See `UnifiedFileHandler`, whose methods say what these promise."""

    def __init__(
        self,
        remote: Remote,
        files: FileCatalog,
        cache: ClientCache,
        providers: ProviderService | None,
        *,
        read_only: bool,
    ) -> None:
        self._read_only = read_only
        self._remote = remote
        self._files = files
        self._cache = cache
        self.ids = FileIds(providers, cache)
        self._greeting = Greeting(remote.catalog)
        self._sender = Sender(remote, files, self._greeting)
        self._threads = Threads()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, config: Config, remote: Remote, files: FileCatalog, *, patient: bool = False
    ) -> AsyncGenerator[FileService]:
        """Open cache and providers; nothing is sent yet.

        Args:
            config: all settings.
            remote: the bucket.
            files: its rows.
            patient: whether who asks for a provider's id waits as long as an upload may take, instead of
                the providers' `deadline_s`.

        Raises:
            ConfigError: the cache directory cannot be used, or the providers' settings are wrong.
        """
        limits = CacheLimits(
            memory_bytes=config.memory_cache_bytes,
            disk_bytes=config.disk_cache_mb * MIB,
            max_age_s=config.cache_age_days * DAY_S,
        )
        settings = load_providers(config.providers_file, config.providers)
        await anyio.to_thread.run_sync(check_place, config.cache_dir)
        async with AsyncExitStack() as stack:
            cache = await stack.enter_async_context(
                ClientCache.open(config.cache_dir, remote.identity, remote.objects, limits)
            )
            providers = None
            if settings is not None:
                settings = settings.patient() if patient else settings
                providers = await stack.enter_async_context(
                    ProviderService.open(settings, remote.catalog, CachedContents(cache.contents))
                )
            yield cls(remote, files, cache, providers, read_only=config.read_only)

    # sending

    async def upload_file(
        self, file_path: Path, metadata: Mapping[str, Any] | None, progress: Progress | None
    ) -> str:
        """Bring a local file into the bucket; return its id."""
        self._check_writable()
        wish = wish_of(metadata)
        name = file_path.name
        check_name(name)
        async with staged_copy(file_path, self._cache.new_staged(), self._threads) as staged:
            key = wish.key(name, staged.sha256)
            sent = await self._sent(staged, key, progress, replace=True)
        return await self._noted(sent, key, wish)

    async def upload_bytes(
        self,
        data: bytes,
        metadata: Mapping[str, Any],
        mime_type: str | None,
        progress: Progress | None = None,
        *,
        replace: bool,
    ) -> tuple[FileRow, Outcome]:
        """Bring bytes into the bucket at the `path` of their metadata; return the file.

        Args:
            data: all of the file.
            metadata: as `upload_file` takes them; `path` names a file.
            mime_type: None: found out by bytes and name.
            progress: told what is sent.
            replace: whether other bytes at the path may be replaced.

        Raises:
            Exists: other bytes are there, and are not to be replaced.
            ExaifsError: as `upload_file`.
        """
        self._check_writable()
        wish = wish_of(metadata)
        path = wish.path or ""
        key = key_of(path)
        target = self._cache.new_staged()
        name = path.rpartition("/")[2]
        async with staged_bytes(data, name, mime_type, target, self._threads) as staged:
            sent = await self._sent(staged, key, progress, replace=replace)
        row = await self._files.by_id(await self._noted(sent, key, wish))
        if row is None:
            raise _gone(key)
        return row, sent.outcome

    async def _sent(self, staged: Staged, key: str, progress: Progress | None, *, replace: bool) -> Sent:
        sent = await self._sender.send(staged, key, progress or _tell_nobody, replace=replace)
        await self._cache.contents.adopt(staged.path, staged.sha256, staged.size_bytes)
        return sent

    async def _noted(self, sent: Sent, key: str, wish: Wish) -> str:
        """Write into the row what came with an upload; return the file's id."""
        record = sent.record
        fields = wish.given if sent.outcome == "unchanged" else wish.fields
        if fields or record.file_id is None:
            record = (await self._files.annotate(key, fields)).record
        if record.file_id is None:
            raise _gone(key)
        if wish.continuation_id is not None:
            await self._files.link(record.file_id, wish.continuation_id)
        return record.file_id

    async def delete_file(self, file_id: str) -> None:
        """Delete a file."""
        self._check_writable()
        await self._remote.objects.remove([(await self._row(file_id)).record.key])

    async def link_file_to_conversation(self, file_id: str, continuation_id: str) -> bool:
        """Make a file part of a conversation."""
        self._check_writable()
        if not continuation_id:
            raise InvalidArgument("a continuation id is needed")
        if not _is_file_id(file_id):
            raise await self._not_found(file_id)
        return await self._files.link(file_id, checked(continuation_id, "a continuation id"))

    def _check_writable(self) -> None:
        if self._read_only:
            raise ReadOnly("nothing may be changed while EXAIFS_READ_ONLY is set")

    # reading

    async def download_file(self, file_id: str) -> tuple[bytes, dict[str, Any]]:
        """Return a file's bytes and what is known of it."""
        data, row = await self.read_whole(file_id)
        return data, info_of(row).to_dict()

    async def read_whole(self, file_id: str) -> tuple[bytes, FileRow]:
        """Return all bytes of one version of a file, verified, and its row."""
        data = bytearray()
        row = await self._fetch(file_id, data.clear, data.extend, _tell_nobody)
        return bytes(data), row

    async def read_part(self, ref: ObjectRef, offset: int, size_bytes: int) -> bytes:
        """Return bytes [offset, offset + size_bytes) of one version; short only where it ends.

        Raises:
            Stale: this version is gone, and not in the cache.
            RemoteError: the bytes are neither here nor to be had.
        """
        contents = self._cache.contents
        contents.pin(ref)
        try:
            await self._cache.borrow(ref)
            return await contents.read(ref, offset, size_bytes)
        finally:
            contents.unpin(ref)

    async def download_to(self, file_id: str, path: Path, progress: Progress | None) -> FileInfo:
        """Write a file's bytes to a local path, which gets all of them or is not touched."""
        part = await self._threads.run(PartFile, path)
        try:
            row = await self._fetch(file_id, part.begin, part.write, progress or _tell_nobody)
            await self._threads.run(part.finish)
        finally:
            with anyio.CancelScope(shield=True):
                await self._threads.run(part.close)
        return info_of(row)

    async def _fetch(
        self,
        file_id: str,
        begin: Callable[[], object],
        take: Callable[[bytes], object],
        progress: Progress,
    ) -> FileRow:
        """Read one version of a file, whole and verified.

        Args:
            file_id: which.
            begin: called before the first byte, and when it begins again.
            take: gets the bytes, in a thread.
            progress: of the version that is read.
        """
        for left in reversed(range(_ATTEMPTS)):
            row = await self._row(file_id)
            try:
                await self._read(row.record.ref, begin, take, progress)
            except Stale:
                if not left:
                    raise
            else:
                return row
        raise AssertionError("the last attempt returns or raises")

    async def _read(
        self,
        ref: ObjectRef,
        begin: Callable[[], object],
        take: Callable[[bytes], object],
        progress: Progress,
    ) -> None:
        """Read one version, from the cache as far as possible, and compare it with its SHA-256."""
        contents = self._cache.contents
        contents.pin(ref)
        try:
            await self._cache.borrow(ref)
            for is_last in (False, True):
                begin()
                digest = await self._hand_over(ref, take, progress)
                known = contents.sha256_of(ref)
                if known in {None, digest}:
                    return
                problem = f"{ref.key}: its bytes are not those that its row describes"
                if is_last:
                    raise IntegrityError(problem)
                # Bytes are handed on as they arrive, and were wrong. The next come from a whole copy.
                try:
                    await contents.materialize(ref)
                except (RemoteError, Stale):
                    raise
                except ExaifsError as exc:
                    raise IntegrityError(problem) from exc
        finally:
            contents.unpin(ref)

    async def _hand_over(self, ref: ObjectRef, take: Callable[[bytes], object], progress: Progress) -> str:
        """Read from the first byte to the last; return the SHA-256 of what was read."""
        digest = hashlib.sha256()
        for offset in range(0, ref.size_bytes, _STEP_BYTES):
            data = await self._cache.contents.read(ref, offset, _STEP_BYTES)
            await self._threads.run(_take, data, digest.update, take)
            progress(offset + len(data), ref.size_bytes)
        if ref.size_bytes == 0:
            progress(0, 0)
        return digest.hexdigest()

    async def get_provider_file_id(self, file_id: str, provider: str) -> str:
        """Return a provider's id for a file, uploading it there on first use."""
        self.ids.check(provider)
        return (await self.ids.get((await self._row(file_id)).record, provider)).id

    # looking

    async def stat(self, file_id_or_path: str) -> FileInfo:
        """Return what is known of a file."""
        row = None
        if _is_file_id(file_id_or_path):
            row = await self._files.by_id(file_id_or_path)
        if row is None:
            row = await self._files.by_key(key_of(file_id_or_path))
        if row is None:
            raise await self._not_found(file_id_or_path)
        return info_of(row)

    async def at(self, path: str) -> FileRow | None:
        """Return the file at a path as below a mountpoint, or under a key that is no such path's."""
        key = key_of(path)
        row = await self._files.by_key(key)
        if row is None and path.isascii() and path.removeprefix("/") != key:
            row = await self._files.by_key(path.removeprefix("/"))
        return row

    async def list_files(self, prefix: str, limit: int, cursor: str | None) -> FilePage:
        """Return a page of the files whose path starts with a prefix."""
        after = checked(cursor or "", "a cursor")
        return await self._page(await self._files.list_files(prefix_of(prefix), after, _page_size(limit)))

    async def search_files(self, query: str, limit: int, cursor: str | None) -> FilePage:
        """Return a page of the files that a query finds."""
        text, after = checked(query, "a query"), checked(cursor or "", "a cursor")
        return await self._page(await self._files.search_files(text, after, _page_size(limit)))

    async def _page(self, rows: FileRows) -> FilePage:
        if not rows.files:
            await self._greeting.hello()
        return page_of(rows)

    async def cleanup_cache(self, max_age_days: float, max_size_mb: float) -> dict[str, int]:
        """Make the cache smaller; see `UnifiedFileHandler.cleanup_cache`."""
        return await clean(self._cache, max_age_days, max_size_mb)

    async def _row(self, file_id: str) -> FileRow:
        row = await self._files.by_id(file_id) if _is_file_id(file_id) else None
        if row is None:
            raise await self._not_found(file_id)
        return row

    async def _not_found(self, name: str) -> NotFound:
        """Return the error for a file that is absent.

        Raises:
            BucketMissing: everything is absent there.
        """
        await self._greeting.hello()
        return NotFound(f"no file {name!r} in the bucket {self._remote.bucket}")


def _is_file_id(text: object) -> bool:
    """Tell whether this can be an id; the database is asked for no other."""
    return isinstance(text, str) and _FILE_ID.fullmatch(text) is not None


def _page_size(limit: int) -> int:
    if type(limit) is not int or not 1 <= limit <= _MAX_PAGE:
        raise InvalidArgument(f"a page has 1 to {_MAX_PAGE} files")
    return limit


def _gone(key: str) -> NotFound:
    return NotFound(f"{key} was deleted as soon as it was there")


def _tell_nobody(_done_bytes: int, _total_bytes: int) -> None:
    """Progress that nobody asked for."""


def _take(data: bytes, update: Callable[[bytes], object], take: Callable[[bytes], object]) -> None:
    update(data)
    take(data)
