"""Two hosts wrote one file: who wins, and what becomes of the bytes that lose.

The last close wins, by this host's clock for ours and by the server's for the other's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from exaifs.cache.names.merge import Difference, merge_changes
from exaifs.cache.names.naming import reclaim
from exaifs.errors import IntegrityError
from exaifs.fs.core import Core
from exaifs.fs.sending.conflicts import Conflicts
from exaifs.fs.staged.staging import Staged
from exaifs.fs.tables.inodes import Inode
from exaifs.fs.unsent.keeping import Keeper
from exaifs.model import ObjectRecord
from exaifs.names import split_key
from exaifs.remote.interface import Change


@dataclass(frozen=True, slots=True)
class WritePolicy:
    """What close(2) promises.

    Attributes:
        mode: `through`: the bytes are in Supabase; `back`: they are in the journal.
        offline: while Supabase is away: `journal`, as `back`; or `refuse`.
        conflict: when another host wrote meanwhile: `last-close` wins; or `refuse` ours.
    """

    mode: Literal["through", "back"] = "through"
    offline: Literal["journal", "refuse"] = "journal"
    conflict: Literal["last-close", "refuse"] = "last-close"


class Contest:
    """Decides conflicts of one mount. Whoever calls holds the inode's lock.

    Args:
        core: the bucket, and what is known of it.
        keeper: forgets what was set aside.
        conflicts: keeps what loses.
        policy: who wins.
        on_change: told what names stand for other inodes now.
    """

    def __init__(
        self,
        core: Core,
        keeper: Keeper,
        conflicts: Conflicts,
        policy: WritePolicy,
        on_change: Callable[[Difference], None],
    ) -> None:
        self._remote = core.remote
        self._index = core.index
        self._contents = core.contents
        self._keeper = keeper
        self._conflicts = conflicts
        self._policy = policy
        self._on_change = on_change

    async def find(self, inode: Inode) -> ObjectRecord | None:
        """Return what another host has put under an inode's key; asked only if there may be something.

        What is there already may have been replaced since the feed was last read: a request for each
        overwrite, so that none of another host's bytes are lost. A new name is free as far as is known.
        Where that fails, or somebody must decide, the next close of the file asks again.
        """
        staged, key = inode.staged, inode.entry.key
        assert staged is not None
        replaces = not inode.entry.pending or self._is_replaced(inode)
        # What was kept may have waited long; of a name that was made here answers change nothing.
        waited = staged.ever_kept or staged.predecessor is not None
        if not (self._index.take_contested(key) or replaces or waited):
            return None
        is_foreign = True  # for all that is known
        try:
            record = (await self._remote.catalog.stat([key])).get(key)
            is_foreign = record is not None and await self.is_foreign(inode, staged, record)
        finally:
            if is_foreign:
                self._index.contest(key)
        return record if is_foreign else None

    async def resolve(self, inode: Inode, record: ObjectRecord, *, ours_is_later: bool) -> bool:
        """Decide a conflict; what loses is kept aside. Returns whether ours is to be sent."""
        staged = inode.staged
        assert staged is not None
        if ours_is_later and self._policy.conflict != "refuse":
            try:
                await self._conflicts.keep_theirs(record, "replaced by a later close on this host", staged)
            except IntegrityError as exc:
                why = f"another host's file cannot be kept ({exc})"
            else:
                return True
        else:
            why = "EXAIFS_CONFLICT=refuse" if ours_is_later else "another host closed the file later"
        await self.set_aside(inode, staged, f"{why}; its file stands", record)
        return False

    async def is_foreign(self, inode: Inode, staged: Staged, record: ObjectRecord) -> bool:
        """Tell whether what is in the bucket is neither what ours replaces, nor ours already."""
        base = None if inode.entry.pending else inode.entry
        if base is not None and base.version == record.version:
            return False
        # Equal bytes are what ours replaces, too, unless the name has stood for others since.
        if base is not None and base.same_content(record) and not self._is_replaced(inode):
            return False
        if record.write_id in staged.uploads.write_ids:
            return False  # an upload of ours whose answer was lost
        sha256 = record.sha256
        if sha256 is None and record.size_bytes in {staged.size_bytes, *staged.uploads.sent.values()}:
            # On a server that drops metadata this may be our own upload, cut off before its commit; or it
            # is another client's. Only the bytes tell.
            try:
                await self._contents.materialize(record.ref)
            except IntegrityError:
                return True  # not even as long as its row says
            sha256 = self._contents.sha256_of(record.ref)
        return sha256 not in {await staged.sha256(), *staged.uploads.sent}

    def _is_replaced(self, inode: Inode) -> bool:
        """Tell whether the name stands for another file by now."""
        there = self._index.file(inode.entry.parent, inode.entry.component)
        return there is not None and there.ino != inode.ino and not there.pending

    async def set_aside(
        self, inode: Inode, staged: Staged, reason: str, record: ObjectRecord | None = None
    ) -> None:
        """Keep our bytes as those of a conflict; the name stands for what is in the bucket.

        Nothing is awaited after the name was given up: the caller shows what it stands for now.
        """
        await self._conflicts.keep_ours(staged, inode.entry.key, reason, record)
        self._keeper.forget(staged)
        inode.staged = None
        inode.failure = None
        if inode.entry.pending:
            inode.unlinked = True
            self._index.remove(inode.entry)
        # The kernel must look the name up again, or it would go on with this inode.
        difference = Difference(removed=[inode.entry])
        difference.moved(reclaim(self._index, inode.entry.parent, inode.entry.name))
        self._on_change(difference)

    def show_theirs(self, record: ObjectRecord, *, known: bool) -> None:
        """Have the name stand for another host's file.

        Args:
            record: of the file.
            known: whether something newer is known of the name already.
        """
        skipped = {record.key}
        if not known:
            with self._index.view() as view:
                change = Change(record.key, record)
                difference, skipped = merge_changes(self._index, [change], view=view, at_ns=time.time_ns())
            self._on_change(difference)
        if skipped:
            # A listing on its way left the name alone while it was ours: it must not be the last word.
            self._index.expire(split_key(record.key)[0])
