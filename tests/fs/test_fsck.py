"""`exaifs fsck` on this host's part: each kind of damage is made, found, repaired, and found no more."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio

from exaifs.cache.unsent.conflicts import DIRECTORY, Version, describe, list_conflicts, new_file
from exaifs.cache.unsent.journalfile import HEADER, LOG_NAME, encode
from exaifs.ops.fsck_journal import read_state
from exaifs.ops.fsck_local import LocalCheck
from exaifs.ops.fsck_report import Progress, Report
from exaifs.processes import LOCK_NAME
from tests.fs.conftest import Mount
from tests.support.double import DoubleServer

pytestmark = pytest.mark.anyio

IDENTITY = "double://server/user-files"
DATA = b"unsent bytes"


class Silent(Progress):
    """Shows nothing."""

    def begin(self, what: str, total: int | None = None) -> None:
        pass

    def advance(self, amount: int = 1) -> None:
        pass


class Host:
    """A cache directory, and checks of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.journal = directory / "journal"
        self.staging = directory / "staging"
        self.conflicts = directory / DIRECTORY

    async def check(self, *, repair: bool = False) -> Report:
        """Run a check."""
        report = Report("https://double.invalid", "user-files", self.directory, repair=repair)
        await LocalCheck(report, IDENTITY, Silent()).run()
        return report

    async def problems(self) -> list[str]:
        """Return the kinds of all problems."""
        return sorted(finding.kind for finding in (await self.check()).problems)

    def state(self) -> dict[Path, bytes]:
        """Return all files with their bytes; what SQLite keeps beside its own is no change."""
        files = [path for path in self.directory.rglob("*") if path.is_file()]
        return {path: path.read_bytes() for path in files if not path.name.endswith(("-wal", "-shm"))}

    async def mended(self, *kinds: str) -> Report:
        """Expect just these problems, found twice, then repaired, and none after that."""
        before = self.state()
        assert await self.problems() == sorted(kinds)
        assert self.state() == before, "looking has changed something"
        report = await self.check(repair=True)
        assert report.is_clean, report.problems
        assert sorted(each.kind for each in report.repaired if each.severity == "problem") == sorted(kinds)
        assert all(each.done for each in report.repaired)
        assert await self.problems() == []
        return report

    def sql(self, statement: str, *values: object) -> None:
        """Change the index past everybody."""
        with closing(sqlite3.connect(self.directory / "index.db")) as database, database:
            database.execute(statement, values)

    def staged(self) -> Path:
        """Return the one staged file."""
        (path,) = self.staging.glob("*.data")
        return path

    def content(self) -> Path:
        """Return the one cached content."""
        (path,) = (path for path in (self.directory / "content").rglob("*") if path.is_file())
        return path

    def lost(self) -> set[bytes]:
        """Return the bytes of all conflicts, whose paths are not known."""
        known = list_conflicts(self.conflicts)
        assert all(conflict.path is None for conflict in known)
        return {(self.conflicts / f"{conflict.id}.data").read_bytes() for conflict in known}

    def kept(self) -> dict[str | None, bytes]:
        """Return path and bytes of all conflicts."""
        return {
            conflict.path: (self.conflicts / f"{conflict.id}.data").read_bytes()
            for conflict in list_conflicts(self.conflicts)
        }


@pytest.fixture
async def host(server: DoubleServer, mount: Mount, tmp_path: Path) -> Host:
    """A host that has seen `d/seen`, in order."""
    server.bucket.put("d/seen", b"seen")
    async with mount() as paths:
        await paths.ls("d")
        assert await paths.read("d/seen") == b"seen"
    found = Host(tmp_path / "cache")
    report = await found.check()
    assert report.is_clean, report.problems
    assert report.checked["contents"] == report.checked["names"] - 1 == 1
    return found


@pytest.fixture
async def unsent(server: DoubleServer, mount: Mount, host: Host) -> Host:
    """A host that also has acknowledged `d/unsent` while Supabase was away."""
    async with mount(drain_s=0.01) as paths:
        await paths.ls("d")
        server.online = False
        await paths.create("d/unsent", DATA)
    server.online = True
    report = await host.check()
    assert report.is_clean, report.problems
    assert report.checked["staged_files"] == 1
    assert report.unsent.overlaps("d/unsent")
    return host


async def send(server: DoubleServer, mount: Mount) -> None:
    """Mount again, and have everything sent."""
    async with mount() as paths:
        assert await paths.fs.drain(60) == 0
    assert server.bucket.objects["d/seen"].data == b"seen"


# -- contents ------------------------------------------------------------------------------------------


async def test_a_damaged_content(host: Host, mount: Mount) -> None:
    """It is dropped, whatever the damage, and read from the bucket again."""
    for damaged in (b"sEen", b"se", b""):
        host.content().write_bytes(damaged)
        kinds = ["content_damaged"]
        await host.mended(*kinds)
        assert [path for path in (host.directory / "content").rglob("*") if path.is_file()] == []
        async with mount() as paths:
            assert await paths.read("d/seen") == b"seen"


async def test_files_and_table_of_contents(host: Host, mount: Mount) -> None:
    """What the table does not have is taken in, what has no file taken out, strangers are removed."""
    sha256 = host.content().name
    host.sql("DELETE FROM contents")
    host.sql("INSERT INTO contents VALUES (?, 1, 1)", "a" * 64)
    (host.directory / "content" / "stranger").write_bytes(b"?")
    elsewhere = host.directory / "content" / "00" / sha256
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(b"seen")
    await host.mended("content_not_in_table", "content_gone", "content_misplaced", "content_misplaced")
    async with mount() as paths:
        assert await paths.read("d/seen") == b"seen"
        assert paths.fs.status().cache.remote.reads == 0


async def test_unfinished_downloads_are_a_note(host: Host) -> None:
    """They are no damage; a repair removes them."""
    partial = host.directory / "partial" / "run-1"
    partial.write_bytes(b"half")
    report = await host.check()
    assert report.is_clean
    assert [finding.kind for finding in report.findings] == ["partial_left"]
    assert (await host.check(repair=True)).is_clean
    assert not partial.exists()


async def test_a_program_beside_the_mount(host: Host) -> None:
    """Its place is checked too; while it runs, it is left alone."""
    place = host.directory / "clients" / "0"
    content = place / "content" / "aa" / ("a" * 64)
    content.parent.mkdir(parents=True)
    content.write_bytes(b"not that")
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        report = await host.check(repair=True)
        assert [(finding.kind, finding.outcome) for finding in report.problems] == [
            ("content_damaged", "left")
        ]
    await host.mended("content_damaged")


# -- the index -----------------------------------------------------------------------------------------


async def test_a_damaged_index(server: DoubleServer, unsent: Host, mount: Mount) -> None:
    """It is set aside, and nothing unsent was in it only."""
    index = unsent.directory / "index.db"
    data = bytearray(index.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    index.write_bytes(bytes(data))
    await unsent.mended("index_damaged")
    assert len(list(unsent.directory.glob("index.db.damaged-*"))) == 1
    await send(server, mount)
    assert server.bucket.objects["d/unsent"].data == DATA


async def test_names_without_a_directory(host: Host, mount: Mount) -> None:
    """They are forgotten, with all below, and listed again."""
    host.sql("UPDATE entries SET parent = 'gone/' WHERE component = 'seen'")
    host.sql("INSERT INTO loaded VALUES ('gone/below/', 1)")
    await host.mended("names_without_directory", "names_without_directory")
    host.sql("DELETE FROM loaded")
    async with mount() as paths:
        assert await paths.ls("d") == ["seen"]


async def test_a_name_that_was_never_closed(unsent: Host, mount: Mount, server: DoubleServer) -> None:
    """What the journal does not know goes; what it knows stays and is sent."""
    columns = "parent, kind, pending, marker, version, size_bytes, mime_type, etag, created_ns, updated_ns"
    columns += ", ctime_ns, posix_kind, xattrs, provider_file_ids"
    unsent.sql(
        f"INSERT INTO entries (name, component, ino, {columns}) "  # noqa: S608  # constants only
        f"SELECT 'never', 'never', 4711, {columns} FROM entries WHERE pending"
    )
    await unsent.mended("pending_without_record")
    await send(server, mount)
    assert sorted(server.bucket.objects) == ["d/seen", "d/unsent"]


# -- the journal ---------------------------------------------------------------------------------------


async def test_a_damaged_line(unsent: Host, mount: Mount, server: DoubleServer) -> None:
    """It is kept as a conflict, so are bytes that only it named; later lines count, and are carried out."""
    log = unsent.journal / LOG_NAME
    orphan = unsent.staging / f"{'0' * 32}.data"
    orphan.write_bytes(b"named by the damaged line")
    log.write_bytes(HEADER + b"00000000 {nonsense}\n" + log.read_bytes().removeprefix(HEADER))
    assert await unsent.problems() == ["journal_lines_damaged", "staged_without_record"]
    report = await unsent.check(repair=True)
    assert report.is_clean
    assert {finding.kind for finding in report.repaired} >= {"damaged_record", "journal_lines_damaged"}
    assert await unsent.problems() == []
    assert unsent.lost() == {b"named by the damaged line", b"00000000 {nonsense}"}
    await send(server, mount)
    assert server.bucket.objects["d/unsent"].data == DATA


async def test_a_damaged_change_of_a_name(host: Host, mount: Mount, server: DoubleServer) -> None:
    """The next mount, which finds the journal whole, looks whether its names are those of the bucket."""
    async with mount() as paths:
        server.online = False
        await paths.rename("d/seen", "d/moved")
        damaged = (host.journal / LOG_NAME).read_bytes().replace(b'"op":', b'"oP":')
    (host.journal / LOG_NAME).write_bytes(damaged)
    assert "journal_lines_damaged" in await host.problems()
    assert (await host.check(repair=True)).is_clean
    server.online = True
    async with mount() as paths:
        with trio.fail_after(60):
            while await paths.ls("d") != ["seen"]:  # noqa: ASYNC110 - no event tells
                await trio.sleep(0.01)


async def test_a_damaged_header(unsent: Host, mount: Mount, server: DoubleServer) -> None:
    """The lines behind it count."""
    log = unsent.journal / LOG_NAME
    log.write_bytes(b"exaifs-jOurnal 1\n" + log.read_bytes().removeprefix(HEADER))
    assert await unsent.problems() == ["journal_lines_damaged"]
    assert (await unsent.check(repair=True)).is_clean
    await send(server, mount)
    assert server.bucket.objects["d/unsent"].data == DATA


async def test_a_torn_last_line_is_no_damage(unsent: Host) -> None:
    """It was never acknowledged."""
    with (unsent.journal / LOG_NAME).open("ab") as log:
        log.write(b"12345678 {")
    assert await unsent.problems() == []


async def test_a_newer_journal_is_left_alone(unsent: Host) -> None:
    """Nothing is known of it, so nothing is repaired, and no staged file is taken for an orphan."""
    log = unsent.journal / LOG_NAME
    log.write_bytes(log.read_bytes().replace(b"journal 1", b"journal 9", 1))
    before = log.read_bytes()
    report = await unsent.check(repair=True)
    # Whether the index has a name that no record knows, nobody can tell either.
    assert {finding.kind for finding in report.findings} == {"journal_unreadable"}
    assert log.read_bytes() == before
    assert unsent.staged().read_bytes() == DATA


async def test_a_record_of_another_version(unsent: Host) -> None:
    """It stays, with the staged file that it names, and its key is left alone in the bucket."""
    other = unsent.staging / f"{'1' * 32}.data"
    other.write_bytes(b"x")
    record = {"op": "later", "staged": other.name, "entry": {"parent": "d/", "component": "later"}}
    with (unsent.journal / LOG_NAME).open("ab") as log:
        log.write(encode({99: record}, ()))
    report = await unsent.check(repair=True)
    assert [(each.kind, each.outcome) for each in report.problems] == [("record_not_understood", "found")]
    assert "version" in report.problems[0].advice
    assert report.unsent.overlaps("d/later")
    assert other.exists()
    assert 99 in read_state(unsent.directory).unknown


async def test_staged_bytes_without_a_record(host: Host) -> None:
    """They become a conflict; empty ones are nothing to keep."""
    (host.staging / "a.data").write_bytes(b"bytes")
    (host.staging / "b.data").write_bytes(b"")
    (host.staging / "c.data").write_bytes(b"of an earlier version")
    (host.staging / "c.json").write_text('{"key": "d/=C3=A9"}')
    await host.mended("staged_without_record", "staged_without_record")
    assert host.kept() == {None: b"bytes", "d/é": b"of an earlier version"}
    assert list(host.staging.iterdir()) == []


async def test_staged_bytes_that_are_gone(unsent: Host, mount: Mount, server: DoubleServer) -> None:
    """The record goes, and the name that only it stood for; everything else is sent."""
    unsent.staged().unlink()
    assert await unsent.problems() == ["staged_missing"]
    report = await unsent.check(repair=True)
    assert report.is_clean
    assert next(finding.where for finding in report.repaired) == "d/unsent"
    assert await unsent.problems() == []
    await send(server, mount)
    assert "d/unsent" not in server.bucket.objects


async def test_staged_bytes_that_are_damaged(unsent: Host, mount: Mount, server: DoubleServer) -> None:
    """What is there is kept as a conflict, under the path it belonged to."""
    unsent.staged().write_bytes(b"unsent bYtes")
    assert await unsent.problems() == ["staged_damaged"]
    assert (await unsent.check(repair=True)).is_clean
    assert await unsent.problems() == []
    assert unsent.kept() == {"d/unsent": b"unsent bYtes"}
    await send(server, mount)


@pytest.mark.parametrize("damage", ["gone", "cut"])
async def test_the_cache_stands_in(unsent: Host, mount: Mount, server: DoubleServer, damage: str) -> None:
    """Where the cache has the same content, the staged file is made again and sent: nothing is lost."""
    sha256 = hashlib.sha256(DATA).hexdigest()
    content = unsent.directory / "content" / sha256[:2] / sha256
    content.parent.mkdir(exist_ok=True)
    content.write_bytes(DATA)
    if damage == "gone":
        unsent.staged().unlink()
    else:
        os.truncate(unsent.staged(), 3)
    report = await unsent.check(repair=True)
    assert report.is_clean
    assert any("restored from the cache" in finding.done for finding in report.repaired)
    assert unsent.kept() == {}
    await send(server, mount)
    assert server.bucket.objects["d/unsent"].data == DATA


# -- conflicts -----------------------------------------------------------------------------------------


async def test_halves_of_conflicts(host: Host) -> None:
    """Bytes get a description again; a description of nothing goes, and is reported word by word."""
    data = new_file(host.conflicts)
    data.write_bytes(b"no description")
    garbled = new_file(host.conflicts)
    garbled.write_bytes(b"garbled description")
    garbled.with_suffix(".json").write_text("{")
    lost = new_file(host.conflicts)
    lost.write_bytes(b"x")
    describe(lost, path="d/lost", reason="another host wrote", kept=Version(1))
    lost.unlink()
    report = await host.mended(
        "conflict_without_description", "conflict_without_description", "conflict_without_bytes"
    )
    assert any("d/lost" in finding.done for finding in report.repaired)
    assert host.lost() == {b"no description", b"garbled description"}


async def test_kept_bytes_that_are_damaged(host: Host) -> None:
    """Nothing here can repair them; it is said what to do."""
    data = new_file(host.conflicts)
    data.write_bytes(b"x")
    describe(data, path="d/x", reason="another host wrote", kept=Version(1, "b" * 64))
    report = await host.check(repair=True)
    assert [(each.kind, each.outcome) for each in report.problems] == [("conflict_damaged", "found")]
    assert "--force" in report.problems[0].advice


# -- beside a mount ------------------------------------------------------------------------------------


async def test_what_a_mount_uses_is_only_looked_at(unsent: Host) -> None:
    """Damage is found, nothing is changed, and what may be under way is no damage."""
    unsent.content().write_bytes(b"damaged")
    (unsent.staging / "open.data").write_bytes(b"written now")
    (unsent.directory / "partial" / "run-1").write_bytes(b"half")
    new_file(unsent.conflicts).write_bytes(b"kept now")
    with (unsent.directory / LOCK_NAME).open("w") as lock:
        lock.write('{"pid": 1, "mountpoint": "/mnt"}')
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        report = await unsent.check(repair=True)
    assert report.mounted_at == "/mnt"
    assert [(each.kind, each.outcome) for each in report.problems] == [("content_damaged", "left")]
    assert "unmount first" in report.problems[0].done
    assert unsent.content().read_bytes() == b"damaged"


async def test_a_busy_mount_is_in_order(server: DoubleServer, mount: Mount, tmp_path: Path) -> None:
    """A check beside a mount with open, unsent and cached files finds nothing."""
    host = Host(tmp_path / "cache")
    async with mount(drain_s=0.01) as paths:
        for number in range(20):
            await paths.create(f"f{number}", b"x" * number)
            assert await paths.read(f"f{number}") == b"x" * number
        server.online = False
        with (host.directory / LOCK_NAME).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            async with paths.open("open", os.O_CREAT | os.O_WRONLY) as handle:
                await paths.write_all(handle, b"half")
                await paths.create("unsent", DATA)
                report = await host.check(repair=True)
        assert report.is_clean, report.problems
        assert report.checked["staged_files"] == 1
