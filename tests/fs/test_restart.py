"""A run that was killed, and the next one: it has the journal and the staged files to go by."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from exaifs.cache.unsent.journal import open_journal
from exaifs.errors import Unreachable
from exaifs.model import AttributeChange
from exaifs.names import PLACEHOLDER
from tests.fs.conftest import Mount
from tests.fs.scenes import back, contents, kept_aside, uploaded
from tests.support.double import DoubleServer
from tests.support.paths import CALLER, follow

pytestmark = pytest.mark.anyio


class Killed:
    """Copies of cache directories, as kill -9 would leave them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.cache = directory / "killed"

    def now(self) -> None:
        """Copy what a kill would leave now."""
        shutil.copytree(self._directory / "cache", self.cache, ignore=shutil.ignore_patterns("*-shm"))

    @property
    def staged(self) -> list[Path]:
        return sorted((self.cache / "staging").glob("*.data"))

    @property
    def log(self) -> Path:
        return self.cache / "journal" / "log"

    def lose_records(self, damage: str) -> None:
        """Have no record of the journal be readable: it is gone, or a bit of each is another."""
        if damage == "no journal":
            self.log.unlink()
        else:
            self.log.write_bytes(self.log.read_bytes().replace(b'"op":', b'"oP":'))

    def kept(self) -> list[bytes]:
        """Return the bytes that were set aside."""
        return kept_aside(self.cache)


@pytest.fixture
def killed(tmp_path: Path) -> Killed:
    """Make copies of a cache directory."""
    return Killed(tmp_path)


@pytest.mark.parametrize("index", ["here", "gone"])
async def test_the_next_run_has_what_was_acknowledged(
    server: DoubleServer, mount: Mount, killed: Killed, index: str
) -> None:
    """Before it asks Supabase anything; and sends it when that is back. With or without its index."""
    async with mount() as paths:
        await paths.mkdir("d")
        await paths.create("old", b"old")
        await paths.create("gone", b"gone")
        await paths.ls("d")
        server.online = False
        await paths.create("new", b"new")
        await paths.create("d/a", b"a")
        await paths.overwrite("old", b"older")
        await paths.rename("old", "moved")
        await paths.unlink("gone")
        await paths.rename("d", "e")
        await paths.symlink("new", "e/link")
        await paths.setattr("new", AttributeChange(mode=0o600))
        killed.now()
    if index == "gone":
        for path in killed.cache.glob("index.db*"):
            path.unlink()
    async with mount("killed") as paths:
        if index == "here":
            assert await paths.ls() == ["e", "moved", "new"]
            assert await paths.read("moved") == b"older"
            assert await paths.read("e/a") == b"a"
            assert await paths.readlink("e/link") == "new"
        await back(server, paths)
        assert await paths.ls() == ["e", "moved", "new"]
        assert await paths.ls("e") == ["a", "link"]
        assert (await paths.stat("new")).mode & 0o777 == 0o600
        assert contents(server) == {
            "e/.emptyFolderPlaceholder": b"",
            "e/a": b"a",
            "e/link": b"new",
            "moved": b"older",
            "new": b"new",
        }
        assert killed.kept() == []


async def test_a_file_written_again_keeps_its_last_close_and_its_name(
    server: DoubleServer, mount: Mount, killed: Killed
) -> None:
    """Emptied by O_TRUNC and renamed, not closed: the last close is there, under the new name."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.create("f", b"closed")
        async with paths.inode("f") as ino:
            opened = await paths.fs.files.open(ino, os.O_WRONLY | os.O_TRUNC, CALLER)
        await paths.write_all(opened.handle, b"not yet")
        await paths.rename("f", "g")
        killed.now()
        await paths.fs.files.release(opened.handle)
    async with mount("killed") as paths:
        assert await paths.ls() == ["g"]
        assert await paths.read("g") == b"closed"
        await back(server, paths)
        assert contents(server) == {"g": b"closed"}


async def test_fsync_survives_without_a_close(server: DoubleServer, mount: Mount, killed: Killed) -> None:
    """fsync(2): the bytes up to there are in the journal."""
    async with mount(write_back_s=3600.0) as paths, paths.open("f", os.O_WRONLY | os.O_CREAT) as handle:
        await paths.write_all(handle, b"synced")
        await paths.fs.files.fsync(handle, _datasync=False)
        killed.now()
    server.bucket.objects.clear()
    server.bucket.rows.clear()
    async with mount("killed") as paths:
        await back(server, paths)
        assert contents(server) == {"f": b"synced"}


async def test_what_was_never_closed_is_not_sent(
    server: DoubleServer, mount: Mount, killed: Killed
) -> None:
    """Nobody was told that it is safe: the name is gone, and so are the bytes."""
    async with mount() as paths:
        await paths.ls()
        async with paths.open("f", os.O_WRONLY | os.O_CREAT) as handle:
            await paths.write_all(handle, b"half")
            killed.now()
    server.bucket.remove(["f"])
    async with mount("killed") as paths:
        await back(server, paths)
        assert await paths.ls() == []
        assert killed.staged == []
        assert contents(server) == {}


async def test_an_upload_that_had_arrived_is_not_repeated(
    server: DoubleServer, mount: Mount, killed: Killed
) -> None:
    """Killed before the answer came: the next run finds its own upload."""
    async with mount(write_mode="back", write_back_s=0.0) as paths:
        with server.hold("commit") as gate:
            await paths.create("f", b"1")
            await gate.wait_arrived()
            killed.now()
    before = server.counts["put"]
    async with mount("killed") as paths:
        await back(server, paths)
        assert server.counts["put"] == before
        assert contents(server) == {"f": b"1"}
        assert killed.kept() == []


async def test_an_operation_that_was_carried_out_is_not_repeated(
    server: DoubleServer, mount: Mount, killed: Killed
) -> None:
    """Killed before the journal said so: another host's file that has the old name by now stays there."""
    async with mount() as paths:
        await paths.create("a", b"ours")
        await paths.create("b", b"other")
        server.online = False
        await paths.rename("a", "b")
        killed.now()
        await back(server, paths)
    server.bucket.put("a", b"theirs")
    async with mount("killed") as paths:
        await back(server, paths)
        assert contents(server) == {"a": b"theirs", "b": b"ours"}


async def test_bytes_that_are_gone_leave_no_empty_file(
    server: DoubleServer, mount: Mount, killed: Killed
) -> None:
    """Set aside just before the end, say: the name does not stay as a file that cannot be read."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.create("f", b"1")
        killed.now()
    for path in killed.staged:
        path.unlink()
    async with mount("killed") as paths:
        assert await paths.ls() == []
        await back(server, paths)
    async with mount("killed") as paths:
        assert paths.fs.core.index.drop_pending() == []


async def test_staged_bytes_that_were_damaged_are_never_sent(
    server: DoubleServer, mount: Mount, killed: Killed
) -> None:
    """They are compared with their digest; what is left of them is kept aside."""
    async with mount() as paths:
        await paths.create("f", b"good old")
        server.online = False
        await paths.overwrite("f", b"good new")
        killed.now()
    (staged,) = killed.staged
    staged.write_bytes(b"good bad")
    server.online = True
    async with mount("killed") as paths:
        await paths.fs.drain(60)
        await follow(paths)
        assert contents(server) == {"f": b"good old"}
        assert await paths.read("f") == b"good old"
        assert killed.kept() == [b"good bad"]


async def test_a_damaged_record_costs_only_itself(
    server: DoubleServer, mount: Mount, killed: Killed
) -> None:
    """It is kept aside, its bytes too, and all other records are carried out."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.create("a", b"a")
        await paths.create("b", b"b")
        killed.now()
    text = killed.log.read_bytes()
    killed.log.write_bytes(text.replace(b'"name":"a"', b'"name":"?"'))
    async with mount("killed") as paths:
        await back(server, paths)
        assert contents(server) == {"b": b"b"}
        assert killed.kept() == [b"a"]
        assert len(list((killed.cache / "journal").glob("damaged-*"))) == 1


@pytest.mark.parametrize("damage", ["a flipped bit", "no journal"])
async def test_a_second_kill_before_lost_records_were_looked_at_costs_no_bytes(
    server: DoubleServer, mount: Mount, killed: Killed, damage: str
) -> None:
    """The journal is whole again as soon as it is opened; what it lost is not forgotten by that."""
    server.bucket.put("d/a", b"")
    async with mount() as paths:
        await paths.ls("d")
        server.online = False
        await paths.create("f", b"acknowledged")
        await paths.rename("d/a", "d/moved")
        killed.now()
    killed.lose_records(damage)
    journal, records = open_journal(killed.log.parent)
    assert records == {}
    journal.close()  # killed
    async with mount("killed") as paths:
        await back(server, paths)
        assert killed.kept() == [b"acknowledged"]
        with trio.fail_after(60):
            while await paths.ls("d") != ["a"]:  # noqa: ASYNC110 - no event tells
                await trio.sleep(0.01)
    assert killed.staged == []
    journal, _records = open_journal(killed.log.parent)
    journal.close()
    assert not journal.lost_records, "the next run trusts the journal"


@pytest.mark.parametrize("damage", ["a flipped bit", "no journal"])
async def test_a_lost_change_of_names_shows_what_the_bucket_has(
    server: DoubleServer, mount: Mount, killed: Killed, damage: str
) -> None:
    """Nobody carries it out any more: the index, which knows it as done, is compared with the bucket."""
    for key in ("d/a", "gone", f"e/{PLACEHOLDER}", "f/b"):
        server.bucket.put(key, b"")
    async with mount() as paths:
        for directory in ("", "d", "e", "f"):
            await paths.ls(directory)
        server.online = False
        await paths.rename("d/a", "d/moved")
        await paths.unlink("gone")
        await paths.rmdir("e")
        await paths.rename("f", "g")
        killed.now()
    killed.lose_records(damage)
    async with mount("killed") as paths:
        # As far as is known: nobody answers.
        assert await paths.ls() == ["d", "g"]
        await back(server, paths)
        with trio.fail_after(60):
            while await paths.ls() != ["d", "e", "f", "gone"]:  # noqa: ASYNC110 - no event tells
                await trio.sleep(0.01)
        assert (await paths.ls("d"), await paths.ls("f")) == (["a"], ["b"])
    assert set(contents(server)) == {"d/a", "gone", f"e/{PLACEHOLDER}", "f/b"}


@pytest.mark.parametrize("left", [None, b"", b"exaifs-"])
async def test_a_journal_that_is_gone_costs_no_bytes(
    server: DoubleServer, mount: Mount, killed: Killed, left: bytes | None
) -> None:
    """There is none only where nothing was ever written: unsent bytes without it are kept aside."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.create("a", b"acknowledged")
        killed.now()
    killed.log.unlink()
    if left is not None:
        killed.log.write_bytes(left)
    async with mount("killed") as paths:
        await back(server, paths)
        assert contents(server) == {}
        assert killed.kept() == [b"acknowledged"]
        assert killed.staged == []


async def test_bytes_without_a_record_that_cannot_be_set_aside_are_tried_again(
    mount: Mount, killed: Killed
) -> None:
    """Each run after records were lost tries to, however whole the journal is by then; none drops them."""
    async with mount() as paths:
        await paths.ls()
        killed.now()
    killed.log.unlink()
    bad = killed.cache / "staging" / "bad.data"
    bad.symlink_to(bad)
    for _run in range(2):
        async with mount("killed") as paths:
            assert await paths.ls() == []
        assert bad.is_symlink()
    bad.unlink()
    bad.write_bytes(b"acknowledged")
    async with mount("killed") as paths:
        assert killed.kept() == [b"acknowledged"]
    (killed.cache / "staging" / "never closed.data").write_bytes(b"x")
    async with mount("killed") as paths:
        assert await paths.ls() == []
    assert killed.kept() == [b"acknowledged"]


async def test_the_journal_is_empty_when_all_was_sent(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """Nothing is left to be done again by a next run."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        for number in range(20):
            await paths.create(f"f{number}", b"1")
        await paths.rename("f1", "f2")
        await paths.unlink("f3")
        await back(server, paths)
    async with mount() as paths:
        assert paths.fs.writes.sender.left() == 0
        assert list(await trio.Path(tmp_path / "cache" / "staging").iterdir()) == []


async def test_what_was_replaced_later_does_not_show_again(
    server: DoubleServer, mount: Mount, killed: Killed
) -> None:
    """The index knows all that happened; records from before a file was replaced do not undo it."""
    async with mount() as paths:
        await paths.create("a", b"a")
        await paths.create("b", b"b")
        server.online = False
        await paths.rename("a", "c")
        await paths.rename("b", "c")
        await paths.rename("c", "b")
        killed.now()
    async with mount("killed") as paths:
        assert await paths.ls() == ["b"]
        assert await paths.read("b") == b"b"
        await back(server, paths)
        assert contents(server) == {"b": b"b"}


async def test_a_directory_is_known_whose_name_was_another_ones_before(
    server: DoubleServer, mount: Mount, killed: Killed
) -> None:
    """Records of what had its name do not cost the index what is in it."""
    async with mount() as paths:
        await paths.mkdir("full")
        await paths.create("full/x", b"x")
        await paths.create("f", b"f")
        await paths.ls("full")
        server.online = False
        await paths.mkdir("d")
        await paths.rmdir("d")
        await paths.rename("f", "d")
        await paths.unlink("d")
        await paths.rename("full", "d")
        killed.now()
    async with mount("killed") as paths:
        assert await paths.ls() == ["d"]
        assert await paths.read("d/x") == b"x"
        await back(server, paths)
        assert contents(server) == {"d/.emptyFolderPlaceholder": b"", "d/x": b"x"}


async def test_a_directory_made_and_renamed_offline_is_kept(
    server: DoubleServer, mount: Mount, killed: Killed
) -> None:
    """Killed when its making was carried out and its rename was not: nothing of it is forgotten."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.mkdir("d")
        await paths.create("d/f", b"1")
        await paths.rename("d", "e")
        with server.hold("list_tree") as gate:  # the second operation's first request
            server.online = True
            paths.fs.writes.sender.hurry()
            await gate.wait_arrived()
            killed.now()
    server.online = False
    server.bucket.objects = {
        "d/.emptyFolderPlaceholder": server.bucket.objects["e/.emptyFolderPlaceholder"]
    }
    async with mount("killed") as paths:
        assert await paths.ls() == ["e"]
        assert await paths.read("e/f") == b"1"
        await back(server, paths)
        assert contents(server) == {"e/.emptyFolderPlaceholder": b"", "e/f": b"1"}
    async with mount("killed") as paths:
        assert await paths.ls() == ["e"]


async def test_a_file_that_was_sent_is_not_forgotten_for_a_directory_of_before(
    server: DoubleServer, mount: Mount, killed: Killed
) -> None:
    """Its name was a directory's; the file is sent, while the directory's records still wait."""
    async with mount() as paths:
        await paths.ls()
        server.inject("put", Unreachable("cut"), after=True)  # its marker may be there
        await paths.mkdir("c")
        server.online = False
        await paths.rmdir("c")
        await paths.create("c", b"1")
        with server.hold("remove") as gate:  # of the marker
            server.online = True
            paths.fs.core.contact.succeeded()  # has the sender do several things at once
            await gate.wait_arrived()
            with trio.fail_after(60):
                while await paths.getxattr("c", "user.exai.state") != b"clean":
                    await trio.testing.wait_all_tasks_blocked(0.01)
            killed.now()
    server.online = False
    async with mount("killed") as paths:
        assert await paths.ls() == ["c"]


@pytest.mark.parametrize("away", ["renamed", "removed"])
async def test_a_name_that_a_directory_left_is_the_objects_after_a_kill(
    server: DoubleServer, mount: Mount, killed: Killed, tmp_path: Path, away: str
) -> None:
    """Two keys had one name; the index is behind the journal, which says that the one is gone."""
    server.bucket.put("d", b"object")
    async with mount() as paths:
        assert await paths.ls() == ["d"]
        server.bucket.put(f"d/{PLACEHOLDER}", b"")
        await follow(paths)
        assert await paths.ls() == ["d", "d (object)"]
        assert await paths.ls("d") == []
        killed.now()
        server.online = False
        if away == "renamed":
            await paths.rename("d", "e")
        else:
            await paths.rmdir("d")
        shutil.copytree(tmp_path / "cache" / "journal", killed.cache / "journal", dirs_exist_ok=True)
    async with mount("killed") as paths:
        assert await paths.ls() == (["d", "e"] if away == "renamed" else ["d"])
        await back(server, paths)
        assert await paths.ls() == (["d", "e"] if away == "renamed" else ["d"])
        assert await paths.read("d") == b"object"


async def test_an_unsent_file_leaves_its_name_to_a_folder_that_came(
    server: DoubleServer, mount: Mount, killed: Killed
) -> None:
    """The record of the file has its name of before: that is the other host's folder by now."""
    async with mount(write_mode="back", write_back_s=1000.0) as paths:
        await paths.ls()
        await paths.create("d", b"file")
        server.bucket.put("d/a", b"theirs")
        await follow(paths)
        assert await paths.ls() == ["d", "d (object)"]
        assert await paths.ls("d") == ["a"]
        killed.now()
    server.online = False
    async with mount("killed") as paths:
        assert await paths.ls() == ["d", "d (object)"]
        assert await paths.ls("d") == ["a"]
        assert await paths.read("d (object)") == b"file"


async def test_a_file_whose_rename_waits_is_shown_with_its_directory(
    server: DoubleServer, mount: Mount, killed: Killed
) -> None:
    """The directory went with its last file, as another host removed that, and a listing said so."""
    async with mount() as paths:
        await paths.create("f", b"1")
        await paths.mkdir("d")
        server.inject("move", Unreachable("away"), times=1000)
        await paths.rename("f", "d/f")
        server.bucket.remove([f"d/{PLACEHOLDER}"])
        server.bucket.trim_log()
        await follow(paths)
        with trio.fail_after(60):
            while paths.fs.core.index.expired_prefixes():  # noqa: ASYNC110 - what the host believes
                await trio.sleep(0.01)
        killed.now()
        server.clear_faults()
    server.bucket.move("d/f", "f")
    server.online = False
    async with mount("killed") as paths:
        assert await paths.ls() == ["d"]
        assert await paths.read("d/f") == b"1"
        await back(server, paths)
        assert contents(server) == {"d/f": b"1"}
        assert await paths.ls("d") == ["f"]


async def test_thousands_of_unsent_files_do_not_fill_the_log(
    server: DoubleServer, mount: Mount, killed: Killed
) -> None:
    """Some are named, all are counted, and all are there."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        for number in range(30):
            await paths.create(f"f{number}", b"x")
        killed.now()
    with capture_logs() as lines:
        async with mount("killed") as paths:
            assert len(await paths.ls()) == 30
    warnings = [line for line in lines if line["log_level"] == "warning"]
    assert sum(line["event"].startswith("adopted") for line in warnings) == 20
    assert [line["waiting"] for line in lines if "earlier run" in line["event"]] == [30]


@pytest.mark.parametrize("keeps_metadata", [True, False])
async def test_an_upload_without_an_answer_is_ours_after_a_kill(
    server: DoubleServer, mount: Mount, killed: Killed, *, keeps_metadata: bool
) -> None:
    """It was renamed since, and looks newer than the close after it: that one is sent, and no conflict."""
    server.bucket.keeps_metadata = keeps_metadata
    async with mount() as paths:
        await paths.mkdir("d")
        server.inject("commit", Unreachable("the answer was lost"))
        await paths.create("d/f", b"first")
        server.online = False
        await paths.rename("d", "e")
        async with paths.open("e/f", os.O_WRONLY | os.O_APPEND) as handle:
            await paths.fs.files.write(handle, 5, b" second")
        with server.hold("stat"):
            server.online = True
            await uploaded(server, paths, "e/f")
            killed.now()
            server.online = False
    async with mount("killed") as paths:
        await back(server, paths)
        assert server.bucket.objects["e/f"].data == b"first second"
        assert await paths.read("e/f") == b"first second"
        assert killed.kept() == []


@pytest.mark.parametrize("keeps_metadata", [True, False])
async def test_an_upload_of_what_was_kept_is_ours_after_a_kill(
    server: DoubleServer, mount: Mount, killed: Killed, *, keeps_metadata: bool
) -> None:
    """Also when the record was written before it began, and the bytes are changed after the kill."""
    server.bucket.keeps_metadata = keeps_metadata
    async with mount() as paths:
        await paths.mkdir("d")
        server.online = False
        await paths.create("d/away", b"nothing is tried after this")
        await paths.create("d/f", b"first")
        server.inject("commit", Unreachable("the answer was lost"), times=1000)
        server.online = True
        await uploaded(server, paths, "d/f")
        server.online = False
        killed.now()
    server.clear_faults()
    async with mount("killed") as paths:
        async with paths.open("d/f", os.O_WRONLY | os.O_APPEND) as handle:
            await paths.fs.files.write(handle, 5, b" second")
        await back(server, paths)
        assert server.bucket.objects["d/f"].data == b"first second"
        assert killed.kept() == []


async def test_what_a_listing_left_alone_is_listed_after_a_kill(
    server: DoubleServer, mount: Mount, killed: Killed
) -> None:
    """A directory whose marker was on its way is there, and so is a file that another host has replaced."""
    server.bucket.put("f", b"1")
    async with mount() as paths:
        assert await paths.ls() == ["f"]
        with server.hold("commit"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(paths.mkdir, "d")
                nursery.start_soon(paths.overwrite, "f", b"ours")
                with trio.fail_after(60):
                    while server.counts["commit"] < 2:  # noqa: ASYNC110 - no event tells
                        await trio.sleep(0.01)
                server.bucket.put("f", b"theirs")
                server.bucket.trim_log()
                await follow(paths)
                with trio.fail_after(60):
                    while paths.fs.core.index.expired_prefixes():  # noqa: ASYNC110 - what the host believes
                        await trio.sleep(0.01)
                killed.now()
                nursery.cancel_scope.cancel()
    async with mount("killed") as paths:
        await follow(paths)
        with trio.fail_after(60):
            while paths.fs.core.index.expired_prefixes():  # noqa: ASYNC110 - as above
                await trio.sleep(0.01)
        assert await paths.ls() == ["d", "f"]
        assert await paths.read("f") == b"theirs"


async def test_another_hosts_file_under_the_name_of_one_that_was_never_closed(
    server: DoubleServer, mount: Mount, killed: Killed
) -> None:
    """A listing left the name to ours; after a kill it is theirs, though no log tells of it any more."""
    server.bucket.put("d/known", b"1")
    async with mount(drain_s=0.0) as paths:
        assert await paths.ls("d") == ["known"]
        async with paths.inode("d") as directory:
            handle, _made = await paths.fs.files.create(directory, "f", 0o644, os.O_WRONLY, CALLER)
        server.bucket.put("d/f", b"theirs")
        server.bucket.trim_log()
        await follow(paths)
        with trio.fail_after(60):
            while paths.fs.core.index.expired_prefixes():  # noqa: ASYNC110 - what the host believes
                await trio.sleep(0.01)
        killed.now()
        server.online = False
        await paths.fs.files.release(handle)
    server.online = True
    async with mount("killed") as paths:
        assert await paths.ls("d") == ["f", "known"]
        assert await paths.read("d/f") == b"theirs"


async def test_a_kill_when_a_directorys_rename_is_done_but_for_looking(
    server: DoubleServer, mount: Mount, killed: Killed
) -> None:
    """What another host had removed from it, unheard, is not there in the next run either."""
    server.bucket.put("d/a", b"1")
    server.bucket.put("d/b", b"2")
    async with mount() as paths:
        assert await paths.ls("d") == ["a", "b"]
        server.bucket.remove(["d/b"])
        async with trio.open_nursery() as nursery:
            with server.hold("move") as moving:
                nursery.start_soon(paths.rename, "d", "e")
                await moving.wait_arrived()
                with server.hold("list_tree") as looking:
                    moving.open()
                    await looking.wait_arrived()
                    killed.now()
    async with mount("killed") as paths:
        await follow(paths)
        assert await paths.ls("e") == ["a"]
