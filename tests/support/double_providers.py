"""What the SQL functions for provider file ids do, on a `BucketState`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from exaifs.model import ObjectRecord
from exaifs.providers.records import is_id
from exaifs.remote.interface import ProviderIdAnswer, ProviderUpload
from tests.support.double_state import BucketState, StoredRow


def _id(record: Any) -> str | None:
    found = record.get("id") if isinstance(record, Mapping) else record
    return found if is_id(found) else None


def _as_text(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class ProviderRows:
    """The rows' ids, and the list of what was uploaded."""

    def __init__(self, bucket: BucketState) -> None:
        self._bucket = bucket
        self.uploads: dict[tuple[str, str, str], tuple[float, ProviderUpload]] = {}
        """By provider, account and id: when it was noted (seconds since the epoch), and what."""

    def find(self, sha256: str, provider: str) -> tuple[Any, ...]:
        """Return each record once."""
        found: list[Any] = []
        for row in self._bucket.rows.values():
            record = row.provider_file_ids.get(provider)
            if row.sha256 == sha256 and _id(record) is not None and record not in found:
                found.append(record)
        return tuple(found)

    def set(
        self,
        key: str,
        provider: str,
        record: Mapping[str, Any],
        *,
        sha256: str,
        expected_id: str | None,
        version: str | None,
    ) -> ProviderIdAnswer:
        """Compare and set."""
        registered = record.get("origin") == "registered"
        is_made = record.get("uploaded_at") is not None and not registered
        if is_made:
            self._note(provider, record, sha256)
        found = self._row(key, sha256, version)
        if found is None:
            return ProviderIdAnswer(stored=False, current=None, record=None)
        key, row = found
        if registered and self._is_of_other_bytes(provider, record["id"], sha256):
            return ProviderIdAnswer(stored=False, current=None, record=None, of_other_bytes=True)
        rivals = [row, *(other for other in self._bucket.rows.values() if other.sha256 == sha256)]
        for rival in rivals:
            held = rival.provider_file_ids.get(provider)
            counts = not registered and rival is row if isinstance(held, str) else is_made
            if counts and self._is_good(held, record, expected_id):
                return ProviderIdAnswer(stored=False, current=held, record=self._bucket.record(key))
        if row.provider_file_ids.get(provider) != record or row.sha256 is None:
            self._bucket.log_row(key)
        row.sha256 = sha256
        row.provider_file_ids[provider] = dict(record)
        return ProviderIdAnswer(stored=True, current=dict(record), record=self._bucket.record(key))

    def _note(self, provider: str, record: Mapping[str, Any], sha256: str) -> None:
        account, file_id = str(record.get("account") or ""), str(record["id"])
        upload = ProviderUpload(file_id, sha256, int(record.get("size") or 0), _as_text(time.time()))
        self.uploads.setdefault((provider, account, file_id), (time.time(), upload))

    def _is_of_other_bytes(self, provider: str, file_id: str, sha256: str) -> bool:
        uploaded = (
            upload.sha256
            for (name, _, known), (_, upload) in self.uploads.items()
            if (name, known) == (provider, file_id)
        )
        held = (
            row.sha256
            for row in self._bucket.rows.values()
            if _id(row.provider_file_ids.get(provider)) == file_id
        )
        return any(other not in {None, sha256} for other in (*uploaded, *held))

    def _row(self, key: str, sha256: str, version: str | None) -> tuple[str, StoredRow] | None:
        row = self._bucket.rows.get(key)
        if row is not None and (
            row.sha256 == sha256 or (row.sha256 is None and self._bucket.objects[key].version == version)
        ):
            return key, row
        same = [(key, row) for key, row in self._bucket.rows.items() if row.sha256 == sha256]
        return min(same, key=lambda pair: pair[0]) if same else None

    def _is_good(self, held: Any, record: Mapping[str, Any], expected_id: str | None) -> bool:
        if _id(held) is None or _id(held) in {record["id"], expected_id}:
            return False
        return isinstance(held, str) or (
            held.get("account") == record.get("account")
            and held.get("purpose") == record.get("purpose")
            and (held.get("expires_at") or "9") > _as_text(time.time())
        )

    def forget(self, key: str, provider: str, file_id: str | None) -> ObjectRecord | None:
        """Take an id from every file with the same bytes."""
        row = self._bucket.rows.get(key)
        if row is not None:
            file_id = file_id or _id(row.provider_file_ids.get(provider))
            for other_key, other in self._bucket.rows.items():
                same = other is row or (other.sha256 is not None and other.sha256 == row.sha256)
                if same and file_id and _id(other.provider_file_ids.get(provider)) == file_id:
                    del other.provider_file_ids[provider]
                    self._bucket.log_row(other_key)
        return self._bucket.find(key)

    def unused(self, provider: str, account: str, older_s: int) -> tuple[ProviderUpload, ...]:
        """Return what nobody refers to."""
        before = time.time() - older_s
        return tuple(
            upload
            for (its_provider, its_account, file_id), (noted, upload) in self.uploads.items()
            if (its_provider, its_account) == (provider, account)
            and noted <= before
            and not any(_id(record) == file_id for record in self.find(upload.sha256, provider))
        )
