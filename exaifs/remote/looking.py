"""Looking in the catalog what became of a request whose answer was lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import anyio
import structlog

from exaifs.errors import ExaifsError
from exaifs.model import ObjectRecord

_log = structlog.get_logger(__name__)

_LOOK_S = 5.0
"""The caller may have waited its whole time already."""

Look = Callable[[Sequence[str]], Awaitable[Mapping[str, ObjectRecord]]]
"""Asks the catalog, once and with proof of the key, for the records of some keys."""


async def look_soon(look: Look, keys: Sequence[str]) -> Mapping[str, ObjectRecord] | None:
    """Return the records of the keys that exist; None if nobody answers, or not within seconds."""
    with anyio.move_on_after(_LOOK_S):
        try:
            return await look(keys)
        except ExaifsError as exc:
            _log.debug("cannot look what became of a request", keys=list(keys), reason=str(exc))
    return None
