"""One GET and what it brings: blocks cut from a stream, checked for length, handed to a sink.

A *run* is one request on behalf of a transfer; the blocks it will still bring are its claim.
"""

from __future__ import annotations

from typing import Protocol

import anyio

from exaifs.cache.blocks import BLOCK_BYTES, Assembler, Interval, byte_range
from exaifs.cache.source import Source
from exaifs.errors import IntegrityError, RemoteError, Stale
from exaifs.model import ObjectRef
from exaifs.remote.interface import Download

_BATCH_BLOCKS = 512 * 1024 // BLOCK_BYTES
"""How much is collected before it is handed on, while nobody waits for it."""


class Run:
    """One request.

    Args:
        claim: the blocks it is to bring; shrinks from the left as they come.
    """

    def __init__(self, claim: Interval) -> None:
        self.start, self.stop = claim
        self.fresh_blocks = 0
        """How many blocks it brought that were not there."""
        self.scope = anyio.CancelScope()

    @property
    def claim(self) -> Interval:
        """The blocks it will still bring."""
        return self.start, self.stop

    @property
    def claimed_bytes(self) -> int:
        """How much that is, at most."""
        return (self.stop - self.start) * BLOCK_BYTES


class Sink(Protocol):
    """Who takes the blocks."""

    ref: ObjectRef

    @property
    def all_blocks(self) -> Interval:
        """The blocks of the whole content."""

    def is_waited_for(self, blocks: Interval) -> bool:
        """Tell whether a reader waits for any of these blocks."""

    def become_stream(self, run: Run) -> bool:
        """Hear that the server sends the whole object; False: another run takes it already."""

    async def store(self, run: Run, first_block: int, data: bytes) -> None:
        """Take whole blocks."""


async def download(run: Run, source: Source, sink: Sink) -> None:
    """Bring a run's blocks, going on where a connection broke as long as there is progress.

    Raises:
        Stale: this version is gone.
        IntegrityError: not the bytes that were asked for.
        RemoteError: as the bucket said.
    """
    while True:
        fresh_blocks, ref = run.fresh_blocks, sink.ref
        try:
            await _receive(run, ref, source, sink)
        except RemoteError as exc:
            if not exc.temporary or run.fresh_blocks == fresh_blocks:
                raise
        except Stale:
            if ref is sink.ref:  # else our own move came between
                raise
        else:
            return


async def _receive(run: Run, ref: ObjectRef, source: Source, sink: Sink) -> None:
    start, stop = byte_range(run.claim, ref.size_bytes)
    whole = run.claim == sink.all_blocks
    async with source.get(ref, start, None if whole else stop) as answer:
        if not whole:
            source.ranges_ignored = not answer.ranged
        if not (whole or answer.ranged):
            if not sink.become_stream(run):
                return
            start, stop = 0, ref.size_bytes
        if answer.start != start:
            raise IntegrityError(f"{ref.key}: byte {answer.start} came instead of {start}")
        assembler = Assembler(start, stop)
        try:
            await _collect(run, answer, assembler, source, sink)
        except RemoteError as exc:
            if exc.temporary:  # the bytes before it are good
                await _hand_on(run, assembler, sink)
            raise
        if assembler.missing_bytes:
            raise IntegrityError(f"{ref.key}: the download ended {assembler.missing_bytes} bytes early")
        await _hand_on(run, assembler, sink)


async def _collect(run: Run, answer: Download, assembler: Assembler, source: Source, sink: Sink) -> None:
    async with source.chunks(answer) as chunks:
        async for chunk in chunks:
            source.bytes_fetched += len(chunk)
            assembler.feed(chunk)
            if assembler.missing_bytes < 0:
                raise IntegrityError(f"{sink.ref.key}: more bytes came than were announced")
            first, last = assembler.ready
            if last - first >= (1 if sink.is_waited_for((first, last)) else _BATCH_BLOCKS):
                await _hand_on(run, assembler, sink)


async def _hand_on(run: Run, assembler: Assembler, sink: Sink) -> None:
    first, last = assembler.ready
    if first < last:
        await sink.store(run, first, assembler.take())
        run.start = max(run.start, last)
