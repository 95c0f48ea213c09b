"""Settings that point at emulated providers, and services that use them, each like one host."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from exaifs.model import ObjectRecord
from exaifs.providers.adapters import adapter_of
from exaifs.providers.http import open_http
from exaifs.providers.interface import ProviderFiles
from exaifs.providers.service import ProviderService
from exaifs.providers.settings import ProvidersConfig, load_providers
from exaifs.providers.source import BucketContents
from exaifs.remote.interface import Remote
from tests.providers import contracts
from tests.providers.emulator import KEY, Clock, Contract, ProviderServer
from tests.support.world import find, upload_of, write

CONTRACTS: dict[str, Callable[[], Contract]] = {
    "openai": contracts.OpenAIContract,
    "kimi": contracts.kimi,
    "glm": contracts.glm,
    "glm-cn": contracts.glm_cn,
    "mistral": contracts.mistral,
    "anthropic": contracts.AnthropicContract,
    "gemini": contracts.GeminiContract,
    "deepseek": contracts.deepseek,
}
"""By the provider's name in the settings; the last one is not built in."""

_PATHS = {"openai": "/v1", "kimi": "/v1", "mistral": "/v1", "glm": "/api/paas/v4", "glm-cn": "/api/paas/v4"}


class Providers:
    """Writes the settings file."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.path = directory / "providers.toml"
        self.key_path = directory / "provider.key"
        self.key_path.write_text(KEY + "\n")
        self.clock = clock
        self._limits: dict[str, Any] = {}
        self._tables: dict[str, dict[str, Any]] = {}

    def limits(self, **limits: Any) -> None:
        """Set what holds for all providers."""
        self._limits |= limits
        self._write()

    def add(self, name: str, server: ProviderServer | str, **settings: Any) -> None:
        """Turn a provider on."""
        url = server if isinstance(server, str) else server.url
        table = {
            "base_url": url + _PATHS.get(name, ""),
            "api_key_env": [],
            "api_key_file": str(self.key_path),
            **({"purpose": "user_data"} if name == "deepseek" else {}),
        }
        self._tables[name] = {**table, **settings}
        self._write()

    def _write(self) -> None:
        lines = [f"{name} = {json.dumps(value)}" for name, value in self._limits.items()]
        for name, table in self._tables.items():
            lines += [
                f"[provider.{name}]",
                *(f"{key} = {_toml(value)}" for key, value in table.items()),
            ]
        self.path.write_text("\n".join(lines) + "\n")

    @property
    def config(self) -> ProvidersConfig:
        """The settings, as a mount reads them."""
        config = load_providers(self.path)
        assert config is not None
        return config

    @asynccontextmanager
    async def adapter(self, name: str) -> AsyncIterator[ProviderFiles]:
        """Open the adapter of one provider."""
        async with open_http() as client:
            yield adapter_of(client, self.config.provider[name])

    @asynccontextmanager
    async def host(self, remote: Remote) -> AsyncIterator[Host]:
        """Open a service, as on one host."""
        contents = BucketContents(remote.objects)
        async with ProviderService.open(self.config, remote.catalog, contents, clock=self.clock) as service:
            yield Host(service, remote)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {_toml(one)}' for key, one in value.items()) + "}"
    return json.dumps(value)


async def arrived(server: ProviderServer, uploads: int) -> None:
    """Wait until so many uploads have reached a server, which runs in threads of its own."""
    with anyio.fail_after(60):
        while server.counts["upload"] < uploads:  # noqa: ASYNC110 - no event crosses the threads
            await anyio.sleep(0.01)


class Host:
    """A service and the rows it works on."""

    def __init__(self, service: ProviderService, remote: Remote) -> None:
        self.service = service
        self.remote = remote

    async def file(self, key: str) -> ObjectRecord:
        """Return the row as it is now."""
        found = await find(self.remote, key)
        assert found is not None
        return found

    async def put(self, key: str, data: bytes, mime_type: str = "text/plain") -> ObjectRecord:
        """Write a file."""
        return await write(self.remote, key, data, upload_of(data, mime_type=mime_type))

    async def id(self, key: str, name: str = "kimi", *, is_owner: bool = True) -> str:
        """Read the attribute, as getxattr does."""
        value, _ = await self.service.value(await self.file(key), name, is_owner=is_owner)
        return value.decode()

    async def read(self, key: str, attribute: str) -> Any:
        """Read one of the parts."""
        value, _ = await self.service.value(await self.file(key), attribute)
        return value.decode()

    async def listed(self, key: str) -> dict[str, bytes]:
        """List, as listxattr does."""
        return self.service.listed(await self.file(key))
