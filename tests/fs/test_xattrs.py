"""Extended attributes through the file system, without a kernel."""

from __future__ import annotations

import hashlib
import os

import pytest

from exaifs.errors import AttributeTooLarge, NoAttribute, NotSupported
from tests.fs.conftest import Mount
from tests.fs.scenes import requests
from tests.support.double import DoubleServer

pytestmark = pytest.mark.anyio


async def test_what_exaifs_knows_is_readable(mount: Mount) -> None:
    """File id, state, version, checksum and type come from the row."""
    async with mount() as paths:
        await paths.create("a.md", b"# Title\n")
        names = await paths.listxattr("a.md")
        assert set(names) == {
            "user.exai.file_id", "user.exai.state", "user.exai.version", "user.checksum.sha256",
            "user.mime_type",
        }  # fmt: skip
        assert await paths.getxattr("a.md", "user.exai.state") == b"clean"
        digest = hashlib.sha256(b"# Title\n").hexdigest().encode()
        assert await paths.getxattr("a.md", "user.checksum.sha256") == digest
        assert await paths.getxattr("a.md", "user.mime_type") == b"text/markdown"


async def test_reading_attributes_makes_no_request(server: DoubleServer, mount: Mount) -> None:
    """`getfattr -d` costs nothing."""
    async with mount() as paths:
        await paths.create("f", b"x")
        server.counts.clear()
        for name in await paths.listxattr("f"):
            await paths.getxattr("f", name)
        assert requests(server) == 0


async def test_own_attributes_travel_with_the_file(mount: Mount) -> None:
    """Set, replace, remove; kept over a rewrite and a rename, seen by other hosts."""
    big = os.urandom(60_000)
    async with mount("one") as one:
        await one.create("f", b"x")
        await one.mkdir("d")
        await one.setxattr("f", "user.a", b"1")
        await one.setxattr("f", "user.a", b"2")
        await one.setxattr("f", "user.gone", b"")
        await one.removexattr("f", "user.gone")
        await one.setxattr("f", "user.big", big)
        await one.setxattr("d", "user.dir", b"yes")
        await one.overwrite("f", b"other bytes")
        await one.rename("f", "g")
    async with mount("two") as two:
        assert await two.getxattr("g", "user.a") == b"2"
        assert await two.getxattr("g", "user.big") == big
        assert await two.getxattr("d", "user.dir") == b"yes"
        with pytest.raises(NoAttribute):
            await two.getxattr("g", "user.gone")


async def test_attributes_of_an_unsent_file(mount: Mount) -> None:
    """A new file takes attributes before its first close; a dirty one hides what is not true of it."""
    async with mount() as paths, paths.open("f", os.O_WRONLY | os.O_CREAT) as handle:
        await paths.fs.files.write(handle, 0, b"x")
        await paths.setxattr("f", "user.early", b"1")
        assert await paths.getxattr("f", "user.exai.state") == b"dirty"
        with pytest.raises(NoAttribute):
            await paths.getxattr("f", "user.checksum.sha256")
    async with mount("two") as two:
        assert await two.getxattr("f", "user.early") == b"1"


async def test_refusals(mount: Mount) -> None:
    """Names of exaifs and other namespaces cannot be set; limits are those of Linux."""
    async with mount() as paths:
        await paths.create("f", b"x")
        for name in ("user.exai.file_id", "user.checksum.sha256", "user.mime_type", "trusted.x"):
            with pytest.raises(NotSupported):
                await paths.setxattr("f", name, b"x")
        with pytest.raises(AttributeTooLarge):
            await paths.setxattr("f", "user.big", bytes(65537))
        with pytest.raises(NoAttribute):
            await paths.removexattr("f", "user.missing")
