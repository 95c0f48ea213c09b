"""Changes to names and attributes: carried out at once, or put into the outbox while that cannot be.

Each method returns what Supabase made of the change, or None when it waits; the caller, who holds the
claims and locks, then takes it on locally either way. What needs several requests is in the journal before
the first of them, so that a next run finishes it. Of a change that fails without an answer nobody knows
whether it happened: the directories that show its keys are listed again before they are trusted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog
import trio

from exaifs.cache.names.entries import Entry
from exaifs.cache.names.index import Index
from exaifs.cache.unsent.intents import Mark, Move, Operation, Patch, Put, Remove, Unmark, keys_of
from exaifs.errors import Busy, ExaifsError, HalfDone
from exaifs.fs.contact import Contact, is_away
from exaifs.fs.staged.staging import Staged
from exaifs.fs.unsent.carrier import Carrier
from exaifs.fs.unsent.outbox import Outbox
from exaifs.model import ObjectRecord, Posix
from exaifs.names import path_of
from exaifs.remote.interface import RowPatch

_log = structlog.get_logger(__name__)

T = TypeVar("T")

EARLIER_WAITS = "an earlier change of its name waits to be carried out"


class Changes:
    """Changes of one mount.

    Args:
        carrier: carries them out.
        outbox: takes what must wait.
        index: where the keys are that may have changed when one fails.
        contact: whether Supabase answers.
        may_wait: whether anything may be acknowledged that Supabase does not have (`offline_writes`).
    """

    def __init__(
        self, carrier: Carrier, outbox: Outbox, index: Index, contact: Contact, *, may_wait: bool
    ) -> None:
        self.carrier = carrier
        self.outbox = outbox
        self._index = index
        self._contact = contact
        self.may_wait = may_wait

    def must_wait(self, *keys: str) -> bool:
        """Tell whether a change of these keys cannot be carried out now.

        Raises:
            RemoteError: Supabase is away, or something earlier waits for it, and nothing more is to wait.
        """
        waits = self.outbox.overlaps(*keys)
        if self.may_wait:
            return self._contact.offline or waits
        if self._contact.offline and not self._contact.worth_trying:
            raise self._contact.refusal()
        if waits:
            raise Busy(EARLIER_WAITS)
        return False

    async def remove(
        self,
        entry: Entry,
        *,
        stays: Callable[[Remove, ObjectRecord], Awaitable[bool]],
        unsent: Staged | None = None,
        puts: Sequence[Put] = (),
        dropped: Sequence[str] = (),
    ) -> None:
        """Delete an object.

        Args:
            entry: as it is.
            stays: tells whether what is there is another host's, where that may be.
            unsent: its staged bytes, of which an upload may have arrived.
            puts: new states of staged files.
            dropped: staged files that are of no use then.
        """
        operation = Remove(entry)
        if unsent is not None:
            sent = (*unsent.uploads.sent, *([] if unsent.known_sha256 is None else [unsent.known_sha256]))
            operation = Remove(entry, tuple(unsent.uploads.write_ids), sent)

        async def carry_out() -> None:
            there = None
            if unsent is not None and unsent.uploads.unanswered:
                # It was sent, or another host wrote what is there, or nothing is.
                there = (await self.carrier.look([entry.key])).get(entry.key)
            if there is None or not await stays(operation, there):
                await self.carrier.remove([entry.key])
            else:
                self._index.leave(entry.key)  # shown once this change is over
            await self.outbox.keep(puts, dropped)

        await self._now_or_later(operation, carry_out, puts=puts, dropped=dropped)

    async def patch(self, entry: Entry, patch: RowPatch) -> ObjectRecord | None:
        """Change a row.

        Args:
            entry: as it is after that.
            patch: what to change.

        Raises:
            NotFound: the object was removed by another host.
        """
        operation = Patch(entry, patch.posix, patch.set_xattrs, patch.drop_xattrs)
        (key,) = keys_of(operation)
        return await self._now_or_later(operation, lambda: self.carrier.patch(key, patch))

    async def mark(self, directory: Entry, posix: Posix, *, is_new: bool) -> ObjectRecord | None:
        """Put a directory's folder marker."""
        operation = Mark(directory, is_new)
        return await self._now_or_later(operation, lambda: self.carrier.mark(directory, posix))

    async def unmark(self, directory: Entry) -> None:
        """Delete a directory's folder marker."""
        operation = Unmark(directory)
        await self._now_or_later(operation, lambda: self.carrier.remove([directory.marker_key]))

    async def move(
        self,
        operation: Move,
        *,
        may_replace: bool,
        keep: Callable[[ObjectRecord | None], Awaitable[None]],
        puts: Sequence[Put],
        dropped: Sequence[str],
        undone: Sequence[Put],
    ) -> ObjectRecord | None:
        """Give an object another key.

        Args:
            operation: from where to where.
            may_replace: whether a file that another host put there meanwhile is replaced.
            keep: keeps such a file aside before that.
            puts: new states of staged files, in case it waits or is found half-way by a next run.
            dropped: staged files that are of no use then.
            undone: the states that hold again if it fails.

        Raises:
            NotFound, Exists: as `Carrier.move`.
            HalfDone: it got no answer when its row may have gone to the new key already. Nothing is to
                wait, but it is finished, as a next run would do; take it on.
        """
        key, replaces = operation.entry.key, operation.replaced is not None
        half = trio.Event()

        async def carry_out() -> ObjectRecord:
            # Of bytes that were closed and wait the last close wins: a move looks like a later one.
            there = (await self.carrier.look([operation.source])).get(operation.source) if puts else None
            record = await self.carrier.move(
                operation.source,
                key,
                replace=replaces,
                may_replace=may_replace,
                keep=keep,
                file_id=operation.entry.file_id,
                on_half=half.set,
            )
            if there is not None:
                self.outbox.carried_along(there, record)
            return record

        in_steps = replaces or puts or any(map(self.outbox.knows, dropped))
        if in_steps and not self.must_wait(*keys_of(operation)):
            return await self._in_steps(operation, puts, undone, carry_out, dropped, half=half)
        return await self._now_or_later(operation, carry_out, puts=puts, dropped=dropped, half=half)

    async def move_tree(
        self,
        operation: Move,
        carry_out: Callable[[], Awaitable[T]],
        *,
        puts: Sequence[Put],
        undone: Sequence[Put],
    ) -> T | None:
        """Give a directory another prefix.

        Args:
            operation: from where to where.
            carry_out: moves what is there now.
            puts: new states of the staged files below.
            undone: the states that hold again if it fails.
        """
        if self.must_wait(*keys_of(operation)):
            await self.outbox.append(operation, puts=puts)
            return None
        return await self._in_steps(operation, puts, undone, carry_out)

    async def _in_steps(
        self,
        operation: Operation,
        puts: Sequence[Put],
        undone: Sequence[Put],
        carry_out: Callable[[], Awaitable[T]],
        dropped: Sequence[str] = (),
        *,
        half: trio.Event | None = None,
    ) -> T | None:
        """Carry out what takes several requests: found half-way, it is finished by the next run.

        Once `half` is set it is finished by this one, too, whether or not anything may wait.
        """
        number = await self.outbox.append(operation, puts=puts, in_hand=True)
        try:
            with self._contact.impatient():
                result = await carry_out()
        except ExaifsError as exc:
            if not self._is_to_wait(exc, half):
                try:
                    await self.outbox.close(number, undone)
                finally:
                    self._doubt(operation)  # of several requests some may have been answered
                raise
            self._note_waiting(operation, exc)
            self.outbox.let_go(number)
            self._tell_half_done(exc)
            return None
        self.outbox.drop(*dropped)
        await self.outbox.close(number)
        return result

    async def _now_or_later(
        self,
        operation: Operation,
        carry_out: Callable[[], Awaitable[T]],
        *,
        puts: Sequence[Put] = (),
        dropped: Sequence[str] = (),
        half: trio.Event | None = None,
    ) -> T | None:
        if self.must_wait(*keys_of(operation)):
            await self.outbox.postpone(operation, puts=puts, dropped=dropped)
            return None
        try:
            with self._contact.impatient():
                return await carry_out()
        except ExaifsError as exc:
            if not self._is_to_wait(exc, half):
                if is_away(exc):
                    self._contact.note(exc)
                    self._doubt(operation)
                raise
            self._note_waiting(operation, exc)
            await self.outbox.postpone(operation, puts=puts, dropped=dropped, tried=True)
            self._tell_half_done(exc)
            return None

    def _is_to_wait(self, exc: ExaifsError, half: trio.Event | None) -> bool:
        """Tell whether what failed waits for Supabase: as all may, or as it cannot be left as it is."""
        return is_away(exc) and (self.may_wait or (half is not None and half.is_set()))

    def _tell_half_done(self, exc: ExaifsError) -> None:
        """Return if the caller need not know that a change waits.

        Raises:
            HalfDone: nothing is to wait.
        """
        if not self.may_wait:
            raise HalfDone(f"{exc}; what was begun is finished later") from exc

    def _note_waiting(self, operation: Operation, exc: ExaifsError) -> None:
        self._contact.note(exc)
        path = path_of(operation.entry.key)
        _log.warning("kept for later", what=type(operation).__name__.lower(), path=path, reason=str(exc))

    def _doubt(self, operation: Operation) -> None:
        for key in keys_of(operation):
            self._index.doubt_key(key)
