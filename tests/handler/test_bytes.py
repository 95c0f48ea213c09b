"""What servers for other programs build on: bytes in, parts out, files by any path that is shown."""

from __future__ import annotations

import os

import pytest

from exaifs.errors import Exists, NotFound
from exaifs.handler.service import FileService
from tests.handler.conftest import Double
from tests.support.world import write

pytestmark = pytest.mark.anyio


async def test_bytes_are_put_at_their_path(service: FileService) -> None:
    """New bytes are created, the same ones are not sent again, others replace only if they may."""
    row, outcome = await service.upload_bytes(b"one", {"path": "a/ä.txt"}, None, replace=False)
    assert (outcome, row.record.mime_type, row.metadata["file_type"]) == (
        "created",
        "text/plain",
        "user_upload",
    )
    same, outcome = await service.upload_bytes(b"one", {"path": "a/ä.txt"}, None, replace=False)
    assert (outcome, same.record.version) == ("unchanged", row.record.version)
    with pytest.raises(Exists):
        await service.upload_bytes(b"two", {"path": "a/ä.txt"}, None, replace=False)
    other, outcome = await service.upload_bytes(b"two", {"path": "a/ä.txt"}, None, replace=True)
    assert (outcome, other.record.file_id) == ("replaced", row.record.file_id)
    assert (await service.download_file(other.record.file_id or ""))[0] == b"two"
    typed, outcome = await service.upload_bytes(b"two", {"path": "a/ä.txt"}, "text/csv", replace=True)
    assert (outcome, typed.record.mime_type) == ("replaced", "text/csv")


async def test_parts_are_of_one_version(service: FileService) -> None:
    """A part is cut at the end of the file; an empty part is no request."""
    data = os.urandom(300_000)
    row, _ = await service.upload_bytes(data, {"path": "big.bin"}, None, replace=True)
    ref = row.record.ref
    assert await service.read_part(ref, 100_000, 70_000) == data[100_000:170_000]
    assert await service.read_part(ref, 299_990, 70_000) == data[299_990:]
    assert await service.read_part(ref, 300_000, 10) == b""
    assert (await service.read_whole(row.record.file_id or ""))[0] == data


async def test_files_are_found_by_what_is_shown(service: FileService, double: Double) -> None:
    """Also keys that another client made, and that no name is escaped to."""
    await write(double.server.remote(), "raw=41.txt", b"raw")
    page = await service.list_files("", 10, None)
    assert [file.path for file in page.files] == ["raw=41.txt"]
    found = await service.at("/raw=41.txt")
    assert found is not None
    assert found.record.size_bytes == 3
    assert await service.at("nothing") is None
    with pytest.raises(NotFound):
        await service.stat("nothing")
