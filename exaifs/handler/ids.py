"""File ids at LLM providers, for programs."""

from __future__ import annotations

from collections.abc import Mapping

from exaifs.cache.clients import ClientCache
from exaifs.errors import ConfigError, NoAttribute
from exaifs.model import ObjectRecord
from exaifs.providers.records import StoredId, stored_id
from exaifs.providers.service import ProviderService
from exaifs.providers.settings import ProviderSettings
from exaifs.remote.bodies import Progress


class FileIds:
    """The ids of a bucket's files at the providers that are turned on.

    Args:
        service: keeps the ids; None: no provider is turned on.
        cache: has the bytes to upload.
    """

    def __init__(self, service: ProviderService | None, cache: ClientCache) -> None:
        self._service = service
        self._cache = cache

    @property
    def providers(self) -> Mapping[str, ProviderSettings]:
        """The providers that are turned on, by name."""
        return {} if self._service is None else self._service.providers

    def check(self, provider: str) -> ProviderService:
        """Return the service, if a provider is turned on.

        Raises:
            ConfigError: it is not.
        """
        if self._service is None or provider not in self._service.providers:
            raise ConfigError(
                f"no provider {provider!r} is configured. Name it in EXAIFS_PROVIDERS, or describe it in "
                "EXAIFS_PROVIDERS_FILE."
            )
        return self._service

    async def get(
        self,
        file: ObjectRecord,
        provider: str,
        progress: Progress | None = None,
        *,
        refresh: bool = False,
    ) -> StoredId:
        """Return a provider's id for a file, uploading it there on first use.

        Args:
            file: as the row describes it now.
            provider: its name.
            progress: told of the bytes of an upload, whoever began it.
            refresh: ask the provider first whether it still has what is stored.

        Raises:
            ConfigError: that provider is not turned on.
            ProviderError, RemoteError: why there is no id.
        """
        service = self.check(provider)
        await self._cache.borrow(file.ref)
        stored, _ = await service.id_of(file, provider, refresh=refresh, progress=progress)
        return stored

    def stored(self, file: ObjectRecord) -> dict[str, StoredId]:
        """Return the ids of a file that are surely good, by provider; nobody is asked."""
        listed = {} if self._service is None else self._service.listed(file)
        found = {name: stored_id(file.provider_file_ids.get(name)) for name in listed}
        return {name: stored for name, stored in found.items() if stored is not None}

    async def forget(self, file: ObjectRecord, provider: str) -> bool:
        """Forget a provider's id for a file and all with the same content; False: there was none.

        Raises:
            ConfigError: that provider is not turned on.
        """
        try:
            await self.check(provider).forget(file, provider)
        except NoAttribute:
            return False
        return True
