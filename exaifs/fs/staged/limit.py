"""How large a file may be in the bucket, as the server said last: asked again while the feed is followed.

Kept in the index, so that a mount which begins while Supabase is away refuses at write, too, what the
bucket would never take.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from exaifs.cache.names.index import Index

_log = structlog.get_logger(__name__)

_NAME = "size_limit_bytes"


class SizeLimit:
    """The limit of one mount's bucket.

    Args:
        index: keeps it for the next run.
        on_more: told when larger files may be sent than before.
    """

    def __init__(self, index: Index, on_more: Callable[[], None]) -> None:
        self._index = index
        self._on_more = on_more
        kept = index.value(_NAME) or ""
        self.size_bytes = int(kept) if kept.isdigit() else None
        """None: there is none, or it is not known."""

    def take(self, size_bytes: int | None) -> None:
        """Take notice of what the server says."""
        before = self.size_bytes
        if size_bytes == before:
            return
        self.size_bytes = size_bytes
        self._index.set_value(_NAME, "" if size_bytes is None else str(size_bytes))
        if before is not None:
            _log.info("the bucket has another size limit", limit_bytes=size_bytes, before_bytes=before)
        if size_bytes is None or (before is not None and size_bytes > before):
            self._on_more()
