from __future__ import annotations

import math
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import anyio
import pytest

from exaifs.errors import ConfigError, IntegrityError, InvalidArgument, NotFound, Stale, Unreachable
from exaifs.handler.service import FileService
from tests.handler.conftest import Double, Write

pytestmark = pytest.mark.anyio

LARGE = os.urandom(3_000_001)


def put(double: Double, key: str, data: bytes) -> str:
    """Store an object as another client; return its id."""
    file_id = double.server.bucket.put(key, data).file_id
    assert file_id is not None
    return file_id


def left_in(directory: Path, pattern: str) -> list[str]:
    """Return the names in a directory that match."""
    return [path.name for path in directory.glob(pattern)]


@pytest.mark.parametrize("data", [b"", b"small", LARGE], ids=["empty", "small", "large"])
async def test_download(service: FileService, double: Double, tmp_path: Path, data: bytes) -> None:
    """Bytes and what is known of them; the second time from the cache; to a path as well."""
    file_id = put(double, "d/a=C3=A9.txt", data)
    found, metadata = await service.download_file(file_id)
    assert found == data
    assert metadata["path"] == "d/aé.txt"
    assert (metadata["name"], metadata["size_bytes"]) == ("aé.txt", len(data))
    assert (metadata["file_id"], metadata["mime_type"]) == (file_id, "text/plain")
    assert datetime.now(UTC) - datetime.fromisoformat(metadata["updated_at"]) < timedelta(hours=1)
    gets = double.server.counts["get"]
    told: list[tuple[int, int]] = []
    target = tmp_path / "target"
    target.write_bytes(b"before")
    info = await service.download_to(file_id, target, lambda *step: told.append(step))
    assert (target.read_bytes(), info.to_dict()) == (data, metadata)
    assert told == sorted(told)
    assert told[-1] == (len(data), len(data))
    assert double.server.counts["get"] == gets
    assert left_in(tmp_path, ".*part") == []


async def test_what_was_uploaded_is_cached(service: FileService, local: Write, double: Double) -> None:
    """Reading one's own upload asks for no bytes."""
    file_id = await service.upload_file(local("a", LARGE), None, None)
    assert (await service.download_file(file_id))[0] == LARGE
    assert double.server.counts["get"] == 0


@pytest.mark.parametrize("size", [1000, len(LARGE)], ids=["small", "large"])
async def test_damaged_on_the_way(service: FileService, local: Write, double: Double, size: int) -> None:
    """Bytes that are not those of the row are fetched again, and never handed out."""
    file_id = await service.upload_file(local("a", LARGE[:size]), None, None)
    async with double.open("other") as other:
        double.server.corrupt_downloads()
        data, _ = await other.download_file(file_id)
    assert data == LARGE[:size]


async def test_a_row_that_lies(service: FileService, local: Write, double: Double, tmp_path: Path) -> None:
    """A hash that is not that of the object is an error, and the path stays as it was."""
    file_id = await service.upload_file(local("a", LARGE), {"path": "a"}, None)
    stored = double.server.bucket.objects["a"]
    stored.data, stored.version = LARGE[::-1], "v-other"
    async with double.open("other") as other:
        for _ in range(2):
            with pytest.raises(IntegrityError):
                await other.download_to(file_id, tmp_path / "target", None)
    assert not (tmp_path / "target").exists()
    assert left_in(tmp_path, ".*part") == []


async def test_replaced_while_it_is_read(service: FileService, double: Double) -> None:
    """The new version is read from its beginning; one that is replaced all the time is stale."""
    file_id = put(double, "a", LARGE)
    found: list[bytes] = []

    async def read() -> None:
        found.append((await service.download_file(file_id))[0])

    async with anyio.create_task_group() as tasks:
        with double.server.hold("get") as gate:
            tasks.start_soon(read)
            await gate.wait_arrived()
            double.server.bucket.put("a", b"new" * 400_000)
    assert found == [b"new" * 400_000]
    double.server.inject("get", Stale("again"), times=99)
    double.server.bucket.put("a", b"newest")
    with pytest.raises(Stale):
        await service.download_file(file_id)


async def test_a_cancelled_download(service: FileService, double: Double, tmp_path: Path) -> None:
    """Leaves nothing, and the next one works."""
    file_id = put(double, "a", LARGE)
    async with anyio.create_task_group() as tasks:
        with double.server.hold("get") as gate:
            tasks.start_soon(service.download_to, file_id, tmp_path / "target", None)
            await gate.wait_arrived()
            tasks.cancel_scope.cancel()
    assert left_in(tmp_path, "*target*") == []
    with anyio.fail_after(60):
        await service.download_to(file_id, tmp_path / "target", None)
    assert (tmp_path / "target").read_bytes() == LARGE


async def test_cleaning_by_any_number(service: FileService, local: Write) -> None:
    """Infinity keeps all; what is no number from 0 is refused."""
    await service.upload_file(local("a", b"x"), None, None)
    kept = await service.cleanup_cache(math.inf, math.inf)
    assert (kept["kept"], kept["expired"], kept["evicted"]) == (1, 0, 0)
    for age, size in ((-1, 0), (0, -1), (math.nan, 0), (0, math.nan)):
        with pytest.raises(InvalidArgument):
            await service.cleanup_cache(age, size)


async def test_without_room_on_disk(double: Double) -> None:
    """A cache that may keep nothing costs requests, not bytes."""
    file_id = put(double, "a", LARGE)
    async with double.open(disk_cache_mb=0) as service:
        assert (await service.download_file(file_id))[0] == LARGE
        statistics = await service.cleanup_cache(0, 0)
    assert statistics["kept"] == 0


async def test_looking(service: FileService, double: Double, local: Write) -> None:
    """Pages of a prefix, with what is below; searching by name, type and hash."""
    for name in ("a.txt", "b.txt", "c.txt"):
        await service.upload_file(local(name, name.encode()), {"path": "d é/"}, None)
    await service.upload_file(local("e.png", b"\x89PNG\r\n\x1a\n"), {"path": "e.png"}, None)
    double.server.bucket.put("d =C3=A9/empty/.emptyFolderPlaceholder", b"")
    paths, cursor = [], None
    while True:
        page = await service.list_files("d é/", 2, cursor)
        paths += [file.path for file in page.files]
        cursor = page.cursor
        if cursor is None:
            break
    assert paths == ["d é/a.txt", "d é/b.txt", "d é/c.txt"]
    assert [file.path for file in (await service.list_files("d", 10, None)).files] == paths
    assert [file.name for file in (await service.search_files("B.TX", 10, None)).files] == ["b.txt"]
    assert [file.name for file in (await service.search_files("image/", 10, None)).files] == ["e.png"]
    png = await service.stat("e.png")
    assert png.sha256 is not None
    assert (await service.search_files(png.sha256[:12], 10, None)).files == (png,)
    for limit in (0, 1001, 1.5, True):
        with pytest.raises(InvalidArgument):
            await service.list_files("", cast("int", limit), None)
    for path in ("\ud800", "d/\ud800"):
        for attempt in (service.stat(path), service.list_files(path, 10, None)):
            with pytest.raises(InvalidArgument, match="not a file name"):
                await attempt


@pytest.mark.parametrize("file_id", ["", "no id", "a\0b", "\ud800", "x" * 5000])
async def test_what_is_no_id(service: FileService, double: Double, tmp_path: Path, file_id: str) -> None:
    """No file has it; the database, which may not even hold such a text, is not asked."""
    for attempt in (
        service.download_file(file_id),
        service.download_to(file_id, tmp_path / "x", None),
        service.delete_file(file_id),
        service.link_file_to_conversation(file_id, "c"),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert not set(double.server.counts) - {"hello"}


async def test_texts_that_no_row_has(service: FileService, double: Double) -> None:
    """Refused before anything is asked, with what is wrong."""
    for text in ("a\0b", "\ud800"):
        for attempt in (
            service.list_files("", 10, text),
            service.search_files(text, 10, None),
            service.search_files("a", 10, text),
            service.link_file_to_conversation(put(double, "a", b"x"), text),
        ):
            with pytest.raises(InvalidArgument, match=r"^a (cursor|query|continuation id) must"):
                await attempt
    assert not double.server.counts


async def test_deleting_and_linking(service: FileService, double: Double) -> None:
    """Both by id, wherever the file was moved; a link is made once."""
    file_id = put(double, "a", b"x")
    double.server.bucket.move("a", "b")
    assert await service.link_file_to_conversation(file_id, "c1")
    assert not await service.link_file_to_conversation(file_id, "c1")
    await service.delete_file(file_id)
    assert not double.server.bucket.objects


async def test_no_such_file(service: FileService, double: Double, tmp_path: Path) -> None:
    """Absence is an error of its own; an outage is another."""
    file_id = "00000000-0000-4000-8000-000000000000"
    for attempt in (
        lambda: service.download_file(file_id),
        lambda: service.download_to(file_id, tmp_path / "x", None),
        lambda: service.delete_file(file_id),
        lambda: service.stat(file_id),
        lambda: service.stat("no/such/file"),
        lambda: service.link_file_to_conversation(file_id, "c"),
    ):
        with pytest.raises(NotFound):
            await attempt()
        double.server.online = False
        with pytest.raises(Unreachable):
            await attempt()
        double.server.online = True
    with pytest.raises(ConfigError, match="EXAIFS_PROVIDERS"):
        await service.get_provider_file_id(file_id, "kimi")
