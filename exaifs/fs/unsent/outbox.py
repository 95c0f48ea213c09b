"""The outbox: what was acknowledged here and waits to be carried out at Supabase, kept in the journal.

Two kinds of things wait. *Operations* (remove, move, mark, unmark, patch) are carried out in order: one
that touches a key waits for every earlier one that touches the same key, a directory above it, or anything
below it; all others may run side by side. Those that change attributes again, or undo what was never tried,
are joined with what waits. *Puts* are states of staged files: one waits for every operation
on its key, and operations never wait for it, because whatever renames or removes a name also changes or
drops the put of it.

While an operation waits, its keys are claimed in the index: answers of the server leave them alone, for
they tell of a time before it. Changing anything here is synchronous, but for waiting for the disk.

`changes` fills it, `sender` empties it, `adoption` fills it from the journal at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import structlog
import trio

from exaifs.cache.names.index import Index
from exaifs.cache.names.keyset import KeySet
from exaifs.cache.unsent.intents import (
    Mark,
    Move,
    Operation,
    Patch,
    Put,
    Unmark,
    joined,
    keys_of,
    outdates,
    to_record,
)
from exaifs.cache.unsent.journal import Journal
from exaifs.cache.unsent.journalfile import Record
from exaifs.cache.unsent.ordering import Ordering
from exaifs.errors import ExaifsError
from exaifs.model import ObjectRecord

_log = structlog.get_logger(__name__)

_CLOSINGS = 10_000
"""Of so many objects that renames took along it is remembered when they were closed."""


class Outbox:
    """What waits, of one mount.

    Args:
        journal: keeps it.
        index: has the keys of operations claimed.
    """

    def __init__(self, journal: Journal, index: Index) -> None:
        self._journal = journal
        self._index = index
        # Mutable state, changed without an await but for the journal's.
        self._operations: dict[int, Operation] = {}
        self._moves: dict[int, Move] = {}  # those of them that are moves
        self._keys = KeySet()
        self._order = Ordering()
        self._in_hand: set[int] = set()  # being carried out, or written anew
        self._tried: set[int] = set()  # may have been carried out, though no answer came
        self._direct: set[int] = set()  # in the hands of the caller of `append`, who holds claims
        self._puts: dict[str, int] = {}
        self._closings: dict[str, int] = {}
        self._on_news: list[Callable[[], None]] = []
        self._settled = trio.Event()

    # -- looking -----------------------------------------------------------------------------------

    @property
    def operations(self) -> Mapping[int, Operation]:
        """What waits, by number, in order."""
        return self._operations

    @property
    def lost_records(self) -> bool:
        """Whether there may have been records at the start that could not be read."""
        return self._journal.lost_records

    def trust_records(self) -> None:
        """What lost ones may have been about has been looked at."""
        self._journal.trust()

    def on_news(self, act: Callable[[], None]) -> None:
        """Have something called whenever there is more to carry out."""
        self._on_news.append(act)

    def overlaps(self, *keys: str) -> bool:
        """Tell whether an operation waits that touches one of these keys, above or below it."""
        return bool(self._operations) and any(self._keys.overlaps(key) for key in keys)

    def runnable(self) -> Iterator[tuple[int, Operation]]:
        """Yield the operations that wait for no earlier one and that nobody is carrying out."""
        for number in self._order.ready():
            if number not in self._in_hand:
                yield number, self._operations[number]

    def stored_key(self, key: str) -> str:
        """Return where the bucket has what is called `key` here: moves may wait to be carried out."""
        for move in reversed(self._moves.values()):
            key = moved_key(key, move.entry.key, move.source)
        return key

    def local_key(self, number: int, key: str) -> str | None:
        """Return what is called `key` after an operation, once all later ones are carried out, too.

        None: a later one puts another file in its place.
        """
        for later, move in self._moves.items():
            if later <= number:
                continue
            if key == move.entry.key:
                return None
            key = moved_key(key, move.source, move.entry.key)
        return key

    def carried_along(self, record: ObjectRecord, moved: ObjectRecord) -> None:
        """Remember when another host closed what a rename took along: it looks newer since."""
        while len(self._closings) >= _CLOSINGS:
            del self._closings[next(iter(self._closings))]
        self._closings[moved.version] = self.closed_ns(record)

    def closed_ns(self, record: ObjectRecord) -> int:
        """Return when the bytes of an object were put where they are, renames from here left aside."""
        return self._closings.get(record.version, record.updated_ns)

    async def wait_settled(self, key: str) -> None:
        """Return once no operation that touches a key waits; for ever while Supabase is away."""
        while self.overlaps(key):
            await self._settled.wait()

    # -- operations --------------------------------------------------------------------------------

    async def append(
        self,
        operation: Operation,
        *,
        puts: Sequence[Put] = (),
        dropped: Sequence[str] = (),
        in_hand: bool = False,
    ) -> int:
        """Have an operation wait; it survives a power cut when this returns.

        Args:
            operation: what to carry out.
            puts: new states of staged files, which it changes, in the same step.
            dropped: staged files that nobody wants any more after it.
            in_hand: the caller is about to carry it out itself, and calls `done` or `let_go`. Until then
                its claims have others wait; `overlaps` does not count it.

        Returns:
            Its number.

        Raises:
            NoSpace, ExaifsError: the disk refuses; nothing is changed.
        """
        number, *_ = await self._write([to_record(operation)], puts, dropped)
        if in_hand:
            self._in_hand.add(number)
            self._direct.add(number)
            self._tried.add(number)
        self._take(number, operation)
        return number

    async def postpone(
        self,
        operation: Operation,
        *,
        puts: Sequence[Put] = (),
        dropped: Sequence[str] = (),
        tried: bool = False,
    ) -> None:
        """Do as `append`, with what waits already: a thousand changes of one row become one.

        Each is one step of the journal, so that a next run finds the one state or the other.

        Args:
            operation: as `append`.
            puts: as `append`.
            dropped: as `append`.
            tried: whether it may have been carried out, as no answer came.

        Raises:
            NoSpace, ExaifsError: as `append`.
        """
        if isinstance(operation, Patch) and await self._join(operation):
            return
        outdated = self._outdated_by(operation)
        is_undone = isinstance(operation, Unmark) and any(map(self._is_only_here, outdated))
        self._in_hand.update(outdated)  # nobody begins them meanwhile
        try:
            added = [] if is_undone else [to_record(operation)]
            numbers = await self._write(added, puts, dropped, outdated)
        except BaseException:
            self._in_hand.difference_update(outdated)
            self._news()
            raise
        for number in numbers:
            self._take(number, operation)
            if tried:
                self._tried.add(number)
        for number in outdated:
            self._close(number)

    async def _join(self, patch: Patch) -> bool:
        """Have a patch that waits do what another one does, too, if nothing comes between them."""
        number = next(iter(self._order.latest(*keys_of(patch))), None)
        if number is None or number in self._in_hand:
            return False
        both = joined(self._operations[number], patch)
        if both is None:
            return False
        self._in_hand.add(number)
        try:
            await self._write([], (), (), (), {number: to_record(both)})
            self._operations[number] = both
        finally:
            self._in_hand.discard(number)
            self._news()
        return True

    def _outdated_by(self, operation: Operation) -> list[int]:
        """Return what waits directly before an operation and is of no use after it."""
        numbers: list[int] = []
        for number in self._order.latest(keys_of(operation)[0]):
            if number in self._in_hand or not outdates(operation, self._operations[number]):
                break
            numbers.append(number)
        return numbers

    def _is_only_here(self, number: int) -> bool:
        """Tell whether it is the making of a directory of which Supabase has never heard."""
        operation = self._operations[number]
        return isinstance(operation, Mark) and operation.is_new and number not in self._tried

    def adopt(self, number: int, operation: Operation) -> None:
        """Have an operation of the journal wait; an earlier run may have tried it."""
        self._tried.add(number)
        self._take(number, operation)

    def _take(self, number: int, operation: Operation) -> None:
        self._operations[number] = operation
        self._order.add(number, keys_of(operation))
        if isinstance(operation, Move):
            self._moves[number] = operation
        for key in keys_of(operation):
            self._index.claim(key)
            if number not in self._direct:
                self._keys.add(key)
        self._news()

    def begin(self, number: int) -> Operation | None:
        """Note that an operation is being carried out, and return it; None: not now, or not any more."""
        if number in self._in_hand or number not in self._operations:
            return None
        self._in_hand.add(number)
        self._tried.add(number)
        return self._operations[number]

    def let_go(self, number: int) -> None:
        """Note that it is not any more: it is still to be carried out."""
        self._in_hand.discard(number)
        if number in self._direct:
            self._direct.discard(number)
            for key in keys_of(self._operations[number]):
                self._keys.add(key)
        self._news()

    async def done(
        self, number: int, revised: Mapping[int, Operation] | None = None, *, puts: Sequence[Put] = ()
    ) -> None:
        """Forget an operation that was carried out or given up; what waited for it may begin.

        That is on the disk before anything later begins: a next run must not carry it out on what a later
        one has left.

        Args:
            number: which.
            revised: what later ones say now: it may have given an object another version.
            puts: states of staged files that hold again, as it was given up.

        Raises:
            NoSpace, ExaifsError: it is still to be done.
        """
        revised = revised or {}
        await self._write([], puts, (), [number], {later: to_record(new) for later, new in revised.items()})
        self._operations.update(revised)
        self._close(number)

    async def close(self, number: int, puts: Sequence[Put] = ()) -> None:
        """Do as `done` with an operation in hand, of which somebody waits to hear.

        Where the disk refuses, that is written with whatever is written next: an operation that was
        carried out, or has failed, must not wait on.
        """
        try:
            await self.done(number, puts=puts)
        except ExaifsError as exc:
            _log.error("the journal cannot be written", reason=str(exc))
            self._journal.forget([number])
            self._close(number)

    def _close(self, number: int) -> None:
        operation = self._operations.pop(number)
        self._order.remove(number)
        self._moves.pop(number, None)
        self._in_hand.discard(number)
        self._tried.discard(number)
        for key in keys_of(operation):
            self._index.release(key)
            if number not in self._direct:
                self._keys.discard(key)
        self._direct.discard(number)
        self._settled.set()
        self._settled = trio.Event()
        self._news()

    # -- puts --------------------------------------------------------------------------------------

    async def keep(self, puts: Sequence[Put], dropped: Sequence[str] = ()) -> None:
        """Have the journal know of staged files; they survive a power cut when this returns.

        Args:
            puts: their newest states, instead of earlier ones; their bytes are on the disk already.
            dropped: other staged files, which they replace.

        Raises:
            NoSpace, ExaifsError: the disk refuses; what was known before still is.
        """
        if puts or any(name in self._puts for name in dropped):
            await self._write([], puts, dropped)
        self._news()

    async def _write(
        self,
        operations: Sequence[Record],
        puts: Sequence[Put],
        dropped: Sequence[str],
        done: Sequence[int] = (),
        revised: Mapping[int, Record] | None = None,
    ) -> list[int]:
        """Write one step, and know its puts; return the numbers of the operations."""
        replaced = [*(put.staged for put in puts), *dropped]
        old = [number for name in replaced if (number := self._puts.get(name)) is not None]
        numbers = await self._journal.append([*operations, *map(to_record, puts)], [*old, *done], revised)
        for name in replaced:
            self._puts.pop(name, None)
        for number, put in zip(numbers[len(operations) :], puts, strict=True):
            self._puts[put.staged] = number
        return numbers[: len(operations)]

    def take_put(self, number: int, put: Put) -> None:
        """Know of a put of the journal."""
        self._puts[put.staged] = number

    def drop(self, *staged: str) -> None:
        """Forget staged files that were sent or are not wanted any more; `sync` makes that durable."""
        self._journal.forget(
            [number for name in staged if (number := self._puts.pop(name, None)) is not None]
        )

    def knows(self, staged: str) -> bool:
        """Tell whether the journal has a record of a staged file."""
        return staged in self._puts

    async def sync(self) -> None:
        """Have on the disk what was dropped.

        Raises:
            NoSpace, ExaifsError: it will be, with the next thing that is written.
        """
        await self._journal.sync()

    def discard_records(self, numbers: Iterable[int]) -> None:
        """Forget records of the journal that `adoption` found to be of no use."""
        self._journal.forget(numbers)

    def _news(self) -> None:
        for act in self._on_news:
            act()


def moved_key(key: str, source: str, target: str) -> str:
    """Return what a key is called after a move from `source` to `target`, of an object or a prefix."""
    if source.endswith("/"):
        return target + key[len(source) :] if key.startswith(source) else key
    return target if key == source else key
