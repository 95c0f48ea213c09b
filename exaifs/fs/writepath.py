"""The way of written bytes, put together: staged, kept in the journal, sent, or set aside in a conflict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog
import trio

from exaifs.cache.names.merge import Difference
from exaifs.cache.unsent.conflicts import DIRECTORY as CONFLICTS
from exaifs.cache.unsent.journalfile import Record
from exaifs.config import Config
from exaifs.fs.core import Core
from exaifs.fs.operations.writing import Writer
from exaifs.fs.report.waiting import WaitingList
from exaifs.fs.sending.adoption import Adoption
from exaifs.fs.sending.conflicts import Conflicts
from exaifs.fs.sending.contest import WritePolicy
from exaifs.fs.sending.losses import Losses
from exaifs.fs.sending.publish import Publisher
from exaifs.fs.sending.replay import Replayer
from exaifs.fs.sending.sender import Sender
from exaifs.fs.staged.limit import SizeLimit
from exaifs.fs.tables.inodes import Inode
from exaifs.fs.unsent.keeping import Keeper
from exaifs.fs.upstream.directories import Directories

_log = structlog.get_logger(__name__)

STAGING = "staging"

_HURRY_EVERY_S = 2.0


class WritePath:
    """Everything that holds, keeps and sends what was written, for one mount.

    Args:
        config: settings.
        core: the bucket, and what is known of it.
        directories: told of names that stand for something else.
        cache_directory: holds `staging/` and `conflicts/`.
        on_change: told what names stand for other inodes.
    """

    def __init__(
        self,
        config: Config,
        core: Core,
        directories: Directories,
        *,
        cache_directory: Path,
        on_change: Callable[[Difference], None],
    ) -> None:
        self._core = core
        self._staging = cache_directory / STAGING
        self.limit = SizeLimit(core.index, self._allow_more)
        self.keeper = Keeper(core.changes.outbox)
        losses = Losses()
        self.conflicts = Conflicts(cache_directory / CONFLICTS, core.contents, losses)
        self.publisher = Publisher(
            core,
            self.keeper,
            self.conflicts,
            WritePolicy(config.write_mode, config.offline_writes, config.conflict),
            limit=self.limit,
            on_change=on_change,
            on_work=self._note,
        )
        self.writer = Writer(core, self.publisher, self._staging)
        replayer = Replayer(core, directories, self.conflicts, self.keeper, on_change)
        self.sender = Sender(core, self.publisher, replayer, losses, delay_s=config.write_back_s)
        self.waiting = WaitingList(core, self.sender, losses)
        self._hurried_at = -math.inf

    def sync_now(self) -> bytes:
        """Have everything that waits tried at once, and say what that is; asking often hurries nothing."""
        now = trio.current_time()
        if now - self._hurried_at > _HURRY_EVERY_S:
            self._hurried_at = now
            self.sender.hurry()
        return self.waiting.to_bytes()

    def _allow_more(self) -> None:
        """What was refused is worth another try."""
        for inode in self._core.table:
            if inode.dirty and inode.staged is not None and inode.staged.refused:
                inode.staged.allow()
                self.sender.note(inode, at_once=True)

    def _note(self, inode: Inode) -> None:
        self.sender.note(inode)

    async def adopt(self, records: Mapping[int, Record]) -> None:
        """Take over what the journal says an earlier run left; call it once, before anything is served."""
        waiting = await Adoption(self._core, self.conflicts, self.sender, self._staging).run(records)
        if waiting:
            _log.info("what an earlier run left is sent in the background", waiting=waiting)


def make_directories(cache_directory: Path) -> None:
    """Make the directories that it needs.

    Raises:
        OSError: they cannot be made.
    """
    for name in (STAGING, CONFLICTS):
        (cache_directory / name).mkdir(mode=0o700, exist_ok=True)
