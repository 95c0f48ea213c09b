"""What the simulation found, shrunk: each case failed once."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from exaifs.errors import Unreachable
from tests.fs.conftest import Mount
from tests.support.double import DoubleServer
from tests.support.paths import Paths

pytestmark = pytest.mark.anyio


async def follow(paths: Paths) -> None:
    """Take in everything up to now."""
    with trio.fail_after(5):
        while await paths.fs.feed.poll():
            pass


async def test_a_folder_that_came_in_a_gap_of_the_feed_is_listed(
    server: DoubleServer, mount: Mount
) -> None:
    """After a gap, the first change seen in a new folder is not all that is in it."""
    async with mount() as paths:
        assert await paths.ls() == []
        server.bucket.put("d/before", b"1")
        server.bucket.trim_log()
        server.inject("list_directory", Unreachable("later"))
        await paths.fs.feed.poll()
        await trio.testing.wait_all_tasks_blocked()
        server.bucket.put("d/after", b"2")
        await paths.fs.feed.poll()
        assert await paths.ls("d") == ["after", "before"]


async def test_a_folder_whose_only_file_was_replaced_by_another_stays(
    server: DoubleServer, mount: Mount
) -> None:
    """One answer of the feed with a file gone and another come: the folder is still there."""
    server.bucket.put("d/old", b"1")
    async with mount() as paths:
        assert await paths.ls() == ["d"]
        assert await paths.ls("d") == ["old"]
        ino = (await paths.stat("d")).ino
        server.bucket.remove(["d/old"])
        server.bucket.put("d/new", b"2")
        await follow(paths)
        assert await paths.ls() == ["d"]
        assert await paths.ls("d") == ["new"]
        assert (await paths.stat("d")).ino == ino
