"""A bucket that only downloads, for the tests of the cache: every byte's departure can be directed.

The double of the whole server (`tests/support/double.py`) has no say over single bytes; here a test can
let a download stop at an offset, end early, lie, or break, and sees each request that was made.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from exaifs.cache.data.contents import CacheLimits, ContentStore
from exaifs.cache.names.database import open_database
from exaifs.errors import Stale
from exaifs.model import ObjectRef

KIB = 1024
MIB = 1024 * KIB


@dataclass
class Fault:
    """What happens to one download; `None` leaves a step alone."""

    on_enter: Exception | None = None
    break_after: int | None = None
    """Bytes of this download before `error`."""
    error: Exception | None = None
    """None together with `break_after`: the stream just ends."""
    extra: bytes = b""
    """Sent after the end."""


@dataclass(frozen=True)
class Request:
    """One GET as it came."""

    key: str
    start: int
    stop: int | None


@dataclass
class Bucket:
    """Objects by key, and everything that may go wrong with them."""

    honours_ranges: bool = True
    chunk_bytes: int = 64 * KIB
    requests: list[Request] = field(default_factory=list)
    bytes_sent: int = 0
    running: int = 0
    most_running: int = 0
    faults: list[Fault] = field(default_factory=list)
    """Taken one by one by the downloads that begin."""
    flips: dict[int, list[bool]] = field(default_factory=dict)
    """By offset: whether that byte is sent wrong the first time, the second, and so on; then right."""
    decide: Callable[[], Fault] = Fault
    """Asked for a fault where the list is empty."""
    _objects: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    _history: dict[str, bytes] = field(default_factory=dict)
    _versions: int = 0
    _stop_at: int | None = None
    _moved_on: anyio.Event | None = None
    _stopped: anyio.Event | None = None
    _idle: anyio.Event | None = None

    def put(self, key: str, data: bytes, *, with_hash: bool = True) -> ObjectRef:
        """Store an object and return what its row would say."""
        self._versions += 1
        version = f"version-{self._versions}"
        self._objects[key] = (version, data)
        self._history[version] = data
        digest = hashlib.sha256(data).hexdigest()
        return ObjectRef(key, version, len(data), "etag", digest if with_hash else None)

    def bytes_of(self, ref: ObjectRef) -> bytes:
        """Return the bytes of an object of any version that was put."""
        return self._history[ref.version]

    def move(self, ref: ObjectRef, key: str) -> ObjectRef:
        """Rename an object; its version changes, its bytes do not."""
        _, data = self._objects.pop(ref.key)
        return self.put(key, data, with_hash=ref.sha256 is not None)

    def stop_at(self, offset: int) -> None:
        """Let no download send the byte at this offset, or one behind it, before `go_on`."""
        self._stop_at = offset
        self._moved_on = anyio.Event()
        self._stopped = anyio.Event()

    async def wait_stopped(self) -> None:
        """Return once a download has come to where it must stop."""
        assert self._stopped is not None
        await self._stopped.wait()

    async def wait_idle(self) -> None:
        """Return once no download is running."""
        while self.running:
            self._idle = anyio.Event()
            with anyio.fail_after(60):
                await self._idle.wait()

    def go_on(self) -> None:
        """Lift `stop_at`."""
        assert self._moved_on is not None
        self._stop_at = None
        self._moved_on.set()

    @asynccontextmanager
    async def get(
        self, ref: ObjectRef, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[_Download]:
        """As `ObjectStore.get`."""
        assert 0 <= start < (ref.size_bytes if stop is None else stop) <= ref.size_bytes, (
            "never ask for less"
        )
        self.requests.append(Request(ref.key, start, stop))
        fault = self.faults.pop(0) if self.faults else self.decide()
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await anyio.lowlevel.checkpoint()
            if fault.on_enter is not None:
                raise fault.on_enter
            version, data = self._objects.get(ref.key, ("", b""))
            if version != ref.version:
                raise Stale(f"{ref.key} is another object now")
            ranged = self.honours_ranges and (start > 0 or stop is not None)
            if not ranged:
                start, stop = 0, None
            yield _Download(self, data, (start, len(data) if stop is None else stop), fault, ranged=ranged)
        finally:
            self.running -= 1
            if self.running == 0 and self._idle is not None:
                self._idle.set()

    async def departure(self, position: int, stop: int) -> int:
        """Wait until the byte at `position` may go, and return how far the bytes may go in one piece."""
        while self._stop_at is not None and position >= self._stop_at:
            assert self._moved_on is not None
            assert self._stopped is not None
            self._stopped.set()
            await self._moved_on.wait()
        await anyio.lowlevel.checkpoint()
        ends = [stop, position + self.chunk_bytes, *([] if self._stop_at is None else [self._stop_at])]
        return min(ends)


class _Download:
    def __init__(
        self, bucket: Bucket, data: bytes, span: tuple[int, int], fault: Fault, *, ranged: bool
    ) -> None:
        self._bucket = bucket
        self._data = data
        self.start, self._stop = span
        self.ranged = ranged
        self._fault = fault

    async def chunks(self) -> AsyncIterator[bytes]:
        fault, position, stop = self._fault, self.start, self._stop
        if fault.break_after is not None:
            stop = min(stop, position + fault.break_after)
        while position < stop:
            end = await self._bucket.departure(position, stop)
            chunk = bytearray(self._data[position:end])
            for flip, schedule in self._bucket.flips.items():
                if position <= flip < end and schedule and schedule.pop(0):
                    chunk[flip - position] ^= 0x40
            self._bucket.bytes_sent += len(chunk)
            yield bytes(chunk)
            position = end
        if stop < self._stop and fault.error is not None:
            raise fault.error
        if fault.extra:
            yield fault.extra


class Site:
    """One cache directory and one bucket; the store over them is opened as often as a test restarts."""

    def __init__(self, directory: Path, limits: CacheLimits | None = None) -> None:
        self.directory = directory
        self.bucket = Bucket()
        self.index_directory = directory
        self.limits = limits or CacheLimits()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[ContentStore]:
        """Open the store as a new process would."""
        database = open_database(self.index_directory / "index.sqlite", "test")
        try:
            async with ContentStore.open(self.directory, database, self.bucket, self.limits) as store:
                yield store
        finally:
            database.close()

    def database(self) -> sqlite3.Connection:
        """Return another connection to the index, to look at it or to spoil it."""
        return sqlite3.connect(self.directory / "index.sqlite", isolation_level=None)

    def spoil(self, ref: ObjectRef, change: Callable[[bytes], bytes | None]) -> None:
        """Change the file of a content behind the store's back; None removes it."""
        path = self.content_path(ref)
        data = change(path.read_bytes())
        path.unlink() if data is None else path.write_bytes(data)

    def content_path(self, ref: ObjectRef) -> Path:
        """Return where a content must be."""
        data = self.bucket.bytes_of(ref)
        name = hashlib.sha256(data).hexdigest()
        return self.directory / "content" / name[:2] / name

    def stage(self, name: str, data: bytes) -> Path:
        """Write a file as the layer above does before it uploads."""
        path = self.directory / "staging" / name
        path.write_bytes(data)
        return path

    def copy_index(self) -> Path:
        """Copy the database to a directory beside the cache directory and return that."""
        elsewhere = self.directory.with_name("index")
        elsewhere.mkdir()
        shutil.copy(self.directory / "index.sqlite", elsewhere)
        return elsewhere

    def staged_files(self) -> list[Path]:
        """Return what is in the directory of the layer above."""
        return sorted((self.directory / "staging").iterdir())

    def leave(self, name: str, data: bytes) -> None:
        """Put a file into the cache directory that nobody knows."""
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    def lose_index(self) -> None:
        """Remove the database."""
        for path in self.directory.glob("index.sqlite*"):
            path.unlink()

    def content_files(self) -> list[Path]:
        """Return the files of complete contents."""
        return sorted(path for path in (self.directory / "content").glob("*/*") if path.is_file())

    def content_sizes(self) -> list[int]:
        """Return the sizes of complete contents."""
        return [path.stat().st_size for path in self.content_files()]

    def partial_files(self) -> list[Path]:
        """Return the files of unfinished contents."""
        return sorted((self.directory / "partial").iterdir())


def random_bytes(size_bytes: int, seed: int = 0) -> bytes:
    """Return bytes in which no two places look alike."""
    return random.Random(seed).randbytes(size_bytes)
