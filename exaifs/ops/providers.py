"""What `exaifs provider` does: look at providers and ids, get, check and forget ids, delete what is unused.

Works on the bucket's rows, beside any number of mounts: the database decides between all of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio.to_thread

from exaifs import mountpoint
from exaifs.config import Config
from exaifs.errors import (
    ConfigError,
    InvalidArgument,
    MountError,
    NameTooLong,
    NotFound,
    RemoteError,
    TryAgain,
)
from exaifs.model import ObjectRecord
from exaifs.names import child_key
from exaifs.ops.status import mount_above
from exaifs.ops.sync import look
from exaifs.providers.errors import ProviderError, ProviderKeyMissing
from exaifs.providers.records import stored_id, to_time
from exaifs.providers.service import ProviderService
from exaifs.providers.settings import ProvidersConfig, ProviderSettings, load_providers
from exaifs.providers.source import BucketContents
from exaifs.remote.client import open_remote
from exaifs.remote.interface import ProviderUpload, Remote

_NO_SUCH_ID = "file-exaifs-asks-for-nothing"


def configured(config: Config) -> ProvidersConfig:
    """Return the providers that are turned on.

    Raises:
        ConfigError: none is, or their settings are wrong.
    """
    providers = load_providers(config.providers_file, config.providers)
    if providers is None:
        raise ConfigError(
            "no provider is turned on. Set EXAIFS_PROVIDERS=kimi,openai for built-in ones, or describe "
            "them in a TOML file and name it in EXAIFS_PROVIDERS_FILE."
        )
    return providers


def settings_of(providers: ProvidersConfig, name: str) -> ProviderSettings:
    """Return one provider's settings.

    Raises:
        ConfigError: it is not turned on.
    """
    settings = providers.provider.get(name)
    if settings is None:
        known = ", ".join(providers.provider)
        raise ConfigError(f"the provider {name!r} is not turned on; these are: {known}")
    return settings


def described(settings: ProviderSettings) -> dict[str, Any]:
    """Return what can be said about a provider without asking it; never the key."""
    try:
        account: str | None = settings.account_of(settings.key)
        problem = None
    except ProviderKeyMissing as exc:
        account, problem = settings.account, str(exc)
    return {
        "name": settings.name,
        "kind": settings.kind,
        "base_url": settings.base_url,
        "key": "set" if problem is None else "missing",
        "problem": problem,
        "account": account,
        "purpose": settings.purpose or None,
        "max_bytes": settings.max_bytes,
        "lifetime_s": settings.expires_after_s or settings.ttl_s,
        "upload": settings.upload,
    }


class ProviderOps:
    """The commands on one provider and one bucket. Opened by `open`."""

    def __init__(self, settings: ProviderSettings, service: ProviderService, remote: Remote) -> None:
        self._settings = settings
        self._service = service
        self._remote = remote
        self._adapter = service.adapter(settings.name)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, config: Config, providers: ProvidersConfig, name: str
    ) -> AsyncIterator[ProviderOps]:
        """Connect; nothing is sent yet.

        Raises:
            ConfigError: no such provider, or no project is named.
        """
        settings = settings_of(providers, name)
        async with open_remote(config) as remote:
            contents = BucketContents(remote.objects)
            async with ProviderService.open(providers.patient(), remote.catalog, contents) as service:
                yield cls(settings, service, remote)

    async def _file(self, path: str) -> ObjectRecord:
        """Find a file by its path in the bucket, by its key, or by where it is in a mount on this host.

        Raises:
            NotFound: there is no such file.
            TryAgain: the mount has newer bytes of it than the bucket.
            MountError: the mount cannot be asked whether it has.
        """
        record = await self._at(path)
        if record is None and (inside := await anyio.to_thread.run_sync(_sent, path, self._remote.bucket)):
            record = await self._at(inside)
        if record is None:
            raise NotFound(f"there is no file {path!r} in the bucket {self._remote.bucket!r}")
        return record

    async def _at(self, path: str) -> ObjectRecord | None:
        """Return the file at a path in the bucket, or under a key."""
        plain = path.strip("/")
        key = ""
        try:
            for part in [part for part in plain.split("/") if part]:
                key = child_key(f"{key}/" if key else "", part)
        except (InvalidArgument, NameTooLong):
            return None
        found = await self._remote.catalog.stat([key, plain])
        return found.get(key) or found.get(plain)

    async def file_id(self, path: str, *, refresh: bool) -> dict[str, Any]:
        """Get a file's id, uploading it if need be."""
        file = await self._file(path)
        stored, _ = await self._service.id_of(file, self._settings.name, refresh=refresh)
        return {
            "path": path,
            "provider": self._settings.name,
            "id": stored.id,
            "uri": stored.uri,
            "expires_at": to_time(stored.expires_at),
        }

    async def check_key(self) -> None:
        """Ask the provider for something, to see whether it takes the key.

        Raises:
            ProviderError: it does not, or it has no way to ask without uploading.
        """
        purpose = self._settings.purpose
        if await self._adapter.check(_NO_SUCH_ID, purpose) == "unknown":
            raise ProviderError(
                f"{self._settings.name}: only an upload would show whether it takes the key"
            )

    async def check(self, paths: Sequence[str]) -> list[dict[str, Any]]:
        """Ask the provider whether it still has the files' ids; nothing is changed.

        The state is alive, gone, unknown (it cannot be asked), or none (no id is stored).
        """
        answers = []
        for path in paths:
            file = await self._file(path)
            stored = stored_id(file.provider_file_ids.get(self._settings.name))
            state = "none"
            if stored is not None:
                purpose = stored.purpose or self._settings.purpose_of(file.mime_type)
                state = await self._adapter.check(stored.id, purpose)
            answers.append({"path": path, "id": None if stored is None else stored.id, "state": state})
        return answers

    async def forget(self, path: str) -> None:
        """Forget a file's id; the provider keeps its file until it is pruned.

        Raises:
            NoAttribute: it has none.
        """
        await self._service.forget(await self._file(path), self._settings.name)

    async def prune(self, *, older_s: int, dry_run: bool) -> Pruned:
        """Delete what was uploaded from here and is no file's any more.

        Raises:
            ProviderKeyMissing: whose files would that be?
        """
        account = self._settings.account_of(self._settings.key)
        name, catalog = self._settings.name, self._remote.catalog
        pruned = Pruned()
        while unused := await catalog.unused_provider_files(name, account, older_s):
            known = {upload.id for upload, _ in pruned.failed}
            todo = [upload for upload in unused if upload.id not in known]
            if dry_run:
                return replace(pruned, deleted=todo)
            if not todo:
                break
            for upload in todo:
                try:
                    await self._adapter.delete(upload.id)
                    await catalog.drop_provider_file(name, account, upload.id)
                    pruned.deleted.append(upload)
                except (ProviderError, RemoteError) as exc:
                    pruned.failed.append((upload, str(exc)))
        return pruned


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted at a provider, or would be."""

    deleted: list[ProviderUpload] = field(default_factory=list)
    failed: list[tuple[ProviderUpload, str]] = field(default_factory=list)
    """With the reason."""

    def to_json(self, *, dry_run: bool) -> dict[str, Any]:
        """Return the report."""
        return {
            "dry_run": dry_run,
            "deleted": [_shown(upload) for upload in self.deleted],
            "failed": [{**_shown(upload), "reason": reason} for upload, reason in self.failed],
        }


def _sent(path: str, bucket: str) -> str:
    """Return what a path of this host is called in a bucket that is mounted above it; '' if none is.

    Raises:
        TryAgain: an id of what the bucket has would not be of these bytes.
        MountError: the mount does not answer.
    """
    try:
        where, inside = mount_above(Path(path))
    except MountError:
        return ""
    mount = mountpoint.find(where)
    if not inside or mount is None or mount.source != f"exaifs:{bucket}":
        return ""
    left = look(where, inside)
    if left.waiting or left.failed or left.open:
        raise TryAgain(
            f"{path} is not sent as it is now: close it, and `exaifs sync {path}` waits until it is"
        )
    return inside


def _shown(upload: ProviderUpload) -> dict[str, Any]:
    return {
        "id": upload.id,
        "size_bytes": upload.size_bytes,
        "uploaded_at": upload.noted_at,
        "sha256": upload.sha256,
    }
