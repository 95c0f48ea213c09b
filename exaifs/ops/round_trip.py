"""The last numbered check: a file goes to the bucket and back, through the very code a mount uses.

Whatever happens, also Ctrl-C, object and row are removed again.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import anyio
import structlog

from exaifs.config import Config
from exaifs.errors import (
    BucketMissing,
    ExaifsError,
    FileTooLarge,
    IntegrityError,
    NotFound,
    Rejected,
    RemoteError,
)
from exaifs.model import ObjectRecord, Posix
from exaifs.ops.checks import Check, Detail, Status
from exaifs.remote.bodies import BytesBody
from exaifs.remote.client import open_remote
from exaifs.remote.interface import Remote, Upload
from exaifs.remote.probe import Probe

FOLDER: Final = ".exaifs-doctor"
"""Where the test object lives for a moment; the folder vanishes with it."""
TABLE: Final = "file_metadata"
CLEAN_UP_TIMEOUT_S: Final = 5.0
_SIZE_BYTES: Final = 4096
_STEPS: Final = ("upload", "row", "download", "compare", "delete")

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Trip:
    """One test file on its way."""

    remote: Remote
    probe: Probe
    body: bytes = field(default_factory=lambda: os.urandom(_SIZE_BYTES))
    key: str = field(default_factory=lambda: f"{FOLDER}/{uuid.uuid4().hex}.bin")
    record: ObjectRecord | None = None
    received: bytes = b""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    async def upload(self) -> None:
        """Send the bytes."""
        await self.remote.objects.put(self.key, BytesBody(self.body), self._description())

    async def row(self) -> None:
        """Complete the row and read it back, once as the mount does and once from the table."""
        self.record = await self.remote.catalog.commit(self.key, self._description())
        if (self.record.size_bytes, self.record.sha256) != (len(self.body), self.sha256):
            raise IntegrityError("the row does not describe the bytes that were sent")
        if not await self._rows():
            raise NotFound(f"the table {TABLE} has no row for the object")

    async def download(self) -> None:
        """Fetch the bytes."""
        assert self.record is not None
        async with self.remote.objects.get(self.record.ref) as download:
            self.received = b"".join([chunk async for chunk in download.chunks()])

    async def compare(self) -> None:
        """Compare what came with what went."""
        if self.received != self.body:
            raise IntegrityError(
                f"other bytes came back: {len(self.received)} of them, {len(self.body)} were sent"
            )

    async def delete(self) -> None:
        """Remove the object, and see that both it and its row are gone."""
        await self.clean_up()
        if await self.remote.catalog.stat([self.key]):
            raise RemoteError("the object is still there after it was deleted")
        if await self._rows():
            raise RemoteError(f"the row in {TABLE} is still there after it was deleted")

    async def clean_up(self) -> None:
        """Remove object and row; either may be gone."""
        await self.remote.objects.remove([self.key])
        await self.probe.delete(TABLE, "supabase_storage_path", self.key)

    async def _rows(self) -> int:
        query = {"select": "file_id", "supabase_storage_path": f"eq.{self.key}"}
        return len(await self.probe.select(TABLE, query))

    def _description(self) -> Upload:
        return Upload(self.sha256, "application/octet-stream", Posix(mode=0o600), write_id=uuid.uuid4().hex)


async def check_round_trip(probe: Probe, config: Config) -> Check:
    """Upload, row, download, compare, delete."""
    name, title = "round_trip", "Round trip"
    started_s = time.monotonic()
    details: list[Detail] = []
    failure: ExaifsError | None = None
    async with open_remote(config) as remote:
        trip = _Trip(remote, probe)
        try:
            for step in _STEPS:
                await _run(step, getattr(trip, step), details)
        except ExaifsError as exc:
            failure = exc
        finally:
            if len(details) < len(_STEPS) or failure is not None:
                await _leave_nothing(trip)
    if failure is not None:
        summary = f"{details[-1].name} failed: {failure}"
        return Check(name, title, Status.FAILED, summary, tuple(details), fix=_fix(failure, config))
    took_ms = (time.monotonic() - started_s) * 1000
    summary = f"{', '.join(_STEPS)} in {config.bucket}: {took_ms:.0f} ms"
    return Check(name, title, Status.OK, summary, tuple(details))


async def _run(step: str, action: Callable[[], Awaitable[None]], details: list[Detail]) -> None:
    started_s = time.monotonic()
    try:
        await action()
    except ExaifsError as exc:
        details.append(Detail(step, str(exc), Status.FAILED))
        raise
    took_ms = round((time.monotonic() - started_s) * 1000, 1)
    details.append(Detail(step, f"{took_ms:g} ms", data={"ms": took_ms}))


async def _leave_nothing(trip: _Trip) -> None:
    """Clean up after a failure, even when cancelled, but not for ever."""
    with anyio.move_on_after(CLEAN_UP_TIMEOUT_S, shield=True) as scope:
        try:
            await trip.clean_up()
        except ExaifsError as exc:
            _log.warning("the test object may be left in the bucket", key=trip.key, error=str(exc))
    if scope.cancelled_caught:
        _log.warning("the test object may be left in the bucket", key=trip.key)


def _fix(failure: ExaifsError, config: Config) -> str:
    match failure:
        case BucketMissing():
            return f"Run `exaifs init --apply --bucket {config.bucket}`."
        case FileTooLarge() | Rejected():
            return (
                f"Look at the bucket {config.bucket} in the dashboard under Storage: its size limit or its "
                "list of MIME types refuses a file of 4 KiB of type application/octet-stream."
            )
        case IntegrityError():
            return "A proxy may change the answers; connect without it. If there is none, report this."
        case _:
            return "Try again; if it stays, `exaifs init --apply` repairs the schema."
