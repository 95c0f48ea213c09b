"""Google's Gemini Developer API: resumable uploads under an id that the caller chooses, for 48 hours.

A file that is missing or expired answers 403, as does a missing permission: then it counts as gone, and one
upload shows which it was.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

from exaifs.providers.errors import ProviderError, ProviderFileInvalid, ProviderProtocolError
from exaifs.providers.http import ProviderHttp
from exaifs.providers.interface import ProviderFile, Sending, State
from exaifs.providers.polling import processed
from exaifs.providers.records import from_time, is_id
from exaifs.remote.interface import Body

_MISSING = frozenset({403, 404})


@dataclass(frozen=True, slots=True)
class _Bytes(AsyncIterable[bytes]):
    body: Body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.body.chunks()


class GeminiFiles:
    """`interface.ProviderFiles` for Gemini; its files have no purpose."""

    def __init__(self, http: ProviderHttp) -> None:
        self._http = http
        self._settings = http.settings

    async def upload(self, sending: Sending) -> ProviderFile:
        """See `interface.ProviderFiles`."""
        size_bytes = sending.body.size_bytes
        headers = {
            "x-goog-upload-protocol": "resumable",
            "x-goog-upload-command": "start",
            "x-goog-upload-header-content-length": str(size_bytes),
            "x-goog-upload-header-content-type": sending.mime_type,
        }
        described = {
            "name": _name_of(sending),
            "display_name": sending.filename,
            "mime_type": sending.mime_type,
            "size_bytes": str(size_bytes),
        }
        answer = await self._http.start("upload/v1beta/files", headers=headers, json={"file": described})
        url = self._upload_url(answer.get("x-goog-upload-url", ""))
        finished = await self._http.send(
            url,
            _Bytes(sending.body),
            size_bytes,
            {"x-goog-upload-command": "upload, finalize", "x-goog-upload-offset": "0"},
        )
        file = finished.get("file")
        return await self._ready(file if isinstance(file, Mapping) else {})

    def _upload_url(self, url: str) -> str:
        """Check where the bytes, and the key, would go."""
        ours, theirs = urlsplit(self._settings.base_url), urlsplit(url)
        if (ours.scheme, ours.netloc) != (theirs.scheme, theirs.netloc):
            raise ProviderProtocolError(f"{self._settings.name}: an upload address that is not its own")
        return url

    async def _ready(self, file: Mapping[str, Any]) -> ProviderFile:
        """Wait until the file is processed."""
        name, uri = file.get("name"), file.get("uri")
        if not is_id(name) or not isinstance(uri, str):
            raise ProviderProtocolError(
                f"{self._settings.name}: no name in the answer to an upload", may_have_landed=True
            )
        look = partial(self._http.ask, "GET", f"v1beta/{quote(str(name))}")
        file = await processed(file, lambda file: file.get("state") == "PROCESSING", look)
        if file.get("state") == "FAILED":
            raise ProviderFileInvalid(f"{self._settings.name}: the provider could not process the file")
        return ProviderFile(str(name), uri=uri, expires_at=from_time(file.get("expirationTime")))

    async def find(self, sending: Sending) -> ProviderFile | None:
        """See `interface.ProviderFiles`."""
        try:
            file = await self._http.ask("GET", f"v1beta/{_name_of(sending)}")
        except ProviderError as exc:
            if exc.status in _MISSING:
                return None
            raise
        if file.get("sizeBytes") != str(sending.body.size_bytes):
            raise ProviderError(f"{self._settings.name}: the upload is not whole")
        return await self._ready(file)

    async def check(self, file_id: str, purpose: str) -> State:  # noqa: ARG002 - the protocol's signature
        """See `interface.ProviderFiles`."""
        try:
            file = await self._http.ask("GET", f"v1beta/{quote(file_id)}")
        except ProviderError as exc:
            if exc.status in _MISSING:
                return "gone"
            raise
        return "gone" if file.get("state") == "FAILED" else "alive"

    async def delete(self, file_id: str) -> None:
        """See `interface.ProviderFiles`."""
        try:
            await self._http.ask("DELETE", f"v1beta/{quote(file_id)}")
        except ProviderError as exc:
            if exc.status not in _MISSING:
                raise


def _name_of(sending: Sending) -> str:
    """Return the id to ask for: at most 40 of a-z, 0-9 and -, and no dash at an end."""
    return f"files/exaifs-{sending.token}"
