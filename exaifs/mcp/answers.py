"""What the tools answer, as typed values: their JSON schemas are what clients and models see."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from exaifs.errors import ExaifsError
from exaifs.handler.info import FileInfo, info_of
from exaifs.handler.sending import Outcome
from exaifs.mcp.paths import shown, uri_of
from exaifs.providers.records import StoredId
from exaifs.providers.settings import ProviderSettings
from exaifs.remote.files import FileRow

Path = Annotated[str, Field(description="Path below the bucket's root.")]
Uri = Annotated[str, Field(description="Names the file exactly; every tool takes it as a path.")]


class File(BaseModel):
    """A file of the bucket."""

    path: Path
    uri: Uri
    file_id: str | None = Field(
        description="Kept when the file is renamed or overwritten. Null: stat_file tells."
    )
    size_bytes: int
    mime_type: str
    sha256: str | None = Field(description="Lower-case hex. Null: not known yet.")
    created_at: datetime
    updated_at: datetime = Field(description="When the present bytes were stored.")

    @classmethod
    def values_of(cls, info: FileInfo) -> dict[str, Any]:
        """Return the fields of a file."""
        return {
            "path": shown(info.path),
            "uri": uri_of(info.path),
            "file_id": info.file_id or None,
            "size_bytes": info.size_bytes,
            "mime_type": info.mime_type,
            "sha256": info.sha256,
            "created_at": info.created_at,
            "updated_at": info.updated_at,
        }


class Files(BaseModel):
    """A page of files."""

    files: list[File]
    next_cursor: str | None = Field(
        description="Give it back for the next page; null at the end. A page may be short before the end."
    )
    left_out: int = Field(
        default=0, description="Objects of this page whose names are no paths ('..', '//')."
    )


class ProviderFile(BaseModel):
    """A file at a provider of language models."""

    provider: str
    id: str = Field(description="Use it in requests to that provider.")
    uri: str | None = Field(description="Where requests name the file by address instead (Gemini).")
    expires_at: datetime | None = Field(description="Null: does not expire, or the provider does not say.")

    @classmethod
    def of(cls, provider: str, stored: StoredId) -> ProviderFile:
        """Return what a client is told of a stored id."""
        return cls(
            provider=provider,
            id=stored.id,
            uri=stored.uri,
            expires_at=None
            if stored.expires_at is None
            else datetime.fromtimestamp(stored.expires_at, UTC),
        )


class FileStatus(File):
    """A file, and everything that is known of it."""

    version: str = Field(description="Changes with every overwrite.")
    metadata: dict[str, Any] = Field(description="What was given with uploads.")
    provider_files: list[ProviderFile] = Field(
        description="Ids that exist already; get_provider_file_id makes more."
    )

    @classmethod
    def of(cls, row: FileRow, ids: Mapping[str, StoredId]) -> FileStatus:
        """Return what a client is told of a row."""
        return cls(
            **cls.values_of(info_of(row)),
            version=row.record.version,
            metadata=dict(row.metadata),
            provider_files=[ProviderFile.of(name, stored) for name, stored in ids.items()],
        )


class Uploaded(FileStatus):
    """The file as it is now."""

    outcome: Outcome = Field(
        description="created, replaced, or unchanged: the same bytes were there already."
    )


class Deleted(BaseModel):
    """What was deleted."""

    path: Path
    file_id: str | None


class Download(BaseModel):
    """Bytes [offset, offset + length) of a file."""

    path: Path
    uri: Uri
    mime_type: str
    size_bytes: int = Field(description="Of the whole file.")
    sha256: str | None = Field(description="Of the whole file, lower-case hex; null: not known yet.")
    version: str = Field(description="Give it with the next offset, so that the parts fit together.")
    offset: int = Field(description="Of the first byte, from 0.")
    length: int = Field(description="Bytes in this answer.")
    next_offset: int | None = Field(description="Where to go on; null: this reaches the end.")
    encoding: Literal["text", "base64", "link"] = Field(
        description="Which field has the bytes; link: none, the file is large, see next_offset and uri."
    )
    text: str | None = None
    base64: str | None = None


class SignedUrl(BaseModel):
    """A secret URL."""

    path: Path
    url: str = Field(description="Anyone who has it may GET the file's bytes until it expires.")
    expires_at: datetime


class Forgotten(BaseModel):
    """What was forgotten."""

    path: Path
    provider: str
    forgotten: bool = Field(description="False: there was no id.")


class Provider(BaseModel):
    """A provider of language models that files may be sent to."""

    name: str
    host: str
    key: Literal["set", "missing"] = Field(description="missing: uploads fail until the operator sets it.")
    uploads: Literal["allowed", "never"] = Field(description="never: only ids that are stored.")
    max_bytes: int = Field(description="Largest file.")
    extensions: list[str] | None = Field(description="File types; null: any.")
    lifetime_s: int | None = Field(description="How long an upload lives there; null: not limited.")

    @classmethod
    def of(cls, settings: ProviderSettings) -> Provider:
        """Return what a client is told of a provider; never the key, nor where it is kept."""
        try:
            has_key = bool(settings.key)
        except ExaifsError:
            has_key = False
        return cls(
            name=settings.name,
            host=settings.host,
            key="set" if has_key else "missing",
            uploads="never" if settings.upload == "never" else "allowed",
            max_bytes=settings.max_bytes,
            extensions=None if settings.extensions is None else list(settings.extensions),
            lifetime_s=settings.expires_after_s or settings.ttl_s,
        )


class Providers(BaseModel):
    """The providers that are turned on."""

    providers: list[Provider]
