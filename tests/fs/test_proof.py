"""Absent only when proven absent: a server in trouble takes no name away, and no wrong byte is served."""

from __future__ import annotations

import copy
import time

import pytest

from exaifs.errors import (
    Busy,
    ExaifsError,
    IntegrityError,
    NotFound,
    RemoteError,
    SchemaMissing,
    Unauthorized,
    Unreachable,
)
from tests.fs.conftest import Mount
from tests.support.double import DoubleServer
from tests.support.paths import follow

pytestmark = pytest.mark.anyio

DAY_NS = 86_400_000_000_000

TROUBLE: list[ExaifsError] = [
    Unauthorized("the key was revoked"),
    SchemaMissing("the functions are gone"),
    Unreachable("an answer that did not come from Supabase"),
    Busy("503"),
    IntegrityError("half a page"),
]


@pytest.mark.parametrize("with_feed", [True, False])
@pytest.mark.parametrize("trouble", TROUBLE, ids=lambda error: type(error).__name__)
async def test_trouble_takes_nothing_away(
    server: DoubleServer, mount: Mount, trouble: ExaifsError, *, with_feed: bool
) -> None:
    """Names stay, read bytes stay, absence stays known; the state says why; then all is well again."""
    server.trigger_installed = with_feed
    for number in range(20):
        server.bucket.put(f"d/{number:02}", b"%d" % number)
    async with mount(freshness_s=3600.0 if with_feed else 1e-6) as paths:
        names = await paths.ls("d")
        assert await paths.read("d/07") == b"7"
        server.inject("*", trouble, times=10_000)
        assert await paths.ls("d") == names
        assert await paths.read("d/07") == b"7"
        with pytest.raises(NotFound):
            await paths.stat("d/absent")
        with pytest.raises(RemoteError):
            await paths.read("d/08")
        if with_feed:
            with pytest.raises(RemoteError):
                await paths.fs.feed.poll()
        server.clear_faults()
        assert await paths.read("d/08") == b"8"
        assert await paths.ls("d") == names


@pytest.mark.parametrize("skew_ns", [-DAY_NS, DAY_NS])
async def test_a_wrong_clock_changes_nothing(server: DoubleServer, mount: Mount, skew_ns: int) -> None:
    """The server's clock a day off: changes are seen, and names neither age nor stay too long."""
    server.bucket = type(server.bucket)("user-files", now_ns=lambda: time.time_ns() + skew_ns)
    server.bucket.put("d/a", b"1")
    async with mount() as paths:
        assert await paths.ls("d") == ["a"]
        server.bucket.put("d/b", b"2")
        server.bucket.remove(["d/a"])
        await follow(paths)
        assert await paths.ls("d") == ["b"]
        await paths.create("d/c", b"3")
        await follow(paths)
        assert abs((await paths.stat("d/c")).mtime_ns - time.time_ns()) < DAY_NS // 2


async def test_a_server_restored_from_a_backup(server: DoubleServer, mount: Mount) -> None:
    """A cursor from the future: everything loaded is listed once more, and shows what the backup has."""
    server.bucket.put("d/kept", b"1")
    server.bucket.put("d/changed", b"old")
    backup = copy.deepcopy(server.bucket)
    async with mount() as paths:
        await paths.ls("d")
        server.bucket.put("d/changed", b"newer")
        server.bucket.put("d/lost", b"3")
        await follow(paths)
        assert await paths.ls("d") == ["changed", "kept", "lost"]
    server.bucket = backup
    async with mount() as paths:
        await follow(paths)
        assert await paths.ls("d") == ["changed", "kept"]
        assert await paths.read("d/changed") == b"old"
        assert await paths.read("d/kept") == b"1"
