"""Names, directories and renames through the file system, without a kernel."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from exaifs.errors import (
    Exists,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotEmpty,
    NotFound,
    Unauthorized,
    Unreachable,
)
from exaifs.model import ROOT_INO, AttributeChange
from exaifs.names import PLACEHOLDER
from tests.fs.conftest import Mount
from tests.fs.scenes import requests
from tests.support.double import DoubleServer
from tests.support.paths import CALLER, follow

TTL_S = 1e-6
"""Every look-up is stale."""

pytestmark = pytest.mark.anyio

AWKWARD = [
    "with space", " leading", "trailing ", "ünïcode", "u\u0308 decomposed", "报告.pdf", "😀", "a#b?c%d",
    "=41", "a=3Db", "new\nline", "tab\t", "back\\slash", '"quoted"', "...", "no-extension", "[x]{y}|~^`",
    PLACEHOLDER, os.fsdecode(b"not utf-8 \xff\xfe"),
]  # fmt: skip


@pytest.mark.parametrize("name", AWKWARD)
async def test_any_name_works_and_comes_back(mount: Mount, name: str) -> None:
    """Any name, any tool: every name works on the ASCII-only store, reversibly."""
    async with mount("one") as one:
        await one.create(name, b"x")
        await one.mkdir("d")
        await one.rename(name, f"d/{name}")
    async with mount("two") as two:
        assert await two.ls("d") == [name]
        assert await two.read(f"d/{name}") == b"x"
        await two.unlink(f"d/{name}")
        assert await two.ls("d") == []


async def test_names_too_long_are_refused_before_any_request(server: DoubleServer, mount: Mount) -> None:
    """ENAMETOOLONG for 256 bytes, and for a key over the store's limit."""
    async with mount() as paths:
        await paths.create("n" * 255, b"")
        server.counts.clear()
        with pytest.raises(NameTooLong):
            await paths.create("n" * 256, b"")
        with pytest.raises(NameTooLong):
            await paths.stat("n" * 256)
        path = "/".join(["d" * 100] * 8)
        for depth in range(1, 9):
            await paths.mkdir("/".join(path.split("/")[:depth]))
        server.counts.clear()
        with pytest.raises(NameTooLong):
            await paths.create(f"{path}/{'f' * 100}", b"")
        assert server.counts["put"] == 0


async def test_a_directory_of_a_thousand_is_one_request(server: DoubleServer, mount: Mount) -> None:
    """One listing fills names and attributes; looking at each costs nothing more."""
    for number in range(998):
        server.bucket.put(f"d/{number:04}", b"x")
    server.bucket.put("d/sub/file", b"x")
    async with mount() as paths:
        await paths.ls()
        server.counts.clear()
        names = await paths.ls("d")
        for name in names:
            await paths.stat(f"d/{name}")
        assert len(names) == 999
        assert requests(server) == 1


async def test_an_empty_directory_survives(mount: Mount) -> None:
    """Mkdir writes a marker; the last file leaving does not take the directory with it."""
    async with mount("one") as one:
        await one.mkdir("a")
        await one.mkdir("a/b")
        await one.create("a/b/f", b"x")
    async with mount("two") as two:
        assert await two.ls("a/b") == ["f"]
        await two.unlink("a/b/f")
    async with mount("three") as three:
        assert await three.ls("a/b") == []
        await three.rmdir("a/b")
        await three.rmdir("a")
        assert await three.ls() == []


async def test_a_folder_made_by_others_outlives_its_last_file(server: DoubleServer, mount: Mount) -> None:
    """A directory that exists only through its files gets a marker before it empties."""
    server.bucket.put("uploads/1/a.txt", b"x")
    server.bucket.put("uploads/2/b.txt", b"y")
    async with mount("one") as one:
        await one.unlink("uploads/1/a.txt")
        await one.rename("uploads/2/b.txt", "b.txt")
        assert await one.ls("uploads/1") == []
    async with mount("two") as two:
        assert await two.ls("uploads") == ["1", "2"]
        assert await two.ls("uploads/2") == []
        assert await two.ls() == ["b.txt", "uploads"]


async def test_errors_are_those_of_posix(mount: Mount) -> None:
    """Each refusal has the errno that a local directory gives."""
    async with mount() as paths:
        await paths.mkdir("d")
        await paths.mkdir("d/sub")
        await paths.create("f", b"")
        with pytest.raises(Exists):
            await paths.mkdir("d")
        with pytest.raises(Exists):
            await paths.create("f", b"")
        with pytest.raises(NotFound):
            await paths.stat("missing")
        with pytest.raises(NotFound):
            await paths.create("missing/f", b"")
        with pytest.raises(NotADirectory):
            await paths.create("f/x", b"")
        with pytest.raises(NotEmpty):
            await paths.rmdir("d")
        with pytest.raises(NotADirectory):
            await paths.rmdir("f")
        with pytest.raises(IsADirectory):
            await paths.unlink("d")
        with pytest.raises(InvalidArgument):
            await paths.rename("d", "d/sub/d")
        with pytest.raises(IsADirectory):
            await paths.rename("f", "d")
        with pytest.raises(NotADirectory):
            await paths.rename("d", "f")
        with pytest.raises(Exists):
            await paths.rename("f", "d", flags=1)
        with pytest.raises(InvalidArgument):
            await paths.rename("f", "d", flags=2)
        assert await paths.ls() == ["d", "f"]


async def test_rename_to_a_free_name_is_one_move(server: DoubleServer, mount: Mount) -> None:
    """No bytes travel, and the file keeps its inode, id and attributes."""
    async with mount() as paths:
        await paths.create("old", b"bytes")
        await paths.setxattr("old", "user.note", b"n")
        before = await paths.stat("old")
        file_id = await paths.getxattr("old", "user.exai.file_id")
        server.counts.clear()
        await paths.rename("old", "new")
        assert server.counts["move"] == 1
        assert server.counts["put"] == server.counts["get"] == 0
        after = await paths.stat("new")
        assert (after.ino, after.size_bytes, after.mtime_ns) == (before.ino, 5, before.mtime_ns)
        assert await paths.getxattr("new", "user.exai.file_id") == file_id
        assert await paths.getxattr("new", "user.note") == b"n"
        assert await paths.read("new") == b"bytes"
        assert server.counts["get"] == 0
        assert await paths.ls() == ["new"]


async def test_rename_over_a_file_replaces_it(mount: Mount) -> None:
    """The target is the old or the new file at any time; its readers keep the old bytes."""
    async with mount() as paths:
        await paths.create("new", b"new bytes")
        await paths.create("target", b"old bytes")
        file_id = await paths.getxattr("new", "user.exai.file_id")
        async with paths.open("target") as handle:
            await paths.rename("new", "target")
            assert await paths.read_all(handle) == b"old bytes"
        assert await paths.read("target") == b"new bytes"
        assert await paths.getxattr("target", "user.exai.file_id") == file_id
    async with mount("other") as other:
        assert await other.ls() == ["target"]
        assert await other.read("target") == b"new bytes"


async def test_editors_save_by_rename(mount: Mount) -> None:
    """Write a temporary file, close it, rename it over: what vim and most editors do."""
    async with mount() as paths:
        await paths.create("doc", b"v1")
        for version in range(2, 5):
            await paths.create("doc.tmp", b"v%d" % version)
            await paths.rename("doc.tmp", "doc")
            assert await paths.read("doc") == b"v%d" % version
        assert await paths.ls() == ["doc"]


async def test_rename_of_an_open_unsent_file(mount: Mount) -> None:
    """A file renamed before its first close is published under its new name only."""
    async with mount() as paths, paths.open("a", os.O_WRONLY | os.O_CREAT) as handle:
        await paths.fs.files.write(handle, 0, b"bytes")
        await paths.rename("a", "b")
    async with mount("other") as other:
        assert await other.ls() == ["b"]
        assert await other.read("b") == b"bytes"


async def test_rename_of_a_directory_moves_everything(server: DoubleServer, mount: Mount) -> None:
    """Objects move several at a time; inodes and cached bytes stay."""
    for number in range(30):
        server.bucket.put(f"old/deep/{number}", b"%d" % number)
    async with mount() as paths:
        await paths.mkdir("old/empty")
        assert await paths.read("old/deep/7") == b"7"
        before = await paths.stat("old/deep/7")
        server.counts.clear()
        async with paths.open("old/deep/8", os.O_RDWR) as handle:
            await paths.fs.files.write(handle, 0, b"changed")
            await paths.rename("old", "new")
        assert server.counts["move"] == 31
        assert await paths.ls() == ["new"]
        assert await paths.ls("new") == ["deep", "empty"]
        assert (await paths.stat("new/deep/7")).ino == before.ino
        assert await paths.read("new/deep/7") == b"7"
        assert await paths.read("new/deep/8") == b"changed"
    async with mount("other") as other:
        assert await other.ls("new/deep") == sorted(str(number) for number in range(30))
        assert await other.read("new/deep/8") == b"changed"


async def test_a_directory_rename_that_stops_half_way_loses_nothing(
    server: DoubleServer, mount: Mount
) -> None:
    """Every file is in one of the two directories, and the listing says which."""
    for number in range(20):
        server.bucket.put(f"old/{number}", b"%d" % number)
    async with mount(offline_writes="refuse") as paths:
        await paths.ls("old")
        server.inject("move", Unreachable("cut"), times=3)
        with pytest.raises(Unreachable):
            await paths.rename("old", "new")
        left = await paths.ls("old")
        moved = await paths.ls("new") if "new" in await paths.ls() else []
        assert sorted(left + moved) == sorted(str(number) for number in range(20))
        for name in left:
            assert await paths.read(f"old/{name}") == name.encode()
        for name in moved:
            assert await paths.read(f"new/{name}") == name.encode()


async def test_symlinks_are_small_objects(mount: Mount) -> None:
    """A link's target travels through the bucket; it is a link on the other host too."""
    async with mount("one") as one:
        await one.symlink("../some/where", "link")
        assert await one.readlink("link") == "../some/where"
    async with mount("two") as two:
        assert await two.readlink("link") == "../some/where"
        attributes = await two.stat("link")
        assert stat.S_ISLNK(attributes.mode)
        assert attributes.size_bytes == len("../some/where")


async def test_mknod_makes_a_file(server: DoubleServer, mount: Mount) -> None:
    """An empty file is in the bucket when mknod returns; where it cannot be, none is made."""
    async with mount("one") as one:
        made = await one.fs.namespace.mknod(ROOT_INO, "a", 0o640, CALLER)
        assert (made.mode, made.size_bytes) == (stat.S_IFREG | 0o640, 0)
        with pytest.raises(Exists):
            await one.fs.namespace.mknod(ROOT_INO, "a", 0o640, CALLER)
        server.inject("put", InvalidArgument("no"), times=1)
        with pytest.raises(InvalidArgument):
            await one.fs.namespace.mknod(ROOT_INO, "b", 0o640, CALLER)
        assert await one.ls() == ["a"]
    async with mount("two") as two:
        assert await two.ls() == ["a"]
        assert (await two.stat("a")).mode == made.mode


async def test_attributes_are_kept_in_the_row(mount: Mount) -> None:
    """chmod, chown and utimens of files and directories are seen by other hosts."""
    change = AttributeChange(mode=0o750, uid=12, gid=34, mtime_ns=1_234_567_890_123_456_789)
    async with mount("one") as one:
        await one.create("f", b"x")
        await one.mkdir("d")
        for path in ("f", "d"):
            await one.setattr(path, change)
    async with mount("two") as two:
        for path in ("f", "d"):
            attributes = await two.stat(path)
            assert attributes.mode & 0o7777 == 0o750
            assert (attributes.uid, attributes.gid) == (12, 34)
            assert attributes.mtime_ns == 1_234_567_890_123_456_789


async def test_a_wrong_key_does_not_empty_a_directory(server: DoubleServer, mount: Mount) -> None:
    """Absent only when proven absent: refused listings leave what is known."""
    server.trigger_installed = False
    server.bucket.put("d/file", b"x")
    async with mount(offline_writes="refuse", freshness_s=TTL_S) as paths:
        assert await paths.ls("d") == ["file"]
        server.inject("*", Unauthorized("revoked"), times=1_000_000)
        assert await paths.ls("d") == ["file"]
        with pytest.raises(Unauthorized):
            await paths.create("d/new", b"kept")
        assert await paths.ls("d") == ["file", "new"]
        assert await paths.read("d/new") == b"kept"
        server.clear_faults()


async def test_known_names_are_served_while_supabase_is_away(server: DoubleServer, mount: Mount) -> None:
    """Listings and cached bytes go on; what was never seen is an error, not absent."""
    server.trigger_installed = False
    server.bucket.put("d/file", b"x")
    server.bucket.put("e/other", b"y")
    async with mount() as paths:
        assert await paths.read("d/file") == b"x"
        await paths.ls()
    server.online = False
    async with mount(freshness_s=TTL_S) as paths:
        assert await paths.ls() == ["d", "e"]
        assert await paths.ls("d") == ["file"]
        assert await paths.read("d/file") == b"x"
        with pytest.raises(Unreachable):
            await paths.ls("e")
        with pytest.raises(NotFound):
            await paths.stat("d/absent")


async def test_outside_changes_appear(server: DoubleServer, mount: Mount) -> None:
    """What another client makes, replaces or deletes is seen when the listing is stale."""
    server.trigger_installed = False
    server.bucket.put("keep", b"1")
    server.bucket.put("gone", b"2")
    async with mount(freshness_s=TTL_S) as paths:
        before = await paths.stat("keep")
        assert await paths.read("keep") == b"1"
        server.bucket.put("keep", b"replaced")
        server.bucket.put("d/new", b"3")
        await server.remote().objects.remove(["gone"])
        assert await paths.ls() == ["d", "keep"]
        after = await paths.stat("keep")
        assert after.size_bytes == 8
        assert after.ino != before.ino
        assert await paths.read("keep") == b"replaced"


async def test_an_open_file_keeps_the_version_it_opened(server: DoubleServer, mount: Mount) -> None:
    """Right bytes or an error: a reader gets one version, whole, never a blend of two."""
    server.trigger_installed = False
    server.bucket.put("file", b"a" * 5000)
    async with mount(freshness_s=TTL_S) as paths, paths.open("file") as handle:
        first = await paths.fs.files.read(handle, 0, 1000)
        server.bucket.put("file", b"b" * 5000)
        assert await paths.read("file") == b"b" * 5000
        assert first + await paths.fs.files.read(handle, 1000, 4000) == b"a" * 5000


async def test_a_key_that_is_file_and_folder_shows_both(server: DoubleServer, mount: Mount) -> None:
    """The folder has the plain name, the object a marked one."""
    server.bucket.put("t", b"object")
    server.bucket.put("t/x", b"inside")
    async with mount() as paths:
        assert await paths.ls() == ["t", "t (object)"]
        assert await paths.read("t (object)") == b"object"
        assert await paths.read("t/x") == b"inside"


async def test_no_inode_is_left_behind(mount: Mount) -> None:
    """Memory holds only what the kernel refers to."""
    async with mount() as paths:
        for number in range(50):
            await paths.create(f"f{number}", b"x")
            await paths.rename(f"f{number}", f"g{number}")
        for number in range(0, 50, 2):
            await paths.unlink(f"g{number}")
        await paths.ls()
        assert [inode for inode in paths.fs.core.table if inode.ino != 1] == []


async def test_a_removed_folder_of_others_does_not_come_back(server: DoubleServer, mount: Mount) -> None:
    """The marker that keeps an emptied folder goes with the folder."""
    server.bucket.put("d/a", b"x")
    server.bucket.put("d/b", b"y")
    async with mount() as paths, paths.inode("d"):
        await paths.unlink("d/a")
        await paths.unlink("d/b")
        await paths.rmdir("d")
        assert list(server.bucket.objects) == []


async def test_a_reader_goes_on_during_our_own_rename(server: DoubleServer, mount: Mount) -> None:
    """Between the move on the server and our taking it in, the old version is gone; readers wait."""
    data = os.urandom(3_000_000)
    server.bucket.put("old", data)
    got: list[bytes] = []
    async with mount() as paths, paths.open("old") as handle:
        async with trio.open_nursery() as nursery:
            with server.hold("stat") as gate:
                nursery.start_soon(paths.rename, "old", "new")
                await gate.wait_arrived()

                async def read() -> None:
                    got.append(await paths.read_all(handle))

                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked(0.05)
        assert got == [data]


@pytest.mark.parametrize("what", ["mkdir", "create", "symlink", "rename"])
async def test_no_name_is_made_in_a_directory_that_another_host_has_emptied(
    server: DoubleServer, mount: Mount, what: str
) -> None:
    """It went with its last file, while the kernel holds on to it: ENOENT, and nothing is hidden."""
    server.bucket.put("d/e", b"1")
    async with mount() as paths:
        await paths.create("f", b"2")
        async with paths.inode("d") as ino:
            server.bucket.move("d/e", "e")
            names, files = paths.fs.namespace, paths.fs.files
            calls: dict[str, Callable[[], Awaitable[object]]] = {
                "mkdir": lambda: names.mkdir(ino, "b", 0o755, CALLER),
                "create": lambda: files.create(ino, "b", 0o644, os.O_WRONLY, CALLER),
                "symlink": lambda: names.symlink(ino, "b", b"f", CALLER),
                "rename": lambda: names.rename(ROOT_INO, "f", ino, "b", 0),
            }
            with pytest.raises(NotFound):
                await calls[what]()
        await follow(paths)
        assert await paths.ls() == ["e", "f"]
        assert list(server.bucket.objects) == ["f", "e"]
