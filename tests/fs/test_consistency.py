"""`consistency=open`: every open of a clean file asks for its current version, without the feed's help."""

from __future__ import annotations

import os

import pytest
import trio

from exaifs.errors import NotFound, Stale, Unreachable
from exaifs.model import AttributeChange
from tests.fs.conftest import Mount
from tests.fs.scenes import in_no_time
from tests.support.double import DoubleServer
from tests.support.paths import CALLER

pytestmark = pytest.mark.anyio


async def test_each_open_is_one_request(server: DoubleServer, mount: Mount) -> None:
    """One question an open of a clean file, none for stat, listing or a file with unsent changes."""
    server.bucket.put("a", b"x")
    async with mount(consistency="open") as paths:
        await paths.ls()
        server.counts.clear()
        for count in range(1, 4):
            assert await paths.read("a") == b"x"
            assert server.counts["stat"] == count
        await paths.stat("a")
        await paths.ls()
        assert server.counts["stat"] == 3
        await paths.create("new", b"y")
        assert server.counts["stat"] == 3
        async with paths.open("a", os.O_WRONLY) as handle:
            await paths.write_all(handle, b"z")
            assert server.counts["stat"] == 4
            assert await paths.read("a") == b"z"
            assert server.counts["stat"] == 4


async def test_the_default_asks_nothing(server: DoubleServer, mount: Mount) -> None:
    """`consistency=feed` opens without a request."""
    server.bucket.put("a", b"x")
    async with mount() as paths:
        await paths.read("a")
        server.counts.clear()
        await paths.read("a")
        assert server.counts["stat"] == 0


async def test_a_replaced_file_is_looked_up_again(server: DoubleServer, mount: Mount) -> None:
    """ESTALE, upon which the kernel looks the name up and opens the new file; open handles keep theirs."""
    server.bucket.put("a", b"old")
    async with mount(consistency="open") as paths, paths.inode("a") as ino:
        async with paths.open("a") as handle:
            assert await paths.read_all(handle) == b"old"
            server.bucket.put("a", b"newer")
            with pytest.raises(Stale):
                await paths.fs.files.open(ino, os.O_RDONLY, CALLER)
            assert await paths.read("a") == b"newer"
            assert await paths.read_all(handle) == b"old"
        assert (await paths.stat("a")).size_bytes == 5


async def test_a_removed_file_is_gone(server: DoubleServer, mount: Mount) -> None:
    """The answer proves the absence; a directory that lived by the file goes too."""
    server.bucket.put("d/a", b"x")
    server.bucket.put("top", b"x")
    async with mount(consistency="open") as paths:
        await paths.ls("d")
        async with paths.inode("d/a") as ino:
            server.bucket.remove(["d/a"])
            with pytest.raises(Stale):
                await paths.fs.files.open(ino, os.O_RDONLY, CALLER)
        with pytest.raises(NotFound):
            await paths.read("d/a")
        assert await paths.ls() == ["top"]


async def test_new_attributes_come_along(mount: Mount) -> None:
    """Another host's chmod is seen at open; the inode stays."""
    async with mount("one") as one, mount("two", consistency="open") as two:
        await one.create("a", b"x")
        await two.fs.feed.poll()
        before = await two.stat("a")
        await one.setattr("a", AttributeChange(mode=0o600))
        assert await two.read("a") == b"x"
        after = await two.stat("a")
        assert (after.ino, after.mode & 0o777) == (before.ino, 0o600)


def test_while_supabase_is_away_what_is_known_is_served(server: DoubleServer, mount: Mount) -> None:
    """An outage does not stop readers (promise 3); only the first open notices it, and the state tells."""

    async def play() -> None:
        server.bucket.put("a", b"cached")
        server.bucket.put("b", b"never read")
        async with mount(consistency="open") as paths:
            await paths.read("a")
            server.online = False
            server.counts.clear()
            for _ in range(3):
                assert await paths.read("a") == b"cached"
            assert server.counts["stat"] == 1
            assert paths.fs.status().state == "offline"
            with pytest.raises(Unreachable):
                await paths.read("b")

    in_no_time(play)


def test_a_server_that_hangs_delays_once(server: DoubleServer, mount: Mount) -> None:
    """Nobody waits longer than two seconds for a newer answer to what is known; slow is not away."""

    async def play() -> None:
        server.bucket.put("a", b"cached")
        async with mount(consistency="open") as paths:
            await paths.read("a")
            with server.hold("stat"):
                begun_s = trio.current_time()
                assert await paths.read("a") == b"cached"
                assert await paths.read("a") == b"cached"
                assert trio.current_time() - begun_s < 2.1
                assert not paths.fs.core.contact.offline

    in_no_time(play)


async def test_our_own_change_under_way_is_not_undone(server: DoubleServer, mount: Mount) -> None:
    """An answer from before our chmod does not bring the old mode back."""
    server.bucket.put("a", b"x")
    async with mount(consistency="open") as paths:
        await paths.ls()
        async with trio.open_nursery() as nursery:
            with server.hold("stat") as gate:
                nursery.start_soon(paths.read, "a")
                await gate.wait_arrived()
                await paths.setattr("a", AttributeChange(mode=0o600))
        assert (await paths.stat("a")).mode & 0o777 == 0o600
        assert await paths.ls() == ["a"]
