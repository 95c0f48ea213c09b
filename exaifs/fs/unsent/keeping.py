"""Keeps staged bytes over the end of this process: on the disk, with a record in the journal.

The order is what counts: the bytes (fsync), the name of their file (fsync of its directory), then the
record (fdatasync of the journal). So a record always names bytes that are there; staged files without one
were never acknowledged.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import structlog

from exaifs.cache.names.entries import Entry
from exaifs.cache.unsent.intents import Put
from exaifs.errors import ExaifsError
from exaifs.fs.staged.staging import Staged
from exaifs.fs.tables.inodes import Inode
from exaifs.fs.unsent.outbox import Outbox
from exaifs.names import path_of

_log = structlog.get_logger(__name__)


class Keeper:
    """Keeps the staged files of one mount.

    Args:
        outbox: has the journal.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    async def keep(self, inode: Inode, *, acknowledged: bool, seal: bool = False) -> None:
        """Keep an inode's staged bytes; they survive a power cut when this returns. Its lock is held.

        Args:
            inode: dirty.
            acknowledged: whether somebody is told that they are safe now.
            seal: whether they must stay as they are: a close, not an fsync.

        Raises:
            NoSpace, ExaifsError: the disk refuses; what was kept before still is.
        """
        staged = inode.staged
        assert staged is not None
        was_sealed = staged.sealed
        # What was acknowledged stays so when only attributes have changed since.
        staged.acknowledged = acknowledged or (was_sealed and staged.acknowledged)
        staged.closed_ns = time.time_ns()
        staged.sealed = seal or was_sealed
        try:
            await self._keep(inode, staged)
        except BaseException:
            staged.sealed = was_sealed
            raise

    async def keep_again(self, *inodes: Inode) -> None:
        """After a change of name or attributes: have the journal say the same of what it knows.

        Raises:
            NoSpace, ExaifsError: the disk refuses.
        """
        for inode in inodes:
            staged = inode.staged
            if staged is None or not inode.dirty:
                continue
            if staged.ever_kept:
                await self._keep(inode, staged)
                if inode.opens == 0:
                    staged.rest()
            else:
                await self._outbox.keep(puts_of([(inode, inode.entry)]))

    async def _keep(self, inode: Inode, staged: Staged) -> None:
        generation = staged.generation
        await staged.sync()
        if staged.sealed:
            await staged.expect()
        staged.write_id()  # told before it is used: an upload found after a crash is known as ours
        replaced = [] if staged.predecessor is None else staged.predecessor.names
        while True:
            entry = inode.entry
            await self._outbox.keep([put_of(entry, staged)], replaced)
            if inode.entry.key == entry.key:
                break  # else a directory above was renamed meanwhile
        staged.note_kept(generation)
        if staged.predecessor is not None:
            staged.predecessor.close()
            staged.predecessor = None
        if inode.unlinked or inode.staged is not staged:  # meanwhile
            self._outbox.drop(staged.path.name)

    async def note_sent(self, inode: Inode, staged: Staged) -> None:
        """Have the journal say that a staged file was sent and is forgotten.

        Nothing is raised: it is in the bucket all the same. Where the disk refuses, a next run finds record
        and file, and sees that.
        """
        try:
            await self._outbox.sync()
        except ExaifsError as exc:
            staged.record_lingers = True
            _log.warning(
                "sent, but the journal cannot say so: a next run may look at it once more",
                path=path_of(inode.entry.key),
                reason=str(exc),
            )

    def forget(self, staged: Staged) -> None:
        """Forget a staged file that was sent, or that nobody wants; `Outbox.sync` makes that durable."""
        self._outbox.drop(*staged.names)


def puts_of(inodes: Iterable[tuple[Inode, Entry]]) -> list[Put]:
    """Return what the journal is to say of those inodes it knows, under other entries."""
    return [
        put_of(entry, kept)
        for inode, entry in inodes
        if inode.staged is not None and inode.dirty and (kept := inode.staged.newest_kept) is not None
    ]


def put_of(entry: Entry, staged: Staged) -> Put:
    """Return what the journal says of a staged file.

    A digest is told only of bytes that stay as they are until the next record.
    """
    return Put(
        entry,
        staged.path.name,
        staged.size_bytes,
        sha256=staged.known_sha256 if staged.sealed else None,
        write_ids=tuple(staged.uploads.write_ids),
        closed_ns=staged.closed_ns,
        acknowledged=staged.acknowledged,
        sent=dict(staged.uploads.sent),
    )
