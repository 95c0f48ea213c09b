"""A mount that follows the change log while others write: it ends with what a full listing shows."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import trio

from exaifs.config import load
from exaifs.fs.filesystem import FileSystem
from exaifs.model import ObjectRecord
from exaifs.remote import wire
from exaifs.remote.interface import ChangePage, Hello, Listing, Remote
from tests.support.double import DoubleServer
from tests.support.paths import Paths
from tests.support.postgres import BUCKET, Project, put

pytestmark = pytest.mark.anyio

WRITERS = 8
_TRANSACTIONS = 25
_DIRECTORIES = ("", "shared/", "shared/deep/er/", "other/")
_LONGEST_COMMIT_S = 0.08


@pytest.fixture
def anyio_backend() -> str:
    """Run under trio, as the daemon does."""
    return "trio"


class Reader:
    """The reading half of `interface.Catalog`, by SQL instead of HTTP; the rest is not asked for."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self.listings = 0

    async def _rpc(self, function: str, *values: Any) -> Any:
        return await trio.to_thread.run_sync(lambda: self._project.rpc(function, BUCKET, *values))

    async def hello(self) -> Hello:
        return wire.hello_from_json(await self._rpc("exaifs_hello"), BUCKET)

    async def changes(self, cursor: str, limit: int = 1000) -> ChangePage:
        return wire.changes_from_json(await self._rpc("exaifs_changes", cursor, limit))

    async def list_directory(self, prefix: str, after: str = "", limit: int = 1000) -> Listing:
        self.listings += 1
        answer = await self._rpc("exaifs_list_directory", prefix, after, limit)
        return wire.listing_from_json(answer)

    async def stat(self, keys: Sequence[str]) -> dict[str, ObjectRecord]:
        answer = await self._rpc("exaifs_stat", list(keys))
        return {record.key: record for record in wire.records_from_json(answer)}

    async def touch(self, accesses: Sequence[object]) -> None:
        assert not accesses


@dataclass
class Writer:
    """One client: transactions of several changes, with a pause before each commit."""

    address: str
    seed: int
    stop: threading.Event

    def run(self) -> None:
        """Do the transactions; some are rolled back."""
        chance = random.Random(self.seed)
        with psycopg.connect(self.address) as connection:
            connection.execute("SET ROLE service_role")
            connection.commit()
            for _number in range(_TRANSACTIONS):
                # In the same order everywhere, or two writers would wait for each other.
                for key in sorted({self._key(chance) for _change in range(chance.randint(1, 5))}):
                    self._change(connection, chance, key)
                self.stop.wait(chance.random() * _LONGEST_COMMIT_S)
                if chance.random() < 0.1:
                    connection.rollback()
                else:
                    connection.commit()

    def _key(self, chance: random.Random) -> str:
        return f"{chance.choice(_DIRECTORIES)}{chance.choice('abcdefghijkl')}"

    def _change(self, connection: psycopg.Connection[Any], chance: random.Random, key: str) -> None:
        action = chance.random()
        if action < 0.6:
            put(connection, key, chance.randbytes(chance.randint(0, 99)))
        elif action < 0.85:
            connection.execute("SET LOCAL storage.allow_delete_query = 'true'")
            connection.execute(
                "DELETE FROM storage.objects WHERE bucket_id = %s AND name = %s", (BUCKET, key)
            )
        else:
            # To a name of its own: a taken one would end the transaction.
            connection.execute(
                "UPDATE storage.objects SET name = %s, version = %s WHERE bucket_id = %s AND name = %s",
                (f"{key}-{self.seed}-{chance.getrandbits(40):x}", str(uuid4()), BUCKET, key),
            )


async def _tree(paths: Paths, directory: str = "") -> dict[str, str]:
    """Return the version of every file that a mount shows, by path."""
    found: dict[str, str] = {}
    for name in await paths.ls(directory):
        path = f"{directory}/{name}".lstrip("/")
        if (await paths.stat(path)).is_dir:
            found.update(await _tree(paths, path))
        else:
            found[path] = (await paths.getxattr(path, "user.exai.version")).decode()
    return found


async def test_concurrent_writers_with_delayed_commits(project: Project, tmp_path: Path) -> None:
    """Eight writers commit out of order; the follower misses nothing and invents nothing."""
    reader = Reader(project)
    remote = Remote(DoubleServer().remote().objects, reader, BUCKET, "postgres://test")  # type: ignore[arg-type]  # reads only
    config = load(uid=0, gid=0, freshness_s=0.1)
    stop = threading.Event()
    (tmp_path / "follower").mkdir()
    (tmp_path / "fresh").mkdir()
    for directory in _DIRECTORIES:
        project.put(f"{directory}stays", b"x")
    async with FileSystem.open(config, remote, tmp_path / "follower", None) as fs:
        paths = Paths(fs)
        async with trio.open_nursery() as nursery:
            await nursery.start(fs.run)
            await fs.feed.wait_caught_up()
            await _tree(paths)
            reader.listings = 0
            try:
                async with trio.open_nursery() as writers:
                    for seed in range(WRITERS):
                        writer = Writer(project.address, seed, stop)
                        writers.start_soon(trio.to_thread.run_sync, writer.run)
            finally:
                stop.set()
            assert fs.feed.changes_seen > 0
            nursery.cancel_scope.cancel()
        with trio.fail_after(60):
            while await fs.feed.poll():
                pass
        followed = await _tree(paths)
    assert reader.listings == 0
    listed = dict(
        project.admin.execute("SELECT name, version FROM storage.objects WHERE bucket_id = %s", (BUCKET,))
    )
    assert followed == listed
    async with FileSystem.open(config, remote, tmp_path / "fresh", None) as fs:
        assert await _tree(Paths(fs)) == listed
