"""Making a program's cache smaller."""

from __future__ import annotations

from exaifs.cache.clients import ClientCache
from exaifs.cache.data.blocks import MIB
from exaifs.errors import InvalidArgument

DAY_S = 86_400.0

_ANY_DAYS = 36_500
_ANY_MIB = 1 << 40
"""Older and larger than any cache: infinity is no number of the database."""


async def clean(cache: ClientCache, max_age_days: float, max_size_mb: float) -> dict[str, int]:
    """Drop what is old, then what was not used for longest; see `UnifiedFileHandler.cleanup_cache`.

    Raises:
        InvalidArgument: a number below 0, or none.
    """
    if not (max_age_days >= 0 and max_size_mb >= 0):
        raise InvalidArgument("age and size are numbers from 0")
    contents = cache.contents
    before = contents.statistics()
    report = await contents.trim(
        min(max_age_days, _ANY_DAYS) * DAY_S, int(min(max_size_mb, _ANY_MIB) * MIB)
    )
    after = contents.statistics()
    return {
        "expired": report.expired,
        "evicted": report.evicted,
        "idle": await cache.drop_idle(),
        "freed_bytes": max(0, before.disk_bytes - after.disk_bytes),
        "kept": after.disk_items,
        "kept_bytes": after.disk_bytes,
    }
