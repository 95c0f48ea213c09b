"""One try at bringing a content here: its blocks, and what may be handed out of them."""

from __future__ import annotations

from exaifs.cache.data.blocks import MIB, Interval
from exaifs.cache.data.spool import DiskSpool, Spool
from exaifs.model import ObjectRef


class Copy:
    """A content on its way; dropped, and begun again as another, when it turns out to be damaged.

    Args:
        ref: what it is to be.
        spool: where its blocks are held.
        hold: whether to hand out nothing before it is verified.
    """

    def __init__(self, ref: ObjectRef, spool: Spool, *, hold: bool = False) -> None:
        self.spool = spool
        self.hold = hold
        self.verified = False
        self.handed_out_bytes = 0
        self._provable = ref.sha256 is not None

    @property
    def is_doubtful(self) -> bool:
        """Whether some of it was handed out, and cannot be verified any more should it be given up."""
        return self._provable and self.handed_out_bytes > 0 and not self.verified

    @property
    def on_disk(self) -> bool:
        """Whether its blocks are held in a file."""
        return isinstance(self.spool, DiskSpool)

    def is_readable(self, blocks: Interval) -> bool:
        """Tell whether these blocks may be handed out now.

        Once all of it is here it is verified before any more of it goes out. Who reads from the first byte
        to the last is so never told that he reached the end of something damaged.
        """
        if self.spool.missing(blocks):
            return False
        return self.verified or not (self.hold or (self._provable and self.spool.is_whole))

    def read_nowait(self, offset: int, size_bytes: int) -> bytes | None:
        """Return readable bytes, or None if that would have to wait for the disk."""
        data = self.spool.read_nowait(offset, size_bytes)
        self.handed_out_bytes += len(data or b"")
        return data

    async def read(self, offset: int, size_bytes: int) -> bytes:
        """Return readable bytes.

        Raises:
            OSError: the disk does not give them back.
        """
        data = self.read_nowait(offset, size_bytes) if size_bytes < MIB else None
        if data is None:
            self.handed_out_bytes += size_bytes  # it may be found wrong while the thread reads
            data = await self.spool.read(offset, size_bytes)
        return data
