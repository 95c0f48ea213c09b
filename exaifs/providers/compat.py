"""OpenAI's file API, and all that are compatible with it: Kimi, GLM, Mistral, and others by settings."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any
from urllib.parse import quote

from exaifs.providers.errors import ProviderError, ProviderFileInvalid, ProviderProtocolError
from exaifs.providers.http import ProviderHttp
from exaifs.providers.interface import ProviderFile, Sending, State
from exaifs.providers.multipart import Multipart
from exaifs.providers.polling import processed
from exaifs.providers.records import from_time, is_id

_NOT_FOUND = 404
_PAGE = 100
_MAX_PAGES = 200
_WORKING = frozenset({"processing", "pending", "parsing", "in_progress"})
_FAILED = frozenset({"error", "failed"})


class OpenAICompatFiles:
    """`interface.ProviderFiles` for OpenAI and those compatible with it."""

    def __init__(self, http: ProviderHttp) -> None:
        self._http = http
        self._settings = http.settings

    async def upload(self, sending: Sending) -> ProviderFile:
        """See `interface.ProviderFiles`."""
        fields = {"purpose": sending.purpose} if sending.purpose else {}
        fields |= self._settings.extra_form
        if self._settings.expires_after_s is not None:
            fields["expires_after[anchor]"] = "created_at"
            fields["expires_after[seconds]"] = str(self._settings.expires_after_s)
        form = Multipart(fields, sending.filename, sending.mime_type, sending.body)
        url = f"{self._settings.base_url}/files"
        answer = await self._http.send(url, form, form.size_bytes, {"content-type": form.content_type})
        return await self._ready(answer)

    async def _ready(self, answer: Mapping[str, Any]) -> ProviderFile:
        """Wait until the provider has looked through the file, where it does that first."""
        file_id = answer.get("id")
        if not is_id(file_id):
            raise ProviderProtocolError(
                f"{self._settings.name}: no id in the answer to an upload", may_have_landed=True
            )
        if self._settings.check == "retrieve":
            look = partial(self._http.ask, "GET", _path(file_id))
            answer = await processed(answer, lambda file: file.get("status") in _WORKING, look)
        if answer.get("status") in _FAILED:
            details = str(answer.get("status_details") or "the provider could not read the file")
            raise ProviderFileInvalid(f"{self._settings.name}: {details}")
        return ProviderFile(str(file_id), expires_at=from_time(answer.get("expires_at")))

    async def find(self, sending: Sending) -> ProviderFile | None:
        """See `interface.ProviderFiles`."""
        async with aclosing(self._all(sending.purpose)) as files:
            async for file in files:
                size = file.get("bytes", file.get("size_bytes"))
                if file.get("filename") == sending.filename and size in {None, sending.body.size_bytes}:
                    return await self._ready(file)
        return None

    async def check(self, file_id: str, purpose: str) -> State:
        """See `interface.ProviderFiles`."""
        if self._settings.check == "none":
            return "unknown"
        if self._settings.check == "list":
            async with aclosing(self._all(purpose)) as files:
                async for file in files:
                    if file.get("id") == file_id:
                        return "alive"
            return "gone"
        try:
            answer = await self._http.ask("GET", _path(file_id))
        except ProviderError as exc:
            if exc.status == _NOT_FOUND:
                return "gone"
            raise
        if answer.get("id") != file_id:
            raise ProviderProtocolError(f"{self._settings.name}: asked for one file, got another")
        return "gone" if answer.get("status") in _FAILED else "alive"

    async def delete(self, file_id: str) -> None:
        """See `interface.ProviderFiles`."""
        try:
            await self._http.ask("DELETE", _path(file_id))
        except ProviderError as exc:
            if exc.status != _NOT_FOUND:
                raise

    async def _all(self, purpose: str) -> AsyncGenerator[Mapping[str, Any]]:
        """Yield every file of a purpose.

        Raises:
            ProviderError: this provider has no list, or it never ends.
        """
        if self._settings.check == "none":
            raise ProviderError(f"{self._settings.name}: it cannot list files")
        params: dict[str, str | int] = {"purpose": purpose} if purpose else {}
        if self._settings.list_paging == "after":
            params["limit"] = _PAGE
        for page in range(_MAX_PAGES):
            if self._settings.list_paging == "page":
                params |= {"page": page, "page_size": _PAGE}
            answer = await self._http.ask("GET", "files", params=params)
            files = answer.get("data")
            if not isinstance(files, list) or not all(isinstance(file, Mapping) for file in files):
                raise ProviderProtocolError(f"{self._settings.name}: a list of files without files")
            for file in files:
                yield file
            if len(files) < _PAGE or self._settings.list_paging == "none":
                return
            if self._settings.list_paging == "after":
                params["after"] = str(files[-1].get("id"))
        raise ProviderProtocolError(f"{self._settings.name}: a list of files without an end")


def _path(file_id: object) -> str:
    return f"files/{quote(str(file_id), safe='')}"
