"""Keys that make bad paths, and keys that would share a name (issue: always fresh, 8)."""

from __future__ import annotations

import itertools
import os

import pytest

from exaifs.cache.names.survey import OddNames
from exaifs.errors import NotEmpty, NotFound
from tests.fs.conftest import Mount
from tests.support.double import DoubleServer
from tests.support.paths import Paths, follow

pytestmark = pytest.mark.anyio

UNSHOWN = {
    "/leading": "empty_segment",
    "a//b": "empty_segment",
    "a//c/d": "empty_segment",
    "trailing/": "empty_segment",
    "a/./b": "dot_segment",
    "a/..": "dot_segment",
    "..": "dot_segment",
    ".exaifs/status.json": "reserved_name",
    f"a/{'n' * 256}": "long_name",
}


def odd(paths: Paths) -> dict[str, OddNames]:
    """Return the kinds of odd keys that there are."""
    found = paths.fs.survey.odd_names(20)
    return {kind: names for kind, names in found.items() if names.count}


def expected() -> dict[str, OddNames]:
    """Return what the status says of `UNSHOWN`."""
    by_kind: dict[str, list[str]] = {}
    for key, kind in sorted(UNSHOWN.items()):
        by_kind.setdefault(kind, []).append(key)
    return {kind: OddNames(len(keys), tuple(keys)) for kind, keys in by_kind.items()}


@pytest.mark.parametrize("by_feed", [False, True])
async def test_keys_without_a_path_are_counted_not_shown(
    server: DoubleServer, mount: Mount, *, by_feed: bool
) -> None:
    """Neither a listing nor the feed shows them; both count the same, also after a restart."""
    server.bucket.put("a/good", b"x")

    def put_all() -> None:
        for key in UNSHOWN:
            server.bucket.put(key, b"odd")

    if not by_feed:
        put_all()
    async with mount() as paths:
        await paths.ls()
        await paths.ls("a")
        if by_feed:
            put_all()
            await follow(paths)
        assert await paths.ls() == ["a", "trailing"]
        assert await paths.ls("a") == ["good"]
        assert await paths.ls("trailing") == []
        assert odd(paths) == expected()
        for path in ("a/n", "trailing/x"):
            with pytest.raises(NotFound):
                await paths.stat(path)
    async with mount() as paths:
        assert odd(paths) == expected()
        server.bucket.remove(list(UNSHOWN))
        await follow(paths)
        assert odd(paths) == {}
        assert await paths.ls() == ["a"]


async def test_a_directory_of_odd_keys_is_not_empty(server: DoubleServer, mount: Mount) -> None:
    """It is not removed, as what is in it would stay; renaming it takes them along."""
    server.bucket.put("a//b", b"odd")
    async with mount() as paths:
        assert await paths.ls() == ["a"]
        with pytest.raises(NotEmpty):
            await paths.rmdir("a")
        await paths.rename("a", "z")
        assert "z//b" in server.bucket.objects
        assert odd(paths) == {"empty_segment": OddNames(1, ("z//b",))}


GROUP = {"t": b"object", "t/x": b"inside"}


@pytest.mark.parametrize("order", list(itertools.permutations(GROUP)))
async def test_file_and_folder_come_and_go(
    server: DoubleServer, mount: Mount, order: tuple[str, ...]
) -> None:
    """The folder has the plain name while it exists; then the object has it, with the same inode."""
    async with mount() as paths:
        await paths.ls()
        for key in order:
            server.bucket.put(key, GROUP[key])
            await follow(paths)
        assert await paths.ls() == ["t", "t (object)"]
        assert await paths.read("t (object)") == b"object"
        assert await paths.read("t/x") == b"inside"
        assert odd(paths) == {"file_and_folder": OddNames(1, ("t (object)",))}
        ino = (await paths.stat("t (object)")).ino
        async with paths.inode("t (object)"):
            server.bucket.remove(["t/x"])
            await follow(paths)
            assert await paths.ls() == ["t"]
            assert (await paths.stat("t")).ino == ino
            assert await paths.read("t") == b"object"
        assert odd(paths) == {}
        await paths.unlink("t")
        assert await paths.ls() == []


async def test_clashes_end_by_what_is_done_here(server: DoubleServer, mount: Mount) -> None:
    """A directory removed or renamed through the mount leaves its name to the object."""
    async with mount() as paths:
        for key, data in GROUP.items():
            server.bucket.put(key, data)
        await follow(paths)
        assert await paths.ls() == ["t", "t (object)"]
        await paths.rename("t", "u")
        assert await paths.ls() == ["t", "u"]
        await paths.rename("u", "v")
        server.bucket.put("v", b"late")
        await follow(paths)
        assert await paths.ls() == ["t", "v", "v (object)"]
        await paths.unlink("v/x")
        await paths.rmdir("v")
        assert await paths.ls() == ["t", "v"]
        assert await paths.read("v") == b"late"


async def test_a_file_that_was_open_under_a_marked_name_has_the_plain_one(
    server: DoubleServer, mount: Mount
) -> None:
    """Another host has replaced the object and removed the folder before the close."""
    for key, data in GROUP.items():
        server.bucket.put(key, data)
    async with mount() as paths:
        assert await paths.ls() == ["t", "t (object)"]
        async with paths.open("t (object)", os.O_RDWR) as handle:
            await paths.fs.files.write(handle, 0, b"ours, longer")
            server.bucket.put("t", b"theirs")
            server.bucket.remove(["t/x"])
            await follow(paths)
            assert await paths.ls() == ["t"]
        assert await paths.ls() == ["t"]
        assert await paths.read("t") == server.bucket.objects["t"].data == b"ours, longer"


async def test_a_marked_object_can_be_changed_and_replaced(server: DoubleServer, mount: Mount) -> None:
    """The marked name is the object: writes and renames onto it go to its key."""
    for key, data in GROUP.items():
        server.bucket.put(key, data)
    async with mount() as paths:
        await paths.overwrite("t (object)", b"written")
        assert server.bucket.objects["t"].data == b"written"
        await paths.create("new", b"replaced")
        await paths.rename("new", "t (object)")
        assert server.bucket.objects["t"].data == b"replaced"
        assert sorted(server.bucket.objects) == ["t", "t/x"]
        await follow(paths)
        assert await paths.ls() == ["t", "t (object)"]


async def test_a_file_made_dirty_here_moves_out_of_a_folders_way(
    server: DoubleServer, mount: Mount
) -> None:
    """Unsent bytes are not lost when another host makes a folder of the same name."""
    async with mount() as paths:
        await paths.create("t", b"old")
        async with paths.open("t", 1) as handle:
            await paths.write_all(handle, b"new")
            server.bucket.put("t/x", b"inside")
            await follow(paths)
            assert await paths.ls() == ["t", "t (object)"]
        assert server.bucket.objects["t"].data == b"new"
        assert await paths.read("t (object)") == b"new"


RAW = ("=41", "=3D41", "=3D41/x", "=41/y")
"""All four would be called `=41`."""


@pytest.mark.parametrize("order", list(itertools.permutations(RAW))[::5])
async def test_the_same_names_in_whatever_order(
    server: DoubleServer, mount: Mount, order: tuple[str, ...]
) -> None:
    """Names depend on what is in the bucket only: by feed, in any order, or by one listing."""
    async with mount("feed") as one:
        await one.ls()
        for key in order:
            server.bucket.put(key, key.encode())
            await follow(one)
        async with mount("listing") as two:
            names = await two.ls()
            assert await one.ls() == names
            assert len(names) == 4
            assert await one.ls("=41") == ["x"]
            assert await one.read("=41 (object)") == b"=3D41"
            assert odd(one) == odd(two)
        server.bucket.remove(["=3D41/x"])
        await follow(one)
        assert await one.read("=41") == b"=3D41"
        server.bucket.remove(["=3D41"])
        await follow(one)
        assert await one.ls("=41") == ["y"]
        assert await one.read("=41 (object)") == b"=41"


async def test_a_listing_that_swaps_object_and_folder(server: DoubleServer, mount: Mount) -> None:
    """What was an object is a folder now: a new listing shows just the folder."""
    server.trigger_installed = False
    server.bucket.put("t", b"object")
    async with mount(freshness_s=1e-6) as paths:
        assert await paths.ls() == ["t"]
        server.bucket.remove(["t"])
        server.bucket.put("t/x", b"inside")
        assert await paths.ls() == ["t"]
        assert await paths.ls("t") == ["x"]
        server.bucket.remove(["t/x"])
        server.bucket.put("t", b"again")
        assert await paths.ls() == ["t"]
        assert await paths.read("t") == b"again"


async def test_case_twins_and_raw_keys(server: DoubleServer, mount: Mount) -> None:
    """Case counts, and a key that only looks escaped is shown as it is and can be used."""
    for key in ("Twin", "twin", "=41", "a=ZZ"):
        server.bucket.put(key, key.encode())
    async with mount() as paths:
        assert await paths.ls() == ["=41", "Twin", "a=ZZ", "twin"]
        for name in await paths.ls():
            assert await paths.read(name) == name.encode()
        assert odd(paths) == {}
        await paths.rename("=41", "b")
        await paths.unlink("twin")
        assert sorted(server.bucket.objects) == ["Twin", "a=ZZ", "b"]
        await paths.create("=41", b"ours")
        assert server.bucket.objects["=3D41"].data == b"ours"
