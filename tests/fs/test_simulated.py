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
