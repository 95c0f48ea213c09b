"""Rules of `Catalog` for provider file ids, run on every implementation."""

from __future__ import annotations

import os

from tests.support.world import World, find, upload_of, write

MADE = {"uploaded_at": "2026-01-01T00:00:00Z"}
"""What the record of an upload from here has besides."""


class ProviderIdContract:
    """Every test states a rule of `exaifs.remote.interface.Catalog`. Subclasses provide `world`."""

    async def test_provider_ids_are_shared_by_content(self, world: World) -> None:
        """One record for two files with the same bytes; the first stored id stays."""
        catalog = world.remote.catalog
        data = os.urandom(20)
        one = await write(world.remote, f"{world.prefix}one", data)
        two = await write(world.remote, f"{world.prefix}two", data)
        assert one.sha256 is not None
        first = {"id": "f-1", "account": "a", "purpose": "p", "size": 20, "expires_at": None, **MADE}
        answer = await catalog.set_provider_id(one.key, "kimi", first, sha256=one.sha256)
        assert answer.stored
        assert answer.record == await find(world.remote, one.key)
        assert answer.record is not None
        assert answer.record.provider_file_ids == {"kimi": first}
        assert await catalog.find_provider_ids(one.sha256, "kimi") == (first,)
        late = await catalog.set_provider_id(two.key, "kimi", {**first, "id": "f-2"}, sha256=one.sha256)
        assert (late.stored, late.current) == (False, first)
        assert (await catalog.set_provider_id(two.key, "kimi", first, sha256=one.sha256)).stored
        replaced = await catalog.set_provider_id(
            two.key, "kimi", {**first, "id": "f-3"}, sha256=one.sha256, expected_id="f-1"
        )
        assert replaced.stored

    async def test_provider_ids_follow_the_bytes(self, world: World) -> None:
        """Kept over a move, gone with other bytes, never stored for bytes that nobody has."""
        catalog = world.remote.catalog
        data = os.urandom(20)
        record = await write(world.remote, f"{world.prefix}a", data)
        assert record.sha256 is not None
        await catalog.set_provider_id(record.key, "kimi", {"id": "f-1"}, sha256=record.sha256)
        await world.remote.objects.move(record.key, f"{world.prefix}b")
        moved = await find(world.remote, f"{world.prefix}b")
        assert moved is not None
        assert moved.provider_file_ids == {"kimi": {"id": "f-1"}}
        changed = await write(world.remote, moved.key, b"other bytes")
        assert changed.provider_file_ids == {}
        nothing = await catalog.set_provider_id(moved.key, "kimi", {"id": "f-2"}, sha256=record.sha256)
        assert (nothing.stored, nothing.current, nothing.record) == (False, None, None)

    async def test_registered_ids_of_other_bytes(self, world: World) -> None:
        """An id from elsewhere is refused for bytes other than those it is known for here."""
        catalog = world.remote.catalog
        one = await write(world.remote, f"{world.prefix}one", os.urandom(20))
        two = await write(world.remote, f"{world.prefix}two", os.urandom(20))
        assert one.sha256 is not None
        assert two.sha256 is not None
        ours, theirs = (f"f-{os.urandom(6).hex()}" for _ in range(2))
        await catalog.set_provider_id(one.key, "kimi", {"id": ours, **MADE}, sha256=one.sha256)
        elsewhere = {"id": theirs, "origin": "registered"}
        assert (await catalog.set_provider_id(one.key, "glm", elsewhere, sha256=one.sha256)).stored
        for name, file_id in (("kimi", ours), ("glm", theirs)):
            registered = {"id": file_id, "origin": "registered"}
            refused = await catalog.set_provider_id(two.key, name, registered, sha256=two.sha256)
            assert (refused.stored, refused.of_other_bytes) == (False, True)
            assert (await catalog.set_provider_id(one.key, name, registered, sha256=one.sha256)).stored
        assert (await catalog.set_provider_id(two.key, "openai", elsewhere, sha256=two.sha256)).stored
        # What was uploaded stays known when no file has it; what was only told can be told anew.
        for name in ("kimi", "glm"):
            await catalog.forget_provider_id(one.key, name)
        late = await catalog.set_provider_id(
            two.key, "kimi", {"id": ours, "origin": "registered"}, sha256=two.sha256
        )
        assert (late.stored, late.of_other_bytes) == (False, True)
        assert (await catalog.set_provider_id(two.key, "glm", elsewhere, sha256=two.sha256)).stored

    async def test_provider_ids_are_the_copies_too(self, world: World) -> None:
        """A file that gets bytes which others have gets their ids, and keeps them when the others go."""
        catalog, objects = world.remote.catalog, world.remote.objects
        data = os.urandom(20)
        record = await write(world.remote, f"{world.prefix}a", data)
        assert record.sha256 is not None
        ids = {
            "kimi": {"id": "f-1", "sha256": record.sha256},
            "glm": {"id": "g-1", "sha256": record.sha256},
        }
        for name, value in ids.items():
            await catalog.set_provider_id(record.key, name, value, sha256=record.sha256)
        again = await write(world.remote, f"{world.prefix}again", data)
        assert again.provider_file_ids == ids
        before = await write(world.remote, f"{world.prefix}before", b"what was there before")
        assert before.provider_file_ids == {}
        assert (await write(world.remote, before.key, data)).provider_file_ids == ids
        await objects.copy(record.key, f"{world.prefix}copy")
        copy = await catalog.commit(f"{world.prefix}copy", upload_of(data))
        assert copy.provider_file_ids == ids
        await objects.remove([record.key, before.key])
        await catalog.forget_provider_id(copy.key, "glm")
        found = await catalog.stat([again.key, copy.key])
        assert [row.provider_file_ids for row in found.values()] == [{"kimi": ids["kimi"]}] * 2

    async def test_provider_ids_of_another_clients_file(self, world: World) -> None:
        """A row without a hash takes the one that was found by reading that version."""
        await world.put_as_other(f"{world.prefix}theirs", b"theirs", "text/plain")
        record = await find(world.remote, f"{world.prefix}theirs")
        assert record is not None
        digest = upload_of(b"theirs").sha256
        answer = await world.remote.catalog.set_provider_id(
            record.key, "kimi", {"id": "f-1"}, sha256=digest, version=record.version
        )
        assert answer.record is not None
        assert (answer.stored, answer.record.sha256) == (True, digest)

    async def test_provider_ids_are_forgotten(self, world: World) -> None:
        """Forgetting reaches every file with the same bytes; the upload stays known until dropped."""
        catalog = world.remote.catalog
        data, account = os.urandom(20), os.urandom(6).hex()
        one = await write(world.remote, f"{world.prefix}one", data)
        two = await write(world.remote, f"{world.prefix}two", data)
        assert one.sha256 is not None
        for key in (one.key, two.key):
            await catalog.set_provider_id(
                key, "kimi", {"id": "f-1", "account": account, "size": 20, **MADE}, sha256=one.sha256
            )
        assert await catalog.unused_provider_files("kimi", account) == ()
        forgotten = await catalog.forget_provider_id(one.key, "kimi")
        assert forgotten is not None
        assert forgotten.provider_file_ids == {}
        assert await catalog.find_provider_ids(one.sha256, "kimi") == ()
        [unused] = await catalog.unused_provider_files("kimi", account)
        assert (unused.id, unused.sha256, unused.size_bytes) == ("f-1", one.sha256, 20)
        assert await catalog.unused_provider_files("kimi", account, 3600) == ()
        await catalog.drop_provider_file("kimi", account, "f-1")
        assert await catalog.unused_provider_files("kimi", account) == ()
        assert await catalog.forget_provider_id(f"{world.prefix}missing", "kimi") is None
