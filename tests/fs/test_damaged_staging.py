"""What waits to be sent is damaged on the disk: it is found before anybody gets it for what was written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from exaifs.errors import IntegrityError
from tests.fs.conftest import Mount
from tests.fs.scenes import kept_aside
from tests.support.double import DoubleServer
from tests.support.paths import Paths, follow

pytestmark = pytest.mark.anyio


def damage(cache: Path, pattern: str) -> None:
    """Change a byte of the only file of that kind."""
    (path,) = cache.glob(pattern)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


async def append(paths: Paths, path: str, data: bytes) -> None:
    """Write at the end of a file."""
    async with paths.open(path, os.O_WRONLY) as handle:
        await paths.write_all(handle, data, (await paths.stat(path)).size_bytes)


async def test_a_reader_after_a_restart_gets_no_damaged_bytes(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """Offline, unsent bytes are read as they were written, or not at all."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.create("bad", b"what was written")
        await paths.create("good", b"something else")
        shutil.copytree(tmp_path / "cache", tmp_path / "killed", ignore=shutil.ignore_patterns("*-shm"))
    for path in (tmp_path / "killed/staging").glob("*.data"):
        path.write_bytes(path.read_bytes().replace(b"written", b"wr!tten"))
    async with mount("killed", drain_s=0.0) as paths:
        with pytest.raises(IntegrityError):
            await paths.read("bad")
        assert await paths.read("good") == b"something else"


async def test_damaged_bytes_are_not_written_on(server: DoubleServer, mount: Mount, tmp_path: Path) -> None:
    """An append to a file that waits would else make the damage part of what is sent."""
    async with mount() as paths:
        await paths.create("f", b"in the bucket")
        server.online = False
        await paths.overwrite("f", b"what was written")
        damage(tmp_path / "cache", "staging/*.data")
        with pytest.raises(IntegrityError):
            await append(paths, "f", b", and more")
        server.online = True
        await paths.fs.drain(60)
        await follow(paths)
        assert server.bucket.objects["f"].data == b"in the bucket"
        assert await paths.read("f") == b"in the bucket"
        assert kept_aside(tmp_path / "cache") == [b"vhat was written"]


async def test_an_append_to_what_waits_is_sent(server: DoubleServer, mount: Mount) -> None:
    """As ever, where nothing is damaged, and the digest is that of the whole."""
    async with mount() as paths:
        await paths.ls()
        server.online = False
        await paths.create("f", b"one")
        await append(paths, "f", b" two")
        await append(paths, "f", b" three")
        assert await paths.read("f") == b"one two three"
        server.online = True
        assert await paths.fs.drain(60) == 0
        assert server.bucket.objects["f"].data == b"one two three"


async def test_damaged_bytes_of_a_conflict_are_set_aside(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """That another host wrote the file too is no reason to try for ever."""
    async with mount() as paths:
        await paths.create("f", b"old")
        server.online = False
        await paths.overwrite("f", b"ours, as it was written")
        damage(tmp_path / "cache", "staging/*.data")
        server.bucket.put("f", b"theirs")
        server.online = True
        assert await paths.fs.drain(60) == 0
        await follow(paths)
        assert await paths.read("f") == b"theirs"
        assert kept_aside(tmp_path / "cache") == [b"nurs, as it was written"]


async def test_damaged_cached_content_is_not_written_on(
    server: DoubleServer, mount: Mount, tmp_path: Path
) -> None:
    """A file that is changed in part is filled with what is in the bucket, fetched again if need be."""
    async with mount() as paths:
        await paths.create("f", b"in the bucket")
        damage(tmp_path / "cache", "content/*/*")
        await append(paths, "f", b", and more")
        assert server.bucket.objects["f"].data == b"in the bucket, and more"
