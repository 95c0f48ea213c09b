"""Which adapter speaks with which provider."""

from __future__ import annotations

import httpx

from exaifs.providers.anthropic import AnthropicFiles
from exaifs.providers.compat import OpenAICompatFiles
from exaifs.providers.gemini import GeminiFiles
from exaifs.providers.http import ProviderHttp
from exaifs.providers.interface import ProviderFiles
from exaifs.providers.settings import ProviderSettings


def adapter_of(client: httpx.AsyncClient, settings: ProviderSettings) -> ProviderFiles:
    """Return the adapter of a provider; nothing is sent, and no key is read."""
    match settings.kind:
        case "anthropic":
            headers = {"anthropic-version": settings.api_version}
            return AnthropicFiles(ProviderHttp(client, settings, auth=("x-api-key", ""), headers=headers))
        case "gemini":
            return GeminiFiles(ProviderHttp(client, settings, auth=("x-goog-api-key", "")))
        case "openai":
            return OpenAICompatFiles(ProviderHttp(client, settings))
