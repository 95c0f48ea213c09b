"""Rules of `FileCatalog`, run on every implementation."""

from __future__ import annotations

import os

import pytest

from exaifs.errors import NotFound
from exaifs.names import PLACEHOLDER
from exaifs.remote.files import FileCatalog, FileRow
from tests.support.world import World, upload_of, write

ABSENT = "00000000-0000-4000-8000-000000000000"


async def _pages(files: FileCatalog, prefix: str, limit: int) -> list[str]:
    found, after = [], ""
    while True:
        page = await files.list_files(prefix, after, limit)
        assert len(page.files) <= limit
        found += [row.record.key.removeprefix(prefix) for row in page.files]
        if page.next_after is None:
            return found
        after = page.next_after


class FilesContract:
    """Every test states a rule of `exaifs.remote.files.FileCatalog`. Subclasses provide both fixtures."""

    async def test_files_by_id_and_key(self, world: World, files: FileCatalog) -> None:
        """The id follows a move; absence is None."""
        record = await write(world.remote, f"{world.prefix}a", b"x")
        assert record.file_id is not None
        row = FileRow(record, {})
        assert await files.by_id(record.file_id) == await files.by_key(record.key) == row
        await world.remote.objects.move(record.key, f"{world.prefix}b")
        moved = await files.by_id(record.file_id)
        assert moved is not None
        assert moved.record.key == f"{world.prefix}b"
        assert await files.by_key(record.key) is None
        for file_id in (ABSENT, "", "no id"):
            assert await files.by_id(file_id) is None

    async def test_files_metadata(self, world: World, files: FileCatalog) -> None:
        """Merged; None takes away; kept when the bytes change; the keys of exaifs cannot be set."""
        record = await write(world.remote, f"{world.prefix}a", b"x")
        await files.annotate(record.key, {"a": {"é": [1, None]}, "b": 2, "write_id": "w"})
        row = await files.annotate(record.key, {"b": None, "c": "x"})
        assert row == FileRow(record, {"a": {"é": [1, None]}, "c": "x"})
        await write(world.remote, record.key, b"other")
        again = await files.by_key(record.key)
        assert again is not None
        assert again.metadata == row.metadata
        with pytest.raises(NotFound):
            await files.annotate(f"{world.prefix}none", {})

    async def test_files_by_content(self, world: World, files: FileCatalog) -> None:
        """Found by hash and type together."""
        data = os.urandom(20)
        record = await write(world.remote, f"{world.prefix}a", data)
        assert record.sha256 is not None
        assert list(await files.find_content(record.sha256, "text/plain")) == [record]
        assert list(await files.find_content(record.sha256, "image/png")) == []

    async def test_files_are_listed(self, world: World, files: FileCatalog) -> None:
        """In key order, directories below included, markers left out, in pages."""
        for name in ("b", "a/c", "a/b", "c"):
            await write(world.remote, f"{world.prefix}{name}", b"x")
        await world.put_as_other(f"{world.prefix}a/empty/{PLACEHOLDER}", b"", "inode/directory")
        for limit in (1, 2, 100):
            assert await _pages(files, world.prefix, limit) == ["a/b", "a/c", "b", "c"]
        assert await _pages(files, f"{world.prefix}a/", 100) == ["b", "c"]

    async def test_files_are_found(self, world: World, files: FileCatalog) -> None:
        """By part of the name, start of the type or of the hash; in pages."""
        word = os.urandom(6).hex()
        keys = [f"{world.prefix}Zz{word}{number}.txt" for number in range(3)]
        records = [await write(world.remote, key, os.urandom(9)) for key in keys]
        first = await files.search_files(f"ZZ{word}", "", 2)
        assert [row.record for row in first.files] == records[:2]
        assert first.next_after is not None
        rest = await files.search_files(f"zz{word}", first.next_after, 2)
        assert ([row.record for row in rest.files], rest.next_after) == (records[2:], None)
        assert records[0].sha256 is not None
        by_hash = await files.search_files(records[0].sha256[:40].upper(), "", 9)
        assert [row.record for row in by_hash.files] == records[:1]
        typed = f"application/x-{word}"
        await write(world.remote, f"{world.prefix}t", b"x", upload_of(b"x", mime_type=typed))
        by_type = await files.search_files(typed[:-2], "", 9)
        assert [row.record.key for row in by_type.files] == [f"{world.prefix}t"]

    async def test_files_are_linked(self, world: World, files: FileCatalog) -> None:
        """Once; the first conversation is noted in the metadata."""
        record = await write(world.remote, f"{world.prefix}a", b"x")
        assert record.file_id is not None
        one, two = (f"{world.prefix}{number}" for number in (1, 2))
        answers = [await files.link(record.file_id, conversation) for conversation in (one, one, two)]
        assert answers == [True, False, True]
        row = await files.by_key(record.key)
        assert row is not None
        assert row.metadata == {"continuation_id": one}
        with pytest.raises(NotFound):
            await files.link(ABSENT, one)
        await world.remote.objects.remove([record.key])
        for conversation in (one, two):
            await world.delete_conversation(conversation)
