from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from exaifs.errors import (
    FileTooLarge,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotPermitted,
    Unauthorized,
    Unreachable,
)
from exaifs.handler.service import FileService
from tests.handler.conftest import Double, Write

pytestmark = pytest.mark.anyio

LARGE = os.urandom(300_000)


async def upload(service: FileService, path: Path, metadata: Mapping[str, Any] | None = None) -> str:
    """Upload without progress."""
    return await service.upload_file(path, metadata, None)


async def test_where_files_go(service: FileService, local: Write) -> None:
    """By path, by conversation, else kept apart by content; names are encoded as in a mount."""
    path = local("größe.txt", b"hello")
    for metadata, expected in (
        ({"path": "a/b.md"}, "a/b.md"),
        ({"path": "/a/"}, "a/größe.txt"),
        ({"path": "/"}, "größe.txt"),
        ({"path": "a/é/", "continuation_id": "c1"}, "a/é/größe.txt"),
        ({"continuation_id": "c/2 ü".replace("/", "-")}, "uploads/c-2 ü/größe.txt"),
        (None, "files/2cf24dba5fb0a30e/größe.txt"),
        ({"file_type": "generated"}, "generated/2cf24dba5fb0a30e/größe.txt"),
    ):
        info = await service.stat(await upload(service, path, metadata))
        assert (info.path, info.name, info.size_bytes) == (expected, Path(expected).name, 5)
        assert (await service.stat(info.path)) == info


async def test_what_is_kept(service: FileService, local: Write, double: Double) -> None:
    """Metadata are merged into the row's; a conversation is linked; mtime and type are the file's."""
    path = local("a.json", b'{"a": 1}')
    os.utime(path, ns=(0, 1_600_000_000_123_456_789))
    file_id = await upload(service, path, {"continuation_id": "c1", "tags": ["x"], "n": 1})
    assert await upload(service, path, {"continuation_id": "c1", "n": None, "more": "é"}) == file_id
    info = await service.stat(file_id)
    assert info.metadata == {
        "continuation_id": "c1",
        "tags": ["x"],
        "more": "é",
        "file_type": "user_upload",
    }
    assert info.mime_type == "application/json"
    assert double.files.conversations == {"c1": {file_id}}
    record = double.server.bucket.record("uploads/c1/a.json")
    assert record.posix.mtime_ns == 1_600_000_000_123_456_789


async def test_what_was_given_comes_back(service: FileService, local: Write) -> None:
    """What was said of a file with its upload is told with its download; what exaifs knows goes first."""
    given = {"topic": "tax", "pages": [1, None], "size_bytes": "many"}
    file_id = await upload(service, local("a.txt", b"abc"), given)
    _, metadata = await service.download_file(file_id)
    assert (metadata["topic"], metadata["pages"], metadata["size_bytes"]) == ("tax", [1, None], 3)
    assert metadata["metadata"] == {**given, "file_type": "user_upload"}


async def test_what_came_back_may_be_given_again(service: FileService, local: Write) -> None:
    """Downloaded and uploaded again: the same file, which keeps what was said of it and nothing more."""
    given = {"continuation_id": "c1", "topic": "tax", "size_bytes": "many"}
    file_id = await upload(service, local("a.txt", b"abc"), given)
    for data in (b"abcd", b"abcde"):
        _, metadata = await service.download_file(file_id)
        assert await upload(service, local("other.txt", data), {**metadata, "topic": "law"}) == file_id
    _, metadata = await service.download_file(file_id)
    assert metadata["metadata"] == {**given, "topic": "law", "file_type": "user_upload"}
    assert metadata["size_bytes"] == 5
    copy = await upload(service, local("other.txt", b"abcde"), {**metadata, "path": "copy.txt"})
    assert (await service.stat(copy)).metadata == metadata["metadata"]


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ({"path": "a/../b"}, InvalidArgument),
        ({"path": ""}, InvalidArgument),
        ({"path": "a//b"}, InvalidArgument),
        ({"path": ".exaifs/status.json"}, InvalidArgument),
        ({"path": "x" * 256}, NameTooLong),
        ({"path": 7}, InvalidArgument),
        ({"continuation_id": ".."}, InvalidArgument),
        ({"continuation_id": "a/b"}, InvalidArgument),
        ({"continuation_id": 4}, InvalidArgument),
        ({"file_type": "other"}, InvalidArgument),
        ({"expires_at": "tomorrow"}, InvalidArgument),
        ({"expires_at": "2026-02-31T12:00:00Z"}, InvalidArgument),
        ({"expires_at": 1780000000}, InvalidArgument),
        ({"x": float("nan")}, InvalidArgument),
        ({"x": object()}, InvalidArgument),
        ({"when": datetime.now(UTC)}, InvalidArgument),
        ({"expires_at": datetime.now(UTC)}, InvalidArgument),
        ({"path": "\ud800"}, InvalidArgument),
        ({"x": {"y": ["a\0b"]}}, InvalidArgument),
        ({"a\0b": 1}, InvalidArgument),
        ({"x": "\ud800"}, InvalidArgument),
        ({"version": "1"}, InvalidArgument),
        ({"posix": {"mode": 0o777}}, InvalidArgument),
        (["topic"], InvalidArgument),
    ],
)
async def test_wishes_that_cannot_be(
    service: FileService, local: Write, double: Double, metadata: dict[str, Any], error: type[Exception]
) -> None:
    """Refused before anything is asked or sent."""
    with pytest.raises(error) as caught:
        await upload(service, local("a", b"x"), metadata)
    assert not double.server.counts
    if "when" in metadata:
        assert "'when' is none" in str(caught.value)


async def test_a_file_never_hides_others(service: FileService, local: Write, double: Double) -> None:
    """Neither at the path of a directory nor below a file: a mount could show only one of the two."""
    await upload(service, local("a", b"x"), {"path": "é/f/a"})
    for path, error in (("é/f", IsADirectory), ("é", IsADirectory), ("é/f/a/b/c", NotADirectory)):
        with pytest.raises(error, match="é"):
            await upload(service, local("b", b"y"), {"path": path})
    assert list(double.server.bucket.objects) == ["=C3=A9/f/a"]


async def test_what_is_no_file(service: FileService, local: Write, tmp_path: Path) -> None:
    """Local trouble is the local error."""
    os.mkfifo(tmp_path / "fifo")
    for path, error in (
        (tmp_path / "none", FileNotFoundError),
        (local("a", b"").parent, IsADirectory),
        (tmp_path / "fifo", NotPermitted),
    ):
        with pytest.raises(error):
            await upload(service, path)


async def test_identical_content_is_not_sent_again(
    service: FileService, local: Write, double: Double
) -> None:
    """At the same path it costs a look; other bytes are sent, and the file keeps its id."""
    first = await upload(service, local("a", b"one"), {"path": "a"})
    assert await upload(service, local("other", b"one"), {"path": "a"}) == first
    assert double.server.counts["put"] == 1
    assert await upload(service, local("a", b"two"), {"path": "a"}) == first
    assert double.server.counts["put"] == 2
    assert (await service.download_file(first))[0] == b"two"
    double.server.counts.clear()
    await upload(service, local("a", b"two"), {"path": "a"})
    assert double.server.counts == {"stat": 1}


async def test_known_content_is_copied_on_the_server(
    service: FileService, local: Write, double: Double
) -> None:
    """Large content under another path is not sent; the copy has its own time, and no one's attributes."""
    await upload(service, local("a.bin", LARGE), {"path": "a.bin"})
    double.server.bucket.rows["a.bin"].xattrs["user.x"] = b"1"
    path = local("b.bin", LARGE)
    os.utime(path, ns=(0, 5))
    info = await service.stat(await upload(service, path, {"path": "b.bin"}))
    assert (double.server.counts["put"], double.server.counts["copy"]) == (1, 1)
    record = double.server.bucket.record("b.bin")
    assert (record.posix.mtime_ns, dict(record.xattrs), record.sha256) == (5, {}, info.sha256)
    await upload(service, local("c.txt", LARGE), {"path": "c.txt"})
    assert double.server.counts["copy"] + double.server.counts["put"] == 3


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["small", "large"])
async def test_twenty_uploads_of_one_content(
    service: FileService, local: Write, double: Double, data: bytes
) -> None:
    """At the same time to one path: one is sent, all get its id."""
    path = local("a", data)
    ids: set[str] = set()

    async def once() -> None:
        ids.add(await upload(service, path))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(once)
    assert (len(ids), double.server.counts["put"]) == (1, 1)


async def test_twenty_places_for_one_content(service: FileService, local: Write, double: Double) -> None:
    """At the same time to twenty paths: one is sent, the server copies the others."""
    path = local("a", LARGE)
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(upload, service, path, {"path": f"d/{number}"})
    assert (double.server.counts["put"], double.server.counts["copy"]) == (1, 19)
    assert {record.sha256 for record in map(double.server.bucket.record, double.server.bucket.objects)} == {
        double.server.bucket.record("d/0").sha256
    }


async def test_progress(service: FileService, local: Write, double: Double) -> None:
    """Told as bytes leave, never less than before, and whole at the end; also where nothing is sent."""
    told: list[tuple[int, int]] = []
    path = local("a", LARGE)
    await service.upload_file(path, {"path": "a"}, lambda *step: told.append(step))
    assert told[-1] == (300_000, 300_000)
    assert told == sorted(told)
    assert len(told) > 2
    told.clear()
    await service.upload_file(path, {"path": "a"}, lambda *step: told.append(step))
    assert told == [(300_000, 300_000)]
    assert double.server.counts["put"] == 1


async def test_progress_may_end_the_upload(service: FileService, local: Write, double: Double) -> None:
    """What it raises reaches the caller, and nothing is stored."""

    def stop(*_step: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError):
        await service.upload_file(local("a", LARGE), {"path": "a"}, stop)
    assert not double.server.bucket.objects


async def test_cancellation(service: FileService, local: Write, double: Double) -> None:
    """A cancelled upload leaves neither an object nor a copy, and the next one is not held up."""
    path = local("a", LARGE)
    with double.server.hold("put") as gate:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(upload, service, path, {"path": "a"})
            await gate.wait_arrived()
            tasks.cancel_scope.cancel()
    assert not double.server.bucket.objects
    assert list(double.base.glob("cache/*/clients/0/staging/*")) == []
    with anyio.fail_after(60):
        await upload(service, path, {"path": "a"})


async def test_a_file_that_changes_meanwhile(service: FileService, local: Write, double: Double) -> None:
    """What is sent is what was there at the beginning, whole."""
    path = local("a", LARGE)
    with double.server.hold("put") as gate:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(upload, service, path, {"path": "a"})
            await gate.wait_arrived()
            path.write_bytes(b"changed")
            gate.open()
    assert double.server.bucket.objects["a"].data == LARGE


async def test_errors_of_the_server(service: FileService, local: Write, double: Double) -> None:
    """They are raised, and the next attempt does what is left."""
    path = local("a", b"x" * 2000)
    double.server.inject("put", Unreachable("cut"), after=True)
    with pytest.raises(Unreachable):
        await upload(service, path, {"path": "a"})
    await upload(service, path, {"path": "a"})
    assert double.server.counts["put"] == 1
    double.server.inject("put", Unauthorized("no"))
    with pytest.raises(Unauthorized):
        await upload(service, path, {"path": "b"})
    assert list(double.base.glob("cache/*/clients/0/staging/*")) == []


async def test_the_buckets_limit(double: Double, local: Write) -> None:
    """Too large a file is refused before it is sent."""
    double.server.bucket.size_limit_bytes = 1000
    async with double.open() as service:
        with pytest.raises(FileTooLarge):
            await upload(service, local("a", b"x" * 1001))
    assert double.server.counts["put"] == 0
