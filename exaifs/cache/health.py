"""What is known of the disk under the cache directory: one answer for everybody who writes to it."""

from __future__ import annotations

import anyio
import structlog

_log = structlog.get_logger(__name__)

_TROUBLE_PAUSE_S = 60.0
"""How long a disk that failed is left alone, unless the janitor finds that it works again."""


class DiskHealth:
    """Whether the local disk may be written to. One that failed is tried again after a while.

    Told of everything that fails in the cache directory, by the tiers, the journal and the staged files.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._retry_at = 0.0

    @property
    def reason(self) -> str | None:
        """What failed; None while the disk works."""
        return self._reason

    def usable(self) -> bool:
        """Tell whether to try: it works, or it failed long enough ago."""
        return self._reason is None or anyio.current_time() >= self._retry_at

    def failed(self, doing: str, exc: Exception) -> None:
        """Note a failure. Logged once, until the disk has worked again."""
        reason = f"{doing}: {exc}"
        if self._reason is None:
            _log.warning("disk cache off for a while, going on from memory and Supabase", reason=reason)
        self._reason = reason
        self._retry_at = anyio.current_time() + _TROUBLE_PAUSE_S

    def worked(self) -> None:
        """Note that something was written."""
        if self._reason is not None:
            _log.info("disk cache works again", before=self._reason)
            self._reason = None
