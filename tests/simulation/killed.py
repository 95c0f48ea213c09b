"""Two mounts killed at every moment of a program: what the next runs of both make of it.

As in `moments`, everything is copied at each moment that differs. From each copy both mounts begin again,
on a network that loses nothing: they must agree with the bucket, and no byte that was owed may be lost.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from tests.simulation.ledger import Ledger
from tests.simulation.moments import digest_of
from tests.simulation.play import Play
from tests.simulation.programs import Program
from tests.simulation.trees import copied
from tests.support.double_providers import ProviderRows
from tests.support.double_state import BucketState


@dataclass
class Moment:
    """What is left when both mounts are killed."""

    directory: Path
    """Holds the cache directory of each, by its name."""
    bucket: BucketState
    ledger: Ledger
    doing: str


class KilledPlay(Play):
    """A program that remembers every moment from its first step to its last."""

    def __init__(self, program: Program, directory: Path) -> None:
        super().__init__(program, directory)
        self.moments: list[Moment] = []
        self._program = program
        self._plays = self._noting = False
        self._seen: set[bytes] = set()

    async def _play_all(self) -> None:
        self._plays = True
        try:
            await super()._play_all()
        finally:
            self._plays = False

    def note_moment(self) -> None:
        """Copy what a kill would leave now, unless nothing has changed."""
        if not self._plays or self._noting:
            return
        self._noting = True  # copying makes calls, too
        try:
            self._note_moment()
        finally:
            self._noting = False

    def _note_moment(self) -> None:
        caches = {name: actor.cache for name, actor in self.actors.items()}
        digest = digest_of("", self.server.bucket, *caches.values())
        if digest in self._seen:
            return
        self._seen.add(digest)
        directory = self.directory / f"moment{len(self.moments)}"
        for name, cache in caches.items():
            shutil.copytree(cache, directory / name, ignore=shutil.ignore_patterns("*-shm"))
        for actor in self.actors.values():
            for bases in actor.unsent.values():
                self.ledger.doubt(*bases)  # a next run may send what was kept of an open file
        doing = self.log[-1] if self.log else "nothing yet"
        self.moments.append(Moment(directory, copied(self.server.bucket), self.ledger.as_of_now(), doing))

    def next_runs(self, moment: Moment) -> Play:
        """Return what plays both mounts from there."""
        world = replace(self._program.world, drop_rate=0.0)
        play = Play(Program(world, ()), moment.directory)
        play.server.bucket = moment.bucket
        play.server.providers = ProviderRows(moment.bucket)
        play.ledger = moment.ledger
        return play
