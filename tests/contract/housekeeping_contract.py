"""Rules of `Housekeeping`, and of the files of conversations, run on every implementation."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Literal

import pytest

from exaifs.errors import Unreachable
from exaifs.names import encode_name
from exaifs.remote.files import FileCatalog
from exaifs.remote.upkeep import Finding, Housekeeping, Settled
from tests.support.world import World, changes_of, cursor_now, find, write

LEASE_S = 60
PAST = "2020-01-01T00:00:00Z"


def house(world: World) -> Housekeeping:
    """Return the side that is tested."""
    assert world.remote.housekeeping is not None
    return world.remote.housekeeping


def folder(conversation: str) -> str:
    """Return the prefix of the directory of a conversation."""
    return f"uploads/{encode_name(conversation)}/"


async def take(world: World, wanted: str) -> list[str]:
    """Take all there is; return what begins so. Other tests' entries come again after the lease."""
    taken: list[str] = []
    more = True
    while more:
        keys, more = await house(world).take_deletions(100, LEASE_S)
        taken += keys
    return [key for key in taken if key.startswith(wanted)]


async def scan(
    world: World, what: Literal["files", "entries", "queue"], wanted: str, limit: int = 1000
) -> list[Finding]:
    """Look at everything of any age; return the findings whose key begins so."""
    found: list[Finding] = []
    after: str | None = ""
    while after is not None:
        page = await house(world).scan(what, 0, after, limit)
        assert page.scanned <= limit
        found += page.findings
        after = page.next_after
    return [finding for finding in found if finding.key.startswith(wanted)]


class HousekeepingContract:
    """Every test states a rule. Subclasses provide `world` and `files`."""

    @pytest.fixture
    async def conversation(self, world: World) -> AsyncIterator[str]:
        """Name a conversation that nobody has named yet; its files are deleted in the end."""
        name = f"té {uuid.uuid4().hex}"
        yield name
        records, _ = await world.remote.catalog.list_tree(f"uploads/{encode_name(name)}/")
        await world.remote.objects.remove([record.key for record in records])
        await world.delete_conversation(name)

    async def test_every_writer_links(self, world: World, files: FileCatalog, conversation: str) -> None:
        """What is in the directory of a conversation is part of it, until it is moved out."""
        ours = await write(world.remote, f"{folder(conversation)}ours", b"x")
        theirs = f"{folder(conversation)}deep/theirs"
        await world.put_as_other(theirs, b"y", "text/plain")
        assert ours.file_id is not None
        assert await files.link(ours.file_id, conversation) is False
        row = await files.by_key(theirs)
        assert row is not None
        assert row.metadata == {"continuation_id": conversation}
        await world.remote.objects.move(theirs, f"{world.prefix}moved")
        row = await files.by_key(f"{world.prefix}moved")
        assert row is not None
        assert row.metadata == {}
        assert row.record.file_id is not None
        assert await files.link(row.record.file_id, conversation) is True

    async def test_deleted_conversation(self, world: World, files: FileCatalog, conversation: str) -> None:
        """Its files are taken once, removed, and seen to go; what another conversation has stays."""
        mine = await write(world.remote, f"{folder(conversation)}mine", b"x")
        shared = await write(world.remote, f"{folder(conversation)}shared", b"x")
        elsewhere = await write(world.remote, f"{world.prefix}linked", b"x")
        assert shared.file_id is not None
        assert elsewhere.file_id is not None
        await files.link(elsewhere.file_id, conversation)
        other = f"{conversation} other"
        await files.link(shared.file_id, other)
        cursor = await cursor_now(world.remote)
        await world.delete_conversation(conversation)
        queued = await scan(world, "queue", folder(conversation), 1)
        assert [(one.key, one.size_bytes, one.kind) for one in queued] == [(mine.key, 1, "queued")]
        taken = await take(world, "")
        assert {mine.key, elsewhere.key} <= set(taken)
        assert shared.key not in taken
        assert await take(world, folder(conversation)) == []
        await world.remote.objects.remove([mine.key, elsewhere.key])
        both = [mine.key, elsewhere.key]
        for _ in range(2):  # an answer may be lost
            assert await house(world).settle_deletions(both) == Settled(frozenset(both), frozenset())
        assert await find(world.remote, shared.key) is not None
        changes = await changes_of(world.remote, cursor, {mine.key, elsewhere.key})
        assert set(changes.values()) == {None}
        await world.delete_conversation(other)
        assert await take(world, folder(conversation)) == [shared.key]
        await world.remote.objects.remove([shared.key])
        assert (await house(world).settle_deletions([shared.key])).gone == {shared.key}

    async def test_a_new_file_at_the_path_stays(self, world: World, conversation: str) -> None:
        """Written before its forerunner is taken, or just before it is removed: never deleted."""
        keys = [f"{folder(conversation)}{name}" for name in ("early", "late", "old")]
        for key in keys:
            await write(world.remote, key, b"x")
        await world.delete_conversation(conversation)
        await write(world.remote, keys[0], b"new")
        assert await take(world, folder(conversation)) == keys[1:]
        await world.put_as_other(keys[1], b"new", "text/plain")
        # A server does not name what it kept, and `remove` takes that for a failure.
        with pytest.raises(Unreachable):
            await world.remote.objects.remove(keys[1:])
        settled = await house(world).settle_deletions(keys)
        assert settled == Settled(frozenset(keys[2:]), frozenset(keys[:2]))
        for key in keys[:2]:
            record = await find(world.remote, key)
            assert record is not None
            assert record.size_bytes == 3
        await world.remote.objects.remove(keys[:2])
        assert await find(world.remote, keys[1]) is None

    async def test_orphans_and_expired(self, world: World, files: FileCatalog) -> None:
        """Found by gc's rules; condemned only as they were found."""
        names = ("made", "expired", "nonsense", "later", "mine", "changed")
        records = {name: await write(world.remote, f"{world.prefix}{name}", b"xyz") for name in names}
        await files.annotate(records["made"].key, {"file_type": "generated"})
        await files.annotate(records["expired"].key, {"expires_at": PAST})
        await files.annotate(records["nonsense"].key, {"expires_at": "soon"})
        await files.annotate(records["later"].key, {"expires_at": "2999-01-01T00:00:00+01:00"})
        await files.annotate(records["changed"].key, {"expires_at": PAST})
        found = await scan(world, "files", world.prefix, 2)
        assert {one.key.removeprefix(world.prefix): one.kind for one in found} == {
            "made": "orphan",
            "expired": "expired",
            "nonsense": "malformed",
            "changed": "expired",
        }
        expired = next(one for one in found if one.key == records["expired"].key)
        assert expired == Finding("expired", expired.key, records["expired"].version, 3, PAST)
        await write(world.remote, records["changed"].key, b"new")
        condemned = await house(world).condemn(found, 0, LEASE_S)
        assert condemned == (records["expired"].key, records["made"].key)
        assert await house(world).condemn(found, 0, LEASE_S) == ()
        await world.remote.objects.remove(condemned)
        assert (await house(world).settle_deletions(condemned)).gone == set(condemned)

    async def test_moved_by_hand(self, world: World, files: FileCatalog) -> None:
        """A generated file that somebody put into another directory is no orphan any more."""
        record = await write(world.remote, f"{world.prefix}a", b"x")
        await files.annotate(record.key, {"file_type": "cache"})
        await world.remote.objects.move(record.key, f"{world.prefix}b")
        assert [one.kind for one in await scan(world, "files", world.prefix)] == ["orphan"]
        await world.remote.objects.move(f"{world.prefix}b", f"{world.prefix}kept/b")
        assert await scan(world, "files", world.prefix) == []

    async def test_rows_without_file(self, world: World, files: FileCatalog, conversation: str) -> None:
        """What the conversations still know of a file that was deleted goes with gc."""
        record = await write(world.remote, f"{world.prefix}a", b"x")
        assert record.file_id is not None
        await files.link(record.file_id, conversation)
        assert await scan(world, "entries", world.prefix) == []
        await world.remote.objects.remove([record.key])
        found = await scan(world, "entries", world.prefix)
        assert [(one.kind, one.key) for one in found] == [("entry", record.key)]
        assert await house(world).drop_rows(found, 3600) == ()
        assert await house(world).drop_rows(found, 0) == tuple(found)
        assert await scan(world, "entries", world.prefix) == []

    async def test_log_is_trimmed(self, world: World) -> None:
        """What is young stays."""
        cursor = await cursor_now(world.remote)
        await write(world.remote, f"{world.prefix}a", b"x")
        await house(world).trim_log(24)
        assert (await world.remote.catalog.changes(cursor)).continuous
