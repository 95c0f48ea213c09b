"""The download of one large content: ranges in flight, readers that wait, and the check at the end.

No block is in the claim of two runs. Readers get bytes as they arrive, before the whole can be verified;
what is complete is verified before more of it goes out (`arriving.Copy`). What one request brings whole,
and the next copy once one was wrong, is verified before any of it does.
Everything that decides is synchronous; runs live in the store's task group.
"""

from __future__ import annotations

import anyio
import structlog

from exaifs.cache.data.arriving import Copy
from exaifs.cache.data.blocks import (
    BLOCK_BYTES,
    MAX_WINDOW_BYTES,
    MERGE_GAP_BYTES,
    MIB,
    SMALL_BYTES,
    Interval,
    ReadAhead,
    block_count,
    cut,
    merge_close,
    overlaps,
    span,
    subtract,
    total,
    widen,
)
from exaifs.cache.data.memoryspool import MemorySpool
from exaifs.cache.data.receive import Run, Runs, download
from exaifs.cache.data.shelf import Shelf, hash_problem, local_error
from exaifs.cache.data.small import KEEP_S, Spawn
from exaifs.cache.data.source import Source
from exaifs.cache.data.spool import DiskSpool
from exaifs.cache.data.waiters import Waiter, Waiters
from exaifs.errors import ExaifsError, IntegrityError
from exaifs.model import ObjectRef

_log = structlog.get_logger(__name__)

_MAX_RUNS = 4
_FILL_RUNS = 2
"""How many of them may fetch the rest of a content for nobody in particular."""

_MAX_BLOCKS = MAX_WINDOW_BYTES // BLOCK_BYTES
_MERGE_BLOCKS = MERGE_GAP_BYTES // BLOCK_BYTES


class Transfer:
    """One content on its way here. Begins nothing before the first read.

    Args:
        ref: what to fetch; replaced when our own move gives it another version.
        transfers: all of them by version; this one takes itself out when it is done.
        shelf: says where blocks may be held and takes the verified content.
        source: where it comes from.
        spawn: starts a task in the store's task group.
    """

    def __init__(
        self, ref: ObjectRef, transfers: dict[str, Transfer], shelf: Shelf, source: Source, spawn: Spawn
    ) -> None:
        self.ref = ref
        self._transfers = transfers
        self.all_blocks: Interval = (0, block_count(ref.size_bytes))
        self._shelf = shelf
        self._source = source
        self._spawn = spawn
        self._ahead = ReadAhead()
        self._copy = Copy(ref, shelf.new_spool(ref, on_disk=shelf.may_write(ref.size_bytes)))
        self._waiters = Waiters()
        self._runs = Runs()
        self._fill = False  # fetch the rest in the background
        self._wrong_digest: str | None = None  # of the last copy
        self._checking = False
        self._last_step = anyio.CancelScope(shield=True)  # around the check
        self._done = False  # kept, refused or given up: no more requests

    # What the shelf asks.

    @property
    def busy(self) -> bool:
        """Whether somebody waits for it or has it open, or it is about to be kept."""
        return bool(self._waiters) or self._checking or self._is_pinned()

    @property
    def stored_bytes(self) -> int:
        """What it takes on disk now, beside the disk tier's contents."""
        return self._copy.spool.stored_bytes

    @property
    def size_bytes(self) -> int:
        """What it will take on disk when complete."""
        return self.ref.size_bytes if self._copy.on_disk else 0

    def close(self, error: ExaifsError | None = None) -> None:
        """Stop everything and give up what is there.

        With an error, which whoever waits gets, the store closes: what is complete is kept all the same.
        """
        for run in self._runs:
            self._runs.cancel(run)
        if error is not None:
            self._waiters.fail(self.all_blocks, error)
            self._check_if_complete()
            self._last_step.deadline = anyio.current_time() + KEEP_S
        self._done = not self._checking
        if self._done:
            self._forget()
            self._release(self._copy)

    # What the content store asks.

    def read_nowait(self, offset: int, size_bytes: int) -> bytes | None:
        """Return bytes that are here and can be read without waiting; goes on with read-ahead."""
        if not self._copy.is_readable(span(offset, size_bytes)):
            return None
        self._plan(offset, size_bytes)
        return self._copy.read_nowait(offset, size_bytes)

    async def read(self, offset: int, size_bytes: int) -> bytes | None:
        """Return these bytes, which lie inside the content; None: it is no longer here, look again.

        Raises:
            Stale: this version is gone.
            IntegrityError: the bytes are not those the row names.
            RemoteError: as the bucket said.
        """
        self._plan(offset, size_bytes)
        needed = self.all_blocks if self._copy.hold else span(offset, size_bytes)
        try:
            with self._waiters.joined(needed) as waiter:
                while True:
                    copy = self._copy
                    data = await self._wait_and_read(copy, waiter, offset, size_bytes)
                    if data is not None or copy is self._copy:
                        return data
        finally:
            self.settle()

    async def wait_kept(self) -> None:
        """Fetch everything and return when it is a verified file of the disk tier.

        Raises:
            NoSpace: the local disk has no room.
            ExaifsError: the local disk cannot be used, or as `read`.
        """
        if not self._copy.on_disk:
            self._begin_again(on_disk=True, hold=self._copy.hold)
        try:
            with self._waiters.joined(self.all_blocks, needs_file=True) as waiter:
                while not self._done:
                    waiter.raise_error()
                    self._launch(self._unclaimed(self.all_blocks), self.all_blocks)
                    self._check_if_complete()
                    await waiter.wait()
                waiter.raise_error()
        finally:
            self.settle()

    def settle(self) -> None:
        """Stop what nobody needs any more: after a reader left, the last handle closed, a run ended."""
        if not self._waiters and not self._is_pinned():
            self._fill = False
            for run in self._runs:
                # What is nearly here is cheaper to finish than to break the connection for.
                if run.claimed_bytes > (MAX_WINDOW_BYTES if self._runs.is_stream(run) else SMALL_BYTES):
                    self._runs.cancel(run)
            if not (self.busy or self._runs or self._copy.on_disk):
                self._forget()
                self._release(self._copy)
        if self._done and not self._waiters:
            self._release(self._copy)

    def _is_pinned(self) -> bool:
        return self._shelf.pins.count(self.ref.version) > 0

    # Waiting.

    async def _wait_and_read(
        self, copy: Copy, waiter: Waiter, offset: int, size_bytes: int
    ) -> bytes | None:
        """Wait on the present copy; None when it was replaced, or is of no use any more."""
        with copy.spool.held(waiter.blocks):
            while self._copy is copy:
                if copy.is_readable(waiter.blocks):
                    return await self._read_copy(copy, offset, size_bytes)
                waiter.raise_error()
                if self._done:
                    return None
                self._launch(self._unclaimed(waiter.blocks), waiter.blocks)
                self._check_if_complete()
                await waiter.wait()
        return None

    async def _read_copy(self, copy: Copy, offset: int, size_bytes: int) -> bytes | None:
        try:
            return await copy.read(offset, size_bytes)
        except OSError as exc:
            self._fall_back(copy, "reading a partial file", exc)
            return None

    # Deciding what to fetch.

    def _plan(self, offset: int, size_bytes: int) -> None:
        """Note a read and start what it, and the reads that will follow, need."""
        blocks = span(offset, size_bytes)
        window = self._ahead.observe(offset, size_bytes)
        if window is None and self._copy.spool.missing(blocks):
            self._note_miss()
        window = min(window or 0, self._copy.spool.window_limit_bytes if self._is_pinned() else 0)
        last = block_count(min(offset + size_bytes + window, self.ref.size_bytes))
        free = self._unclaimed(widen((blocks[0], last), self.all_blocks[1]))
        # New windows are asked for when half of the last one is used up, not at every read.
        if free and (free[0][0] < blocks[1] or (free[0][0] - blocks[1]) * BLOCK_BYTES * 2 < window):
            self._launch(free, blocks)
        self._continue_fill()

    def _note_miss(self) -> None:
        """A reader jumped to bytes that are not here: stop reading ahead, or fetch all if that pays."""
        if self._shelf.pins.count(self.ref.version) == 1 and not self._fill:
            for run in self._runs_ahead():
                if run.claimed_bytes > SMALL_BYTES:
                    self._runs.cancel(run)
        missing_bytes = total(self._copy.spool.missing(self.all_blocks)) * BLOCK_BYTES
        self._fill = self._ahead.note_miss(missing_bytes) and self._is_pinned()

    def _unclaimed(self, blocks: Interval) -> list[Interval]:
        claims = self._runs.claims
        return merge_close(subtract(self._copy.spool.missing(blocks), claims), _MERGE_BLOCKS, claims)

    def _launch(self, intervals: list[Interval], demanded: Interval) -> None:
        """Start runs as far as there are slots; read-ahead gives way to what a reader waits for."""
        for claim in cut(intervals, _MAX_BLOCKS):
            if self._done or self._checking or (self._source.ranges_ignored and self._runs):
                return
            if len(self._runs) >= _MAX_RUNS:
                ahead = self._runs_ahead()
                if not (ahead and overlaps(claim, demanded)):
                    return
                self._runs.cancel(ahead[0])
            # What comes whole, in one request, can be verified before anybody sees it; it is not large.
            is_whole = claim == self.all_blocks and self.ref.sha256 is not None
            self._copy.hold |= is_whole and self._copy.on_disk
            self._spawn(self._run, self._runs.add(claim))

    def _continue_fill(self) -> None:
        if self._fill and self._copy.on_disk:
            rest = list(cut(self._unclaimed(self.all_blocks), _MAX_BLOCKS))
            self._launch(rest[: max(0, _FILL_RUNS - len(self._runs))], (0, 0))

    def _runs_ahead(self) -> list[Run]:
        """Return the runs that nobody waits for, except one that takes everything."""
        idle = (run for run in self._runs if not self._waiters.overlapping(run.claim))
        return [run for run in idle if not self._runs.is_stream(run)]

    # What the runs bring.

    async def _run(self, run: Run) -> None:
        error: Exception | None = None
        with run.scope:
            try:
                await download(run, self._source, self)
            except Exception as exc:  # noqa: BLE001 - it is raised again in those who wait
                error = exc
        if self._runs.end(run) and error is not None:
            _log.debug("a download failed", key=self.ref.key, error=repr(error))
            self._waiters.fail(run.claim, error)
        self._waiters.wake()
        self._continue_fill()
        with anyio.move_on_after(KEEP_S, shield=True):
            await self._flush()
        self._check_if_complete()
        self.settle()

    def become_stream(self, run: Run) -> bool:
        """Take the whole object, as the server sends it; False if another run does that already."""
        self._waiters.wake()
        return self._runs.become_stream(run, self.all_blocks)

    async def store(self, run: Run, first_block: int, data: bytes) -> None:
        """Hold whole blocks that have arrived and tell those who wait for them."""
        blocks = (first_block, first_block + block_count(len(data)))
        spool = self._copy.spool
        run.fresh_blocks += total(spool.missing(blocks))
        enough = spool.put(first_block, data)
        for waiter in self._waiters.overlapping(blocks):
            if not spool.missing(waiter.blocks):
                waiter.wake()
        if enough:
            await self._flush()

    async def _flush(self) -> None:
        copy = self._copy
        try:
            await self._shelf.with_room(MIB, copy.spool.flush)
        except OSError as exc:
            self._fall_back(copy, "writing a partial file", exc)
        if self._shelf.over_limit():
            await self._shelf.make_room()

    # Copies.

    def _begin_again(self, *, on_disk: bool, hold: bool) -> None:
        """Take another copy; one that cannot be held whole is streamed, and compared at its end."""
        old = self._copy
        hold = hold and (on_disk or self.ref.size_bytes <= self._shelf.memory.limit_bytes)
        if hold:
            self._waiters.widen(self.all_blocks)
        self._copy = Copy(self.ref, self._shelf.new_spool(self.ref, on_disk=on_disk), hold=hold)
        self._release(old)
        self._waiters.wake()

    def _release(self, copy: Copy) -> None:
        if copy.is_doubtful:
            self._shelf.damage.doubt(self.ref)
        path = copy.spool.close()
        if path is not None:
            self._spawn(self._shelf.removal(path))

    def _fall_back(self, copy: Copy, doing: str, exc: OSError) -> None:
        """Go on from memory: the disk failed."""
        spool = copy.spool
        if copy is self._copy and isinstance(spool, DiskSpool) and not self._done:
            self._shelf.health.failed(doing, exc)
            self._waiters.fail(self.all_blocks, local_error(exc), only_files=True)
            self._begin_again(on_disk=False, hold=self._wrong_digest is not None)
            self._copy.handed_out_bytes = copy.handed_out_bytes
            for block, piece in spool.pending:
                self._copy.spool.put(block, piece)

    # The end.

    def _check_if_complete(self) -> None:
        if self._copy.spool.is_whole and not (self._done or self._checking or self._runs):
            self._checking = True
            self._last_step = anyio.CancelScope(shield=True)
            self._spawn(self._check)

    async def _check(self) -> None:
        """Compare the complete content with its hash, then keep it or fetch it again."""
        copy = self._copy
        with self._last_step:
            try:
                digest = await copy.spool.digest()
                if copy is self._copy:
                    if digest is None:  # what nobody can compare is not handed out
                        copy.spool.clear()
                        self._begin_again(on_disk=copy.on_disk, hold=copy.hold)
                    elif self.ref.sha256 in {None, digest}:
                        await self._keep(copy, digest)
                    else:
                        self._reject(copy, digest)
            except OSError as exc:
                self._fall_back(copy, "reading a partial file", exc)
        self._checking = False
        self._waiters.wake()
        self.settle()

    async def _keep(self, copy: Copy, digest: str) -> None:
        spool, copy.verified = copy.spool, True
        if self.ref.sha256 is None:
            self._shelf.aliases.learn(self.ref.version, digest)
        if isinstance(spool, DiskSpool):
            problem = await self._shelf.keep_file(spool.path, digest, self.ref.size_bytes, spool.file)
            if problem is not None:
                # Still readable from here; whoever needs the file may try again.
                self._waiters.fail(self.all_blocks, problem, only_files=True)
                return
            spool.placed = True
        elif isinstance(spool, MemorySpool):
            spool.rename(digest)
        self._done = True
        self._forget()
        await self._shelf.make_room()

    def _reject(self, copy: Copy, digest: str) -> None:
        """Drop a copy with the wrong hash: fetch once more, or give up if that was the second."""
        problem = hash_problem(self.ref, digest)
        _log.warning("downloaded bytes are wrong", problem=problem, handed_out_bytes=copy.handed_out_bytes)
        if copy.handed_out_bytes:
            self._shelf.damage.note(self.ref)
        before, self._wrong_digest = self._wrong_digest, digest
        copy.spool.clear()
        self._begin_again(on_disk=copy.on_disk, hold=True)
        if digest == before:
            self._done = True
            self._waiters.fail(self.all_blocks, self._shelf.refuse(self.ref, problem))
            self._forget()
        elif before is not None:
            self._waiters.fail(self.all_blocks, IntegrityError(problem))

    def _forget(self) -> None:
        if self._transfers.get(self.ref.version) is self:
            del self._transfers[self.ref.version]
