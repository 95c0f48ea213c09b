"""`EXAIFS_WRITE_MODE=back`: close returns when the journal has the bytes; they are sent later."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing

from exaifs.model import AttributeChange
from tests.fs.conftest import Mount
from tests.fs.scenes import in_no_time
from tests.support.double import DoubleServer

pytestmark = pytest.mark.anyio

REST_S = 1.0


async def test_close_makes_no_request(server: DoubleServer, mount: Mount) -> None:
    """The bytes are in the journal, and read from here."""
    async with mount(write_mode="back", write_back_s=3600.0) as paths:
        await paths.create("f", b"1")
        assert server.counts["put"] == 0
        assert await paths.read("f") == b"1"
        assert await paths.getxattr("f", "user.exai.state") == b"pending"


def test_it_is_sent_after_its_rest(server: DoubleServer, mount: Mount) -> None:
    """Soon after the last of several closes, once."""

    async def play() -> None:
        async with mount(write_mode="back", write_back_s=REST_S) as paths:
            await paths.create("f", b"1")
            for data in (b"2", b"3"):
                await trio.sleep(REST_S / 2)
                await paths.overwrite("f", data)
            with trio.fail_after(3 * REST_S):
                # Nothing tells.
                while await paths.getxattr("f", "user.exai.state") != b"clean":  # noqa: ASYNC110
                    await trio.sleep(REST_S / 10)
            assert server.bucket.objects["f"].data == b"3"
            assert server.counts["put"] == 1

    # On a real clock a disk that is slow to take a close gives the one before its rest.
    in_no_time(play)


async def test_an_unlink_during_the_upload_wins(server: DoubleServer, mount: Mount) -> None:
    """What arrives of the upload is removed again."""
    async with mount(write_mode="back", write_back_s=0.0) as paths:
        with server.hold("put") as gate:
            await paths.create("f", b"1")
            await gate.wait_arrived()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(paths.unlink, "f")
                await trio.testing.wait_all_tasks_blocked(0.05)
                gate.open()
        assert await paths.fs.drain(60) == 0
        assert server.bucket.objects == {}
        assert await paths.ls() == []


async def test_writing_during_the_upload_is_sent_after_it(server: DoubleServer, mount: Mount) -> None:
    """A writer waits for the upload of what was closed before; its own bytes follow."""
    async with mount(write_mode="back", write_back_s=0.0) as paths:
        with server.hold("put") as gate:
            await paths.create("f", b"first")
            await gate.wait_arrived()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(paths.overwrite, "f", b"second")
                nursery.start_soon(paths.setattr, "f", AttributeChange(mode=0o600))
                await trio.testing.wait_all_tasks_blocked(0.05)
                gate.open()
        assert await paths.fs.drain(60) == 0
        assert server.bucket.objects["f"].data == b"second"
        assert server.bucket.record("f").posix.mode == 0o600


async def test_a_reader_has_one_version_while_it_is_sent(mount: Mount) -> None:
    """The staged file becomes cached content under an open handle."""
    data = os.urandom(300_000)
    async with mount(write_mode="back", write_back_s=0.0) as paths:
        await paths.create("f", data)
        async with paths.open("f") as handle:
            begin = await paths.fs.files.read(handle, 0, 100_000)
            assert await paths.fs.drain(60) == 0
            await paths.fs.core.contents.drop_clean()
            assert begin + await paths.fs.files.read(handle, 100_000, 300_000) == data
