"""Downloads, counted and limited for all contents together."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import anyio

from exaifs.errors import RemoteError
from exaifs.model import ObjectRef
from exaifs.remote.interface import Download

_DOWNLOADS = 12
"""GETs at the same time. More only divide the link; pools of proxies in between are often 20 or less."""

_HANG_S = 1.0
"""For so long after a download was given up it is not begun again."""

_AWAY_S = 5.0
"""For so long no other is begun either, where Supabase is known to be away."""


class Downloads(Protocol):
    """The part of `remote.interface.ObjectStore` that the cache needs."""

    def get(
        self, ref: ObjectRef, start: int = 0, stop: int | None = None
    ) -> AbstractAsyncContextManager[Download]:
        """Open bytes [start, stop) of exactly this version, as `ObjectStore.get` says."""


class _Hang:
    """A download whose whole time went by in waiting."""

    def __init__(self, error: RemoteError, at: float, bytes_fetched: int) -> None:
        self._error = copy.copy(error)  # without its traceback
        self.at = at
        self.bytes_fetched = bytes_fetched

    def error(self) -> RemoteError:
        """Return the error anew, for whoever is told of it next."""
        return copy.copy(self._error)


class Source:
    """The bucket, as the downloads use it.

    Args:
        objects: where the bytes are.
        is_away: tells whether Supabase is known to be away by other questions than downloads.
    """

    def __init__(self, objects: Downloads, is_away: Callable[[], bool] = lambda: False) -> None:
        self._objects = objects
        self._is_away = is_away
        self._slots = anyio.CapacityLimiter(_DOWNLOADS)
        self.ranges_ignored = False
        """Whether the last answer to a range was the whole object; one request at a time then."""
        self.requests = 0
        self.bytes_fetched = 0
        """Counted by those who read the chunks."""
        self._hangs: dict[str, _Hang] = {}  # by version, the last one at the end

    @asynccontextmanager
    async def get(self, ref: ObjectRef, start: int, stop: int | None) -> AsyncGenerator[Download]:
        """Open a download once there is a slot for it; arguments and errors as `Downloads.get`.

        Who waited behind downloads that hung is told with them, not after waiting as long again; so is who
        asks once more for what just hung, as the kernel does for a program whose read-ahead failed. Where
        Supabase is away, too, a program that reads a thousand files does not wait as long for each.
        """
        asked_at, bytes_before = anyio.current_time(), self.bytes_fetched
        async with self._slots:
            hang = self._answer_of_hang(ref, asked_at, bytes_before)
            if hang is not None:
                raise hang.error()
            self.requests += 1
            try:
                async with self._objects.get(ref, start, stop) as download:
                    yield download
            except RemoteError as exc:
                if exc.waited_out:
                    self._note_hang(exc, ref.version)
                raise

    def _note_hang(self, error: RemoteError, version: str) -> None:
        """Remember it for a moment, beside those of others: several hang together and end together."""
        now = anyio.current_time()
        self._hangs = {
            other: hang
            for other, hang in self._hangs.items()
            if other != version and now < hang.at + _HANG_S
        }
        self._hangs[version] = _Hang(error, now, self.bytes_fetched)

    def _answer_of_hang(self, ref: ObjectRef, asked_at: float, bytes_before: int) -> _Hang | None:
        """Return the hang that answers a question asked at a time, when so many bytes had come."""
        last = next(reversed(self._hangs.values()), None)
        if last is None:
            return None
        if asked_at < last.at and self.bytes_fetched == bytes_before:
            return last
        hang, for_s = (last, _AWAY_S) if self._is_away() else (self._hangs.get(ref.version), _HANG_S)
        if hang is None or self.bytes_fetched != hang.bytes_fetched:
            return None
        return hang if hang.at <= asked_at < hang.at + for_s else None

    @asynccontextmanager
    async def chunks(self, download: Download) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Iterate over the bytes of a download; closed properly however it is left."""
        chunks = download.chunks()
        try:
            yield chunks
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()
