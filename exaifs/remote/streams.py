"""Request bodies as httpx streams them, without its generators.

httpx reads every body through an async generator. A request that is cancelled while it is being sent leaves
that generator suspended for the garbage collector, and trio warns of each; a plain iterator leaves nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx

from exaifs.remote.bodies import BytesBody
from exaifs.remote.interface import Body


class BodyStream(httpx.AsyncByteStream):
    """A body, read from its start each time."""

    def __init__(self, body: Body) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._body.chunks()


async def without_generator(request: httpx.Request) -> None:
    """Replace the stream of a request whose content is in memory: a request hook for the client."""
    if isinstance(request.stream, httpx.ByteStream):
        request.stream = BodyStream(BytesBody(request.content))
