"""Carries single changes out at Supabase: the one place in `fs` that removes, moves, marks and patches.

Nothing here looks at or changes what is known locally. Every call may be repeated; a store that has only
move (never replaces) and copy (may replace) makes of a rename over a file a copy, then its row, then a
delete: the target is always the old or the new file, and after a crash both names exist.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import structlog
import trio

from exaifs.cache.names.entries import Entry
from exaifs.errors import ExaifsError, Exists, NotFound
from exaifs.model import ObjectRecord, Posix
from exaifs.names import path_of
from exaifs.remote.bodies import BytesBody
from exaifs.remote.interface import Remote, RowPatch, Upload

_log = structlog.get_logger(__name__)

_MOVES_AT_ONCE = 8
_PAGE = 1000

_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()

# Buckets may restrict MIME types; the dashboard's own markers have this one.
_MARKER_MIME = "application/octet-stream"


class Carrier:
    """Changes one bucket.

    Args:
        remote: the bucket.
    """

    def __init__(self, remote: Remote) -> None:
        self._objects = remote.objects
        self._catalog = remote.catalog

    async def look(self, keys: Sequence[str]) -> dict[str, ObjectRecord]:
        """Return the records of the keys that exist."""
        return await self._catalog.stat(keys)

    async def remove(self, keys: Sequence[str]) -> None:
        """Delete objects; missing ones are no error."""
        await self._objects.remove(keys)

    async def move(
        self,
        old: str,
        new: str,
        *,
        replace: bool,
        may_replace: bool = True,
        keep: Callable[[ObjectRecord | None], Awaitable[None]] | None = None,
        file_id: str | None = None,
        on_half: Callable[[], None] = lambda: None,
    ) -> ObjectRecord:
        """Give an object another key, and return its record there.

        Args:
            old: where it is.
            new: where it goes.
            replace: whether an object is known to be there.
            may_replace: whether one that appeared meanwhile is replaced, too.
            keep: called with what is there before it is replaced; None: somebody has looked.
            file_id: of the file, if known: it goes along.
            on_half: called before the old key may lose its row, while its object is still there.

        Raises:
            NotFound: there is no such object.
            Exists: the new key is taken, and may not be replaced.
        """
        if not replace:
            try:
                await self._objects.move(old, new)
            except NotFound:
                return await self._moved_before(old, new, file_id)
            except Exists:
                if not may_replace:
                    raise
                _log.info("target appeared on another host; replacing it", path=path_of(new))
            else:
                return await self._record(new)
        if keep is not None:
            await keep((await self.look([new])).get(new))
        await self._objects.copy(old, new)
        on_half()
        record = await self._catalog.carry_row(old, new)
        await self._objects.remove([old])
        return record

    async def _moved_before(self, old: str, new: str, file_id: str | None) -> ObjectRecord:
        """Return the record of an object that is not where it was, if it is where it should go.

        A network may deliver a request twice: the answer is that of the second.

        Raises:
            NotFound: another host removed it.
        """
        found = await self.look([old, new])
        record = found.get(new)
        if old in found or record is None or file_id is None or record.file_id != file_id:
            raise NotFound(f"{path_of(old)} was removed by another host")
        return record

    async def _record(self, key: str) -> ObjectRecord:
        records = await self.look([key])
        if key not in records:
            raise NotFound(f"{path_of(key)} was removed by another host")
        return records[key]

    async def tree(self, prefix: str) -> AsyncIterator[ObjectRecord]:
        """Yield the records of all objects below a prefix."""
        async for page in self.tree_pages(prefix):
            for record in page:
                yield record

    async def tree_pages(self, prefix: str) -> AsyncIterator[Sequence[ObjectRecord]]:
        """Do as `tree`, some at a time: only between them may anything change here."""
        after: str | None = ""
        while after is not None:
            page, after = await self._catalog.list_tree(prefix, after, _PAGE)
            yield page

    async def move_all(
        self,
        moves: Sequence[tuple[str, str]],
        *,
        replace: bool = False,
        may_stay: Callable[[ExaifsError], bool] = lambda _: False,
    ) -> dict[str, ExaifsError]:
        """Move objects, several at a time; those that are gone were removed by another host.

        Args:
            moves: old and new key of each.
            replace: whether one that is in the way is replaced.
            may_stay: tells whether one whose move failed like this stays, and the others go on.

        Returns:
            What stays, by its old key, and why.

        Raises:
            ExaifsError: the first other failure; no further move begins after it.
        """
        limiter = trio.CapacityLimiter(_MOVES_AT_ONCE)
        failures: list[ExaifsError] = []
        left: dict[str, ExaifsError] = {}

        async def move(source: str, target: str) -> None:
            async with limiter:
                if failures:
                    return
                try:
                    await self._move_one(source, target, replace=replace)
                except NotFound:
                    return
                except ExaifsError as exc:
                    if may_stay(exc):
                        left[source] = exc
                    else:
                        failures.append(exc)

        async with trio.open_nursery() as nursery:
            for source, target in moves:
                nursery.start_soon(move, source, target)
        if failures:
            raise failures[0]
        return left

    async def _move_one(self, source: str, target: str, *, replace: bool) -> None:
        try:
            await self._objects.move(source, target)
        except Exists:
            if not replace:
                raise
            await self.move(source, target, replace=True)

    async def mark(self, directory: Entry, posix: Posix) -> ObjectRecord:
        """Put a directory's folder marker: a 0-byte object, as the dashboard makes them."""
        key = directory.marker_key
        upload = Upload(_EMPTY_SHA256, _MARKER_MIME, posix, secrets.token_hex(16), size_bytes=0)
        await self._objects.put(key, BytesBody(b""), upload)
        return await self._catalog.commit(key, upload)

    async def patch(self, key: str, patch: RowPatch) -> ObjectRecord:
        """Change a row.

        Raises:
            NotFound: there is no such object.
        """
        return await self._catalog.patch(key, patch)
