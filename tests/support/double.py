"""The store of the tests: the protocols of `exaifs.remote.interface` in memory, with faults on demand.

    server = DoubleServer()
    remote = server.remote()                      # a `Remote`, as `open_remote` would yield
    server.bucket.put("a.txt", b"other client")   # another client, no request of ours
    server.inject("put", Busy("later"))           # the next put fails before anything happened
    server.inject("move", Unreachable("cut"), after=True)   # done, but the answer is lost
    server.online = False                         # Unreachable for everything
    server.uploads.break_off(after_bytes=7 * MIB)  # the next upload is cut; a memory takes it up again
    with server.hold("get") as gate: ...          # calls wait at the gate until it opens
    server.counts["get"]                          # requests so far, by method name

It passes the same contract tests as the real server; runs under trio and asyncio.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import anyio

from exaifs.errors import BucketMissing, ExaifsError, Stale, Unauthorized, Unreachable
from exaifs.model import ObjectRecord, ObjectRef
from exaifs.remote.download import EmptyDownload
from exaifs.remote.interface import (
    Access,
    ChangePage,
    Download,
    Hello,
    Listing,
    ProviderIdAnswer,
    ProviderUpload,
    Remote,
    RowPatch,
    SeekableBody,
    Upload,
    UploadMemory,
)
from exaifs.remote.upkeep import Finding, FindingPage, Settled
from tests.support.double_housekeeping import HouseRows
from tests.support.double_providers import ProviderRows
from tests.support.double_state import BucketState
from tests.support.double_uploads import Uploads

T = TypeVar("T")

_SCHEMA_VERSION = 1


class Gate:
    """Where held calls wait; see `DoubleServer.hold`."""

    def __init__(self) -> None:
        self._arrived = anyio.Event()
        self._open = anyio.Event()

    async def wait_arrived(self) -> None:
        """Return once a call waits here."""
        await self._arrived.wait()

    def open(self) -> None:
        """Let everybody through, now and later."""
        self._open.set()

    async def pass_through(self) -> None:
        """Announce oneself and wait until the gate is open."""
        self._arrived.set()
        await self._open.wait()


@dataclass(slots=True)
class _Fault:
    operation: str
    error: ExaifsError
    times: int
    after: bool


@dataclass
class DoubleServer:
    """One server with one bucket; every `remote()` is another client of it."""

    bucket_name: str = "user-files"
    now_ns: Callable[[], int] = time.time_ns
    bucket: BucketState = field(init=False)
    providers: ProviderRows = field(init=False)
    uploads: Uploads = field(default_factory=Uploads)
    house: HouseRows = field(init=False)
    bucket_exists: bool = True
    online: bool = True
    trigger_installed: bool = True
    bucket_registered: bool = True
    ignores_range: bool = False
    """Answer every ranged read with the whole object, as the embedded server does."""
    latency_s: float = 0.0
    """Before every request, by the event loop's clock."""
    chunk_bytes: int = 64 * 1024
    chunk_latency_s: float = 0.0
    """Before every chunk of a download or upload."""
    counts: Counter[str] = field(default_factory=Counter)
    """Requests by method name."""
    bytes_sent: int = 0
    """Body bytes handed out by downloads."""
    _faults: list[_Fault] = field(default_factory=list)
    _gates: dict[str, Gate] = field(default_factory=dict)
    _late: set[str] = field(default_factory=set)
    _break_after_bytes: int | None = None
    _corrupt: int = 0

    def __post_init__(self) -> None:
        self.bucket = BucketState(self.bucket_name, now_ns=self.now_ns)
        self.providers = ProviderRows(self.bucket)
        self.house = HouseRows(self.bucket, self.now_ns)

    def remote(self, *, key_is_good: bool = True) -> Remote:
        """Return a client; one with a bad key gets `Unauthorized` for everything."""
        return Remote(
            objects=_Objects(self, key_is_good=key_is_good),
            catalog=_Catalog(self, key_is_good=key_is_good),
            bucket=self.bucket_name,
            identity=f"double://server/{self.bucket_name}",
            housekeeping=_Housekeeping(self, key_is_good=key_is_good),
        )

    # faults

    def inject(self, operation: str, error: ExaifsError, *, times: int = 1, after: bool = False) -> None:
        """Fail the next calls of a method (`*`: any); `after` means done, but the answer was lost."""
        self._faults.append(_Fault(operation, error, times, after))

    def clear_faults(self) -> None:
        """Forget what `inject`, `break_download` and `corrupt_downloads` asked for."""
        self._faults.clear()
        self._break_after_bytes = None
        self._corrupt = 0

    def break_download(self, after_bytes: int) -> None:
        """Cut the next download after so many bytes."""
        self._break_after_bytes = after_bytes

    def corrupt_downloads(self, times: int = 1) -> None:
        """Flip a bit in the first byte of the next downloads."""
        self._corrupt = times

    @contextmanager
    def hold(self, operation: str) -> Iterator[Gate]:
        """Hold all calls of a method until the gate is opened, at the latest when the block ends."""
        gate = self._gates[operation] = Gate()
        try:
            yield gate
        finally:
            gate.open()
            del self._gates[operation]

    # used by the two faces below

    async def arrive(self, operation: str, *, key_is_good: bool) -> None:
        """Do everything that happens before the server acts."""
        self.counts[operation] += 1
        await anyio.sleep(self.latency_s)
        gate = self._gates.get(operation)
        if gate is not None:
            await gate.pass_through()
        if not self.online:
            raise Unreachable("the server does not answer")
        self._raise_fault(operation, after=False)
        if not key_is_good:
            raise Unauthorized("the key is refused")
        if not self.bucket_exists:
            raise BucketMissing(f"no bucket {self.bucket_name!r}")

    async def carry_chunk(self) -> None:
        """Do everything that happens before a chunk of an upload arrives."""
        await anyio.sleep(self.chunk_latency_s)
        if not self.online:
            raise Unreachable("the connection broke")

    def answer_late(self, operation: str) -> None:
        """Have the next answer of a method wait at the gate "late", after the server has acted."""
        self._late.add(operation)

    async def delay_answer(self, operation: str) -> None:
        """Wait at the gate "late", if that was asked for."""
        if operation in self._late:
            self._late.remove(operation)
            await self._gates["late"].pass_through()

    def leave(self, operation: str) -> None:
        """Lose the answer, if that was asked for."""
        self._raise_fault(operation, after=True)
        if not self.online:
            raise Unreachable("the answer was lost")

    def _raise_fault(self, operation: str, *, after: bool) -> None:
        for fault in self._faults:
            if fault.operation in {operation, "*"} and fault.after == after:
                fault.times -= 1
                if fault.times == 0:
                    self._faults.remove(fault)
                raise fault.error

    def take_break(self) -> int | None:
        """Return where this download breaks off, once."""
        taken, self._break_after_bytes = self._break_after_bytes, None
        return taken

    def spoil(self, data: bytes) -> bytes:
        """Corrupt these bytes, if that was asked for."""
        if self._corrupt == 0 or not data:
            return data
        self._corrupt -= 1
        return bytes([data[0] ^ 1]) + data[1:]


class _Download(AsyncIterator[bytes]):
    """A download of bytes that are already cut to what will be sent; may be left at any time."""

    def __init__(self, server: DoubleServer, data: bytes, start: int, *, ranged: bool) -> None:
        self.start = start
        self.ranged = ranged
        self._server = server
        self._data = data
        self._position = 0
        self._break_at = server.take_break()

    def chunks(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        server = self._server
        if self._position == len(self._data):
            raise StopAsyncIteration
        await anyio.sleep(server.chunk_latency_s)
        stop = min(self._position + server.chunk_bytes, len(self._data))
        if self._break_at is not None:
            stop = min(stop, self._break_at)
        if not server.online or stop == self._position:
            raise Unreachable("the connection broke")
        chunk = self._data[self._position : stop]
        self._position = stop
        server.bytes_sent += len(chunk)
        return chunk


class _Face:
    def __init__(self, server: DoubleServer, *, key_is_good: bool) -> None:
        self._server = server
        self._key_is_good = key_is_good

    async def _call(self, operation: str, act: Callable[[], T]) -> T:
        await self._server.arrive(operation, key_is_good=self._key_is_good)
        result = act()
        await self._server.delay_answer(operation)
        self._server.leave(operation)
        return result

    @property
    def _bucket(self) -> BucketState:
        return self._server.bucket


class _Objects(_Face):
    """`ObjectStore` on the double."""

    async def put(
        self, key: str, body: SeekableBody, upload: Upload, *, memory: UploadMemory | None = None
    ) -> None:
        await self._server.arrive("put", key_is_good=self._key_is_good)
        self._bucket.check_key(key)
        self._bucket.check_size(key, body.size_bytes)
        data = await self._server.uploads.receive(key, body, upload, memory, self._server.carry_chunk)
        if not self._server.online:
            raise Unreachable("the connection broke")
        self._bucket.put(key, data, upload.mime_type, upload)
        self._server.leave("put")
        self._server.uploads.done(key, upload, memory)

    @asynccontextmanager
    async def get(self, ref: ObjectRef, start: int = 0, stop: int | None = None) -> AsyncIterator[Download]:
        stop = ref.size_bytes if stop is None else stop
        if ref.size_bytes == 0:
            yield EmptyDownload()
            return
        if not 0 <= start < stop <= ref.size_bytes:
            raise ValueError(f"not a range of {ref.size_bytes} bytes: [{start}, {stop})")
        await self._server.arrive("get", key_is_good=self._key_is_good)
        stored = self._bucket.objects.get(ref.key)
        if stored is None or stored.version != ref.version:
            raise Stale(f"{ref.key!r} has another version now")
        whole = start == 0 and stop == ref.size_bytes
        if whole or self._server.ignores_range:
            start, stop = 0, len(stored.data)
        data = self._server.spoil(stored.data[start:stop])
        yield _Download(self._server, data, start, ranged=not (whole or self._server.ignores_range))

    async def copy(self, source: str, target: str) -> None:
        await self._call("copy", lambda: self._bucket.copy(source, target))

    async def move(self, source: str, target: str) -> None:
        await self._call("move", lambda: self._bucket.move(source, target))

    async def remove(self, keys: Sequence[str]) -> None:
        if keys:
            await self._call("remove", lambda: self._bucket.remove(keys))

    async def signed_url(self, key: str, lifetime_s: int) -> str:
        record = await self._call("signed_url", lambda: self._bucket.record(key))
        return f"https://double.invalid/{self._bucket.name}/{record.key}?lifetime={lifetime_s}"


class _Catalog(_Face):
    """`Catalog` on the double."""

    async def hello(self) -> Hello:
        return await self._call("hello", self._hello)

    def _hello(self) -> Hello:
        return Hello(
            schema_version=_SCHEMA_VERSION,
            size_limit_bytes=self._bucket.size_limit_bytes,
            public=False,
            trigger_installed=self._server.trigger_installed,
            bucket_registered=self._server.bucket_registered,
        )

    async def list_directory(self, prefix: str, after: str = "", limit: int = 1000) -> Listing:
        return await self._call("list_directory", lambda: self._bucket.list_directory(prefix, after, limit))

    async def list_tree(
        self, prefix: str, after: str = "", limit: int = 1000
    ) -> tuple[tuple[ObjectRecord, ...], str | None]:
        return await self._call("list_tree", lambda: self._bucket.list_tree(prefix, after, limit))

    async def stat(self, keys: Sequence[str]) -> dict[str, ObjectRecord]:
        return await self._call("stat", lambda: self._stat(keys))

    def _stat(self, keys: Sequence[str]) -> dict[str, ObjectRecord]:
        return {key: self._bucket.record(key) for key in keys if key in self._bucket.objects}

    async def commit(
        self, key: str, upload: Upload, *, local_cache_path: str | None = None
    ) -> ObjectRecord:
        return await self._call("commit", lambda: self._bucket.commit(key, upload, local_cache_path))

    async def patch(self, key: str, patch: RowPatch) -> ObjectRecord:
        return await self._call("patch", lambda: self._bucket.patch(key, patch))

    async def carry_row(self, source: str, target: str) -> ObjectRecord:
        return await self._call("carry_row", lambda: self._bucket.carry_row(source, target))

    async def changes(self, cursor: str, limit: int = 1000) -> ChangePage:
        return await self._call("changes", lambda: self._bucket.changes(cursor, limit))

    async def touch(self, accesses: Sequence[Access]) -> None:
        if accesses:
            await self._call("touch", lambda: self._touch(accesses))

    def _touch(self, accesses: Sequence[Access]) -> None:
        for access in accesses:
            self._bucket.touch(access.key, access.count, access.last_ns)

    async def find_provider_ids(self, sha256: str, provider: str) -> tuple[Mapping[str, Any] | str, ...]:
        return await self._call("find_provider_ids", lambda: self._server.providers.find(sha256, provider))

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
        return await self._call(
            "set_provider_id",
            lambda: self._server.providers.set(
                key, provider, record, sha256=sha256, expected_id=expected_id, version=version
            ),
        )

    async def forget_provider_id(
        self, key: str, provider: str, file_id: str | None = None
    ) -> ObjectRecord | None:
        return await self._call(
            "forget_provider_id", lambda: self._server.providers.forget(key, provider, file_id)
        )

    async def unused_provider_files(
        self, provider: str, account: str, older_s: int = 0
    ) -> tuple[ProviderUpload, ...]:
        return await self._call(
            "unused_provider_files", lambda: self._server.providers.unused(provider, account, older_s)
        )

    async def drop_provider_file(self, provider: str, account: str, file_id: str) -> None:
        await self._call(
            "drop_provider_file",
            lambda: self._server.providers.uploads.pop((provider, account, file_id), None),
        )


class _Housekeeping(_Face):
    """`Housekeeping` on the double."""

    async def take_deletions(self, limit: int, lease_s: int) -> tuple[tuple[str, ...], bool]:
        return await self._call("take_deletions", lambda: self._server.house.take_deletions(limit, lease_s))

    async def settle_deletions(self, keys: Sequence[str]) -> Settled:
        return await self._call("settle_deletions", lambda: self._server.house.settle_deletions(keys))

    async def trim_log(self, keep_hours: int) -> int:
        assert keep_hours > 0
        return await self._call("trim_log", lambda: 0)  # nothing here is that old

    async def scan(
        self, what: Literal["files", "entries", "queue"], older_s: int, after: str, limit: int
    ) -> FindingPage:
        return await self._call("scan", lambda: self._server.house.scan(what, older_s, after, limit))

    async def condemn(self, findings: Sequence[Finding], older_s: int, lease_s: int) -> tuple[str, ...]:
        return await self._call("condemn", lambda: self._server.house.condemn(findings, older_s, lease_s))

    async def drop_rows(self, findings: Sequence[Finding], older_s: int) -> tuple[Finding, ...]:
        return await self._call("drop_rows", lambda: self._server.house.drop_rows(findings, older_s))
