"""Keys whose objects are being changed from here, between the request and the index.

While a key is claimed, the change feed and listings leave it alone: what they say of it may be from the
middle of the operation, or be our own write looking like another host's. The feed asks for such keys
again later. A claimed prefix covers everything below.

Who claims waits until nobody else has a claim on the same key, on a directory above it, or below it: so
nothing is sent to a key that a directory rename is taking away. Nobody waits while holding a claim, so
waiting ends. (What waits in the outbox keeps answers away as well, but nobody waits for that here.)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from exaifs.cache.names.index import Index
from exaifs.cache.names.keyset import KeySet


class Claims:
    """The claims of one mount.

    Args:
        index: keeps them, as it is asked at every merge.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._held = KeySet()
        self._released = trio.Event()

    @asynccontextmanager
    async def held(self, wanted: Callable[[], tuple[str, ...]]) -> AsyncIterator[None]:
        """Claim keys, or prefixes that end in a slash, while the body runs.

        Args:
            wanted: returns the keys; asked again after each wait, as a rename may have changed them.
        """
        while any(self._held.overlaps(key) for key in wanted()):
            await self._released.wait()
        keys = wanted()
        for key in keys:
            self._held.add(key)
            self._index.claim(key)
        in_vain = True
        try:
            yield
            in_vain = False
        except BaseException:
            self._index.outdate_listings()
            raise
        finally:
            for key in keys:
                self._held.discard(key)
                self._index.release(key, in_vain=in_vain)
            self._released.set()
            self._released = trio.Event()

    async def wait_free(self, prefix: str) -> None:
        """Return once no directory rename covers a prefix; a checkpoint only if one does."""
        while self._held.covers(prefix):
            await self._released.wait()
