"""One bucket, its rows and its change log in memory: what Supabase and the trigger do, synchronously.

Semantics are those of the real server. `double.py` wraps this in the two protocols of
`exaifs.remote.interface`; tests may also call the methods here directly, as another client would.
"""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from exaifs.errors import Exists, FileTooLarge, NotFound, Rejected, Unserved
from exaifs.model import ObjectRecord, Posix
from exaifs.names import PLACEHOLDER
from exaifs.remote.interface import Change, ChangePage, Folder, Listing, RowPatch, Upload

_KEY = re.compile(r"[A-Za-z0-9_/!.*'() &$=@;:+,?-]+", re.ASCII)
_MAX_KEY_BYTES = 955


@dataclass(slots=True)
class StoredObject:
    """A row of `storage.objects` with its bytes."""

    version: str
    data: bytes
    mime_type: str
    created_ns: int
    updated_ns: int
    upload: Upload | None
    """What came as user metadata; None for another client's upload."""

    @property
    def etag(self) -> str:
        """As the real server's file backend makes it."""
        return '"' + hashlib.md5(self.data, usedforsecurity=False).hexdigest() + '"'


@dataclass(slots=True)
class StoredRow:
    """A row of `file_metadata`."""

    file_id: str
    sha256: str | None = None
    write_id: str | None = None
    posix: Posix = field(default_factory=Posix)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    provider_file_ids: dict[str, Any] = field(default_factory=dict)
    access_count: int = 0
    last_accessed_ns: int = 0
    local_cache_path: str | None = None


def merged(old: Posix, new: Posix) -> Posix:
    """Return the old attributes with what the new ones record."""
    return Posix.from_json({**old.to_json(), **new.to_json()})


class BucketState:
    """Everything the server knows of one bucket. No method here is a checkpoint."""

    def __init__(self, name: str = "user-files", *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.name = name
        self._now_ns = now_ns
        self.size_limit_bytes: int | None = 50 * 1024 * 1024
        self.keeps_metadata = True
        """False: as the embedded server, which drops `x-metadata`."""
        self.objects: dict[str, StoredObject] = {}
        self.rows: dict[str, StoredRow] = {}
        self.on_place: Callable[[str, str | None, str | None], None] = lambda *_: None
        """Told the file id, and the key before and after, when a row is written, moved or deleted."""
        self.is_guarded: Callable[[str], bool] = lambda _: False
        """Whether the object at a key is kept from being deleted now."""
        self.is_logged = True
        """Whether the trigger is there; see `break_log`."""
        self._log: list[str] = []
        self._trimmed = 0
        self._ids = 0

    # objects

    def put(
        self, key: str, data: bytes, mime_type: str = "text/plain", upload: Upload | None = None
    ) -> ObjectRecord:
        """Create or replace; without `upload` as the dashboard or any other client does."""
        self.check_key(key)
        self.check_size(key, len(data))
        now_ns = self._now_ns()
        kept = upload if self.keeps_metadata else None
        self._store(key, StoredObject(self._new_id(), data, mime_type, now_ns, now_ns, kept))
        return self.record(key)

    def check_key(self, key: str) -> None:
        """Refuse what the real server refuses."""
        if not _KEY.fullmatch(key) or len(key) > _MAX_KEY_BYTES:
            raise Rejected(f"Invalid key: {key!r}")

    def check_size(self, key: str, size_bytes: int) -> None:
        """Apply the bucket's limit, and the one for folder markers."""
        limit = 0 if key.endswith(PLACEHOLDER) else self.size_limit_bytes
        if limit is not None and size_bytes > limit:
            raise FileTooLarge(f"{size_bytes} bytes pass the limit of {limit}")

    def copy(self, source: str, target: str) -> None:
        """Copy over whatever is there; user metadata travels along."""
        self.check_key(target)
        now_ns = self._now_ns()
        copy = replace(self._object(source), version=self._new_id(), created_ns=now_ns, updated_ns=now_ns)
        self._store(target, copy)

    def move(self, source: str, target: str) -> None:
        """Rename to a free key; the row goes along."""
        self.check_key(target)
        found = self._object(source)
        if source == target:
            return
        if target in self.objects:
            raise Exists(f"{target!r} is taken")
        del self.objects[source]
        self.objects[target] = replace(found, version=self._new_id(), updated_ns=self._now_ns())
        row = self.rows.pop(source, None)
        if row is not None:
            self.rows[target] = row
            self.on_place(row.file_id, source, target)
        self._note(source, target)

    def remove(self, keys: Sequence[str]) -> None:
        """Delete what exists of the keys, with the rows.

        Raises:
            Unserved: the server kept one, which no client understands.
        """
        kept = [key for key in keys if self.is_guarded(key)]
        for key in keys:
            if key not in kept and self.objects.pop(key, None) is not None:
                self._note(key)
                row = self.rows.pop(key, None)
                if row is not None:
                    self.on_place(row.file_id, key, None)
        if kept:
            raise Unserved(f"{kept[0]}: the server does not find what the catalog lists")

    def _object(self, key: str) -> StoredObject:
        found = self.objects.get(key)
        if found is None:
            raise NotFound(f"no object {key!r}")
        return found

    def _new_id(self) -> str:
        self._ids += 1
        return str(uuid.UUID(int=self._ids, version=4))

    def _store(self, key: str, new: StoredObject) -> None:
        """Put an object in place and do what the trigger does then: hash and ids are valid for bytes."""
        old = self.objects.get(key)
        if old is not None:
            new.created_ns = old.created_ns
        self.objects[key] = new
        row = self.rows.setdefault(key, StoredRow(self._new_id()))
        same = old is not None and old.data == new.data
        upload = new.upload
        sha256 = upload.sha256 if upload else (row.sha256 if same else None)
        if not same and (sha256 is None or sha256 != row.sha256):
            row.provider_file_ids = self._ids_of(sha256)
        row.sha256 = sha256
        row.write_id = upload.write_id if upload else None
        row.posix = replace(row.posix, mtime_ns=None, kind="file")
        if upload:
            row.posix = merged(row.posix, upload.posix)
            row.xattrs = dict(upload.xattrs)
        self._note(key)
        self.on_place(row.file_id, None, key)

    def _ids_of(self, sha256: str | None) -> dict[str, Any]:
        """Return the ids at providers that files with these bytes have."""
        found: dict[str, Any] = {}
        for row in self.rows.values():
            if sha256 is not None and row.sha256 == sha256:
                found |= row.provider_file_ids
        return found

    # records

    def record(self, key: str) -> ObjectRecord:
        """Return object and row in one piece.

        Raises:
            NotFound: no such object.
        """
        stored = self._object(key)
        row = self.rows.get(key)
        record = ObjectRecord(
            key=key,
            version=stored.version,
            size_bytes=len(stored.data),
            mime_type=stored.mime_type,
            etag=stored.etag,
            created_ns=stored.created_ns,
            updated_ns=stored.updated_ns,
        )
        if row is None:
            return record
        return replace(
            record,
            file_id=row.file_id,
            sha256=row.sha256,
            write_id=row.write_id,
            posix=row.posix,
            xattrs=dict(row.xattrs),
            provider_file_ids=dict(row.provider_file_ids),
        )

    def find(self, key: str) -> ObjectRecord | None:
        """Return the record, or None where there is no object."""
        return self.record(key) if key in self.objects else None

    def commit(self, key: str, upload: Upload, local_cache_path: str | None) -> ObjectRecord:
        """Complete the row of an object that was just put, unless somebody wrote after us."""
        stored = self._object(key)
        row = self.rows.setdefault(key, StoredRow(self._new_id()))
        unclaimed = not self.keeps_metadata and stored.upload is None and row.write_id is None
        if unclaimed and upload.size_bytes in {None, len(stored.data)}:
            row.provider_file_ids = row.provider_file_ids or self._ids_of(upload.sha256)
            row.sha256, row.write_id = upload.sha256, upload.write_id
            row.posix = merged(row.posix, upload.posix)
            row.xattrs = dict(upload.xattrs)
            self._note(key)
        if row.write_id == upload.write_id:
            row.local_cache_path = local_cache_path or row.local_cache_path
        return self.record(key)

    def patch(self, key: str, patch: RowPatch) -> ObjectRecord:
        """Change what a row says, not the bytes."""
        self._object(key)
        row = self.rows.setdefault(key, StoredRow(self._new_id()))
        if patch.posix is not None:
            row.posix = merged(row.posix, patch.posix)
        row.xattrs = {name: value for name, value in row.xattrs.items() if name not in patch.drop_xattrs}
        row.xattrs.update(patch.set_xattrs)
        self._note(key)
        return self.record(key)

    def carry_row(self, source: str, target: str) -> ObjectRecord:
        """Give the target the source's row; bytes that another client put there keep their own hash."""
        self._object(target)
        row, there = self.rows.pop(source, None), self.rows.get(target)
        if row is not None:
            if there is not None:
                self.on_place(there.file_id, target, None)
            if there is not None and there.sha256 not in {None, row.sha256}:
                old = replace(row.posix, mtime_ns=None, kind="file")
                row.sha256, row.write_id, row.posix = there.sha256, there.write_id, merged(old, there.posix)
                row.provider_file_ids, row.local_cache_path = self._ids_of(there.sha256), None
            self.rows[target] = row
            self.on_place(row.file_id, source, target)
            self._note(source, target)
        return self.record(target)

    def touch(self, key: str, count: int, last_ns: int) -> None:
        """Add to the access counters; no change is logged."""
        row = self.rows.get(key)
        if row is not None:
            row.access_count += count
            row.last_accessed_ns = max(row.last_accessed_ns, last_ns)

    # provider ids: see double_providers.py

    def log_row(self, key: str) -> None:
        """Log that a row changed."""
        self._note(key)

    # lists

    def list_directory(self, prefix: str, after: str, limit: int) -> Listing:
        """Return one page of one level, records and folders counted together."""
        page: list[ObjectRecord | Folder] = []
        last, more = after, False
        for token, entry in self._level(prefix, after):
            if len(page) == limit:
                more = True
                break
            page.append(entry)
            last = token
        return Listing(
            tuple(entry for entry in page if isinstance(entry, ObjectRecord)),
            tuple(entry for entry in page if isinstance(entry, Folder)),
            last if more else None,
        )

    def _level(self, prefix: str, after: str) -> Iterator[tuple[str, ObjectRecord | Folder]]:
        position = after
        for key in sorted(self.objects):
            if not key.startswith(prefix) or key <= position:
                continue
            component, slash, _ = key[len(prefix) :].partition("/")
            if slash:
                position = f"{prefix}{component}/\x7f"
                marker = self.find(f"{prefix}{component}/{PLACEHOLDER}")
                yield position, Folder(component, marker)
            else:
                position = key
                yield key, self.record(key)

    def list_tree(self, prefix: str, after: str, limit: int) -> tuple[tuple[ObjectRecord, ...], str | None]:
        """Return one page of everything below a prefix."""
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        records = tuple(self.record(key) for key in keys[:limit])
        return records, records[-1].key if len(keys) > limit else None

    # changes

    @property
    def cursor(self) -> str:
        """Where the change feed stands now."""
        return str(self._trimmed + len(self._log))

    def _note(self, *keys: str) -> None:
        if self.is_logged:
            self._log += keys

    def break_log(self) -> None:
        """Set the trigger again after it was gone: cursors from before have missed something."""
        self.is_logged = True
        self.trim_log()
        self._trimmed += 1

    def trim_log(self) -> None:
        """Forget all logged changes, as the server's janitor does with old ones."""
        self._trimmed += len(self._log)
        self._log.clear()

    def changes(self, cursor: str, limit: int) -> ChangePage:
        """Return the keys that changed after the cursor, each with its newest state."""
        if not cursor:
            return ChangePage((), self.cursor, more=False, continuous=True)
        position = int(cursor) if cursor.isdigit() else -1
        end = self._trimmed + len(self._log)
        if not self._trimmed <= position <= end:
            return ChangePage((), self.cursor, more=False, continuous=False)
        stop = min(position + limit, end)
        logged = self._log[position - self._trimmed : stop - self._trimmed]
        newest: dict[str, None] = dict.fromkeys(reversed(logged))
        changes = tuple(Change(key, self.find(key)) for key in reversed(newest))
        return ChangePage(changes, str(stop), more=stop < end, continuous=True)
