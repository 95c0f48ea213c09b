"""The journal of unsent writes: what survives a full disk, a failing one, a power cut, and damage."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from exaifs.cache.unsent.journal import Journal, open_journal
from exaifs.cache.unsent.journalfile import HEADER, LOG_NAME, Record, encode, parse, read_journal
from exaifs.errors import ExaifsError, JournalError, NoSpace
from tests.support.disks import KINDS, SmallDisk, disk_of

pytestmark = pytest.mark.anyio

KIB = 1024


@pytest.fixture
def anyio_backend() -> str:
    """One event loop will do: the journal only uses threads."""
    return "trio"


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 16 MiB."""
    with disk_of(request.param, tmp_path, size_mib=16) as disk:
        yield disk


def record(number: int, padding: int = 0) -> Record:
    """Return what somebody may want to keep."""
    return {"op": "put", "staged": f"{number}.data", "note": "x" * padding}


def kept(directory: Path) -> dict[int, Record]:
    """Return what a next run would find, looking only."""
    return read_journal(directory / "journal").records


def reserve_bytes(directory: Path) -> int:
    """Return how much room is kept."""
    return (directory / "journal" / "reserve").stat().st_size


async def filled(journal: Journal, number: int, padding: int = 0) -> list[int]:
    """Append records in one step; return their numbers."""
    return await journal.append([record(i, padding) for i in range(number)])


async def append_until_full(journal: Journal, padding: int = 4 * KIB) -> list[int]:
    """Append until there is no room; return the numbers that were acknowledged."""
    numbers: list[int] = []
    while True:
        try:
            numbers += await journal.append([record(len(numbers), padding)])
        except NoSpace:
            return numbers


async def test_a_full_disk_stops_new_records_only(disk: SmallDisk) -> None:
    """What was acknowledged stays; what is done can still be said, again and again, and is durable."""
    journal, _ = open_journal(disk.path / "journal")
    first = await filled(journal, 300)
    disk.fill()
    more = await append_until_full(journal)
    assert list(kept(disk.path)) == [*first, *more]
    for number in first:
        await journal.append([], [number])
    journal.forget(more[:1])
    await journal.sync()
    assert list(kept(disk.path)) == more[1:] == list(journal.records)
    with pytest.raises(NoSpace):
        await journal.append([record(0, 64 * KIB)])
    journal.close()


async def test_a_small_change_still_fits(disk: SmallDisk) -> None:
    """Removing some files goes on being possible on a full disk."""
    journal, _ = open_journal(disk.path / "journal")
    disk.fill()
    numbers = [number for _ in range(30) for number in await filled(journal, 1)]
    assert list(kept(disk.path)) == numbers
    journal.close()


async def test_the_reserve_comes_back(disk: SmallDisk) -> None:
    """With the first thing that is written after there is room again."""
    journal, _ = open_journal(disk.path / "journal")
    whole = reserve_bytes(disk.path)
    disk.fill()
    numbers = await append_until_full(journal)
    assert reserve_bytes(disk.path) < whole
    disk.make_room()
    await journal.append([], numbers)
    assert reserve_bytes(disk.path) == whole
    assert kept(disk.path) == {}
    journal.close()


async def test_a_full_disk_is_no_reason_not_to_shorten_the_file(disk: SmallDisk) -> None:
    """Most of it dead, the file is rewritten although there is no room but the reserve."""
    journal, _ = open_journal(disk.path / "journal")
    numbers = await filled(journal, 600, padding=KIB)
    disk.fill()
    assert journal.path.stat().st_size > 600 * KIB
    await journal.append([], numbers[:-1])
    for _ in range(200):
        await journal.append([], range(10_000, 20_000))
    assert journal.path.stat().st_size < 600 * KIB
    assert list(kept(disk.path)) == numbers[-1:]
    journal.close()


async def test_a_file_that_cannot_be_rewritten_goes_on_growing(disk: SmallDisk) -> None:
    """A full disk with no room for the live records: what is done is still written behind the old ones."""
    journal, _ = open_journal(disk.path / "journal")
    numbers = await filled(journal, 1000, padding=3 * KIB)
    await journal.append([], numbers[:100])
    again = await filled(journal, 1200, padding=3 * KIB)
    disk.fill()
    more = await append_until_full(journal)
    size_bytes = journal.path.stat().st_size
    for number in numbers[100:200]:
        await journal.append([], [number])
    assert journal.path.stat().st_size > size_bytes
    assert list(kept(disk.path)) == [*numbers[200:], *again, *more]
    assert not (disk.path / "journal" / f"{LOG_NAME}.tmp").exists()
    journal.close()


async def test_a_run_begins_on_a_full_disk(disk: SmallDisk) -> None:
    """What an earlier run left is taken over, and can be done with."""
    journal, _ = open_journal(disk.path / "journal")
    numbers = await filled(journal, 20)
    journal.close()
    disk.fill()
    journal, records = open_journal(disk.path / "journal")
    assert list(records) == numbers
    await journal.append([], numbers)
    assert kept(disk.path) == {}
    journal.close()


async def test_new_and_done_at_once(disk: SmallDisk) -> None:
    """Of steps that are written together, those with no room fail, and the others do not."""
    journal, _ = open_journal(disk.path / "journal")
    numbers = await filled(journal, 10)
    disk.fill()
    await append_until_full(journal)
    outcomes: dict[str, object] = {}

    async def append(name: str, add: list[Record], done: list[int]) -> None:
        try:
            await journal.append(add, done)
        except ExaifsError as exc:
            outcomes[name] = type(exc)
        else:
            outcomes[name] = "written"

    async with trio.open_nursery() as nursery:
        for index, number in enumerate(numbers):
            nursery.start_soon(append, f"new {index}", [record(index, 256 * KIB)], [])
            nursery.start_soon(append, f"done {index}", [], [number])
    assert {outcomes[f"new {index}"] for index in range(10)} == {NoSpace}
    assert {outcomes[f"done {index}"] for index in range(10)} == {"written"}
    assert not set(numbers) & set(kept(disk.path))
    journal.close()


async def test_a_read_only_disk_and_back(disk: SmallDisk) -> None:
    """Each step fails, nothing is lost, and the next one after that works."""
    journal, _ = open_journal(disk.path / "journal")
    numbers = await filled(journal, 3)
    journal.close()  # as after a failed sync: an open file would keep the disk from becoming read-only
    disk.remount("ro")
    for _ in range(2):
        with pytest.raises(ExaifsError):
            await journal.append([record(9)])
    journal.forget(numbers[:1])
    with pytest.raises(ExaifsError):
        await journal.sync()
    assert list(kept(disk.path)) == numbers
    disk.remount("rw")
    await journal.append([record(10)])
    assert [one["staged"] for one in kept(disk.path).values()] == ["1.data", "2.data", "10.data"]
    journal.close()


async def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """EFBIG, and a record that was half written: the file is as before, and goes on when it may grow."""
    journal, _ = open_journal(tmp_path / "journal")
    numbers = await filled(journal, 3)
    before = journal.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
    try:
        with pytest.raises(NoSpace):
            await journal.append([record(3, padding=KIB)])
        assert journal.path.read_bytes() == before
        await journal.append([], [numbers[0]])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await journal.append([record(4)])
    assert [one["staged"] for one in kept(tmp_path).values()] == ["1.data", "2.data", "4.data"]
    journal.close()


async def test_after_a_failed_sync_a_new_file_is_begun(tmp_path: Path) -> None:
    """A descriptor that cannot be synced is never trusted again."""
    journal, _ = open_journal(tmp_path / "journal")
    numbers = await filled(journal, 3)
    (descriptor,) = [
        int(name)
        for name in os.listdir("/proc/self/fd")  # noqa: PTH208 - names, not paths
        if _target(name) == str(journal.path)
    ]
    first = journal.path.stat().st_ino
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, descriptor)  # it takes everything, and fdatasync(2) fails
    os.close(null)
    with pytest.raises(ExaifsError):
        await journal.append([record(3)])
    assert list(kept(tmp_path)) == numbers
    await journal.append([record(4)])
    assert journal.path.stat().st_ino != first
    assert [one["staged"] for one in kept(tmp_path).values()] == ["0.data", "1.data", "2.data", "4.data"]
    journal.close()


def _target(name: str) -> str:
    try:
        return str(Path(f"/proc/self/fd/{name}").readlink())
    except OSError:
        return ""


# -- what can be read of a damaged file ------------------------------------------------------------

STEPS: list[tuple[dict[int, Record], list[int]]] = [
    ({1: {"op": "put", "staged": "a"}, 2: {"op": "remove", "key": 'x "}] 0a1b2c3d {"add"'}}, []),
    ({3: {"op": "put", "staged": "b", "name": "\u00e4\n"}}, [1]),
    ({}, [2]),
    ({4: {"op": "move", "source": "c"}, 3: {"op": "put", "staged": "d"}}, []),
]
CONTENT = HEADER + b"".join(encode(add, done) for add, done in STEPS)
ENDS = [
    len(HEADER) + sum(len(encode(*step)) for step in STEPS[:number]) for number in range(len(STEPS) + 1)
]


def after(steps: list[tuple[dict[int, Record], list[int]]]) -> dict[int, Record]:
    """Return what is not done after some steps."""
    records: dict[int, Record] = {}
    for add, done in steps:
        for number in done:
            records.pop(number, None)
        records.update(add)
    return records


def test_cut_at_every_byte() -> None:
    """Every whole line counts, a cut one does not; nothing is damage."""
    for length in range(len(CONTENT) + 1):
        loaded = parse(CONTENT[:length], None)
        # The newline is no part of what a step says.
        whole = [step for step, end in zip(STEPS, ENDS[1:], strict=True) if end - 1 <= length]
        assert loaded.records == after(whole), length
        assert loaded.damaged == [], length
        assert loaded.is_whole == (length in ENDS), length


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_anywhere(bit: int, tmp_path: Path) -> None:
    """It costs at most the line it is in, which is kept aside; other lines count, nothing is made up."""
    for position in range(len(CONTENT)):
        damaged = bytearray(CONTENT)
        damaged[position] ^= 1 << bit
        try:
            loaded = parse(bytes(damaged), tmp_path)
        except JournalError:
            assert position == len(HEADER) - 2, "only the number of the format can be that of a newer one"
            continue
        hit = next((i for i, end in enumerate(ENDS[1:]) if ENDS[0] <= position < end), None)
        expected = [step for i, step in enumerate(STEPS) if i != hit]
        is_newline = hit is not None and position == ENDS[hit + 1] - 1
        assert loaded.records in ([after(STEPS)] if is_newline else [after(expected), after(STEPS)]), (
            position
        )
        assert loaded.damaged, position
        assert not loaded.is_whole
    kept_aside = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"staged" in kept_aside


def test_a_lost_newline_before_a_torn_line(tmp_path: Path) -> None:
    """Two faults at once: what was acknowledged before them still counts."""
    lost = bytearray(CONTENT[: ENDS[4] - 5])
    lost[ENDS[3] - 1] = 0
    assert parse(bytes(lost), tmp_path).records == after(STEPS[:3])


def test_zeros_at_the_end() -> None:
    """What some file systems leave of a write that a power cut interrupted is a torn line."""
    loaded = parse(CONTENT + bytes(4096), None)
    assert loaded.records == after(STEPS)
    assert loaded.damaged == []


def test_a_newer_format_is_refused() -> None:
    """With words about what to do; nothing of it is touched."""
    with pytest.raises(JournalError, match="newer exaifs"):
        parse(b"exaifs-journal 2\n" + CONTENT, None)


@pytest.mark.parametrize(
    "content", [b"\0", b"\n", b"\n\n\n", b"exaifs-journal 1", b"\xff" * 5000, b" {}\n"]
)
def test_what_is_no_journal(content: Any) -> None:
    """Nothing in it, and nothing raised."""
    assert parse(content, None).records == {}


async def test_a_file_that_somebody_removed_is_written_again(tmp_path: Path) -> None:
    """What goes to a file without a name would be gone with this process."""
    journal, _records = open_journal(tmp_path / "journal")
    await filled(journal, 2)
    (tmp_path / "journal" / LOG_NAME).unlink()
    await filled(journal, 1)
    assert len(kept(tmp_path)) == 3
    journal.close()


@pytest.mark.parametrize("instead", ["nothing", "another"])
async def test_nothing_is_acknowledged_once_the_directory_is_gone(tmp_path: Path, instead: str) -> None:
    """Nor is the journal of whoever has a directory of that name now touched."""
    directory = tmp_path / "journal"
    journal, _records = open_journal(directory)
    await filled(journal, 2)
    directory.rename(tmp_path / "elsewhere")
    if instead == "another":
        other, _records = open_journal(directory)
        await filled(other, 1)
        other.close()
    with pytest.raises(ExaifsError, match="removed"):
        await filled(journal, 1)
    journal.close()
    assert len(kept(tmp_path)) == (1 if instead == "another" else 0)
    assert len(read_journal(tmp_path / "elsewhere").records) == 2
