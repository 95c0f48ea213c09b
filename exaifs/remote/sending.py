"""One upload, whichever way it goes: how far it is, and whether it has arrived although no answer came.

An object with our hash and write id is ours. Where the server keeps no such metadata nobody can tell, and
the upload is repeated, which changes nothing but the version.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from exaifs.errors import RemoteError
from exaifs.remote.interface import SeekableBody, Upload
from exaifs.remote.lanes import Lane
from exaifs.remote.looking import Look, look_soon
from exaifs.remote.retry import Progress, RetryPolicy
from exaifs.remote.streams import PieceStream

_log = structlog.get_logger(__name__)

T = TypeVar("T")


class Sending:
    """The state of one upload over all its requests.

    Args:
        key: where to.
        body: what.
        upload: what is known about it.
        lane: told whenever something moves.
        look: asks the catalog.
    """

    def __init__(self, key: str, body: SeekableBody, upload: Upload, lane: Lane, look: Look) -> None:
        self.key = key
        self.body = body
        self.upload = upload
        self._lane = lane
        self._look = look
        self.progress = Progress()
        self.may_have_arrived = False
        """Whether the last byte was handed over, now or by an earlier process."""

    @property
    def size_bytes(self) -> int:
        """Of the whole body."""
        return self.body.size_bytes

    def piece(self, start: int, stop: int) -> PieceStream:
        """Return bytes [start, stop) as the body of a request."""
        return PieceStream(self.body, start, stop, self._moved)

    def _moved(self, position: int) -> None:
        self._lane.moved()
        self.progress.moved(position)
        if position == self.size_bytes:
            self.may_have_arrived = True

    async def run(self, policy: RetryPolicy, what: str, attempt: Callable[[], Awaitable[T]], done: T) -> T:
        """Call `attempt` as the policy says; `done` if it has arrived in spite of the last failure."""
        try:
            return await policy.run(f"{what} {self.key}", attempt, self.progress)
        except RemoteError as exc:
            if not exc.temporary or not await self.has_arrived():
                raise
            return done

    async def has_arrived(self, version: str = "") -> bool:
        """Look whether the object is there as we sent it.

        Args:
            version: the one that the server announced for it, where it did.
        """
        if not self.may_have_arrived:
            return False
        record = (await look_soon(self._look, [self.key]) or {}).get(self.key)
        if record is None:
            return False
        ours = (record.write_id, record.sha256) == (self.upload.write_id, self.upload.sha256)
        if ours or record.version == version:
            _log.info("an upload had arrived before its answer was lost", key=self.key)
            return True
        return False
