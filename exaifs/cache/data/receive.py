"""One GET and what it brings: blocks cut from a stream, checked for length, handed to a sink.

A *run* is one request on behalf of a transfer; the blocks it will still bring are its claim.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import anyio

from exaifs.cache.data.blocks import BLOCK_BYTES, Assembler, Interval, byte_range
from exaifs.cache.data.source import Source
from exaifs.errors import IntegrityError, RemoteError, Stale
from exaifs.model import ObjectRef
from exaifs.remote.interface import Download


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


class Runs:
    """The requests of one transfer that are under way. Synchronous; no block has two claims."""

    def __init__(self) -> None:
        self._runs: list[Run] = []
        self._stream: Run | None = None  # the one that a server without ranges answers in full

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs))

    @property
    def claims(self) -> list[Interval]:
        """The blocks that are under way."""
        return [run.claim for run in self._runs]

    def add(self, claim: Interval) -> Run:
        """Claim blocks for a new run."""
        run = Run(claim)
        self._runs.append(run)
        return run

    def end(self, run: Run) -> bool:
        """Free a run's claim; False if it was cancelled before."""
        if self._stream is run:
            self._stream = None
        if run not in self._runs:
            return False
        self._runs.remove(run)
        return True

    def cancel(self, run: Run) -> None:
        """Free a run's claim at once and stop it."""
        self.end(run)
        run.scope.cancel()

    def is_stream(self, run: Run) -> bool:
        """Tell whether a run takes the whole object."""
        return run is self._stream

    def become_stream(self, run: Run, blocks: Interval) -> bool:
        """Let a run claim everything and stop the others; False if another one takes it all already."""
        if self._stream not in {None, run}:
            return False
        self._stream = run
        run.start, run.stop = blocks
        for other in self:
            if other is not run:
                self.cancel(other)
        return True


class Sink(Protocol):
    """Who takes the blocks."""

    ref: ObjectRef

    @property
    def all_blocks(self) -> Interval:
        """The blocks of the whole content."""

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
            if not exc.temporary or exc.waited_out or run.fresh_blocks == fresh_blocks:
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
            await _hand_on(run, assembler, sink)


async def _hand_on(run: Run, assembler: Assembler, sink: Sink) -> None:
    first, last = assembler.ready
    if first < last:
        await sink.store(run, first, assembler.take())
        run.start = max(run.start, last)
