"""The janitor of a mount: files of deleted conversations go, and nothing else does."""

from __future__ import annotations

import os

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from exaifs.errors import NotFound, SchemaMissing, Unreachable
from exaifs.fs.contact import Contact
from exaifs.fs.janitor import KEEP_LOG_HOURS, PACE_S, TRIM_INTERVAL_S, Janitor
from exaifs.remote.interface import Remote
from tests.fs.conftest import Mount
from tests.support.double import DoubleServer
from tests.support.paths import Paths, follow

pytestmark = pytest.mark.anyio

HALF = 0.5


def janitor_of(remote: Remote, contact: Contact | None = None) -> Janitor:
    """Return a janitor that is as quick as the average."""
    assert remote.housekeeping is not None
    return Janitor(remote.objects, remote.housekeeping, contact or Contact(), chance=lambda: HALF)


async def until_gone(paths: Paths, path: str) -> None:
    """Follow the feed until a path is gone."""
    with trio.fail_after(60):
        while True:
            await follow(paths)
            try:
                await paths.stat(path)
            except NotFound:
                return
            await trio.sleep(0.05)


async def test_files_of_a_deleted_conversation_vanish(server: DoubleServer, mount: Mount) -> None:
    """By themselves; in every mount; but none that another conversation has, or that was moved out."""
    async with mount("one", freshness_s=0.05) as one, mount("two") as two:
        await one.mkdir("uploads")
        await one.mkdir("uploads/c1")
        for name in ("a", "shared", "moved"):
            await one.create(f"uploads/c1/{name}", name.encode())
        await one.mkdir("kept")
        await one.rename("uploads/c1/moved", "kept/moved")
        shared = server.bucket.rows["uploads/c1/shared"].file_id
        server.house.link(shared, "uploads/c1/shared", "c2")
        await follow(two)
        assert await two.ls("uploads/c1") == ["a", "shared"]
        server.house.delete_conversation("c1")
        await until_gone(two, "uploads/c1/a")
        assert await two.ls("uploads/c1") == ["shared"]
        assert await two.read("kept/moved") == b"moved"


async def test_unsent_changes_are_not_lost(server: DoubleServer, mount: Mount) -> None:
    """A file being written when its conversation goes is there again when it is closed."""
    async with mount() as paths:
        await paths.mkdir("uploads")
        await paths.mkdir("uploads/c1")
        await paths.create("uploads/c1/a", b"old")
        async with paths.open("uploads/c1/a", os.O_WRONLY) as handle:
            await paths.fs.files.write(handle, 0, b"new")
            server.house.delete_conversation("c1")
            await janitor_of(server.remote()).sweep()
            with trio.fail_after(60):
                while server.house.queue:  # noqa: ASYNC110 - the mount's own janitor may have taken them
                    await trio.sleep(0.01)
            assert "uploads/c1/a" not in server.bucket.objects
            await follow(paths)
        await follow(paths)
        assert await paths.read("uploads/c1/a") == b"new"
        assert server.bucket.objects["uploads/c1/a"].data == b"new"
        assert "c1" in server.house.conversations


@pytest.fixture
def queue(server: DoubleServer) -> None:
    """A deleted conversation with 250 files."""
    for number in range(250):
        server.bucket.put(f"uploads/c1/{number}", b"x")
    server.house.delete_conversation("c1")


@pytest.mark.usefixtures("queue")
async def test_what_fails_is_taken_again(server: DoubleServer) -> None:
    """After the lease, by whoever comes; what was removed before an answer was lost is not missed."""
    janitor = janitor_of(server.remote())
    server.inject("remove", Unreachable("the answer was lost"), after=True)
    server.inject("take_deletions", Unreachable("cut"), after=True)
    with pytest.raises(Unreachable):
        await janitor.sweep()
    server.inject("remove", Unreachable("cut"))
    with pytest.raises(Unreachable):
        await janitor.sweep()
    assert await janitor_of(server.remote()).sweep() == 50
    assert len(server.bucket.objects) == len(server.house.queue) == 200
    for entry in server.house.queue.values():
        entry.lease_until_ns = 0
    assert await janitor.sweep() == 200
    assert (server.bucket.objects, server.house.queue) == ({}, {})


@pytest.mark.usefixtures("queue")
async def test_a_new_file_is_never_deleted(server: DoubleServer) -> None:
    """Written while the request to delete its forerunner is on its way."""
    janitor = janitor_of(server.remote())
    async with trio.open_nursery() as nursery:
        with server.hold("remove") as gate:
            nursery.start_soon(janitor.sweep)
            await gate.wait_arrived()
            server.bucket.put("uploads/c1/0", b"new")
    assert {key: stored.data for key, stored in server.bucket.objects.items()} == {"uploads/c1/0": b"new"}
    assert server.house.queue == {}


@pytest.fixture
def clock() -> MockClock:
    """Time that jumps to what is waited for."""
    return MockClock(autojump_threshold=0)


def test_pace(clock: MockClock) -> None:
    """About every three seconds; not at all while Supabase is away; the log is trimmed now and then."""

    async def main() -> None:
        server, contact = DoubleServer(), Contact()
        async with trio.open_nursery() as nursery:
            await nursery.start(janitor_of(server.remote(), contact).run)
            await trio.sleep(10 * PACE_S + 1)
            assert server.counts["take_deletions"] == 10
            contact.failed(Unreachable("away"))
            await trio.sleep(600)
            assert server.counts["take_deletions"] == 10
            contact.succeeded()
            await trio.sleep(HALF * TRIM_INTERVAL_S + 2 * PACE_S)
            assert server.counts["trim_log"] == 1
            await trio.sleep(TRIM_INTERVAL_S)
            assert server.counts["trim_log"] == 2
            nursery.cancel_scope.cancel()

    assert KEEP_LOG_HOURS >= 24 * 7
    trio.run(main, clock=clock)


def test_failures_slow_it_down(clock: MockClock) -> None:
    """A schema without its functions is logged once, and asked for ever more seldom; then it goes on."""

    async def main() -> None:
        server = DoubleServer()
        server.inject("take_deletions", SchemaMissing("run `exaifs init --apply`"), times=1000)
        async with trio.open_nursery() as nursery:
            await nursery.start(janitor_of(server.remote()).run)
            await trio.sleep(3600)
            assert 5 < server.counts["take_deletions"] < 20
            server.clear_faults()
            await trio.sleep(1000)
            before = server.counts["take_deletions"]
            await trio.sleep(10 * PACE_S)
            assert server.counts["take_deletions"] - before == 10
            nursery.cancel_scope.cancel()

    with capture_logs() as lines:
        trio.run(main, clock=clock)
    assert [line for line in lines if "exaifs init --apply" in str(line)] == lines[:1]


async def test_a_read_only_mount_deletes_nothing(server: DoubleServer, mount: Mount) -> None:
    """It has no janitor."""
    async with mount(freshness_s=0.05, read_only=True):
        server.bucket.put("uploads/c1/a", b"x")
        server.house.delete_conversation("c1")
        with trio.move_on_after(2 * PACE_S):
            await trio.sleep_forever()
    assert server.counts["take_deletions"] == 0
