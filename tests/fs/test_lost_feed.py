"""The feed is lost: what other hosts may have changed is asked for again."""

from __future__ import annotations

import pytest
import trio

from exaifs.errors import NotFound, SchemaMissing
from exaifs.fs.upstream.invalidation import StaleAttributes, StaleName
from exaifs.model import ROOT_INO, AttributeChange
from tests.fs.conftest import Mount
from tests.fs.scenes import told
from tests.support.double import DoubleServer
from tests.support.paths import Paths, follow

pytestmark = pytest.mark.anyio


async def lose_the_feed(server: DoubleServer, paths: Paths) -> None:
    """Have the log be unreadable, and the host know it; all other questions are answered."""
    server.inject("changes", SchemaMissing("the function is gone"), times=1_000_000)
    with trio.fail_after(60):
        while paths.fs.core.contact.followed:  # noqa: ASYNC110 - what the host believes
            await trio.sleep(0.01)


async def test_directories_keep_their_names_in_the_kernel(server: DoubleServer, mount: Mount) -> None:
    """Fresh: without the feed the kernel asks for everything again, but forgets no directory's name.

    Programs may work in one. So no directory's name is trusted for long, feed or not.
    """
    server.bucket.put("d/f", b"1")
    async with mount(freshness_s=1.0) as paths, paths.inode("d") as directory, paths.inode("d/f") as file:
        kept = await paths.stat("d")
        known = await paths.stat("d/f")
        assert paths.fs.entry_timeout_s(kept) == 1.0
        assert paths.fs.entry_timeout_s(known) > 60
        await told(paths)
        await lose_the_feed(server, paths)
        said = await told(paths)
        assert {StaleName(directory, "f"), StaleAttributes(file), StaleAttributes(directory)} <= said
        assert [one for one in said if isinstance(one, StaleName) and one.name == "d"] == []
        assert paths.fs.entry_timeout_s(known) == 1.0


async def test_without_the_feed_a_lookup_finds_a_directory_gone(server: DoubleServer, mount: Mount) -> None:
    """Fresh: another host's rmdir and rename of a directory are found as names age."""
    async with mount("one") as one, mount("two", freshness_s=1e-6) as two:
        for name in ("gone", "old", "stays"):
            await one.mkdir(name)
        await follow(two)
        stays = await two.stat("stays")
        await lose_the_feed(server, two)
        await one.rmdir("gone")
        await one.rename("old", "new")
        for name in ("gone", "old"):
            with pytest.raises(NotFound):
                await two.stat(name)
        assert (await two.stat("stays")).ino == stays.ino
        assert await two.ls() == ["new", "stays"]


async def test_the_way_to_the_status_asks_nobody(server: DoubleServer, mount: Mount) -> None:
    """The kernel asks for the root's attributes before it goes on to `.exaifs`: Supabase may hang."""
    async with mount(freshness_s=1e-6) as paths:
        await paths.ls()
        await lose_the_feed(server, paths)
        before = server.counts["list_directory"]
        assert (await paths.fs.namespace.getattr(ROOT_INO)).ino == ROOT_INO
        assert (await paths.fs.namespace.lookup(ROOT_INO, ".exaifs")).ino
        assert server.counts["list_directory"] == before


async def test_without_the_feed_the_attributes_of_a_current_directory_age(
    server: DoubleServer, mount: Mount
) -> None:
    """Fresh: also of a directory whose name nobody looks up, as of the one that a program works in."""
    async with mount("one") as one, mount("two", freshness_s=1e-6) as two:
        await one.mkdir("d")
        await follow(two)
        async with two.inode("d") as current:
            await lose_the_feed(server, two)
            await one.setattr("d", AttributeChange(mode=0o700))
            assert (await two.fs.namespace.getattr(current)).mode & 0o777 == 0o700
            await one.rmdir("d")
            assert (await two.fs.namespace.getattr(current)).ino == current  # as of any open file
            with pytest.raises(NotFound):
                await two.stat("d")


async def test_the_attributes_of_an_unlisted_directory_need_no_answer(
    server: DoubleServer, mount: Mount
) -> None:
    """stat(2) of the mountpoint answers, though Supabase hangs and nothing is known yet."""
    async with mount() as paths:
        with server.hold("list_directory"), trio.fail_after(60):
            assert (await paths.stat("")).ino == ROOT_INO
        assert server.counts["list_directory"] == 0
