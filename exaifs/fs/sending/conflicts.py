"""Keeps the bytes that lose when two hosts wrote one file (design: last close wins, nothing is lost)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import structlog
import trio

from exaifs.cache.data.contents import ContentStore
from exaifs.cache.localfile import copy_contents, unlink_quietly
from exaifs.cache.unsent.conflicts import (
    Conflict,
    Version,
    describe,
    list_conflicts,
    new_file,
    this_host,
)
from exaifs.cache.unsent.intents import Move, Remove
from exaifs.errors import ExaifsError, IntegrityError, Stale
from exaifs.fs.sending.losses import Losses
from exaifs.fs.staged.staging import Staged
from exaifs.model import ObjectRecord
from exaifs.names import path_of

_log = structlog.get_logger(__name__)


class Conflicts:
    """The conflicts of one mount.

    Args:
        directory: `conflicts/` of the cache directory.
        contents: fetches what another host wrote.
        losses: told of bytes of this host that will not be sent.
    """

    def __init__(self, directory: Path, contents: ContentStore, losses: Losses) -> None:
        self._directory = directory
        self._contents = contents
        self._losses = losses
        self.seen = 0
        """Since the start; also those of which nothing had to be kept."""

    def waiting(self) -> int:
        """Return how many wait for somebody's decision."""
        return len(list(self._directory.glob("*.json")))

    def note(self, key: str, what: str) -> None:
        """Count and log a conflict of which no bytes are lost."""
        self.seen += 1
        _log.warning("conflict with another host", path=path_of(key), outcome=what)

    async def keep_ours(
        self, staged: Staged, key: str | None, reason: str, winner: ObjectRecord | None = None
    ) -> None:
        """Keep a staged file's bytes aside; it is closed and gone from `staging/` afterwards.

        Raises:
            ExaifsError: the disk refuses; the staged file is as it was.
        """
        conflict = await self._keep(staged, key, reason, winner, os.link)
        staged.close()
        if conflict.path is not None:
            self._losses.note(conflict.path, "file", f"{reason}; kept as the conflict {conflict.id}")

    async def keep_copy(self, staged: Staged, key: str, reason: str, winner: ObjectRecord) -> None:
        """Keep a copy of a staged file's bytes aside, which goes on being one.

        Raises:
            ExaifsError: the disk refuses.
        """
        await self._keep(staged, key, reason, winner, _copy_file)

    async def _keep(
        self,
        staged: Staged,
        key: str | None,
        reason: str,
        winner: ObjectRecord | None,
        take: Callable[[Path, Path], object],
    ) -> Conflict:
        kept = Version(staged.size_bytes, staged.known_sha256, staged.closed_ns or None, this_host())

        def keep(data: Path) -> Conflict:
            take(staged.path, data)
            return describe(
                data,
                path=None if key is None else path_of(key),
                reason=reason,
                kept=kept,
                winner=None if winner is None else _version(winner),
            )

        data: Path | None = None
        try:
            data = new_file(self._directory)
            conflict = await trio.to_thread.run_sync(keep, data)
        except OSError as exc:
            if data is not None:
                unlink_quietly(data)  # the staged file has them still, for the next attempt
            raise ExaifsError(f"the bytes that lost a conflict cannot be kept: {exc}") from exc
        self._tell(conflict)
        return conflict

    async def keep_replaced(self, move: Move, there: ObjectRecord | None) -> None:
        """Keep what a rename is about to replace, unless that was replaced here, or is a copy of ours.

        Args:
            move: the rename.
            there: what has the new name in the bucket.

        Raises:
            IntegrityError, ExaifsError: as `keep_theirs`.
        """
        expected = (move.entry, move.replaced)
        if there is None or any(entry is not None and entry.is_object_of(there) for entry in expected):
            return
        if not await self.is_sent_from_here(move, there):
            await self.keep_theirs(there, "replaced by a rename on this host", None)

    async def stays(self, change: Remove, record: ObjectRecord) -> bool:
        """Tell whether an object that is to be removed is another host's by now, and note it then."""
        if change.entry.is_object_of(record) or await self.is_sent_from_here(change, record):
            return False
        self.note(change.entry.key, "removed here, but another host has changed it: it stays")
        return True

    async def is_sent_from_here(self, change: Move | Remove, record: ObjectRecord) -> bool:
        """Tell whether an object is what an upload without an answer has left.

        Args:
            change: of its name; knows those uploads.
            record: of the object.
        """
        if record.write_id is not None or record.sha256 is not None:
            return record.write_id in change.write_ids
        if not change.sent:
            return False
        # Cut off before its commit, on a server that drops metadata: only the bytes tell.
        try:
            await self._contents.materialize(record.ref)
        except IntegrityError:
            return False  # not even as long as the bucket says
        return self._contents.sha256_of(record.ref) in change.sent

    async def keep_theirs(self, record: ObjectRecord, reason: str, staged: Staged | None) -> None:
        """Keep what another host wrote, before it is replaced from here; once, however often that is tried.

        Bytes that do not have the hash their row claims are kept as they are, and named as unverified.

        Args:
            record: what is in the bucket now.
            reason: for people.
            staged: what replaces it.

        Raises:
            IntegrityError: what the bucket has is not even as long as it says.
            ExaifsError: it cannot be fetched, or the disk refuses. Not where it is gone already.
        """
        if await trio.to_thread.run_sync(self._is_kept, record):
            return  # by an attempt, perhaps of an earlier run, that did not replace it
        data = new_file(self._directory)
        try:
            fd = os.open(data, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise ExaifsError(f"the bytes that lost a conflict cannot be kept: {exc}") from exc
        try:
            kept, doubt = await self._copy(record, fd)
            winner = None
            if staged is not None:
                host = this_host()
                winner = Version(staged.size_bytes, staged.known_sha256, staged.closed_ns or None, host)
            conflict = await trio.to_thread.run_sync(
                lambda: describe(
                    data,
                    path=path_of(record.key),
                    reason=reason + doubt,
                    kept=kept,
                    winner=winner,
                )
            )
        except Stale:
            data.unlink(missing_ok=True)
            self.note(record.key, "the other host's file was gone before it could be kept")
            return
        except OSError as exc:
            data.unlink(missing_ok=True)
            raise ExaifsError(f"the bytes that lost a conflict cannot be kept: {exc}") from exc
        except BaseException:
            data.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        self._tell(conflict)

    def _is_kept(self, record: ObjectRecord) -> bool:
        wanted = (path_of(record.key), record.size_bytes, record.updated_ns, None)
        return record.updated_ns > 0 and any(
            (conflict.path, conflict.kept.size_bytes, conflict.kept.written_ns, conflict.kept.host)
            == wanted
            for conflict in list_conflicts(self._directory)
        )

    async def _copy(self, record: ObjectRecord, fd: int) -> tuple[Version, str]:
        """Copy what is in the bucket; return what it is, and what is to be said of it."""
        ref = record.ref
        try:
            await self._contents.copy_to(ref, fd)
        except IntegrityError:
            if ref.sha256 is None:
                raise
            # The hash is the word of whoever wrote the row, and these are all the bytes there are.
            plain = replace(ref, sha256=None)
            await self._contents.copy_to(plain, fd)
            kept = replace(_version(record), sha256=self._contents.sha256_of(plain))
            return kept, "; unverified: its bytes do not have the SHA-256 that its row claims"
        return _version(record), ""

    def _tell(self, conflict: Conflict) -> None:
        self.seen += 1
        _log.error(
            "conflict: bytes are kept aside; see `exaifs conflicts`",
            path=conflict.path,
            reason=conflict.reason,
            kept_as=conflict.id,
        )


def _version(record: ObjectRecord) -> Version:
    return Version(record.size_bytes, record.sha256, record.updated_ns or None, None)


def _copy_file(source: Path, target: Path) -> None:
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        copy_contents(source, fd)
    finally:
        os.close(fd)
