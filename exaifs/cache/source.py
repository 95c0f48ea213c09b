"""Downloads, counted and limited for all contents together."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import anyio

from exaifs.errors import RemoteError
from exaifs.model import ObjectRef
from exaifs.remote.interface import Download

_DOWNLOADS = 12
"""GETs at the same time. More only divide the link; pools of proxies in between are often 20 or less."""


class Downloads(Protocol):
    """The part of `remote.interface.ObjectStore` that the cache needs."""

    def get(
        self, ref: ObjectRef, start: int = 0, stop: int | None = None
    ) -> AbstractAsyncContextManager[Download]:
        """Open bytes [start, stop) of exactly this version, as `ObjectStore.get` says."""


class Source:
    """The bucket, as the downloads use it.

    Args:
        objects: where the bytes are.
    """

    def __init__(self, objects: Downloads) -> None:
        self._objects = objects
        self._slots = anyio.CapacityLimiter(_DOWNLOADS)
        self.ranges_ignored = False
        """Whether the last answer to a range was the whole object; one request at a time then."""
        self.requests = 0
        self.bytes_fetched = 0
        """Counted by those who read the chunks."""
        self._hang: RemoteError | None = None  # the last download whose whole time went by in waiting

    @asynccontextmanager
    async def get(self, ref: ObjectRef, start: int, stop: int | None) -> AsyncGenerator[Download]:
        """Open a download once there is a slot for it; arguments and errors as `Downloads.get`.

        Who waited behind downloads that hung is told with them, not after waiting as long again.
        """
        hang, bytes_fetched = self._hang, self.bytes_fetched
        async with self._slots:
            if self._hang is not None and self._hang is not hang and self.bytes_fetched == bytes_fetched:
                raise copy.copy(self._hang)
            self.requests += 1
            try:
                async with self._objects.get(ref, start, stop) as download:
                    yield download
            except RemoteError as exc:
                if exc.waited_out:
                    self._hang = copy.copy(exc)  # without its traceback
                raise

    @asynccontextmanager
    async def chunks(self, download: Download) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Iterate over the bytes of a download; closed properly however it is left."""
        chunks = download.chunks()
        try:
            yield chunks
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()
