"""Copies and moves on the server. What a lost answer or a refusal means is settled by looking."""

from __future__ import annotations

import structlog

from exaifs.errors import BucketMissing, Exists, NotFound, RemoteError, Unserved
from exaifs.remote.looking import Look, look_soon
from exaifs.remote.session import Session

_log = structlog.get_logger(__name__)


class Relocation:
    """Copies and moves within one bucket."""

    def __init__(self, session: Session, bucket: str, look: Look) -> None:
        self._session = session
        self._bucket = bucket
        self._look = look

    async def copy(self, source: str, target: str) -> None:
        """See `interface.ObjectStore`. May be repeated: the target is replaced by the same bytes."""
        asked = False

        async def attempt() -> None:
            nonlocal asked
            if not (asked and await self._is_copied(source, target)):
                asked = True
                await self._copy_once(source, target)

        try:
            await self._session.moving.run(f"copy {source}", attempt)
        except RemoteError as exc:
            if not exc.temporary or not await self._is_copied(source, target):
                raise

    async def _copy_once(self, source: str, target: str) -> None:
        try:
            await self._ask("copy", source, target)
        except (NotFound, BucketMissing):
            if await self._look([source]):
                text = f"{source}: the storage server does not find what the catalog lists"
                raise Unserved(text) from None
            raise

    async def _is_copied(self, source: str, target: str) -> bool:
        """Tell whether both have the bytes of one write of ours; a write id travels with a copy."""
        found = await look_soon(self._look, [source, target]) or {}
        one, other = found.get(source), found.get(target)
        if one is None or other is None or one.write_id is None:
            return False
        same = (one.write_id, one.sha256) == (other.write_id, other.sha256)
        if same:
            _log.info("a copy had been made before its answer was lost", source=source, target=target)
        return same

    async def move(self, source: str, target: str) -> None:
        """See `interface.ObjectStore`."""
        if source == target:
            if not await self._session.reading.run("stat", lambda: self._look([source])):
                raise NotFound(f"no object {source}")
            return
        asked = False  # whether an earlier attempt may have been carried out

        async def attempt() -> None:
            nonlocal asked
            lost, asked = asked, True
            try:
                await self._ask("move", source, target)
            except (NotFound, BucketMissing, Exists):
                await self._settle_move(source, target, lost=lost)

        try:
            await self._session.moving.run(f"move {source}", attempt)
        except RemoteError as exc:
            if not exc.temporary or not await self._is_moved(source, target):
                raise

    async def _settle_move(self, source: str, target: str, *, lost: bool) -> None:
        """Find out what a refused move means.

        Raises:
            Exists: the target is taken.
            NotFound: there is no source.
        """
        found = await self._look([source, target])
        there, taken = source in found, target in found
        if there and taken:
            raise Exists(f"{target} is taken")
        if there:
            raise Unserved(f"move {source}: refused, although {target} is free")
        if not (lost and taken):
            raise NotFound(f"no object {source}")
        _log.info("a move had been done before its answer was lost", source=source, target=target)

    async def _is_moved(self, source: str, target: str) -> bool:
        found = await look_soon(self._look, [source, target]) or {}
        moved = source not in found and target in found
        if moved:
            _log.info("a move had been done before its answer was lost", source=source, target=target)
        return moved

    async def _ask(self, what: str, source: str, target: str) -> None:
        await self._session.storage(
            f"{what} {source}",
            "POST",
            f"object/{what}",
            json={"bucketId": self._bucket, "sourceKey": source, "destinationKey": target},
            headers={"x-upsert": "true"},
            limit_s=self._session.slow_timeout_s,
        )
