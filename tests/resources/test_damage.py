"""A bit flips on the cache disk: it is found before anybody gets it, and before anything is sent."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import trio

from exaifs.errors import NotFound
from exaifs.model import ObjectRef
from tests.support.double import DoubleServer
from tests.support.paths import Paths, mounted

pytestmark = pytest.mark.anyio

DATA = random.Random(7).randbytes(300_000)
LARGE = random.Random(8).randbytes(3_000_000)


def flip(path: Path, offset: int) -> None:
    """Flip one bit."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


def content_of(cache: Path, size_bytes: int) -> Path:
    """Return the one content of that size."""
    (path,) = [path for path in (cache / "content").glob("*/*") if path.stat().st_size == size_bytes]
    return path


@pytest.mark.parametrize("data", [DATA, LARGE], ids=["small", "large"])
async def test_what_was_uploaded_and_kept(server: DoubleServer, tmp_path: Path, data: bytes) -> None:
    """Right bytes or an error: a staged file that became cached content is compared with its name again."""
    cache = tmp_path / "cache"
    async with mounted(server, cache) as paths:
        await paths.create("a", data)
        downloads = server.counts["get"]
        assert await paths.read("a") == data
        assert server.counts["get"] == downloads, "it is cached"
    for offset in (0, len(data) // 2, len(data) - 1):
        flip(content_of(cache, len(data)), offset)
        async with mounted(server, cache) as paths:
            downloads = server.counts["get"]
            assert await paths.read("a") == data
            assert server.counts["get"] > downloads
            await paths.fs.core.contents.materialize(_ref(paths))
        assert content_of(cache, len(data)).read_bytes() == data


def _ref(paths: Paths) -> ObjectRef:
    entry = paths.fs.core.index.child("", "a")
    assert entry is not None
    return entry.ref


@pytest.mark.parametrize("when", ["before the next run", "while it waits"])
@pytest.mark.parametrize("order", [(0, 150_000), (150_000, 0)], ids=["in order", "not in order"])
@pytest.mark.parametrize("replaces", [False, True])
async def test_what_waits_to_be_sent(
    server: DoubleServer, tmp_path: Path, when: str, order: tuple[int, int], *, replaces: bool
) -> None:
    """Damaged staged bytes are never sent: they are set aside and named, what is in the bucket stays."""
    cache = tmp_path / "cache"
    if replaces:
        server.bucket.put("a", b"there before")
    async with mounted(server, cache, drain_s=0) as paths:
        await paths.ls()
        server.online = False
        flags = os.O_WRONLY | (os.O_TRUNC if replaces else os.O_CREAT)
        async with paths.open("a", flags) as handle:
            for start in order:
                await paths.write_all(handle, DATA[start : start + 150_000], start)
        if when == "while it waits":
            await _flip_and_send(server, cache, paths)
    if when != "while it waits":
        (staged,) = (cache / "staging").glob("*.data")
        flip(staged, 1000)
    server.online = True
    async with mounted(server, cache) as paths:
        await _settled(paths)
        if replaces:
            assert await paths.read("a") == b"there before"
        else:
            with pytest.raises(NotFound):
                await paths.stat("a")
    there = {key: stored.data for key, stored in server.bucket.objects.items()}
    assert there == ({"a": b"there before"} if replaces else {})
    (description,) = (cache / "conflicts").glob("*.json")
    conflict = json.loads(description.read_text())
    assert "damaged" in conflict["reason"]
    assert conflict["path"] == "a"
    kept = description.with_suffix(".data").read_bytes()
    assert sum(a != b for a, b in zip(kept, DATA, strict=True)) == 1
    assert list((cache / "staging").iterdir()) == []


async def _flip_and_send(server: DoubleServer, cache: Path, paths: Paths) -> None:
    (staged,) = (cache / "staging").glob("*.data")
    flip(staged, 1000)
    server.online = True
    await _settled(paths)


async def _settled(paths: Paths) -> None:
    with trio.fail_after(60):
        while await paths.fs.drain(1):  # noqa: ASYNC110 - it is tried again after a while
            await trio.sleep(0.05)
