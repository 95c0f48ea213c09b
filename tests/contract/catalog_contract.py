"""Rules of `Catalog`, run on every implementation. Subclasses only provide the `world` fixture."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest

from exaifs.errors import NotFound
from exaifs.model import SYMLINK_MIME, ObjectRecord, Posix
from exaifs.names import PLACEHOLDER
from exaifs.remote.bodies import BytesBody
from exaifs.remote.interface import Access, Folder, RowPatch
from tests.support.world import World, changes_of, cursor_now, find, read, upload_of, write


async def _walk(world: World, prefix: str, limit: int) -> tuple[list[ObjectRecord], list[Folder]]:
    records: list[ObjectRecord] = []
    folders: list[Folder] = []
    after = ""
    while True:
        page = await world.remote.catalog.list_directory(prefix, after, limit)
        assert len(page.records) + len(page.folders) <= limit
        records += page.records
        folders += page.folders
        if page.next_after is None:
            return records, folders
        assert page.next_after != after
        after = page.next_after


class CatalogContract:
    """Every test states a rule of `exaifs.remote.interface.Catalog`."""

    async def test_hello(self, world: World) -> None:
        """A good key learns what the server can do."""
        hello = await world.remote.catalog.hello()
        assert hello.schema_version >= 1
        assert hello.size_limit_bytes == 50 * 1024 * 1024
        assert not hello.public
        assert hello.trigger_installed
        assert hello.bucket_registered
        small = await world.small.catalog.hello()
        assert small.size_limit_bytes == 1000

    async def test_record_is_complete(self, world: World) -> None:
        """After put and commit the record says everything that was sent, and what the server knows."""
        key = f"{world.prefix}full.md"
        upload = upload_of(
            b"# text", mime_type="text/markdown", xattrs={"color": b"\x00\xffred", "größe": b""}
        )
        before_ns = time.time_ns()
        await world.remote.objects.put(key, BytesBody(b"# text"), upload)
        committed = await world.remote.catalog.commit(key, upload, local_cache_path="ab/cdef")
        found = await find(world.remote, key)
        assert found == committed
        assert committed.key == key
        assert committed.version
        assert committed.size_bytes == 6
        assert committed.mime_type == "text/markdown"
        assert committed.etag
        assert committed.file_id
        assert committed.sha256 == upload.sha256
        assert committed.write_id == upload.write_id
        assert committed.posix == upload.posix
        assert dict(committed.xattrs) == dict(upload.xattrs)
        assert dict(committed.provider_file_ids) == {}
        # The server's clock is its own, so only roughly ours.
        assert abs(committed.created_ns - before_ns) < 3600 * 10**9
        assert committed.updated_ns >= committed.created_ns

    async def test_commit_repeated(self, world: World) -> None:
        """A commit whose answer was lost may be sent again."""
        key = f"{world.prefix}twice"
        upload = upload_of(b"x")
        first = await write(world.remote, key, b"x", upload)
        assert await world.remote.catalog.commit(key, upload) == first

    async def test_commit_without_size(self, world: World) -> None:
        """A commit that does not know the size gets a complete row all the same."""
        upload = replace(upload_of(b"content"), size_bytes=None)
        record = await write(world.remote, f"{world.prefix}a", b"content", upload)
        assert (record.sha256, record.write_id) == (upload.sha256, upload.write_id)

    async def test_commit_after_another_write(self, world: World) -> None:
        """A commit never puts our hash on bytes that somebody wrote after us."""
        key = f"{world.prefix}raced"
        ours = upload_of(b"ours")
        await world.remote.objects.put(key, BytesBody(b"ours"), ours)
        await world.put_as_other(key, b"theirs, longer", "text/plain")
        record = await world.remote.catalog.commit(key, ours)
        assert (record.sha256, record.write_id, record.size_bytes) == (None, None, 14)

    async def test_commit_after_another_clients_write(self, world: World) -> None:
        """A client that records no hash wrote as many bytes after us: they do not get ours."""
        key = f"{world.prefix}race"
        await write(world.remote, key, b"ours")
        upload = upload_of(b"ours")
        await world.remote.objects.put(key, BytesBody(b"ours"), upload)
        found = await find(world.remote, key)
        if found is None or found.write_id != upload.write_id:
            pytest.skip("this server drops an upload's metadata: there is only the size to go by")
        await world.put_as_other(key, b"them", "text/plain")
        record = await world.remote.catalog.commit(key, upload)
        assert record.sha256 is None
        assert record == await find(world.remote, key)

    async def test_commit_of_nothing(self, world: World) -> None:
        """A commit finds out that somebody deleted the object meanwhile."""
        with pytest.raises(NotFound):
            await world.remote.catalog.commit(f"{world.prefix}missing", upload_of(b"x"))

    async def test_large_xattrs(self, world: World) -> None:
        """Attributes too long for a request header reach the row all the same."""
        xattrs = {f"name{number}": os.urandom(3000) for number in range(5)}
        record = await write(world.remote, f"{world.prefix}x", b"x", upload_of(b"x", xattrs=xattrs))
        assert dict(record.xattrs) == xattrs

    async def test_other_clients_upload(self, world: World) -> None:
        """Another client's object has a record: no hash, no attributes of ours, but an id and a size."""
        key = f"{world.prefix}theirs.txt"
        await world.put_as_other(key, b"theirs", "text/plain")
        record = await find(world.remote, key)
        assert record is not None
        assert (record.size_bytes, record.mime_type) == (6, "text/plain")
        assert (record.sha256, record.write_id, record.posix) == (None, None, Posix())
        assert record.file_id
        assert await read(world.remote, record.ref) == b"theirs"

    async def test_other_clients_overwrite(self, world: World) -> None:
        """Another client's bytes over ours take hash, write id and mtime away; the file id stays."""
        key = f"{world.prefix}shared.txt"
        ours = await write(world.remote, key, b"ours")
        await world.put_as_other(key, b"theirs", "text/plain")
        theirs = await find(world.remote, key)
        assert theirs is not None
        assert theirs.version != ours.version
        assert theirs.file_id == ours.file_id
        assert (theirs.sha256, theirs.write_id, theirs.posix.mtime_ns) == (None, None, None)
        assert await read(world.remote, theirs.ref) == b"theirs"

    async def test_kinds_survive(self, world: World) -> None:
        """A symbolic link and a folder marker come back as what they are, with their attributes."""
        link = upload_of(b"../target", mime_type=SYMLINK_MIME, posix=Posix(mode=0o777, kind="symlink"))
        record = await write(world.remote, f"{world.prefix}link", b"../target", link)
        assert record.posix == Posix(mode=0o777, kind="symlink")
        assert record.mime_type == SYMLINK_MIME
        marker = upload_of(b"", posix=Posix(mode=0o2750, uid=7, gid=8, mtime_ns=9, kind="dir"))
        await write(world.remote, f"{world.prefix}dir/{PLACEHOLDER}", b"", marker)
        _, folders = await _walk(world, world.prefix, 10)
        assert [folder.component for folder in folders] == ["dir"]
        assert folders[0].marker is not None
        assert folders[0].marker.posix == marker.posix

    # lists

    async def test_list_one_level(self, world: World) -> None:
        """A listing has the objects of one level and its folders, whatever sorts between them."""
        keys = ["a", "a.txt", "a-1", "a/x", "a/y/z", "a0", "A", "A/x", "b/c/d", "zz"]
        if not world.is_real:  # it keeps an object as a file, so none can be beside its folder
            keys = [key for key in keys if key not in {"a", "A"}]
        for key in keys:
            await world.put_as_other(f"{world.prefix}{key}", key.encode(), "text/plain")
        for limit in (1, 2, 3, 4, 5, 1000):
            records, folders = await _walk(world, world.prefix, limit)
            shown = [record.key.removeprefix(world.prefix) for record in records]
            assert shown == sorted(key for key in keys if "/" not in key)
            assert [folder.component for folder in folders] == ["A", "a", "b"]
            assert [folder.marker for folder in folders] == [None, None, None]
        records, folders = await _walk(world, f"{world.prefix}a/", 1000)
        assert [record.key for record in records] == [f"{world.prefix}a/x"]
        assert [folder.component for folder in folders] == ["y"]

    async def test_list_of_nothing(self, world: World) -> None:
        """A prefix without objects has an empty listing; only a good key gets that answer."""
        assert await _walk(world, f"{world.prefix}nothing/", 10) == ([], [])
        assert await world.remote.catalog.list_tree(f"{world.prefix}nothing/") == ((), None)

    async def test_prefixes_are_literal(self, world: World) -> None:
        """Characters that are wildcards elsewhere stand for themselves in a prefix."""
        await world.put_as_other(f"{world.prefix}a_b/x", b"x", "text/plain")
        await world.put_as_other(f"{world.prefix}aXb/x", b"x", "text/plain")
        records, _ = await _walk(world, f"{world.prefix}a_b/", 10)
        assert [record.key for record in records] == [f"{world.prefix}a_b/x"]
        tree, _ = await world.remote.catalog.list_tree(f"{world.prefix}a_")
        assert [record.key for record in tree] == [f"{world.prefix}a_b/x"]

    async def test_keys_with_empty_segments(self, world: World) -> None:
        """Such keys are listed as they are: what cannot be shown must be seen, to be counted."""
        if not world.is_real:
            pytest.skip("this server takes no such keys")
        cursor = await cursor_now(world.remote)
        keys = {f"{world.prefix}{tail}" for tail in ("a//b", "a//c/d", "a/good", "e/")}
        for key in keys:
            await world.put_as_other(key, b"x", "text/plain")
        records, folders = await _walk(world, f"{world.prefix}a/", 10)
        assert [record.key for record in records] == [f"{world.prefix}a/good"]
        assert [folder.component for folder in folders] == [""]
        records, folders = await _walk(world, f"{world.prefix}a/", 1)
        assert (len(records), len(folders)) == (1, 1)
        tree, _ = await world.remote.catalog.list_tree(f"{world.prefix}a//")
        assert {record.key for record in tree} == {f"{world.prefix}a//b", f"{world.prefix}a//c/d"}
        records, folders = await _walk(world, f"{world.prefix}e/", 10)
        assert [record.key for record in records] == [f"{world.prefix}e/"]
        assert set(await world.remote.catalog.stat(sorted(keys))) == keys
        assert set(await changes_of(world.remote, cursor, keys)) == keys

    async def test_list_tree(self, world: World) -> None:
        """A tree listing has everything below a prefix once, in key order, page by page."""
        parts = ["a/b", "a.b", "a0/c/d", "a-1", *(["a"] if world.is_real else [])]
        keys = sorted(f"{world.prefix}d/{part}" for part in parts)
        for key in keys:
            await world.put_as_other(key, b"x", "text/plain")
        await world.put_as_other(f"{world.prefix}dd", b"x", "text/plain")
        for limit in (1, 2, 5, 1000):
            found: list[str] = []
            after: str | None = ""
            while after is not None:
                records, after = await world.remote.catalog.list_tree(f"{world.prefix}d/", after, limit)
                assert len(records) <= limit
                found += [record.key for record in records]
            assert found == keys

    async def test_stat(self, world: World) -> None:
        """Stat returns what exists, and only that: exact keys, no prefixes."""
        record = await write(world.remote, f"{world.prefix}dir/file", b"x")
        keys = [record.key, f"{world.prefix}dir", f"{world.prefix}dir/", f"{world.prefix}DIR/file"]
        assert await world.remote.catalog.stat(keys) == {record.key: record}
        assert await world.remote.catalog.stat([]) == {}

    # rows

    async def test_patch_posix(self, world: World) -> None:
        """Attributes change without the bytes: same version, same hash."""
        record = await write(world.remote, f"{world.prefix}p", b"x")
        posix = Posix(mode=0o4711, uid=0, gid=4_294_967_294, mtime_ns=2**60 + 1)
        patched = await world.remote.catalog.patch(record.key, RowPatch(posix=posix))
        assert patched.posix == posix
        assert (patched.version, patched.sha256, patched.file_id) == (
            record.version,
            record.sha256,
            record.file_id,
        )
        assert await find(world.remote, record.key) == patched

    async def test_patch_xattrs(self, world: World) -> None:
        """Attributes are set, replaced and dropped one by one; dropping a missing one is no error."""
        upload = upload_of(b"x", xattrs={"keep": b"1", "drop": b"2", "change": b"3"})
        record = await write(world.remote, f"{world.prefix}x", b"x", upload)
        patch = RowPatch(
            set_xattrs={"change": bytes(range(256)), "new": b""}, drop_xattrs=["drop", "absent"]
        )
        patched = await world.remote.catalog.patch(record.key, patch)
        assert dict(patched.xattrs) == {"keep": b"1", "change": bytes(range(256)), "new": b""}
        assert patched.posix == record.posix

    async def test_patch_survives_a_move(self, world: World) -> None:
        """What was patched belongs to the file, not to its name."""
        record = await write(world.remote, f"{world.prefix}p", b"x")
        await world.remote.catalog.patch(
            record.key, RowPatch(posix=replace(record.posix, mode=0o600), set_xattrs={"a": b"b"})
        )
        await world.remote.objects.move(record.key, f"{world.prefix}q")
        moved = await find(world.remote, f"{world.prefix}q")
        assert moved is not None
        assert (moved.posix.mode, dict(moved.xattrs)) == (0o600, {"a": b"b"})

    async def test_patch_another_clients_file(self, world: World) -> None:
        """An object that exaifs never wrote can get attributes too."""
        await world.put_as_other(f"{world.prefix}theirs", b"x", "text/plain")
        patched = await world.remote.catalog.patch(
            f"{world.prefix}theirs", RowPatch(posix=Posix(mode=0o640), set_xattrs={"a": b"b"})
        )
        assert (patched.posix, dict(patched.xattrs)) == (Posix(mode=0o640), {"a": b"b"})

    async def test_patch_of_nothing(self, world: World) -> None:
        """There is nothing to patch where there is no object."""
        with pytest.raises(NotFound):
            await world.remote.catalog.patch(f"{world.prefix}missing", RowPatch(posix=Posix(mode=0o600)))

    async def test_carry_row(self, world: World) -> None:
        """After a rename over a file the target has the source's identity and attributes."""
        source = await write(
            world.remote, f"{world.prefix}s", b"new", upload_of(b"new", xattrs={"a": b"b"})
        )
        target = await write(world.remote, f"{world.prefix}t", b"old")
        patched = await world.remote.catalog.patch(
            source.key, RowPatch(posix=Posix(mode=0o600, uid=1, gid=2, mtime_ns=3))
        )
        await world.remote.objects.copy(source.key, target.key)
        carried = await world.remote.catalog.carry_row(source.key, target.key)
        assert carried.key == target.key
        assert carried.file_id == source.file_id
        assert carried.sha256 == source.sha256
        assert (carried.posix, dict(carried.xattrs)) == (patched.posix, {"a": b"b"})
        assert await find(world.remote, target.key) == carried
        assert await read(world.remote, carried.ref) == b"new"
        # A lost answer: the call may be repeated, before and after the source is removed.
        assert (await world.remote.catalog.carry_row(source.key, target.key)).file_id == source.file_id
        await world.remote.objects.remove([source.key])
        assert (await world.remote.catalog.carry_row(source.key, target.key)).file_id == source.file_id

    async def test_carry_row_to_nothing(self, world: World) -> None:
        """Without a target object nothing is carried, and the source keeps its row."""
        source = await write(world.remote, f"{world.prefix}s", b"x")
        with pytest.raises(NotFound):
            await world.remote.catalog.carry_row(source.key, f"{world.prefix}missing")
        assert await find(world.remote, source.key) == source

    async def test_touch(self, world: World) -> None:
        """Counting reads changes nothing that a record or the feed shows; missing keys are no error."""
        record = await write(world.remote, f"{world.prefix}t", b"x")
        await changes_of(world.remote, await cursor_now(world.remote), set())
        accesses = [
            Access(record.key, 3, time.time_ns()),
            Access(f"{world.prefix}missing", 1, time.time_ns()),
            Access(record.key, 2, time.time_ns()),
        ]
        await world.remote.catalog.touch(accesses)
        await world.remote.catalog.touch([])
        assert await find(world.remote, record.key) == record

    # changes

    async def test_changes_of_every_operation(self, world: World) -> None:
        """Each operation shows in the feed: the newest state of every key it touched."""
        remote, prefix = world.remote, world.prefix
        moved = await write(remote, f"{prefix}moved", b"1")
        removed = await write(remote, f"{prefix}removed", b"2")
        patched = await write(remote, f"{prefix}patched", b"3")
        overwritten = await write(remote, f"{prefix}overwritten", b"4")
        carried = await write(remote, f"{prefix}carried", b"5")
        cursor = await cursor_now(remote)

        await write(remote, f"{prefix}created", b"6")
        await world.put_as_other(f"{prefix}theirs", b"7", "text/plain")
        await remote.objects.move(moved.key, f"{prefix}elsewhere")
        await remote.objects.remove([removed.key])
        await remote.catalog.patch(patched.key, RowPatch(posix=Posix(mode=0o600)))
        await write(remote, overwritten.key, b"44")
        await remote.objects.copy(carried.key, f"{prefix}copy")
        await remote.catalog.carry_row(carried.key, f"{prefix}copy")

        gone = {moved.key, removed.key}
        there = {
            f"{prefix}{name}"
            for name in ("created", "theirs", "elsewhere", "patched", "overwritten", "copy", "carried")
        }
        found = await changes_of(remote, cursor, gone | there)
        assert {key for key, record in found.items() if record is None} == gone
        assert {key: record for key, record in found.items() if record} == await remote.catalog.stat(
            sorted(there)
        )

    async def test_feed_pages(self, world: World) -> None:
        """The feed may be read in pages of any size; nothing is lost or out of order between them."""
        cursor = await cursor_now(world.remote)
        keys = [f"{world.prefix}{number}" for number in range(7)]
        for key in keys:
            await write(world.remote, key, b"x")
        await changes_of(world.remote, cursor, set(keys))
        seen: list[str] = []
        more = True
        while more:
            page = await world.remote.catalog.changes(cursor, limit=2)
            seen += [change.key for change in page.changes if change.key in keys]
            cursor, more = page.cursor, page.more
        assert list(dict.fromkeys(seen)) == keys

    async def test_quiet_feed(self, world: World) -> None:
        """Where nothing happened the feed says so, and the cursor stays good."""
        cursor = await cursor_now(world.remote)
        for _ in range(3):
            page = await world.remote.catalog.changes(cursor)
            assert page.continuous
            assert [change.key for change in page.changes if change.key.startswith(world.prefix)] == []
            cursor = page.cursor

    async def test_empty_cursor(self, world: World) -> None:
        """The empty cursor means: from now on."""
        await write(world.remote, f"{world.prefix}before", b"x")
        page = await world.remote.catalog.changes("")
        assert page.continuous
        assert page.changes == ()
        await write(world.remote, f"{world.prefix}after", b"x")
        assert set(await changes_of(world.remote, page.cursor, {f"{world.prefix}after"}))

    @pytest.mark.parametrize("cursor", ["nonsense", "999999999999999999"])
    async def test_foreign_cursor(self, world: World, cursor: str) -> None:
        """A cursor this server never gave means: list again, and go on from the new cursor."""
        page = await world.remote.catalog.changes(cursor)
        assert not page.continuous
        assert (await world.remote.catalog.changes(page.cursor)).continuous
