"""`exaifs gc` as code, on the double: what it finds, and what becomes of it."""

from __future__ import annotations

import json

import pytest

from exaifs.errors import Rejected, Unreachable
from exaifs.ops.gc import Collector, Outcome, Survey, report
from exaifs.remote.upkeep import Finding
from tests.support.double import DoubleServer

pytestmark = pytest.mark.anyio

PAST = "2020-01-01T00:00:00Z"


@pytest.fixture
def server() -> DoubleServer:
    """250 expired files, an orphan, a queued file, a row without a file."""
    server = DoubleServer()
    for number in range(250):
        record = server.bucket.put(f"e/{number:03}", b"xy")
        server.house.metadata[str(record.file_id)]["expires_at"] = PAST
    record = server.bucket.put("cache/1/orphan", b"xyz")
    server.house.metadata[str(record.file_id)]["file_type"] = "cache"
    server.bucket.put("uploads/c1/a", b"x")
    server.house.delete_conversation("c1")
    record = server.bucket.put("linked", b"x")
    server.house.link(str(record.file_id), "linked", "c2")
    server.bucket.remove(["linked"])
    return server


def collector(server: DoubleServer, older_s: int = 0) -> Collector:
    """Return what the command opens."""
    remote = server.remote()
    assert remote.housekeeping is not None
    return Collector(remote, remote.housekeeping, older_s)


def told(_count: int) -> None:
    """Progress that nobody looks at."""


async def test_all_of_it(server: DoubleServer) -> None:
    """Everything found is deleted, once; progress is told up to the end."""
    steps: list[int] = []
    survey = await collector(server).survey(told)
    assert {finding.kind for finding in survey.findings} == {"expired", "orphan", "queued", "entry"}
    outcome = await collector(server).delete(survey, steps.append)
    assert (len(outcome.deleted), outcome.kept, outcome.failed) == (253, [], [])
    assert steps == sorted(steps)
    assert steps[-1] == 253
    assert server.bucket.objects == {}
    assert (await collector(server).survey(told)).findings == []


async def test_age(server: DoubleServer) -> None:
    """Orphans and rows wait for their age; expired and queued files do not."""
    survey = await collector(server, 3600).survey(told)
    assert {finding.kind for finding in survey.findings} == {"expired", "queued"}


async def test_what_changes_meanwhile_is_kept(server: DoubleServer) -> None:
    """Between being shown and being deleted."""
    survey = await collector(server).survey(told)
    server.bucket.put("e/000", b"new")
    server.bucket.put("uploads/c1/a", b"new")
    server.bucket.put("linked", b"new")
    outcome = await collector(server).delete(survey, told)
    assert sorted(finding.key for finding in outcome.kept) == ["e/000", "linked", "uploads/c1/a"]
    assert set(server.bucket.objects) == {"e/000", "linked", "uploads/c1/a"}


async def test_what_fails(server: DoubleServer) -> None:
    """One batch that the storage server refuses does not keep the others; the reason is reported."""
    survey = await collector(server).survey(told)
    server.inject("remove", Rejected("no"))
    outcome = await collector(server).delete(survey, told)
    assert [(finding.key, reason) for finding, reason in outcome.failed] == [("uploads/c1/a", "no")]
    assert len(outcome.deleted) == 252
    found = report(survey, outcome, bucket="b", older_s=0)
    json.dumps(found)
    assert (found["failed"], found["found"]["expired"]) == (
        {"count": 1, "bytes": 1},
        {"count": 250, "bytes": 500},
    )
    results = {finding["key"]: (finding["result"], finding["reason"]) for finding in found["findings"]}
    assert results["uploads/c1/a"] == ("failed", "no")
    assert results["e/001"] == ("deleted", None)


async def test_a_lost_connection_ends_it(server: DoubleServer) -> None:
    """What is done is done; nothing is guessed."""
    survey = await collector(server).survey(told)
    server.inject("condemn", Unreachable("away"))
    with pytest.raises(Unreachable):
        await collector(server).delete(survey, told)
    assert len(server.bucket.objects) == 251


async def test_a_mount_at_the_same_time(server: DoubleServer) -> None:
    """What a janitor has taken is left to it."""
    survey = await collector(server).survey(told)
    assert server.house.take_deletions(10, 60)[0] == ("uploads/c1/a",)
    outcome = await collector(server).delete(survey, told)
    assert [finding.key for finding in outcome.kept] == ["uploads/c1/a"]


def test_report_of_a_dry_run() -> None:
    """Says that it was one, and paths as a mount shows them."""
    survey = Survey([Finding("orphan", "uploads/=C3=A9/a", "v", 7, PAST)], 3)
    found = report(survey, None, bucket="b", older_s=60)
    assert (found["dry_run"], found["scanned"], found["deleted"]) == (True, 3, {"count": 0, "bytes": 0})
    assert (found["findings"][0]["path"], found["findings"][0]["result"]) == ("uploads/é/a", "found")
    assert report(survey, Outcome(), bucket="b", older_s=60)["dry_run"] is False
