"""Checks of an answer to a GET, and its bytes as they arrive.

A wrong page, range or length never reaches a reader: what can be seen in the headers is refused before
the first byte, what only shows in the body ends in an error.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import httpx

from exaifs.errors import IntegrityError, Unreachable
from exaifs.model import ObjectRef
from exaifs.remote.failures import translated
from exaifs.remote.wire import foreign_answer

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)", re.ASCII)
_IDENTITY = {"", "identity"}


@dataclass(frozen=True, slots=True)
class Extent:
    """Which bytes an answer holds: [start, stop) of the object."""

    start: int
    stop: int
    ranged: bool


def normal_etag(text: str) -> str:
    """Return an ETag without quotes and weakness, as servers and proxies add them."""
    return text.removeprefix("W/").strip('"')


def extent_of(response: httpx.Response, ref: ObjectRef, start: int, stop: int) -> Extent:
    """Return which bytes a successful answer holds.

    Raises:
        Unreachable: a page that is no object.
        IntegrityError: not the bytes that were asked for.
    """
    if response.headers.get("content-encoding", "").lower() not in _IDENTITY:
        raise IntegrityError(f"{ref.key}: the bytes came compressed, which nobody asked for")
    if response.status_code == httpx.codes.PARTIAL_CONTENT:
        _check_content_range(response, ref, start, stop)
        extent = Extent(start, stop, ranged=True)
    elif response.status_code == httpx.codes.OK:
        extent = Extent(0, ref.size_bytes, ranged=False)
    else:
        raise foreign_answer(f"GET {ref.key}: status {response.status_code}")
    _check_length(response, ref, extent)
    return extent


def _check_content_range(response: httpx.Response, ref: ObjectRef, start: int, stop: int) -> None:
    text = response.headers.get("content-range", "")
    found = _CONTENT_RANGE.fullmatch(text)
    if found is None or [int(part) for part in found.groups()] != [start, stop - 1, ref.size_bytes]:
        raise IntegrityError(f"{ref.key}: asked for bytes {start}-{stop - 1}, got {text or 'no range'!r}")


def _check_length(response: httpx.Response, ref: ObjectRef, extent: Extent) -> None:
    text = response.headers.get("content-length", "")
    if not text and not extent.ranged and not has_etag_of(response, ref):
        # Nothing tells this page from an error page until all of it was read.
        raise foreign_answer(f"GET {ref.key}")
    expected = extent.stop - extent.start
    if text and text != str(expected):
        if response.headers.get("content-type", "").startswith(("text/html", "application/json")):
            raise foreign_answer(f"GET {ref.key}")
        raise IntegrityError(f"{ref.key}: {text} bytes announced, {expected} expected")


def has_etag_of(response: httpx.Response, ref: ObjectRef) -> bool:
    """Tell whether the answer names the content that was asked for."""
    return bool(ref.etag) and normal_etag(response.headers.get("etag", "")) == normal_etag(ref.etag)


class HttpDownload(AsyncIterator[bytes]):
    """`interface.Download` on an open answer, whose headers `extent_of` has checked."""

    def __init__(
        self,
        response: httpx.Response,
        ref: ObjectRef,
        extent: Extent,
        *,
        confirm: Callable[[], Awaitable[None]] | None,
        moved: Callable[[], None],
    ) -> None:
        """Wrap an answer.

        Args:
            response: open, its body unread.
            ref: what was asked for.
            extent: what the answer holds.
            confirm: called after the last byte, where no ETag vouches for the version.
            moved: called whenever bytes have arrived.
        """
        self._response = response
        self._raw = response.aiter_raw()
        self._ref = ref
        self._extent = extent
        self._confirm = confirm
        self._moved = moved
        self._left = extent.stop - extent.start
        self._finished = False

    @property
    def start(self) -> int:
        """Offset of the first byte."""
        return self._extent.start

    @property
    def ranged(self) -> bool:
        """Whether the server honoured the range."""
        return self._extent.ranged

    def chunks(self) -> AsyncIterator[bytes]:
        """See `interface.Download`; may be left early, there is nothing to close."""
        return self

    async def __anext__(self) -> bytes:
        if self._finished:
            raise StopAsyncIteration
        try:
            with translated(f"GET {self._ref.key}"):
                chunk = await anext(self._raw)
        except StopAsyncIteration:
            await self._end()
            raise
        except Unreachable as exc:
            exc.waited_out = isinstance(exc.__cause__, httpx.TimeoutException)
            raise
        self._moved()
        if len(chunk) > self._left:
            raise IntegrityError(f"{self._ref.key}: more bytes than announced")
        self._left -= len(chunk)
        return chunk

    async def _end(self) -> None:
        self._finished = True
        if self._left:
            raise Unreachable(f"GET {self._ref.key}: the connection ended {self._left} bytes early")
        if self._confirm is not None:
            await self._confirm()

    async def aclose(self) -> None:
        """Give the connection back, or drop it when bytes are left."""
        await self._response.aclose()
        # httpx nests generators; reading from the closed connection ends them all here, in this task,
        # where the garbage collector would have to do it, with a warning from trio.
        try:
            while True:
                await anext(self._raw)
        except (StopAsyncIteration, httpx.HTTPError, httpx.StreamError):
            return


class EmptyDownload(AsyncIterator[bytes]):
    """An empty object: no server is asked for a range of nothing."""

    start = 0
    ranged = False

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield nothing."""
        return self

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration
