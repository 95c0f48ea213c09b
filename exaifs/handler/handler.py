"""`UnifiedFileHandler`: opens a `FileService` on the project that arguments or environment name."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from pydantic import SecretStr

from exaifs import logs
from exaifs.config import Config, load
from exaifs.errors import ConfigError, ExaifsError
from exaifs.handler.info import FileInfo, FilePage
from exaifs.handler.owned import Owned
from exaifs.handler.service import FileService
from exaifs.providers.settings import load_providers
from exaifs.remote.bodies import Progress
from exaifs.remote.client import remote_of
from exaifs.remote.files import SupabaseFiles
from exaifs.remote.session import open_session

T = TypeVar("T")

_ARGUMENTS = {
    "--supabase-url": "supabase_url",
    "--supabase-key": "supabase_key",
    "--cache-dir": "local_cache_dir",
    "--bucket": "bucket_name",
    "--memory-cache-bytes": "max_memory_cache_size",
}
"""How the settings' own messages name a value, and how it is named here."""


class UnifiedFileHandler:
    """The files of a Supabase Storage bucket, without a mount; under asyncio and trio.

        async with UnifiedFileHandler() as handler:
            file_id = await handler.upload_file("report.pdf", {"continuation_id": "c-42"})
            data, metadata = await handler.download_file(file_id)

    Instead of `async with`, `await open()` and `await aclose()` may be called, from any task; what nobody
    opens the first call opens, and what nobody closes ends with its event loop. All methods may be called
    concurrently, in that loop; another one that runs at the same time needs a handler of its own.

    Without SUPABASE_URL or a key, `is_enabled` is False, opening does nothing, and every other method
    raises `ConfigError`; only `exaifs.file_id_for` falls back to the local file.

    The cache directory may be that of a running mount, and of other handlers. The rule: everybody writes
    only what is his own. The mount has the directory's index and contents; each handler has a place of its
    own in it, `clients/N`, with contents and a database of its own, within the same limits. What the mount
    or another handler has complete is taken over by its SHA-256 as a hard link, once it was compared with
    that, so it takes no room twice and is not fetched again. Nobody ever evicts what another one owns:
    `cleanup_cache` removes this handler's contents, and what handlers left that have ended. A mount does
    not look into `clients/`.

    Args:
        supabase_url: the project; SUPABASE_URL.
        supabase_key: the service_role key; SUPABASE_SERVICE_ROLE_KEY, or its other names.
        local_cache_dir: FILE_CACHE_DIR.
        bucket_name: FILE_STORAGE_BUCKET.
        max_memory_cache_size: bytes; MAX_MEMORY_CACHE_SIZE.

    All other settings are those of `exaifs mount`, from the environment. What happens, such as a file that
    is sent to a provider, is told to the loggers `exaifs.*` of the standard library, or to structlog where
    the program has set that up.

    Raises:
        ConfigError: a value does not fit.
    """

    def __init__(
        self,
        supabase_url: str | None = None,
        supabase_key: str | None = None,
        local_cache_dir: str | Path | None = None,
        bucket_name: str | None = None,
        max_memory_cache_size: int | None = None,
    ) -> None:
        try:
            self._config: Config = load(
                supabase_url=supabase_url,
                supabase_key=None if supabase_key is None else SecretStr(supabase_key),
                cache_dir=None if local_cache_dir is None else Path(local_cache_dir),
                bucket=bucket_name,
                memory_cache_bytes=max_memory_cache_size,
            )
        except ConfigError as exc:
            flag, colon, problem = str(exc).partition(":")
            raise ConfigError(f"{_ARGUMENTS.get(flag, flag)}{colon}{problem}") from None
        self._owned: Owned[FileService] | None = None
        self._state: Literal["new", "open", "closed"] = "new"

    @property
    def is_enabled(self) -> bool:
        """Whether a project and a key are named.

        Raises:
            ConfigError: the file that should hold the key cannot be read.
        """
        return bool(self._config.supabase_url and self._config.key)

    async def open(self) -> Self:
        """Open connections and cache; nothing is asked of the server yet.

        Raises:
            ConfigError: a key that cannot be one, or a cache directory that cannot be used.
            ExaifsError: it is open already, or in another event loop.
        """
        if self._state == "open" and not self._is_over:
            raise ExaifsError("the handler is open already")
        if self._owned is not None:
            self._owned.check_loop()
        self._state = "open"
        if self.is_enabled:
            try:
                await self._ensure().open()
            except BaseException:
                await self.aclose()
                self._state = "new"
                raise
        return self

    @property
    def _is_over(self) -> bool:
        """Whether it ended with its event loop."""
        return self._owned is not None and self._owned.has_ended

    def _ensure(self) -> Owned[FileService]:
        """Return what is open, or is to be opened."""
        if self._owned is None or self._is_over:
            self._owned = Owned(self._serving())
        return self._owned

    @asynccontextmanager
    async def _serving(self) -> AsyncGenerator[FileService]:
        providers = load_providers(self._config.providers_file, self._config.providers)
        logs.setup_library((*logs.secrets_of(self._config), *(providers.secrets() if providers else ())))
        async with open_session(self._config) as session:
            bucket = self._config.bucket
            remote, files = remote_of(session, bucket), SupabaseFiles(session, bucket)
            async with FileService.open(self._config, remote, files) as service:
                yield service

    async def aclose(self) -> None:
        """Close it; complete contents stay cached. Closing again does nothing."""
        await self.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owned is not None:
            self._owned.check_loop()
        owned, self._owned, self._state = self._owned, None, "closed"
        if owned is not None:
            await owned.close()

    async def _call(self, work: Callable[[FileService], Awaitable[T]]) -> T:
        """Let the service do something; open it if nobody has.

        Raises:
            ConfigError: no project is configured.
            ExaifsError: the handler was closed, before or meanwhile.
        """
        if self._owned is None and not self.is_enabled:
            self._config.require_remote()
        if self._state == "closed":
            raise ExaifsError("the handler was closed: open() opens it again")
        owned = self._ensure()
        service = await owned.open()
        try:
            return await work(service)
        except Exception as exc:
            if self._owned is not owned:
                raise ExaifsError("the handler was closed before this was done") from exc
            raise

    # files

    async def upload_file(
        self,
        file_path: str | Path,
        metadata: Mapping[str, Any] | None = None,
        *,
        progress: Progress | None = None,
    ) -> str:
        """Bring a local file into the bucket, and return its file id.

        The bytes are in Supabase with their row when this returns. What is there already is not sent: the
        same bytes at the same path cost a look, large ones under another path are copied by the server.

        Args:
            file_path: the file; a copy of it is taken first, so it may change meanwhile.
            metadata: JSON values, merged into those of the row (None takes one away); not named `version`,
                `etag`, `write_id`, `posix` or `xattrs`, which are exaifs' own. Four have a meaning:
                `path` is where the file goes, as below a mountpoint (ending in a slash: into that
                directory), replacing what is there; `continuation_id` links it to that conversation, and
                without `path` puts it at uploads/{continuation_id}/{name}; `file_type` is user_upload (if
                not given), generated or cache. With neither of the first two, files of one name and other
                bytes are kept apart: files/{start of the SHA-256}/{name}, or generated/…, cache/….
                After `expires_at`, such as 2026-01-31T12:00:00Z, `exaifs gc` deletes the file. The metadata
                of a download may be given as they are, changed or not: they name the same file.
            progress: called with (bytes done, bytes in all), never with less than before, and at the end
                with both the same. What it raises ends the upload.

        Raises:
            OSError: the local file cannot be read.
            InvalidArgument, NameTooLong: metadata or a path that cannot be.
            IsADirectory, NotADirectory: it is no file; or a directory is at the path, or a file above it.
            FileTooLarge: over the bucket's limit.
            NoSpace: the cache disk has no room for the copy.
            ReadOnly: EXAIFS_READ_ONLY is set.
            RemoteError: Supabase did not take it, or the key.
            ConfigError: no project is configured.
        """
        return await self._call(lambda service: service.upload_file(Path(file_path), metadata, progress))

    async def download_file(self, file_id: str) -> tuple[bytes, dict[str, Any]]:
        """Return a file's bytes, from the cache where it has them, and what is known of it.

        The bytes are one version, whole, and compared with its SHA-256. The dictionary is
        `FileInfo.to_dict`: file_id, path, name, size_bytes, mime_type, sha256, created_at, updated_at,
        metadata, and the keys of the latter that are none of these.

        Raises:
            NotFound: no such file.
            Stale: it was replaced again and again while it was read.
            RemoteError: Supabase cannot be asked which version is the present one, also of a file that is
                cached; or the bytes are neither here nor to be had.
            ConfigError: no project is configured.
        """
        return await self._call(lambda service: service.download_file(file_id))

    async def download_to(
        self, file_id: str, path: str | Path, progress: Progress | None = None
    ) -> FileInfo:
        """Write a file's bytes to a local path, in pieces; the path changes at the end, at once, or never.

        Args:
            file_id: which.
            path: its directory exists; what is there is replaced.
            progress: called with (bytes done, bytes in all); it begins again if the file is replaced
                meanwhile, or arrived damaged.

        Raises:
            OSError: the path cannot be written.
            ExaifsError: as `download_file`.
        """
        return await self._call(lambda service: service.download_to(file_id, Path(path), progress))

    async def delete_file(self, file_id: str) -> None:
        """Delete a file, for every host.

        Raises:
            NotFound: no such file.
            ConfigError, RemoteError: as above.
        """
        await self._call(lambda service: service.delete_file(file_id))

    async def stat(self, file_id_or_path: str) -> FileInfo:
        """Return what is known of a file, by its id or by its path as below a mountpoint.

        Raises:
            NotFound: no such file.
            ConfigError, RemoteError: as above.
        """
        return await self._call(lambda service: service.stat(file_id_or_path))

    async def list_files(self, prefix: str = "", limit: int = 100, cursor: str | None = None) -> FilePage:
        """Return a page of the files whose path starts with a prefix, directories below included.

        Args:
            prefix: empty for all; "reports/" for a directory.
            limit: 1 to 1,000.
            cursor: `FilePage.cursor` of the page before.
        """
        return await self._call(lambda service: service.list_files(prefix, limit, cursor))

    async def search_files(self, query: str, limit: int = 100, cursor: str | None = None) -> FilePage:
        """Return a page of the files that a query finds, whatever the case of its letters.

        Every character stands for itself: `*`, `%` and `_` find names that have them.

        Args:
            query: a part of the name, or the start of the MIME type ("image/"), or the start of the SHA-256
                (4 digits or more).
            limit: 1 to 1,000.
            cursor: `FilePage.cursor` of the page before.
        """
        return await self._call(lambda service: service.search_files(query, limit, cursor))

    # conversations, providers, cache

    async def link_file_to_conversation(self, file_id: str, continuation_id: str) -> bool:
        """Make a file part of a conversation, whose row is made if missing; False: it was before.

        When a conversation is deleted, so are its files that no other one is linked to, by the mounts of
        the bucket. What is in uploads/{continuation_id}/ is part of that conversation while it is there.

        Raises:
            NotFound: no such file.
            ConfigError, RemoteError: as above.
        """
        return await self._call(lambda service: service.link_file_to_conversation(file_id, continuation_id))

    async def get_provider_file_id(self, file_id: str, provider: str) -> str:
        """Return a provider's own id for a file, such as "kimi"'s; the first time the file is sent there.

        Raises:
            ConfigError: that provider is not configured (EXAIFS_PROVIDERS), or no project.
            NotFound: no such file.
            providers.errors.ProviderError: why the provider gives none.
            RemoteError: as above.
        """
        return await self._call(lambda service: service.get_provider_file_id(file_id, provider))

    async def cleanup_cache(self, max_age_days: float = 30, max_size_mb: float = 1000) -> dict[str, int]:
        """Remove old contents from this handler's cache on disk, then the least recently used.

        Args:
            max_age_days: since the last use; from 0, and `math.inf` for any.
            max_size_mb: how much may stay, in MiB; the same.

        Returns:
            Counts: `expired` and `evicted` contents, `idle` ones of handlers that have ended, `freed_bytes`
            of this handler's, `kept` contents and `kept_bytes`.
        """
        return await self._call(lambda service: service.cleanup_cache(max_age_days, max_size_mb))
