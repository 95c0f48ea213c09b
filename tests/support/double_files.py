"""`remote.files.FileCatalog` in memory, on the double's bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from exaifs.errors import NotFound
from exaifs.model import ObjectRecord
from exaifs.names import PLACEHOLDER, path_of
from exaifs.remote.files import FileRow, FileRows
from tests.support.double import DoubleServer

T = TypeVar("T")

_OURS = {"version", "etag", "write_id", "posix", "xattrs"}


class DoubleFiles:
    """What migrations 0009 and 0010 do. `DoubleServer` counts, holds and fails requests by these names."""

    def __init__(self, server: DoubleServer) -> None:
        self._server = server
        self.metadata = server.house.metadata
        self.conversations = server.house.conversations

    async def by_id(self, file_id: str) -> FileRow | None:
        return await self._call("by_id", lambda: self._by_id(file_id))

    def _by_id(self, file_id: str) -> FileRow | None:
        return next((row for row in self._rows() if row.record.file_id == file_id.lower()), None)

    async def by_key(self, key: str) -> FileRow | None:
        return await self._call("by_key", lambda: self._by_key(key))

    def _by_key(self, key: str) -> FileRow | None:
        return next((row for row in self._rows() if row.record.key == key), None)

    async def annotate(self, key: str, fields: Mapping[str, Any]) -> FileRow:
        return await self._call("annotate", lambda: self._annotate(key, fields))

    def _annotate(self, key: str, fields: Mapping[str, Any]) -> FileRow:
        file_id = self._server.bucket.record(key).file_id
        assert file_id is not None
        merged = {**self.metadata.get(file_id, {}), **fields}
        self.metadata[file_id] = {
            name: value for name, value in merged.items() if value is not None and name not in _OURS
        }
        return self._row(key)

    async def find_content(self, sha256: str, mime_type: str) -> Sequence[ObjectRecord]:
        def find() -> list[ObjectRecord]:
            records = (row.record for row in self._rows())
            return [
                record
                for record in records
                if (record.sha256, record.mime_type) == (sha256, mime_type) and record.write_id is not None
            ][:3]

        return await self._call("find_content", find)

    async def list_files(self, prefix: str, after: str, limit: int) -> FileRows:
        return await self._call(
            "list_files", lambda: self._page(lambda row: row.record.key.startswith(prefix), after, limit)
        )

    async def search_files(self, query: str, after: str, limit: int) -> FileRows:
        query = query.lower()

        def is_found(row: FileRow) -> bool:
            record = row.record
            return (
                query in path_of(record.key).rpartition("/")[2].lower()
                or record.mime_type.startswith(query)
                or (len(query) >= 4 and (record.sha256 or "").startswith(query))
            )

        return await self._call("search_files", lambda: self._page(is_found, after, limit))

    async def link(self, file_id: str, continuation_id: str) -> bool:
        return await self._call("link", lambda: self._link(file_id, continuation_id))

    def _link(self, file_id: str, continuation_id: str) -> bool:
        row = self._by_id(file_id)
        if row is None:
            raise NotFound(f"no file {file_id}")
        return self._server.house.link(file_id, row.record.key, continuation_id)

    async def _call(self, operation: str, act: Callable[[], T]) -> T:
        await self._server.arrive(operation, key_is_good=True)
        result = act()
        self._server.leave(operation)
        return result

    def _row(self, key: str) -> FileRow:
        record = self._server.bucket.record(key)
        return FileRow(record, dict(self.metadata.get(record.file_id or "", {})))

    def _rows(self) -> Iterator[FileRow]:
        return (self._row(key) for key in sorted(self._server.bucket.objects))

    def _page(self, is_wanted: Callable[[FileRow], bool], after: str, limit: int) -> FileRows:
        found = [
            row
            for row in self._rows()
            if row.record.key > after and not row.record.key.endswith(PLACEHOLDER) and is_wanted(row)
        ]
        return FileRows(tuple(found[:limit]), found[limit - 1].record.key if len(found) > limit else None)
