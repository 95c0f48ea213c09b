"""Files as programs without a mount ask for them: by id, content and name, with metadata and conversations.

`FileCatalog` is the seam, beside `interface.Catalog`; `SupabaseFiles` keeps it on a server through the SQL
functions of migration 0009, the tests' double in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from exaifs.errors import NotFound
from exaifs.model import ObjectRecord
from exaifs.remote.session import Session
from exaifs.remote.wire import foreign_answer, next_from_json, record_from_json, records_from_json

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileRow:
    """An object, its row, and what programs keep in the row."""

    record: ObjectRecord
    metadata: Mapping[str, Any]
    """Without the keys of exaifs itself."""


@dataclass(frozen=True, slots=True)
class FileRows:
    """A page of files, in the order of their keys."""

    files: Sequence[FileRow]
    next_after: str | None
    """Give it as `after` for the next page; None at the end."""


class FileCatalog(Protocol):
    """The files of one bucket."""

    async def by_id(self, file_id: str) -> FileRow | None:
        """Return a file by the id that it keeps over overwrites and renames."""

    async def by_key(self, key: str) -> FileRow | None:
        """Return a file by its key; one without a row gets one, hence an id."""

    async def annotate(self, key: str, fields: Mapping[str, Any]) -> FileRow:
        """Merge JSON values into the metadata; None takes a key away, the keys of exaifs stay.

        Raises:
            NotFound: no such object.
        """

    async def find_content(self, sha256: str, mime_type: str) -> Sequence[ObjectRecord]:
        """Return some objects of this bucket with these bytes and this type."""

    async def list_files(self, prefix: str, after: str, limit: int) -> FileRows:
        """Return a page of the files whose key starts with `prefix`, folder markers left out."""

    async def search_files(self, query: str, after: str, limit: int) -> FileRows:
        """Return a page of files: part of the name, start of the MIME type or SHA-256; case is ignored."""

    async def link(self, file_id: str, continuation_id: str) -> bool:
        """Make a file part of a conversation, whose row is made if missing; False: it was before.

        Raises:
            NotFound: no such file.
        """


class SupabaseFiles:
    """`FileCatalog` on a Supabase project."""

    def __init__(self, session: Session, bucket: str) -> None:
        self._session = session
        self._bucket = bucket

    async def by_id(self, file_id: str) -> FileRow | None:
        """See `FileCatalog`."""
        return await self._call("exaifs_file", _row_or_none, p_file_id=file_id, p_key="")

    async def by_key(self, key: str) -> FileRow | None:
        """See `FileCatalog`."""
        return await self._call("exaifs_file", _row_or_none, p_file_id="", p_key=key)

    async def annotate(self, key: str, fields: Mapping[str, Any]) -> FileRow:
        """See `FileCatalog`."""
        row = await self._call("exaifs_annotate", _row_or_none, p_key=key, p_fields=json.dumps(fields))
        if row is None:
            raise NotFound(f"no object {key!r}")
        return row

    async def find_content(self, sha256: str, mime_type: str) -> Sequence[ObjectRecord]:
        """See `FileCatalog`."""
        return await self._call("exaifs_find_content", _records, p_sha256=sha256, p_mime=mime_type)

    async def list_files(self, prefix: str, after: str, limit: int) -> FileRows:
        """See `FileCatalog`."""
        params = {"p_prefix": prefix, "p_after": after, "p_limit": limit}
        return await self._call("exaifs_list_files", _rows, **params)

    async def search_files(self, query: str, after: str, limit: int) -> FileRows:
        """See `FileCatalog`."""
        params = {"p_query": query, "p_after": after, "p_limit": limit}
        return await self._call("exaifs_search_files", _rows, **params)

    async def link(self, file_id: str, continuation_id: str) -> bool:
        """See `FileCatalog`."""
        params = {"p_file_id": file_id, "p_continuation_id": continuation_id}
        linked = await self._call("exaifs_link_conversation", _linked, **params)
        if linked is None:
            raise NotFound(f"no file {file_id}")
        return linked

    async def _call(self, function: str, parse: Callable[[Any], T], **params: Any) -> T:
        return await self._session.call(function, {"p_bucket": self._bucket, **params}, parse)


def _object(function: str, answer: Any) -> Mapping[str, Any]:
    if not isinstance(answer, Mapping):
        raise foreign_answer(function)
    return answer


def _records(answer: Any) -> Sequence[ObjectRecord]:
    return records_from_json(_object("exaifs_find_content", answer))


def _linked(answer: Any) -> bool | None:
    return None if answer is None else _object("exaifs_link_conversation", answer).get("linked") is True


def _row(value: Any) -> FileRow:
    record = record_from_json(value)
    metadata = value.get("metadata")
    return FileRow(record, metadata if isinstance(metadata, Mapping) else {})


def _row_or_none(answer: Any) -> FileRow | None:
    return None if answer is None else _row(answer)


def _rows(answer: Any) -> FileRows:
    page = _object("files", answer)
    values = page.get("files")
    if not isinstance(values, list):
        raise foreign_answer("files")
    return FileRows(tuple(_row(value) for value in values), next_from_json(page))
