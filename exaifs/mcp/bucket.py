"""What the tools do, without the protocol: arguments as clients send them in, typed answers out.

Works on the handler's core, beside any number of mounts and programs. Every path is checked here. What it
raises is an `ExaifsError` or an `OSError`; `explain.py` makes it a sentence.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from exaifs.config import MIB
from exaifs.errors import ConfigError, Exists, InvalidArgument, Stale
from exaifs.handler.info import FilePage
from exaifs.handler.service import FileService
from exaifs.handler.texts import checked
from exaifs.mcp.answers import (
    Deleted,
    Download,
    File,
    Files,
    FileStatus,
    Forgotten,
    Provider,
    ProviderFile,
    Providers,
    SignedUrl,
    Uploaded,
)
from exaifs.mcp.nearby import not_found
from exaifs.mcp.paths import (
    after_of,
    cursor_of,
    is_nameable,
    path_of_argument,
    prefix_of_argument,
    shown,
    uri_of,
)
from exaifs.mcp.texts import text_of, text_piece
from exaifs.names import check_name, path_of
from exaifs.remote.bodies import Progress
from exaifs.remote.files import FileRow
from exaifs.remote.interface import Remote

MAX_UPLOAD_BYTES: Final = 16 * MIB
"""Of one upload_file. A model writes no more by itself, and a request is held in memory several times."""

MAX_PART_BYTES: Final = MIB
"""Of one download_file."""

MAX_RESOURCE_BYTES: Final = 16 * MIB
"""Of a resource, which has no parts."""

MAX_URL_S: Final = 7 * 86_400

_MIME_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,127}/[a-z0-9!#$&^_.+-]{1,127}")


class Bucket:
    """The files of one bucket, for clients that are told only what JSON can carry."""

    def __init__(self, service: FileService, remote: Remote) -> None:
        self._service = service
        self._remote = remote

    # looking

    async def list_files(self, prefix: str, cursor: str, limit: int) -> Files:
        """Return a page of the files below a prefix."""
        plain = prefix_of_argument(prefix)
        question = f"list {plain}"
        page = await self._service.list_files(plain, limit, after_of(question, cursor))
        return _page(page, question)

    async def search_files(self, query: str, cursor: str, limit: int) -> Files:
        """Return a page of the files that a query finds."""
        if not checked(query, "query").strip():
            raise InvalidArgument("a query is needed: a part of a name, a MIME type, or a SHA-256")
        question = f"search {query}"
        page = await self._service.search_files(query, limit, after_of(question, cursor))
        return _page(page, question)

    async def stat_file(self, path: str) -> FileStatus:
        """Return what is known of a file."""
        return self._status(await self._file(path_of_argument(path)))

    async def _file(self, path: str) -> FileRow:
        row = await self._service.at(path)
        if row is None:
            raise await not_found(self._remote.catalog, path)
        return row

    def _status(self, row: FileRow) -> FileStatus:
        return FileStatus.of(row, self._service.ids.stored(row.record))

    # reading

    async def download_file(
        self, path: str, offset: int | None, length: int | None, version: str
    ) -> Download:
        """Return a part of a file; a large one as a link, unless a part is asked for.

        Args:
            path: which.
            offset: of the first byte.
            length: at most so many bytes, and at most `MAX_PART_BYTES`.
            version: that the parts before were of; empty: the present one.
        """
        row = await self._file(path_of_argument(path))
        record, start = row.record, offset or 0
        if version and version != record.version:
            raise _replaced(record.key)
        if start > record.size_bytes:
            raise InvalidArgument(f"offset {start} is past the end: the file has {record.size_bytes} bytes")
        if offset is None and length is None and record.size_bytes > MAX_PART_BYTES:
            return _download(row, 0, b"", as_link=True)
        wanted = min(MAX_PART_BYTES if length is None else length, MAX_PART_BYTES)
        if start == 0 and record.size_bytes <= wanted:
            data, row = await self._service.read_whole(record.file_id or "")
        else:
            data = await self._service.read_part(record.ref, start, wanted)
        if version and version != row.record.version:
            raise _replaced(record.key)
        return _download(row, start, data, as_link=False)

    async def read_resource(self, path: str) -> tuple[str | bytes, str]:
        """Return a file's content, as text where it is text, and its MIME type.

        Args:
            path: checked already.

        Raises:
            InvalidArgument: it is so large that it should be read in parts.
        """
        row = await self._file(path)
        if row.record.size_bytes <= MAX_RESOURCE_BYTES:
            data, row = await self._service.read_whole(row.record.file_id or "")
            text = text_of(data, row.record.mime_type)
            return (data if text is None else text), row.record.mime_type
        raise InvalidArgument(
            f"{shown(path)!r} has {row.record.size_bytes} bytes; a resource is read whole, up to "
            f"{MAX_RESOURCE_BYTES}: use download_file(path, offset, length), or get_signed_url"
        )

    async def get_signed_url(self, path: str, seconds: int) -> SignedUrl:
        """Return a URL that needs no key."""
        record = (await self._file(path_of_argument(path))).record
        expires_at = datetime.now(UTC) + timedelta(seconds=seconds)
        url = await self._remote.objects.signed_url(record.key, seconds)
        return SignedUrl(path=shown(path_of_argument(path)), url=url, expires_at=expires_at)

    # changing

    async def upload_file(
        self,
        path: str,
        data: bytes,
        mime_type: str,
        *,
        overwrite: bool,
        continuation_id: str,
        progress: Progress,
    ) -> Uploaded:
        """Store bytes as a file."""
        if mime_type and not _MIME_TYPE.fullmatch(mime_type):
            raise InvalidArgument(f"not a MIME type: {mime_type!r}; they look like text/markdown")
        if len(data) > MAX_UPLOAD_BYTES:
            raise InvalidArgument(
                f"{len(data)} bytes are too large: upload_file takes {MAX_UPLOAD_BYTES}. Split it, or ask "
                "the user to put the file into the bucket by a mount or Supabase's dashboard"
            )
        target = _target(path, continuation_id)
        metadata = {"path": target}
        if continuation_id:
            metadata["continuation_id"] = continuation_id
        try:
            row, outcome = await self._service.upload_bytes(
                data, metadata, mime_type or None, progress, replace=overwrite
            )
        except Exists:
            raise Exists(
                f"{shown(target)!r} exists with other content: overwrite=true replaces it, another path "
                "keeps both"
            ) from None
        return Uploaded(**self._status(row).model_dump(), outcome=outcome)

    async def delete_file(self, path: str) -> Deleted:
        """Delete a file, for everybody."""
        row = await self._file(path_of_argument(path))
        await self._service.delete_file(row.record.file_id or "")
        return Deleted(path=shown(path_of_argument(path)), file_id=row.record.file_id)

    # providers

    def list_providers(self) -> Providers:
        """Return the providers that are turned on; nobody is asked."""
        return Providers(providers=[Provider.of(one) for one in self._service.ids.providers.values()])

    async def get_provider_file_id(
        self, path: str, provider: str, progress: Progress, *, refresh: bool
    ) -> ProviderFile:
        """Return a provider's id for a file, uploading it there on first use."""
        self._check_provider(provider)
        record = (await self._file(path_of_argument(path))).record
        stored = await self._service.ids.get(record, provider, progress, refresh=refresh)
        return ProviderFile.of(provider, stored)

    async def forget_provider_file(self, path: str, provider: str) -> Forgotten:
        """Forget a provider's id for a file."""
        self._check_provider(provider)
        record = (await self._file(path_of_argument(path))).record
        forgotten = await self._service.ids.forget(record, provider)
        return Forgotten(path=shown(path_of_argument(path)), provider=provider, forgotten=forgotten)

    def _check_provider(self, provider: str) -> None:
        turned_on = self._service.ids.providers
        if provider in turned_on:
            return
        if not turned_on:
            raise ConfigError(
                "no provider is turned on here, so there are no provider file ids. Tell the user: whoever "
                "runs this server names them in EXAIFS_PROVIDERS"
            )
        known = ", ".join(turned_on)
        raise ConfigError(
            f"the provider {shown(checked(provider, 'provider'))!r} is not turned on; these are: {known}"
        )


def content_of(text: str | None, encoded: str | None) -> bytes:
    """Return the bytes that a client gives, as one of two.

    Raises:
        InvalidArgument: neither, both, or not base64.
    """
    if (text is None) == (encoded is None):
        raise InvalidArgument("give the content either as text or as base64 (an empty text: an empty file)")
    if text is not None:
        try:
            return text.encode()
        except UnicodeEncodeError:
            raise InvalidArgument("text must be Unicode: send other bytes as base64") from None
    assert encoded is not None
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise InvalidArgument(f"not base64 ({exc}): use the standard alphabet with padding") from None


def _target(path: str, continuation_id: str) -> str:
    """Return where an upload goes."""
    plain = path_of_argument(path)
    if not continuation_id:
        return plain
    try:
        check_name(checked(continuation_id, "continuation_id"))
    except InvalidArgument:
        raise InvalidArgument("continuation_id must be one name, without slashes") from None
    folder = f"uploads/{continuation_id}/"
    return path_of_argument(folder + plain.removeprefix(folder))


def _page(page: FilePage, question: str) -> Files:
    files = [File(**File.values_of(info)) for info in page.files if is_nameable(info.path)]
    return Files(
        files=files, next_cursor=cursor_of(question, page.cursor), left_out=len(page.files) - len(files)
    )


def _replaced(key: str) -> Stale:
    return Stale(f"{shown(path_of(key))!r} has other bytes now than in the parts before")


def _download(row: FileRow, start: int, data: bytes, *, as_link: bool) -> Download:
    record = row.record
    is_end = start + len(data) >= record.size_bytes
    piece = None if as_link else text_piece(data, record.mime_type, is_end=is_end)
    length = len(data) if piece is None else piece[1]
    encoding: Literal["text", "base64", "link"] = "base64" if piece is None else "text"
    path = path_of(record.key)
    return Download(
        path=shown(path),
        uri=uri_of(path),
        mime_type=record.mime_type,
        size_bytes=record.size_bytes,
        sha256=record.sha256,
        version=record.version,
        offset=start,
        length=length,
        next_offset=None if start + length >= record.size_bytes else start + length,
        encoding="link" if as_link else encoding,
        text=None if piece is None else piece[0],
        base64=None if piece is not None or as_link else base64.b64encode(data).decode(),
    )
