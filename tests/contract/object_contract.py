"""Rules of `ObjectStore`, run on every implementation. Subclasses only provide the `world` fixture."""

from __future__ import annotations

import os
import random

import anyio
import pytest

from exaifs import names
from exaifs.errors import Exists, FileTooLarge, NameTooLong, NotFound, Rejected, RemoteError, Stale
from exaifs.model import ObjectRef
from exaifs.remote.bodies import BytesBody, FileBody
from exaifs.remote.interface import Remote
from tests.contract.upload_contract import UploadContract
from tests.support.world import (
    BadKey,
    StallingBody,
    World,
    find,
    read,
    upload_of,
    write,
)

MIB = 1024 * 1024

AWKWARD_NAMES = [
    "plain.txt",
    "no extension",
    " leading and trailing ",
    "a  b",
    "Ünïcode.txt",
    "é-NFC",
    "é-NFD",
    "日本語.md",
    "😀 emoji 👩‍👩‍👧.png",
    "100%",
    "50%25",
    "a#b?c",
    "a&b=c+d;e:f,g@h$i!j'k(l)m*n",
    "=41",
    "a=3Db",
    "=",
    "==",
    "==41",
    "=4",
    "=zz",
    "new\nline",
    "tab\tand\rreturn",
    "\x01\x7f",
    'quote"back\\slash',
    "<>|{}[]^`~",
    "...",
    "..a",
    "a..b",
    "a..",
    "-",
    "-rf",
    "*",
    "CON",
    ".hidden",
    names.PLACEHOLDER,
    f"x{names.PLACEHOLDER}",
    "bytes\udcff\udcfe",
    "\udce9t\udce9",
    "%2F",
    "%00",
    "a%41b",
    "\\",
    "x" * 255,
]


class ObjectContract(UploadContract):
    """Every test states a rule of `exaifs.remote.interface.ObjectStore`."""

    async def test_put_is_read_back(self, world: World) -> None:
        """What was put under a key is what a read of it returns."""
        data = os.urandom(100_000)
        record = await write(world.remote, f"{world.prefix}a.bin", data)
        assert record.size_bytes == len(data)
        assert await read(world.remote, record.ref) == data

    async def test_overwrite_replaces(self, world: World) -> None:
        """A second put replaces the bytes and changes the version; the file id stays."""
        key = f"{world.prefix}a.txt"
        first = await write(world.remote, key, b"one")
        second = await write(world.remote, key, b"two, longer")
        assert second.version != first.version
        assert second.file_id == first.file_id
        assert second.created_ns == first.created_ns
        assert await read(world.remote, second.ref) == b"two, longer"

    async def test_empty_object(self, world: World) -> None:
        """An empty object can be stored, and read without asking for a range of nothing."""
        record = await write(world.remote, f"{world.prefix}empty", b"")
        assert record.size_bytes == 0
        assert await read(world.remote, record.ref) == b""

    async def test_fifty_mib_from_a_file(
        self, world: World, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """A file of the bucket's full limit goes out from disk and comes back whole."""
        path = tmp_path_factory.mktemp("big") / "big"
        block = random.Random(1).randbytes(MIB)
        path.write_bytes(block * 50)
        upload = upload_of(path.read_bytes(), mime_type="application/octet-stream")
        key = f"{world.prefix}big.bin"
        with path.open("rb") as file:
            await world.remote.objects.put(key, FileBody(file.fileno(), 50 * MIB), upload)
        record = await world.remote.catalog.commit(key, upload)
        assert record.size_bytes == 50 * MIB
        assert await read(world.remote, record.ref) == path.read_bytes()

    async def test_one_byte_over_the_limit(self, world: World) -> None:
        """An object over the bucket's limit is refused as such, and nothing is stored."""
        key = f"{world.prefix}large"
        await write(world.small, key, bytes(1000))
        with pytest.raises(FileTooLarge):
            await world.small.objects.put(key, BytesBody(bytes(1001)), upload_of(bytes(1001)))
        with pytest.raises(FileTooLarge):
            await world.small.objects.put(key, BytesBody(bytes(7 * MIB)), upload_of(bytes(7 * MIB)))
        kept = await find(world.small, key)
        assert kept is not None
        assert kept.size_bytes == 1000
        await world.small.objects.remove([key])

    @pytest.mark.parametrize(
        ("start", "stop"),
        [(0, 1), (0, 9999), (1, None), (9999, 10_000), (9999, None), (4096, 8192), (0, 10_000), (5, 6)],
    )
    async def test_ranges(self, world: World, start: int, stop: int | None) -> None:
        """Any non-empty range within the object is exact; a server that ignores it says so."""
        data = random.Random(2).randbytes(10_000)
        record = await write(world.remote, f"{world.prefix}r.bin", data)
        async with world.remote.objects.get(record.ref, start, stop) as download:
            assert download.ranged is (world.is_real and (start, stop) != (0, 10_000))
            assert download.start == (start if download.ranged else 0)
        assert await read(world.remote, record.ref, start, stop) == data[start:stop]

    async def test_download_may_be_left_early(self, world: World) -> None:
        """Leaving after the first chunk costs nothing: the next requests work."""
        data = random.Random(3).randbytes(4 * MIB)
        record = await write(world.remote, f"{world.prefix}early.bin", data)
        for _ in range(20):
            async with world.remote.objects.get(record.ref) as download:
                async for chunk in download.chunks():
                    assert data.startswith(chunk)
                    break
        assert await read(world.remote, record.ref, 17, 1000) == data[17:1000]

    async def test_cancelled_downloads_leave_the_pool_clean(self, world: World) -> None:
        """Twenty downloads cancelled at different moments do not spoil the twenty-first."""
        data = random.Random(4).randbytes(2 * MIB)
        record = await write(world.remote, f"{world.prefix}cancel.bin", data)
        for number in range(20):
            with anyio.move_on_after(number * 0.001):
                await read(world.remote, record.ref)
        with anyio.fail_after(60):
            assert await read(world.remote, record.ref) == data

    async def test_replaced_version_is_stale(self, world: World) -> None:
        """A version that was replaced cannot be opened, and never yields the new bytes."""
        key = f"{world.prefix}stale.txt"
        old = await write(world.remote, key, b"old content")
        new = await write(world.remote, key, b"new content")
        with pytest.raises(Stale):
            await read(world.remote, old.ref)
        with pytest.raises(Stale):
            await read(world.remote, old.ref, 2, 5)
        assert await read(world.remote, new.ref) == b"new content"

    async def test_shrunken_object_is_stale(self, world: World) -> None:
        """A range past the end of a newer, shorter version is stale, not an error of the range."""
        key = f"{world.prefix}short.txt"
        old = await write(world.remote, key, bytes(1000))
        await write(world.remote, key, b"short")
        with pytest.raises(Stale):
            await read(world.remote, old.ref, 900, 1000)

    async def test_deleted_object_is_stale(self, world: World) -> None:
        """A version whose object was deleted is stale."""
        record = await write(world.remote, f"{world.prefix}gone.txt", b"content")
        await world.remote.objects.remove([record.key])
        with pytest.raises(Stale):
            await read(world.remote, record.ref)

    async def test_cancelled_upload_leaves_the_old_object(self, world: World) -> None:
        """An upload cut in the middle changes nothing."""
        key = f"{world.prefix}kept.txt"
        before = await write(world.remote, key, b"kept")
        body = StallingBody(200_000)
        async with anyio.create_task_group() as group:
            group.start_soon(world.remote.objects.put, key, body, upload_of(b"never"))
            with anyio.fail_after(60):
                await body.stalled.wait()
            group.cancel_scope.cancel()
        after = await find(world.remote, key)
        assert after is not None
        assert after.version == before.version
        assert await read(world.remote, before.ref) == b"kept"

    # names on the server

    async def test_copy(self, world: World) -> None:
        """A copy has the bytes under a new version and its own file id; the source stays."""
        source = await write(world.remote, f"{world.prefix}source", b"content")
        await world.remote.objects.copy(source.key, f"{world.prefix}copy")
        copy = await find(world.remote, f"{world.prefix}copy")
        assert copy is not None
        assert copy.version != source.version
        assert copy.file_id != source.file_id
        assert await read(world.remote, copy.ref) == b"content"
        assert await read(world.remote, source.ref) == b"content"

    async def test_copy_replaces(self, world: World) -> None:
        """A copy onto an object replaces its bytes and keeps the target's file id."""
        source = await write(world.remote, f"{world.prefix}source", b"content")
        target = await write(world.remote, f"{world.prefix}target", b"old, and longer")
        await world.remote.objects.copy(source.key, target.key)
        replaced = await find(world.remote, target.key)
        assert replaced is not None
        assert replaced.version != target.version
        assert replaced.file_id == target.file_id
        assert await read(world.remote, replaced.ref) == b"content"

    async def test_copy_of_nothing(self, world: World) -> None:
        """Copying what is not there says so, and leaves the target alone."""
        target = await write(world.remote, f"{world.prefix}target", b"kept")
        with pytest.raises(NotFound):
            await world.remote.objects.copy(f"{world.prefix}missing", target.key)
        assert await read(world.remote, target.ref) == b"kept"

    async def test_move(self, world: World) -> None:
        """A move carries bytes and row to the new key; nothing is left at the old one."""
        source = await write(world.remote, f"{world.prefix}from", b"content")
        await world.remote.objects.move(source.key, f"{world.prefix}to")
        found = await world.remote.catalog.stat([source.key, f"{world.prefix}to"])
        assert set(found) == {f"{world.prefix}to"}
        moved = found[f"{world.prefix}to"]
        assert (moved.file_id, moved.sha256) == (source.file_id, source.sha256)
        assert moved.posix == source.posix
        assert await read(world.remote, moved.ref) == b"content"

    async def test_move_onto_itself(self, world: World) -> None:
        """Moving an object onto itself changes nothing."""
        record = await write(world.remote, f"{world.prefix}same", b"content")
        await world.remote.objects.move(record.key, record.key)
        assert await read(world.remote, record.ref) == b"content"

    async def test_move_to_a_taken_key(self, world: World) -> None:
        """A move never replaces: both objects stay as they were."""
        one = await write(world.remote, f"{world.prefix}one", b"one")
        two = await write(world.remote, f"{world.prefix}two", b"two")
        with pytest.raises(Exists):
            await world.remote.objects.move(one.key, two.key)
        assert await read(world.remote, one.ref) == b"one"
        assert await read(world.remote, two.ref) == b"two"

    async def test_move_of_nothing(self, world: World) -> None:
        """Moving what is not there says so."""
        with pytest.raises(NotFound):
            await world.remote.objects.move(f"{world.prefix}missing", f"{world.prefix}to")

    async def test_remove_ignores_what_is_missing(self, world: World) -> None:
        """Removing is settled when the keys are gone, whoever removed them."""
        record = await write(world.remote, f"{world.prefix}here", b"content")
        await world.remote.objects.remove([f"{world.prefix}missing", record.key])
        await world.remote.objects.remove([record.key])
        await world.remote.objects.remove([])
        assert await find(world.remote, record.key) is None

    async def test_remove_more_than_a_batch(self, world: World) -> None:
        """Any number of keys may be given at once."""
        present = [f"{world.prefix}n{number:04}" for number in (0, 499, 500, 501, 1200)]
        for key in present:
            await write(world.remote, key, b"x")
        await world.remote.objects.remove([f"{world.prefix}n{number:04}" for number in range(1201)])
        assert await world.remote.catalog.stat(present) == {}

    async def test_signed_url(self, world: World) -> None:
        """A signed URL needs no key, also for a name with spaces and escapes."""
        record = await write(world.remote, names.child_key(world.prefix, "für jeden 100%.txt"), b"free")
        url = await world.remote.objects.signed_url(record.key, 60)
        assert await world.fetch(url) == b"free"

    async def test_signed_url_of_nothing(self, world: World) -> None:
        """There is no URL for what is not there."""
        with pytest.raises(NotFound):
            await world.remote.objects.signed_url(f"{world.prefix}missing", 60)

    # names

    async def test_awkward_names(self, world: World) -> None:
        """Every name that Linux allows survives put, list, read, copy, move and remove."""
        contents: dict[str, bytes] = {}
        for name in AWKWARD_NAMES:
            key = names.child_key(world.prefix, name)
            if ".." in name and not world.is_real:
                with pytest.raises(Rejected):
                    await write(world.remote, key, b"x")
                continue
            contents[key] = os.fsencode(name)
            await write(world.remote, key, contents[key])
        listing = await world.remote.catalog.list_directory(world.prefix)
        assert {record.key for record in listing.records} == set(contents)
        shown = {names.decode_component(names.split_key(record.key)[1]) for record in listing.records}
        assert {os.fsencode(name) for name in shown} == set(contents.values())
        for record in listing.records:
            assert await read(world.remote, record.ref) == contents[record.key]
            await self._copy_move_remove(world.remote, record.key, contents[record.key])
        assert (await world.remote.catalog.list_directory(world.prefix)).records == ()

    async def _copy_move_remove(self, remote: Remote, key: str, content: bytes) -> None:
        """Take an awkward key through everything that names it in a body instead of a URL."""
        parent, last = names.split_key(key)
        copy, moved = f"{parent}copies/{last}", f"{parent}moved/{last}"
        await remote.objects.copy(key, copy)
        await remote.objects.move(copy, moved)
        found = await remote.catalog.stat([key, copy, moved])
        assert set(found) == {key, moved}
        assert await read(remote, found[moved].ref) == content
        await remote.objects.remove([key, moved])

    async def test_long_components(self, world: World) -> None:
        """A name whose key component passes 255 bytes is stored, or refused without a trace."""
        for name in ("ü" * 127, "x" * 250 + "é", "日" * 85):
            key = names.child_key(world.prefix, name)
            if world.long_components:
                record = await write(world.remote, key, b"content")
                assert await read(world.remote, record.ref) == b"content"
            else:
                with pytest.raises(NameTooLong):
                    await write(world.remote, key, b"content")
                assert await find(world.remote, key) is None

    # keys

    @pytest.mark.parametrize("key", ["wrong", "anon", "expired"])
    async def test_a_bad_key_is_told_apart(self, world: World, key: BadKey) -> None:
        """A bad key is refused everywhere: never an empty listing, an absence or a success."""
        record = await write(world.remote, f"{world.prefix}secret", b"content")
        async with world.stranger(key) as stranger:
            errors = await self._refusals(stranger, record.ref, world.prefix)
        expected = "KeyExpired" if key == "expired" else "Unauthorized"
        assert {type(error).__name__ for error in errors} == {expected}
        assert await read(world.remote, record.ref) == b"content"

    async def _refusals(self, stranger: Remote, ref: ObjectRef, prefix: str) -> list[RemoteError]:
        other = f"{prefix}other"
        with pytest.raises(RemoteError) as caught:
            await stranger.objects.put(other, BytesBody(b"x"), upload_of(b"x"))
        errors = [caught.value]
        for call in (
            lambda: read(stranger, ref),
            lambda: read(stranger, ref, 1, 3),
            lambda: read(stranger, ObjectRef(other, "none", 5)),
            lambda: stranger.objects.copy(ref.key, other),
            lambda: stranger.objects.copy(other, ref.key),
            lambda: stranger.objects.move(ref.key, other),
            lambda: stranger.objects.remove([ref.key]),
            lambda: stranger.objects.remove([other]),
            lambda: stranger.objects.signed_url(ref.key, 60),
            stranger.catalog.hello,
            lambda: stranger.catalog.list_directory(prefix),
            lambda: stranger.catalog.list_tree(prefix),
            lambda: stranger.catalog.stat([ref.key]),
            lambda: stranger.catalog.commit(ref.key, upload_of(b"x")),
            lambda: stranger.catalog.carry_row(ref.key, other),
            lambda: stranger.catalog.changes(""),
        ):
            with pytest.raises(RemoteError) as caught:
                await call()
            errors.append(caught.value)
        return errors
