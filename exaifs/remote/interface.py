"""The seam to Supabase: what the layers above may ask for, and what they get.

Two implementations keep it: `bucket.py`, `catalog.py` and `housekeeping.py` on a real server, and the
in-memory double of the tests; `tests/contract` runs the same bodies on all of them. Deadlines and retries
live below this line: a call here returns, raises an `ExaifsError`, or is cancelled.

Nothing here takes a lock, and everything may be called concurrently.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from exaifs.model import ObjectRecord, ObjectRef, Posix
from exaifs.remote.upkeep import Housekeeping


class Body(Protocol):
    """Bytes to upload, readable more than once (an upload may be repeated)."""

    @property
    def size_bytes(self) -> int:
        """Exact number of bytes `chunks` yields."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Start again from the first byte."""


class SeekableBody(Body, Protocol):
    """A body that can also be read from its middle, where an upload was cut off."""

    def chunks(self, start: int = 0) -> AsyncIterator[bytes]:
        """Start from this byte, at most the size; as often as wanted."""


class UploadMemory(Protocol):
    """Where a large upload notes how it can be taken up again, also by the next process.

    A short text that only the store understands; it holds no secret. Nothing depends on it: what was lost
    or cannot be read costs the bytes that were sent already. The methods are quick and raise nothing.
    """

    def load(self) -> str | None:
        """Return what was saved last, or None."""

    def save(self, text: str) -> None:
        """Replace what was saved; all or nothing."""

    def forget(self) -> None:
        """Remove what was saved."""


@dataclass(frozen=True, slots=True)
class Upload:
    """What is known about an object when it is sent.

    Args:
        sha256: lower-case hex of the body.
        mime_type: without parameters.
        posix: attributes for the row.
        write_id: unique for these bytes, so that a foreign write can be told apart; the same when the
            same write is tried again.
        xattrs: the user's own attributes.
        size_bytes: of the body, by which `commit` knows our object from another's on a server that drops
            metadata. None costs it a second request there.
    """

    sha256: str
    mime_type: str
    posix: Posix
    write_id: str
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    size_bytes: int | None = None


class Download(Protocol):
    """An answer to a GET, already checked: status, length, Content-Range and ETag."""

    @property
    def start(self) -> int:
        """Offset of the first byte: as asked, or 0 from a server that ignores Range."""

    @property
    def ranged(self) -> bool:
        """Whether the server honoured the range."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes as they arrive, in order, up to the end that was asked for.

        A server that ignores Range sends to the end of the object; leaving early is allowed.

        Raises:
            Unreachable: the connection broke or stalled; the bytes before it are good.
            IntegrityError: more or fewer bytes than announced.
        """


class ObjectStore(Protocol):
    """The bytes of one bucket."""

    async def put(
        self, key: str, body: SeekableBody, upload: Upload, *, memory: UploadMemory | None = None
    ) -> None:
        """Create or replace an object, atomically for readers.

        A large body goes in pieces where the server can do that: a cut connection costs the piece at most,
        and with a memory the end of the process does neither. The memory of another upload does no harm;
        after success there is nothing in it.

        Args:
            key: where.
            body: the bytes; unchanged until this returns, or until the upload is taken up again.
            upload: must be equal in all fields for an upload to be taken up again.
            memory: kept by the caller beside the bytes.

        Raises:
            FileTooLarge: over the bucket's or the server's limit; nothing was stored.
            Rejected: a key or MIME type the server does not take.
            NoSpace: the project's quota is used up.
            RemoteError: anything else; the old object, if any, stands.
        """

    def get(
        self, ref: ObjectRef, start: int = 0, stop: int | None = None
    ) -> AbstractAsyncContextManager[Download]:
        """Open bytes [start, stop) of exactly this version; `None` for the end.

        Never ask for an empty range, or past `ref.size_bytes`. Keep it open only while reading.

        Raises (on entering):
            Stale: the object has another version now, or is gone.
            RemoteError: as the tree in `errors` says.
        """

    async def copy(self, source: str, target: str) -> None:
        """Copy on the server, replacing the target atomically.

        Raises:
            NotFound: no source.
        """

    async def move(self, source: str, target: str) -> None:
        """Rename on the server to a key that is free. A lost answer is settled by looking.

        Raises:
            NotFound: no source.
            Exists: the target is taken; both objects stay.
        """

    async def remove(self, keys: Sequence[str]) -> None:
        """Delete objects; missing ones are no error. Any number of keys, in batches below."""

    async def signed_url(self, key: str, lifetime_s: int) -> str:
        """Return an absolute URL that anyone may GET for so long.

        Raises:
            NotFound: no such object.
        """


@dataclass(frozen=True, slots=True)
class Hello:
    """What the server said when asked once at mount; it also proves the key (promise 3)."""

    schema_version: int
    """Number of the newest migration that was applied."""
    size_limit_bytes: int | None
    """The bucket's limit; None where it has none of its own."""
    public: bool
    trigger_installed: bool
    """Whether `storage.objects` tells `file_metadata` and the change log of every write."""
    bucket_registered: bool
    """Whether the trigger watches this bucket (`exaifs init --bucket`)."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A prefix that has at least one object below it.

    `exaifs_list_directory` returns each as {"name": text, "marker": record or null}.
    """

    component: str
    """Last component of the prefix, without slash."""
    marker: ObjectRecord | None
    """The folder marker (`names.PLACEHOLDER`) inside it, whose row keeps the directory's attributes."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of one directory: its objects and its folders, each in key order."""

    records: tuple[ObjectRecord, ...]
    folders: tuple[Folder, ...]
    next_after: str | None
    """Give it as `after` for the next page; None at the end."""


@dataclass(frozen=True, slots=True)
class Change:
    """The newest state of one key that changed: a move is a delete and a put."""

    key: str
    record: ObjectRecord | None
    """None: the object is gone."""


@dataclass(frozen=True, slots=True)
class ChangePage:
    """What happened since a cursor, oldest first."""

    changes: tuple[Change, ...]
    cursor: str
    more: bool
    """Whether to ask again at once."""
    continuous: bool
    """False: the log was trimmed past the cursor, or the cursor is from the future; list again."""


@dataclass(frozen=True, slots=True)
class RowPatch:
    """Changes to a row that leave the bytes alone; `None` leaves a field as it is."""

    posix: Posix | None = None
    set_xattrs: Mapping[str, bytes] = field(default_factory=dict)
    drop_xattrs: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Access:
    """Reads of one key since the last flush, for the counters in the row."""

    key: str
    count: int
    last_ns: int


@dataclass(frozen=True, slots=True)
class ProviderIdAnswer:
    """What became of an attempt to store a provider's file id."""

    stored: bool
    current: Mapping[str, Any] | str | None
    """The record that holds now: ours, or the one that was there first. None: no file has these bytes."""
    record: ObjectRecord | None
    """The file's, as it is now."""
    of_other_bytes: bool = False
    """Whether it was refused because the id is known here for other bytes."""


@dataclass(frozen=True, slots=True)
class ProviderUpload:
    """A file that was uploaded to a provider from here, by its row in `exaifs_provider_files`."""

    id: str
    sha256: str
    size_bytes: int
    noted_at: str
    """Time of the upload, 'YYYY-MM-DDTHH:MM:SSZ'."""


class Catalog(Protocol):
    """The rows of one bucket, through the SQL functions of `migrations/`."""

    async def hello(self) -> Hello:
        """Prove the key and learn what the server can do.

        Raises:
            Unauthorized: the key is refused, or is not service_role.
            SchemaMissing: the functions are not there.
            BucketMissing: the bucket is not there.
        """

    async def list_directory(self, prefix: str, after: str = "", limit: int = 1000) -> Listing:
        """Return one page of one level: cost in proportion to the directory, not the bucket."""

    async def list_tree(
        self, prefix: str, after: str = "", limit: int = 1000
    ) -> tuple[tuple[ObjectRecord, ...], str | None]:
        """Return one page of all records whose key starts with `prefix`, and where to go on."""

    async def stat(self, keys: Sequence[str]) -> dict[str, ObjectRecord]:
        """Return the records of the keys that exist. Absence is proven: the key was good."""

    async def commit(
        self, key: str, upload: Upload, *, local_cache_path: str | None = None
    ) -> ObjectRecord:
        """Return the record after `put`, completing its row where the server dropped metadata.

        Raises:
            NotFound: somebody deleted the object meanwhile.
        """

    async def patch(self, key: str, patch: RowPatch) -> ObjectRecord:
        """Change attributes in the row.

        Raises:
            NotFound: no such object.
        """

    async def carry_row(self, source: str, target: str) -> ObjectRecord:
        """After `copy` for a rename: give the target the source's row (file id, ids, attributes).

        The source's row is gone afterwards, its object is still there.

        Raises:
            NotFound: no such target object.
        """

    async def changes(self, cursor: str, limit: int = 1000) -> ChangePage:
        """Return what was committed after the cursor; a transaction still running is never skipped.

        Args:
            cursor: of an earlier page, opaque; empty for where the log stands now.
            limit: how many entries of the log at most.
        """

    async def touch(self, accesses: Sequence[Access]) -> None:
        """Add to access counters, in one call."""

    # file ids at LLM providers; migration 0008 explains the records

    async def find_provider_ids(self, sha256: str, provider: str) -> tuple[Mapping[str, Any] | str, ...]:
        """Return what any file with these bytes has at a provider, each record once."""

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
        """Store a record for these bytes, unless they have another good id already.

        Args:
            key: where the bytes were; a file that was renamed meanwhile is found by its hash.
            provider: its name.
            record: with an id; one whose `origin` is "registered" is stored whatever is there, unless its
                id is known for other bytes.
            sha256: of the bytes the record was made from.
            expected_id: an id that the caller found and rejected; it may be replaced.
            version: of the object that was read, for a row that has no hash yet.
        """

    async def forget_provider_id(
        self, key: str, provider: str, file_id: str | None = None
    ) -> ObjectRecord | None:
        """Take an id (None: the one it has) from a file and all others with the same bytes."""

    async def unused_provider_files(
        self, provider: str, account: str, older_s: int = 0
    ) -> tuple[ProviderUpload, ...]:
        """Return up to 1,000 uploads of long ago whose id no file has any more, oldest first."""

    async def drop_provider_file(self, provider: str, account: str, file_id: str) -> None:
        """Forget an upload that was deleted at the provider."""


@dataclass(frozen=True, slots=True)
class Remote:
    """One bucket of one Supabase project."""

    objects: ObjectStore
    catalog: Catalog
    bucket: str
    identity: str
    """Names project and bucket without secrets; the local index belongs to exactly one identity."""
    housekeeping: Housekeeping | None = None
    """None: whoever opened it leaves that to others."""
