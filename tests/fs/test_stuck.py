"""What Supabase will never carry out stops neither its own names nor anything else, and loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
import trio.testing

from exaifs.cache.unsent.conflicts import Conflict, list_conflicts
from exaifs.errors import (
    Busy,
    ExaifsError,
    FileTooLarge,
    IntegrityError,
    NameTooLong,
    Rejected,
    RemoteError,
    Unserved,
)
from exaifs.fs.unsent.verdicts import PATIENCE_S
from exaifs.model import AttributeChange, Posix
from exaifs.remote.interface import Upload
from tests.fs.conftest import Mount
from tests.fs.scenes import back, contents, in_no_time
from tests.support.double import DoubleServer
from tests.support.paths import follow, mounted

pytestmark = pytest.mark.anyio

FOR_GOOD = (Rejected, NameTooLong, FileTooLarge, IntegrityError)


def put_damaged(server: DoubleServer, key: str, data: bytes) -> None:
    """Put what another host's program damaged: the row claims the hash of other bytes."""
    upload = Upload("ab" * 32, "text/plain", Posix(mode=0o644), "another host's", size_bytes=len(data))
    server.bucket.put(key, data, "text/plain", upload)


def conflicts(tmp_path: Path) -> list[tuple[Conflict, bytes]]:
    """Return what was kept aside."""
    directory = tmp_path / "cache" / "conflicts"
    return [(one, (directory / f"{one.id}.data").read_bytes()) for one in list_conflicts(directory)]


# -- bytes in the way that are not what their row says ------------------------------------------------


@pytest.mark.parametrize("size", [6, 3_000_000])
async def test_what_a_rename_replaces_is_kept_unverified(
    server: DoubleServer, mount: Mount, tmp_path: Path, size: int
) -> None:
    """Its bytes do not have the hash its row claims: they are kept as they are, and the rename goes on."""
    damaged = b"theirs" * (size // 6)
    async with mount() as paths:
        await paths.create("a", b"ours")
        server.online = False
        await paths.rename("a", "b")
        put_damaged(server, "b", damaged)
        await paths.setattr("b", AttributeChange(mode=0o600))
        await paths.rename("b", "c")
        await back(server, paths)
        assert contents(server) == {"c": b"ours"}
        assert server.bucket.record("c").posix.mode == 0o600
        ((conflict, data),) = conflicts(tmp_path)
        assert data == damaged
        assert conflict.path == "b"
        assert "unverified" in conflict.reason
        assert await paths.ls() == ["c"]


async def test_what_a_close_replaces_is_kept_unverified(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """The last close wins over damaged bytes, too, and they are not lost."""
    async with mount() as paths:
        await paths.create("f", b"old")
        server.online = False
        put_damaged(server, "f", b"theirs")
        await paths.overwrite("f", b"ours")
        await back(server, paths)
        assert contents(server) == {"f": b"ours"}
        assert [data for _conflict, data in conflicts(tmp_path)] == [b"theirs"]


async def test_what_a_renamed_directory_replaces_is_kept_unverified(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """Of a whole directory: everything goes, what was in the way is kept."""
    async with mount() as paths:
        await paths.mkdir("d")
        await paths.create("d/f", b"ours")
        await paths.create("d/g", b"g")
        await paths.ls("d")
        server.online = False
        await paths.rename("d", "e")
        put_damaged(server, "e/f", b"theirs")
        await back(server, paths)
        assert contents(server) == {"e/.emptyFolderPlaceholder": b"", "e/f": b"ours", "e/g": b"g"}
        assert [data for _conflict, data in conflicts(tmp_path)] == [b"theirs"]


async def test_a_file_that_cannot_be_kept_is_not_replaced(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """Not even its length is right: the rename is given up, both files stay, the names go on."""
    async with mount() as paths:
        await paths.create("a", b"ours")
        server.online = False
        await paths.rename("a", "b")
        server.bucket.put("b", b"theirs")
        server.inject("get", IntegrityError("2 bytes came instead of 6"), times=100)
        server.online = True
        assert await paths.fs.drain(60) == 0
        server.clear_faults()
        await follow(paths)
        assert contents(server) == {"a": b"ours", "b": b"theirs"}
        assert await paths.read("a") == b"ours"
        assert await paths.read("b") == b"theirs"
        assert conflicts(tmp_path) == []
        queue = paths.fs.status().queue
        assert (queue.changes_waiting, queue.changes_given_up) == (0, 1)
        assert "move a to b" in str(queue.change_problem)
        (lost,) = paths.fs.writes.waiting  # who waits for it is told
        assert (lost.state, lost.what, lost.source, lost.path) == ("lost", "move", "a", "b")
        await paths.rename("a", "c")
        assert contents(server) == {"c": b"ours", "b": b"theirs"}


async def test_a_close_over_what_cannot_be_kept_is_set_aside(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """Theirs stands, as nobody can keep it; ours is in `conflicts`, and does not wait for ever."""
    async with mount() as paths:
        await paths.create("f", b"old")
        server.online = False
        server.bucket.put("f", b"theirs")
        await paths.overwrite("f", b"ours")
        server.inject("get", IntegrityError("2 bytes came instead of 6"), times=100)
        await back(server, paths)
        server.clear_faults()
        assert contents(server) == {"f": b"theirs"}
        assert [data for _conflict, data in conflicts(tmp_path)] == [b"ours"]
        assert await paths.read("f") == b"theirs"


# -- what the server refuses for good ----------------------------------------------------------------


@pytest.mark.parametrize("refusal", FOR_GOOD)
async def test_a_refused_move_shows_the_old_name_again(
    server: DoubleServer, mount: Mount, refusal: type[ExaifsError]
) -> None:
    """A name the store does not take, or an object too large to be moved: later changes go on."""
    async with mount() as paths:
        await paths.create("a", b"1")
        server.online = False
        await paths.rename("a", "b")
        await paths.setattr("b", AttributeChange(mode=0o600))
        await paths.create("b2", b"2")
        server.inject("move", refusal("never"))
        await back(server, paths)
        assert contents(server) == {"a": b"1", "b2": b"2"}
        assert await paths.ls() == ["a", "b2"]
        assert paths.fs.status().queue.changes_given_up == 1


@pytest.mark.parametrize("refusal", FOR_GOOD)
async def test_one_object_that_cannot_move_does_not_stop_its_directory(
    server: DoubleServer, mount: Mount, refusal: type[ExaifsError]
) -> None:
    """It stays, and shows under its old path; all others have moved."""
    async with mount() as paths:
        await paths.mkdir("d")
        for name in "abc":
            await paths.create(f"d/{name}", name.encode())
        await paths.ls("d")
        server.online = False
        await paths.rename("d", "e")
        server.inject("move", refusal("never"))
        await back(server, paths)
        (left,) = [key for key in server.bucket.objects if key.startswith("d/")]
        assert len([key for key in server.bucket.objects if key.startswith("e/")]) == 3
        assert await paths.ls() == ["d", "e"]
        if not left.endswith("Placeholder"):
            assert await paths.ls("d") == [left[2:]]
            assert await paths.read(left) == left[2:].encode()


async def test_a_path_too_long_for_the_bucket_stays(server: DoubleServer, mount: Mount) -> None:
    """Known only when a directory is moved that was never listed to its end."""
    long = "x" * 250
    async with mount() as paths:
        await paths.mkdir("d")
        await paths.ls("d")
        server.online = False
        await paths.rename("d", "e" * 200)
        server.bucket.put(f"d/{long}/{long}/{long}", b"deep")
        server.bucket.put("d/f", b"f")
        await back(server, paths)
        assert contents(server) == {
            f"{'e' * 200}/.emptyFolderPlaceholder": b"",
            f"{'e' * 200}/f": b"f",
            f"d/{long}/{long}/{long}": b"deep",
        }
        assert await paths.ls() == ["d", "e" * 200]
        assert await paths.read(f"d/{long}/{long}/{long}") == b"deep"


async def test_a_directory_whose_marker_is_refused_goes_unless_something_is_in_it(
    server: DoubleServer, mount: Mount
) -> None:
    """A bucket that takes only some MIME types: an empty directory cannot be, one with a file can."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.mkdir("empty")
        await paths.mkdir("full")
        server.inject("put", Rejected("415 invalid_mime_type"), times=2)
        server.online = True
        paths.fs.writes.sender.hurry()
        with trio.fail_after(60):
            await paths.fs.core.changes.outbox.wait_settled("empty/")
            await paths.fs.core.changes.outbox.wait_settled("full/")
        await follow(paths)
        assert await paths.ls() == []
        server.online = False
        await paths.mkdir("full")
        await paths.create("full/f", b"1")
        server.inject("put", Rejected("415 invalid_mime_type"))
        await back(server, paths)
        assert contents(server) == {"full/f": b"1"}
        assert await paths.ls() == ["full"]
        assert await paths.ls("full") == ["f"]


async def test_attributes_that_are_refused_show_as_the_bucket_has_them(
    server: DoubleServer, mount: Mount
) -> None:
    """The row does not take them: what waits behind that goes on."""
    async with mount() as paths:
        await paths.create("f", b"1", mode=0o644)
        server.online = False
        await paths.setattr("f", AttributeChange(mode=0o600))
        await paths.rename("f", "g")
        server.inject("patch", Rejected("no such attributes"))
        await back(server, paths)
        assert contents(server) == {"g": b"1"}
        assert (await paths.stat("g")).mode & 0o777 == 0o644


async def test_a_removal_of_what_cannot_be_read_keeps_it(server: DoubleServer, mount: Mount) -> None:
    """An upload without an answer may have left it, or another host: who cannot tell deletes nothing."""
    server.bucket.keeps_metadata = False
    async with mount() as paths:
        await paths.ls()
        server.inject("put", Busy("later"))
        await paths.create("f", b"ours")
        server.online = False
        await paths.unlink("f")
        server.bucket.put("f", b"theirs")
        server.inject("get", IntegrityError("2 bytes came instead of 6"), times=100)
        await back(server, paths)
        server.clear_faults()
        assert contents(server) == {"f": b"theirs"}
        assert await paths.read("f") == b"theirs"


async def test_a_directory_that_another_host_removed_is_there_again(
    server: DoubleServer, mount: Mount
) -> None:
    """The target's directory is gone: a bucket needs none, and the mount shows it with what came."""
    async with mount() as paths:
        await paths.mkdir("d")
        await paths.create("a", b"1")
        await paths.ls("d")
        server.online = False
        await paths.rename("a", "d/a")
        server.bucket.remove(["d/.emptyFolderPlaceholder"])
        await back(server, paths)
        assert contents(server) == {"d/a": b"1"}
        assert await paths.ls() == ["d"]
        assert await paths.ls("d") == ["a"]


# -- what goes on for long ---------------------------------------------------------------------------


async def test_trouble_with_one_object_is_no_outage(server: DoubleServer, mount: Mount) -> None:
    """The store does not find what the catalog lists: other files are sent when they are closed."""
    async with mount() as paths:
        await paths.create("a", b"1")
        server.online = False
        await paths.rename("a", "b")
        server.inject("move", Unserved("refused, although the target is free"), times=1000)
        server.online = True
        paths.fs.core.contact.succeeded()
        with trio.fail_after(60):
            while not paths.fs.writes.sender.problems:  # noqa: ASYNC110 - no event tells
                await trio.sleep(0.01)
        assert not paths.fs.core.contact.offline
        await paths.create("f", b"sent at once")
        assert server.bucket.objects["f"].data == b"sent at once"
        queue = paths.fs.status().queue
        assert (queue.changes_waiting, queue.changes_failing) == (1, 1)
        assert queue.change_problem == "move a to b: refused, although the target is free"
        (line,) = [json.loads(line) for line in paths.fs.writes.sync_now().splitlines()]
        assert (line["source"], line["path"]) == ("a", "b")
        assert line["problem"] == "refused, although the target is free"
        server.clear_faults()


@pytest.mark.parametrize(
    ("trouble", "others", "ends"),
    [
        (Unserved("the store does not find it"), True, True),
        (Unserved("the store does not find it"), False, False),
        (Busy("500"), True, True),
        (Busy("500"), False, False),
        (RemoteError("400 22003 numeric value out of range"), False, True),
    ],
)
def test_a_change_that_fails_for_an_hour_ends_only_if_it_is_its_own_trouble(
    tmp_path: Path, trouble: ExaifsError, *, others: bool, ends: bool
) -> None:
    """Others succeed, or the database refuses it: given up. The whole server is in trouble: it waits."""
    server = DoubleServer()

    async def play() -> None:
        async with mounted(server, tmp_path / "cache", drain_s=0.0) as paths:
            await paths.create("a", b"1")
            server.online = False
            await paths.rename("a", "b")
            server.online = True
            server.inject("move", trouble, times=100_000)
            paths.fs.core.contact.succeeded()
            for number in range(20):
                await trio.sleep(PATIENCE_S / 10)
                if others:
                    server.online = False
                    paths.fs.core.contact.offline_since_ns = 1
                    await paths.create(f"f{number}", b"kept for later")
                    server.online = True
                    paths.fs.core.contact.offline_since_ns = None
                    paths.fs.writes.sender.hurry()
            assert (paths.fs.writes.sender.given_up == 1) == ends
            assert ("a" in await paths.ls()) == ends
            server.clear_faults()

    in_no_time(play)
