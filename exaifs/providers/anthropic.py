"""Anthropic's Files API, generally available since August 2026."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from exaifs.providers.errors import ProviderError, ProviderProtocolError
from exaifs.providers.http import ProviderHttp
from exaifs.providers.interface import ProviderFile, Sending, State
from exaifs.providers.multipart import Multipart
from exaifs.providers.records import from_time, is_id

_NOT_FOUND = 404
_PAGE = 1000
_MAX_PAGES = 100


class AnthropicFiles:
    """`interface.ProviderFiles` for Anthropic; its files have no purpose."""

    def __init__(self, http: ProviderHttp) -> None:
        self._http = http
        self._settings = http.settings

    async def upload(self, sending: Sending) -> ProviderFile:
        """See `interface.ProviderFiles`."""
        fields = dict(self._settings.extra_form)
        if self._settings.expires_after_s is not None:
            fields["expires_in_seconds"] = str(self._settings.expires_after_s)
        form = Multipart(fields, sending.filename, sending.mime_type, sending.body)
        url = f"{self._settings.base_url}/v1/files"
        answer = await self._http.send(url, form, form.size_bytes, {"content-type": form.content_type})
        return self._file(answer)

    def _file(self, answer: Mapping[str, Any]) -> ProviderFile:
        if not is_id(answer.get("id")):
            raise ProviderProtocolError(
                f"{self._settings.name}: no id in the answer to an upload", may_have_landed=True
            )
        return ProviderFile(answer["id"], expires_at=from_time(answer.get("expires_at")))

    async def find(self, sending: Sending) -> ProviderFile | None:
        """See `interface.ProviderFiles`."""
        params: dict[str, str | int] = {"limit": _PAGE}
        for _ in range(_MAX_PAGES):
            answer = await self._http.ask("GET", "v1/files", params=params)
            files = answer.get("data")
            if not isinstance(files, list):
                raise ProviderProtocolError(f"{self._settings.name}: a list of files without files")
            for file in files:
                if isinstance(file, Mapping) and (file.get("filename"), file.get("size_bytes")) == (
                    sending.filename,
                    sending.body.size_bytes,
                ):
                    return self._file(file)
            following = answer.get("next_page")
            if not isinstance(following, str) or not following:
                return None
            params["page"] = following
        raise ProviderProtocolError(f"{self._settings.name}: a list of files without an end")

    async def check(self, file_id: str, purpose: str) -> State:  # noqa: ARG002 - the protocol's signature
        """See `interface.ProviderFiles`."""
        try:
            answer = await self._http.ask("GET", f"v1/files/{quote(file_id, safe='')}")
        except ProviderError as exc:
            if exc.status == _NOT_FOUND:
                return "gone"
            raise
        if answer.get("id") != file_id:
            raise ProviderProtocolError(f"{self._settings.name}: asked for one file, got another")
        return "alive"

    async def delete(self, file_id: str) -> None:
        """See `interface.ProviderFiles`."""
        try:
            await self._http.ask("DELETE", f"v1/files/{quote(file_id, safe='')}")
        except ProviderError as exc:
            if exc.status != _NOT_FOUND:
                raise
