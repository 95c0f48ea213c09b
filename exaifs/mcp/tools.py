"""The tools, as a model sees them: their docstrings and fields are all it reads before it calls.

Each method takes what the protocol decoded, makes one call, and turns errors into sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import (
    BlobResourceContents,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    ToolAnnotations,
)
from pydantic import BeforeValidator, Field, WrapValidator

from exaifs.errors import ExaifsError
from exaifs.mcp.answers import (
    Deleted,
    Download,
    Files,
    FileStatus,
    Forgotten,
    ProviderFile,
    Providers,
    SignedUrl,
    Uploaded,
)
from exaifs.mcp.bucket import MAX_PART_BYTES, MAX_RESOURCE_BYTES, MAX_URL_S, Bucket, content_of
from exaifs.mcp.explain import explained
from exaifs.mcp.progress import reporting


class _Absent(str):
    """Tells a text that was not given from an empty one."""

    __slots__ = ()


_ABSENT: Final = _Absent()
_IMAGES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
"""What models can look at."""

# Exactly `str`: the SDK parses what looks like JSON for any other type, and a file may look like that.
Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
Content = Annotated[
    str,
    Field(default_factory=lambda: _ABSENT),
    WrapValidator(lambda value, handler: _ABSENT if value is None else handler(value)),
]
FilePath = Annotated[
    str, Field(description="Path below the bucket's root, such as reports/q3.pdf, or an exaifs:/// URI.")
]
Cursor = Annotated[Text, Field(description="next_cursor of the page before; empty for the first.")]
Limit = Annotated[int, Field(ge=1, le=1000, description="Most files of a page.")]
ProviderName = Annotated[str, Field(description="A name from list_providers, such as kimi.")]

Offer = tuple[Callable[..., Any], str, ToolAnnotations]

_READS: Final = ToolAnnotations(read_only_hint=True, open_world_hint=False)


class Tools:
    """What a client may call.

    Args:
        bucket: does it.
        redact: removes secrets from errors.
    """

    def __init__(self, bucket: Bucket, redact: Callable[[str], str]) -> None:
        self._bucket = bucket
        self._redact = redact

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (ExaifsError, OSError) as exc:
            raise ToolError(explained(exc, self._redact)) from exc

    async def list_files(
        self,
        prefix: Annotated[
            Text, Field(description="What paths start with: 'reports/' for a directory, empty for all.")
        ] = "",
        cursor: Cursor = "",
        limit: Limit = 100,
    ) -> Files:
        """List files, those in directories below included, in a fixed order, page by page."""
        with self._explained():
            return await self._bucket.list_files(prefix, cursor, limit)

    async def search_files(
        self,
        query: Annotated[
            str,
            Field(
                description="Part of a file's name, start of its MIME type ('image/'), or start of its "
                "SHA-256 (4 digits or more); case does not matter."
            ),
        ],
        cursor: Cursor = "",
        limit: Limit = 100,
    ) -> Files:
        """Find files by name, type or hash. Contents are not searched."""
        with self._explained():
            return await self._bucket.search_files(query, cursor, limit)

    async def stat_file(self, path: FilePath) -> FileStatus:
        """Show a file's size, type, hash, times, metadata, and provider file ids that exist already.

        Never uploads anything, and reads no content.
        """
        with self._explained():
            return await self._bucket.stat_file(path)

    async def download_file(
        self,
        path: FilePath,
        offset: Annotated[int | None, Field(ge=0, description="First byte, from 0.")] = None,
        length: Annotated[
            int | None, Field(ge=1, description=f"Most bytes; an answer has at most {MAX_PART_BYTES}.")
        ] = None,
        version: Annotated[
            Text,
            Field(description="version of the answer before: an error if the file was replaced since."),
        ] = "",
    ) -> Annotated[CallToolResult, Download]:
        """Read a file: text as text, anything else as base64.

        Files up to 1 MiB come whole. Of a larger one, offset and length (both in bytes) get a part, and
        next_offset says where to go on; without them the answer is a link to the file as a resource.
        """
        with self._explained():
            found = await self._bucket.download_file(path, offset, length, version)
        return CallToolResult(content=_blocks(found), structured_content=found.model_dump(mode="json"))

    async def get_signed_url(
        self,
        path: FilePath,
        seconds: Annotated[int, Field(ge=1, le=MAX_URL_S, description="How long it works.")] = 3600,
    ) -> SignedUrl:
        """Make a URL that gives the file's bytes to anyone who has it, for APIs that take URLs.

        Treat it as a secret: it cannot be revoked before it expires.
        """
        with self._explained():
            return await self._bucket.get_signed_url(path, seconds)

    async def list_providers(self) -> Providers:
        """List the providers of language models that files may be sent to. Nobody is asked."""
        with self._explained():
            return self._bucket.list_providers()

    async def upload_file(
        self,
        path: FilePath,
        *,
        text: Annotated[Content, Field(description="The content, as text (stored as UTF-8).")],
        base64: Annotated[Content, Field(description="The content, as base64, for anything but text.")],
        ctx: Context[Any, Any],
        mime_type: Annotated[Text, Field(description="Found out by content and name if empty.")] = "",
        overwrite: Annotated[bool, Field(description="Replace a file that has other content.")] = False,
        continuation_id: Annotated[
            Text,
            Field(
                description="A conversation: path is below uploads/{continuation_id}/, and the file "
                "belongs to it."
            ),
        ] = "",
    ) -> Uploaded:
        """Store a file; give its content as text or as base64, not both.

        At most 16 MiB (16777216 bytes, decoded). It is in the bucket, for everybody, when this returns.
        Storing the same content again changes nothing.
        """
        with self._explained():
            data = content_of(
                None if text is _ABSENT else text,
                None if base64 is _ABSENT else base64,
            )
            async with reporting(ctx, "storing") as progress:
                return await self._bucket.upload_file(
                    path,
                    data,
                    mime_type,
                    overwrite=overwrite,
                    continuation_id=continuation_id,
                    progress=progress,
                )

    async def delete_file(self, path: FilePath) -> Deleted:
        """Delete a file, for everybody. This cannot be undone."""
        with self._explained():
            return await self._bucket.delete_file(path)

    async def get_provider_file_id(
        self,
        path: FilePath,
        provider: ProviderName,
        *,
        ctx: Context[Any, Any],
        refresh: Annotated[
            bool, Field(description="Ask the provider first whether it still has the file.")
        ] = False,
    ) -> ProviderFile:
        """Get the id that a file has at a provider, for requests to its models.

        The first time the file is SENT to that provider, once for its content; this may take minutes, with
        progress in bytes. If the call is cancelled, the upload goes on.
        """
        with self._explained():
            async with reporting(ctx, f"sending to {provider}") as progress:
                return await self._bucket.get_provider_file_id(path, provider, progress, refresh=refresh)

    async def forget_provider_file(self, path: FilePath, provider: ProviderName) -> Forgotten:
        """Forget a file's id at a provider, so that the next get_provider_file_id sends it again.

        The provider keeps what it has.
        """
        with self._explained():
            return await self._bucket.forget_provider_file(path, provider)

    def offered(self, *, read_only: bool) -> list[Offer]:
        """Return the tools to offer, each with a title and what clients may assume of it."""
        reading: list[Offer] = [
            (self.list_files, "List files", _READS),
            (self.search_files, "Find files", _READS),
            (self.stat_file, "Look at a file", _READS),
            (self.download_file, "Read a file", _READS),
            (self.get_signed_url, "Make a secret URL for a file", _READS),
            (self.list_providers, "List providers", _READS),
        ]
        if read_only:
            return reading
        return [
            *reading,
            (self.upload_file, "Store a file", _writes(destructive=True, idempotent=True)),
            (self.delete_file, "Delete a file", _writes(destructive=True, idempotent=False)),
            (
                self.get_provider_file_id,
                "Get a file's id at a provider",
                _writes(destructive=False, idempotent=True, open_world=True),
            ),
            (
                self.forget_provider_file,
                "Forget a file's id at a provider",
                _writes(destructive=True, idempotent=True),
            ),
        ]


def _writes(*, destructive: bool, idempotent: bool, open_world: bool = False) -> ToolAnnotations:
    return ToolAnnotations(
        read_only_hint=False,
        destructive_hint=destructive,
        idempotent_hint=idempotent,
        open_world_hint=open_world,
    )


def _blocks(found: Download) -> list[ContentBlock]:
    """Return what a model is shown: bytes that are no text in a block of their own, if they are all."""
    is_whole = found.offset == 0 and found.next_offset is None
    apart = found.base64 if is_whole and found.encoding == "base64" else None
    hidden = {"base64"} if apart is not None else None
    blocks: list[ContentBlock] = [
        TextContent(text=found.model_dump_json(exclude=hidden, exclude_none=True))
    ]
    if found.encoding == "link":
        blocks.append(
            ResourceLink(
                uri=found.uri,
                name=found.path,
                mime_type=found.mime_type,
                size=found.size_bytes,
                description=f"Large; as a resource it can be read up to {MAX_RESOURCE_BYTES} bytes.",
            )
        )
    elif apart is not None and found.mime_type in _IMAGES:
        blocks.append(ImageContent(data=apart, mime_type=found.mime_type))
    elif apart is not None:
        contents = BlobResourceContents(uri=found.uri, blob=apart, mime_type=found.mime_type)
        blocks.append(EmbeddedResource(resource=contents))
    return blocks
