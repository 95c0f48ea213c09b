"""The rows of one bucket, through the SQL functions of `migrations/`.

Every function returns one JSON value and runs for service_role only, so each answer also proves the
key. What came back is checked in `wire`; repeating is left to the retry policy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from exaifs.errors import NotFound
from exaifs.model import ObjectRecord
from exaifs.remote.interface import (
    Access,
    ChangePage,
    Hello,
    Listing,
    ProviderIdAnswer,
    ProviderUpload,
    RowPatch,
    Upload,
)
from exaifs.remote.session import Session
from exaifs.remote.wire import (
    changes_from_json,
    commit_fields,
    foreign_answer,
    hello_from_json,
    listing_from_json,
    next_from_json,
    patch_fields,
    provider_answer_from_json,
    provider_records_from_json,
    provider_uploads_from_json,
    record_from_json,
    records_from_json,
    xattrs_fit,
)

T = TypeVar("T")

_KEYS_A_CALL = 1000


class SupabaseCatalog:
    """`interface.Catalog` on a Supabase project."""

    def __init__(self, session: Session, bucket: str) -> None:
        self._session = session
        self._bucket = bucket
        # Whether the server drops an upload's metadata; learned from the first commit.
        self._drops_metadata: bool | None = None

    async def hello(self) -> Hello:
        """See `interface.Catalog`."""
        return await self._object("exaifs_hello", lambda answer: hello_from_json(answer, self._bucket))

    async def list_directory(self, prefix: str, after: str = "", limit: int = 1000) -> Listing:
        """See `interface.Catalog`."""
        params = {"p_prefix": prefix, "p_after": after, "p_limit": limit}
        return await self._object("exaifs_list_directory", listing_from_json, **params)

    async def list_tree(
        self, prefix: str, after: str = "", limit: int = 1000
    ) -> tuple[tuple[ObjectRecord, ...], str | None]:
        """See `interface.Catalog`."""
        params = {"p_prefix": prefix, "p_after": after, "p_limit": limit}
        return await self._object("exaifs_list_tree", _page, **params)

    async def stat(self, keys: Sequence[str]) -> dict[str, ObjectRecord]:
        """See `interface.Catalog`."""
        found: dict[str, ObjectRecord] = {}
        for position in range(0, len(keys), _KEYS_A_CALL):
            batch = list(keys[position : position + _KEYS_A_CALL])
            records = await self._object("exaifs_stat", records_from_json, p_keys=batch)
            found.update((record.key, record) for record in records)
        return found

    async def stat_once(self, keys: Sequence[str]) -> dict[str, ObjectRecord]:
        """Look at up to 1,000 keys without repeating, for callers that repeat themselves."""
        answer = await self._session.rpc("exaifs_stat", {"p_bucket": self._bucket, "p_keys": list(keys)})
        if not isinstance(answer, Mapping):
            raise foreign_answer("exaifs_stat")
        return {record.key: record for record in records_from_json(answer)}

    async def commit(
        self, key: str, upload: Upload, *, local_cache_path: str | None = None
    ) -> ObjectRecord:
        """See `interface.Catalog`."""
        # Given a size, the server completes a row by it: never where uploads bring their own metadata, as
        # what has none there is another client's, of whatever size.
        size_bytes = upload.size_bytes if self._drops_metadata else None
        record = await self._commit(key, upload, size_bytes, local_cache_path)
        if size_bytes is None and record.write_id == upload.write_id:
            self._drops_metadata = False
        elif size_bytes is None and record.write_id is None and self._drops_metadata is not False:
            size_bytes = record.size_bytes if upload.size_bytes is None else upload.size_bytes
            record = await self._commit(key, upload, size_bytes, local_cache_path)
            if record.write_id == upload.write_id:
                self._drops_metadata = True
        if not xattrs_fit(upload) and record.write_id == upload.write_id:
            # Where the server keeps the upload's header, the row has all of it but these.
            dropped = [name for name in record.xattrs if name not in upload.xattrs]
            return await self.patch(key, RowPatch(set_xattrs=upload.xattrs, drop_xattrs=dropped))
        return record

    async def _commit(
        self, key: str, upload: Upload, size_bytes: int | None, local_cache_path: str | None
    ) -> ObjectRecord:
        fields = commit_fields(upload, size_bytes, local_cache_path)
        return await self._record(key, "exaifs_commit", p_key=key, p_fields=fields)

    async def patch(self, key: str, patch: RowPatch) -> ObjectRecord:
        """See `interface.Catalog`."""
        return await self._record(key, "exaifs_patch", p_key=key, p_fields=patch_fields(patch))

    async def carry_row(self, source: str, target: str) -> ObjectRecord:
        """See `interface.Catalog`."""
        return await self._record(target, "exaifs_carry_row", p_source=source, p_target=target)

    async def changes(self, cursor: str, limit: int = 1000) -> ChangePage:
        """See `interface.Catalog`."""
        return await self._object("exaifs_changes", changes_from_json, p_cursor=cursor, p_limit=limit)

    async def touch(self, accesses: Sequence[Access]) -> None:
        """See `interface.Catalog`. Not repeated: a counter would count twice."""
        if not accesses:
            return
        params = {
            "p_bucket": self._bucket,
            "p_keys": [access.key for access in accesses],
            "p_counts": [access.count for access in accesses],
            "p_last": [str(access.last_ns) for access in accesses],
        }
        await self._session.call("exaifs_touch", params, lambda answer: answer)

    async def find_provider_ids(self, sha256: str, provider: str) -> tuple[Mapping[str, Any] | str, ...]:
        """See `interface.Catalog`."""
        params = {"p_sha256": sha256, "p_provider": provider}
        return await self._anywhere("exaifs_find_provider_ids", params, provider_records_from_json)

    async def set_provider_id(
        self,
        key: str,
        provider: str,
        record: Mapping[str, Any],
        *,
        sha256: str,
        expected_id: str | None = None,
        version: str | None = None,
    ) -> ProviderIdAnswer:
        """See `interface.Catalog`."""
        return await self._object(
            "exaifs_set_provider_id",
            provider_answer_from_json,
            p_key=key,
            p_provider=provider,
            p_record=json.dumps(record),
            p_sha256=sha256,
            p_expected_id=expected_id or "",
            p_version=version or "",
        )

    async def forget_provider_id(
        self, key: str, provider: str, file_id: str | None = None
    ) -> ObjectRecord | None:
        """See `interface.Catalog`."""
        params = {"p_key": key, "p_provider": provider, "p_id": file_id or ""}
        return await self._call("exaifs_forget_provider_id", params, _record_or_none)

    async def unused_provider_files(
        self, provider: str, account: str, older_s: int = 0
    ) -> tuple[ProviderUpload, ...]:
        """See `interface.Catalog`."""
        params = {"p_provider": provider, "p_account": account, "p_older_s": older_s}
        return await self._anywhere("exaifs_unused_provider_files", params, provider_uploads_from_json)

    async def drop_provider_file(self, provider: str, account: str, file_id: str) -> None:
        """See `interface.Catalog`."""
        params = {"p_provider": provider, "p_account": account, "p_id": file_id}
        await self._anywhere("exaifs_drop_provider_file", params, lambda answer: answer)

    async def _anywhere(
        self, function: str, params: Mapping[str, Any], parse: Callable[[Mapping[str, Any]], T]
    ) -> T:
        """Call a function that knows no buckets: contents and their ids belong to none."""
        return await self._session.call(function, params, _of_object(function, parse))

    async def _call(self, function: str, params: Mapping[str, Any], parse: Callable[[Any], T]) -> T:
        return await self._session.call(function, {"p_bucket": self._bucket, **params}, parse)

    async def _object(self, function: str, parse: Callable[[Mapping[str, Any]], T], **params: Any) -> T:
        return await self._call(function, params, _of_object(function, parse))

    async def _record(self, key: str, function: str, **params: Any) -> ObjectRecord:
        record = await self._call(function, params, _record_or_none)
        if record is None:
            raise NotFound(f"no object {key!r}")
        return record


def _of_object(function: str, parse: Callable[[Mapping[str, Any]], T]) -> Callable[[Any], T]:
    def checked(answer: Any) -> T:
        if not isinstance(answer, Mapping):
            raise foreign_answer(function)
        return parse(answer)

    return checked


def _record_or_none(answer: Any) -> ObjectRecord | None:
    return None if answer is None else record_from_json(answer)


def _page(answer: Mapping[str, Any]) -> tuple[tuple[ObjectRecord, ...], str | None]:
    return records_from_json(answer), next_from_json(answer)
