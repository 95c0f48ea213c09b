"""Small contents: fetched whole in one request, verified before any byte is handed out.

One job a version, however many readers wait. The job runs in the store's task group, so a reader that
is cancelled takes nothing away from the others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import anyio
import structlog

from exaifs.cache.data.shelf import Shelf, hash_problem
from exaifs.cache.data.source import Source
from exaifs.cache.localfile import sha256_of_bytes
from exaifs.errors import ExaifsError, IntegrityError, RemoteError, Stale
from exaifs.model import ObjectRef

_log = structlog.get_logger(__name__)

KEEP_S = 2.0
"""How long the end of the store waits for a content that was handed out to reach the disk."""

Spawn = Callable[..., Any]
"""`TaskGroup.start_soon`."""


class _Job:
    def __init__(self) -> None:
        self.answered = anyio.Event()
        self.over = anyio.Event()
        """Its bytes are on disk, or will not be."""
        self.data: bytes | None = None
        self.error: Exception | None = None
        self.keeping = anyio.CancelScope(shield=True)
        """Around the way to the disk, which takes as long as the disk does until the store ends."""

    def fail(self, error: Exception) -> None:
        self.error = error
        self.answered.set()


class SmallContents:
    """Downloads of small contents.

    Args:
        shelf: keeps what arrived.
        source: where it comes from.
        spawn: starts a task in the owner's task group.
    """

    def __init__(self, shelf: Shelf, source: Source, spawn: Spawn) -> None:
        self._shelf = shelf
        self._source = source
        self._spawn = spawn
        self._jobs: dict[str, _Job] = {}  # by version; one that is answered is being written to disk

    def arrived(self, ref: ObjectRef) -> bytes | None:
        """Return a content that has arrived and is on its way to the disk."""
        job = self._jobs.get(ref.version)
        return None if job is None else job.data

    async def fetch(self, ref: ObjectRef) -> bytes:
        """Return the whole content.

        Raises:
            Stale: this version is gone.
            IntegrityError: the bytes are not those the row names.
            RemoteError: as the bucket said.
        """
        job = self._jobs.get(ref.version)
        if job is None:
            job = self._jobs[ref.version] = _Job()
            self._spawn(self._run, ref, job)
        await job.answered.wait()
        if job.error is not None:
            raise copy.copy(job.error)  # one each: a traceback belongs to one task
        assert job.data is not None
        return job.data

    async def wait_written(self) -> None:
        """Return when what has arrived so far is on disk, or cannot be."""
        for job in [job for job in self._jobs.values() if job.answered.is_set()]:
            await job.over.wait()

    def close(self, error: ExaifsError) -> None:
        """Send everybody away who still waits; what was handed out has a moment to reach the disk."""
        for job in self._jobs.values():
            job.keeping.deadline = anyio.current_time() + KEEP_S
            if not job.answered.is_set():
                job.fail(error)

    async def _run(self, ref: ObjectRef, job: _Job) -> None:
        try:
            try:
                data, sha256 = await self._verified(ref)
            except Exception as exc:  # noqa: BLE001 - it is raised again in those who wait
                job.fail(exc)
                return
            if ref.sha256 is None:
                self._shelf.aliases.learn(ref.version, sha256)
            self._shelf.keep_in_memory(data, sha256)
            job.data = data
            job.answered.set()
            if self._shelf.may_write(len(data)):
                # What was read must be there when Supabase is away after a restart.
                with job.keeping:
                    await self._shelf.keep_bytes(sha256, data)
        finally:
            del self._jobs[ref.version]
            job.over.set()

    async def _verified(self, ref: ObjectRef) -> tuple[bytes, str]:
        """Download until the hash is right: twice at most."""
        before: str | None = None
        while True:
            data = await self._download(ref)
            found = sha256_of_bytes(data)
            if ref.sha256 in {None, found}:
                return data, found
            problem = hash_problem(ref, found)
            if found == before:
                raise self._shelf.refuse(ref, problem)
            if before is not None:
                raise IntegrityError(problem)
            _log.warning("downloaded bytes are wrong, fetching them again", problem=problem)
            before = found

    async def _download(self, ref: ObjectRef) -> bytes:
        """Download once; again if the connection broke on the way, or our own move came between."""
        again = True
        while True:
            received = bytearray()
            try:
                await self._receive(ref, received)
            except (RemoteError, Stale) as exc:
                moved = self._shelf.pins.current(ref)
                broke = isinstance(exc, RemoteError) and exc.temporary and not exc.waited_out
                if not again or not ((broke and received) or moved is not ref):
                    raise
                ref, again = moved, False
            else:
                return bytes(received)

    async def _receive(self, ref: ObjectRef, received: bytearray) -> None:
        async with self._source.get(ref, 0, None) as download, self._source.chunks(download) as chunks:
            if download.start != 0:
                raise IntegrityError(f"{ref.key}: the server began at byte {download.start}, not at 0")
            async for chunk in chunks:
                received += chunk
                self._source.bytes_fetched += len(chunk)
        if len(received) != ref.size_bytes:
            raise IntegrityError(f"{ref.key}: {len(received)} bytes came instead of {ref.size_bytes}")
