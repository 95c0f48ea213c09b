"""Request bodies as httpx streams them, without its generators.

httpx reads every body through an async generator. A request that is cancelled while it is being sent leaves
that generator suspended for the garbage collector, and trio warns of each; a plain iterator leaves nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable

import httpx

from exaifs.errors import IntegrityError
from exaifs.remote.bodies import BytesBody
from exaifs.remote.interface import Body, SeekableBody


class BodyStream(httpx.AsyncByteStream):
    """A body, read from its start each time."""

    def __init__(self, body: Body) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._body.chunks()


class PieceStream(httpx.AsyncByteStream):
    """Bytes [start, stop) of a body.

    Args:
        body: at least `stop` bytes long.
        start: first byte.
        stop: byte after the last.
        moved: called with a position once everything before it was written to the connection.
    """

    def __init__(self, body: SeekableBody, start: int, stop: int, moved: Callable[[int], None]) -> None:
        self._body = body
        self._start = start
        self._stop = stop
        self._moved = moved

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _PieceChunks(self._body, self._start, self._stop, self._moved)


class _PieceChunks(AsyncIterator[bytes]):
    def __init__(self, body: SeekableBody, start: int, stop: int, moved: Callable[[int], None]) -> None:
        self._chunks = body.chunks(start) if start < stop else None
        self._position = start
        self._stop = stop
        self._moved = moved

    async def __anext__(self) -> bytes:
        # Whoever asks for more has written what it got before.
        self._moved(self._position)
        if self._chunks is None or self._position == self._stop:
            if isinstance(self._chunks, AsyncGenerator):
                await self._chunks.aclose()  # the body goes on, this piece does not
            raise StopAsyncIteration
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            raise IntegrityError(
                f"a body to upload ended at byte {self._position} instead of {self._stop}"
            ) from None
        chunk = chunk[: self._stop - self._position]
        self._position += len(chunk)
        return chunk


async def without_generator(request: httpx.Request) -> None:
    """Replace the stream of a request whose content is in memory: a request hook for the client."""
    if isinstance(request.stream, httpx.ByteStream):
        request.stream = BodyStream(BytesBody(request.content))
