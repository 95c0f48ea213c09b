"""Downloads, counted and limited for all contents together."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import anyio

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

    @asynccontextmanager
    async def get(self, ref: ObjectRef, start: int, stop: int | None) -> AsyncGenerator[Download]:
        """Open a download once there is a slot for it; arguments and errors as `Downloads.get`."""
        async with self._slots:
            self.requests += 1
            async with self._objects.get(ref, start, stop) as download:
                yield download

    @asynccontextmanager
    async def chunks(self, download: Download) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Iterate over the bytes of a download; closed properly however it is left."""
        chunks = download.chunks()
        try:
            yield chunks
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()
