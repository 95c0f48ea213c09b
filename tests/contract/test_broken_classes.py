"""Failures by class: what passes is tried again by every call, what lasts is not, what is done is found."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from exaifs.errors import (
    BucketMissing,
    ExaifsError,
    FileTooLarge,
    NotFound,
    Rejected,
    Unauthorized,
    Unreachable,
)
from exaifs.remote.bodies import BytesBody
from exaifs.remote.interface import Access, Remote, RowPatch, Upload
from tests.support.broken import (
    COPY,
    DATA,
    GET,
    HTML,
    MOVE,
    PATIENCE_S,
    PUT,
    REF,
    STAT,
    listed,
    opened,
    read_all,
    record,
    serve_object,
    storage_failure,
)
from tests.support.nonsense import NonsenseServer, Reply, Request, Script, chunked, reply
from tests.support.pace import undisturbed
from tests.support.world import read, upload_of

pytestmark = pytest.mark.anyio

UPLOAD = upload_of(DATA)

HANG_S = 2.0
"""For an answer that never comes; afterwards the catalog must answer within as long."""


@pytest.fixture(params=["trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """One event loop: the tables are long, and HTTP under both is what the neighbours run."""
    return str(request.param)


@dataclass(frozen=True)
class Case:
    """A call, the request it makes, and the right answer to that."""

    request: str
    call: Callable[[Remote], Awaitable[object]]
    right: Reply | Script
    storage: bool = True


CASES = {
    "GET": Case(GET, lambda remote: read(remote, REF), serve_object),
    "PUT": Case(
        PUT,
        lambda remote: remote.objects.put("a", BytesBody(DATA), UPLOAD),
        reply(200, {"Key": "bucket/a"}),
    ),
    "copy": Case(COPY, lambda remote: remote.objects.copy("a", "b"), reply(200, {"Key": "bucket/b"})),
    "move": Case(MOVE, lambda remote: remote.objects.move("a", "b"), reply(200, {"message": "moved"})),
    "remove": Case(
        "DELETE /storage/v1/object/bucket",
        lambda remote: remote.objects.remove(["a"]),
        reply(200, [{"name": "a"}]),
    ),
    "sign": Case(
        "POST /storage/v1/object/sign/",
        lambda remote: remote.objects.signed_url("a", 60),
        reply(200, {"signedURL": "/object/sign/bucket/a?token=t"}),
    ),
    "stat": Case(STAT, lambda remote: remote.catalog.stat(["a"]), listed(record()), storage=False),
    "list": Case(
        "POST /rest/v1/rpc/exaifs_list_directory",
        lambda remote: remote.catalog.list_directory(""),
        reply(200, {"records": [], "folders": [], "next": None}),
        storage=False,
    ),
    "patch": Case(
        "POST /rest/v1/rpc/exaifs_patch",
        lambda remote: remote.catalog.patch("a", RowPatch()),
        reply(200, record()),
        storage=False,
    ),
    "commit": Case(
        "POST /rest/v1/rpc/exaifs_commit",
        lambda remote: remote.catalog.commit("a", UPLOAD),
        reply(200, {**record(), "write_id": UPLOAD.write_id}),
        storage=False,
    ),
}

PASSING: dict[str, Reply] = {
    "408": reply(408, HTML),
    "423": reply(423, {"message": "locked"}),
    "425": reply(425, HTML),
    "429": reply(429, {"message": "slow down"}),
    "429 with Retry-After": reply(429, {"message": "slow down"}, {"retry-after": "0"}),
    "499": reply(499, HTML),
    "500": reply(500, {"message": "Internal"}),
    "502 page": reply(502, HTML),
    "503": reply(503, {"message": "unavailable"}),
    "520 page": reply(520, HTML),
    "544": reply(544, {"message": "timeout"}),
    "reset": Reply(b"", reset=True),
    "closed": Reply(b""),
    "no HTTP": Reply(b"HTTP/1.1 nonsense\r\n\r\n"),
    "cut in the header": Reply(b"HTTP/1.1 200 OK\r\ncontent-le"),
    "cut in the body": reply(200, b'{"Key"', length=1000),
    "cut in a chunk": Reply(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\n{"),
    "page with 200": reply(200, HTML, {"content-type": "text/html"}),
    "page of unknown length": chunked(HTML),
    "login page": reply(302, b"", {"location": "/login"}),
    "nothing with 200": reply(200, b""),
}

STORAGE_PASSING = {
    f"400 for {status} {code}": storage_failure(status, code)
    for status, code in [
        (423, "ResourceLocked"),
        (429, "SlowDown"),
        (499, "Aborted"),
        (500, "Internal"),
        (503, "LockTimeout"),
        (503, "DatabaseReadOnly"),
        (544, "DatabaseTimeout"),
    ]
}
"""Storage says most with HTTP 400, and the true status in the body."""

# Of a GET these are no passing trouble: the layers above go on from the last byte.
_OF_A_BODY = {"cut in the body", "cut in a chunk", "nothing with 200"}


@pytest.mark.parametrize("name", CASES)
async def test_what_passes_is_tried_again(server: NonsenseServer, name: str) -> None:
    """Every call survives two failures of every class that passes."""
    case = CASES[name]
    troubles = {**PASSING, **(STORAGE_PASSING if case.storage else {})}
    for trouble, answer in troubles.items():
        if name == "GET" and trouble in _OF_A_BODY:
            continue
        server.requests.clear()
        server.on(case.request, answer, answer, case.right)
        async with opened(server) as remote:
            await case.call(remote)
        assert len(server.seen(case.request)) == 3, trouble


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (storage_failure(400, "InvalidKey", "Invalid key"), Rejected),
        (storage_failure(403, "AccessDenied", "signature verification failed"), Unauthorized),
        (reply(401, {"message": "Invalid API key"}), Unauthorized),
        (storage_failure(404, "NoSuchBucket", "Bucket not found"), BucketMissing),
        (storage_failure(413, "EntityTooLarge"), FileTooLarge),
    ],
)
@pytest.mark.parametrize("name", ["PUT", "copy", "sign"])
async def test_what_lasts_is_not(
    server: NonsenseServer, name: str, answer: Reply, error: type[ExaifsError]
) -> None:
    """A refusal for good is told at once."""
    case = CASES[name]
    server.on(case.request, answer)
    server.on(STAT, listed())
    async with opened(server) as remote:
        with pytest.raises(error):
            await case.call(remote)
    assert len(server.seen(case.request)) == 1


async def test_counters_are_not_counted_twice(server: NonsenseServer) -> None:
    """The one call that must not run twice is not repeated."""
    touch = "POST /rest/v1/rpc/exaifs_touch"
    server.on(touch, Reply(b"", reset=True), reply(200, b"null", {"content-type": "application/json"}))
    async with opened(server) as remote:
        with pytest.raises(Unreachable):
            await remote.catalog.touch([Access("a", 1, 1)])
    assert len(server.seen(touch)) == 1


# answers that were lost


def of(upload: Upload, key: str, version: str = "v2") -> dict[str, object]:
    """Return the record of an object that was sent so."""
    return {**record(key, version), "write_id": upload.write_id, "sha256": upload.sha256}


LOST = [Reply(b"", reset=True), reply(502, HTML), reply(504, HTML), reply(524, HTML), reply(200, HTML)]


@pytest.mark.parametrize("answer", LOST)
async def test_put_was_done(server: NonsenseServer, answer: Reply) -> None:
    """An object with our hash and write id is ours: its bytes are not sent again."""
    server.on(PUT, answer)
    server.on(STAT, listed(of(UPLOAD, "a")))
    async with opened(server) as remote:
        await remote.objects.put("a", BytesBody(DATA), UPLOAD)
    assert len(server.seen(PUT)) == 1


@pytest.mark.parametrize(
    "found",
    [
        [],
        [record("a")],
        [of(upload_of(DATA), "a")],
        [{**of(UPLOAD, "a"), "sha256": "0" * 64}],
        [of(UPLOAD, "b")],
    ],
    ids=["nothing", "without metadata", "another's", "other bytes", "another key"],
)
async def test_put_was_not_done(server: NonsenseServer, found: list[dict[str, object]]) -> None:
    """Whatever else is there, or where the server keeps no metadata, the bytes are sent again."""
    server.on(PUT, LOST[0], reply(200, {"Key": "bucket/a"}))
    server.on(STAT, listed(*found))
    async with opened(server) as remote:
        await remote.objects.put("a", BytesBody(DATA), UPLOAD)
    assert len(server.seen(PUT)) == 2


async def test_put_that_hung_was_done(server: NonsenseServer) -> None:
    """The answer never comes, and the object is there: the time is over, and all is well."""
    server.on(PUT, Reply(b"", stall=True))
    server.on(STAT, listed(of(UPLOAD, "a")))

    async def scene() -> None:
        server.requests.clear()
        async with opened(server, timeout_s=HANG_S) as remote:
            await remote.objects.put("a", BytesBody(DATA), UPLOAD)
        assert len(server.seen(PUT)) == 1

    await undisturbed(scene, HANG_S / 4)


async def test_nobody_can_look(server: NonsenseServer) -> None:
    """When the catalog is away too, the upload is repeated and fails as itself."""
    server.on(PUT, reply(502, HTML))
    server.on(STAT, reply(503, {"code": "PGRST002", "message": "schema cache"}))
    async with opened(server) as remote:
        with pytest.raises(ExaifsError, match="PUT a"):
            await remote.objects.put("a", BytesBody(DATA), UPLOAD)
    assert len(server.seen(PUT)) == 4


@pytest.mark.parametrize("answer", LOST)
async def test_copy_was_made(server: NonsenseServer, answer: Reply) -> None:
    """Source and target of one write: the copy is there and not made again."""
    server.on(COPY, answer)
    server.on(STAT, listed(of(UPLOAD, "a", "v1"), of(UPLOAD, "b")))
    async with opened(server) as remote:
        await remote.objects.copy("a", "b")
    assert len(server.seen(COPY)) == 1


async def test_copy_nobody_knows(server: NonsenseServer) -> None:
    """Without metadata nobody can tell: the copy is made again, which changes nothing."""
    server.on(COPY, LOST[0], reply(200, {"Key": "bucket/b"}))
    server.on(STAT, listed(record("a"), record("b")))
    async with opened(server) as remote:
        await remote.objects.copy("a", "b")
    assert len(server.seen(COPY)) == 2


async def test_copy_whose_source_is_gone(server: NonsenseServer) -> None:
    """A source that was deleted meanwhile is told as such."""
    server.on(COPY, LOST[0], storage_failure(404, "NoSuchKey"))
    server.on(STAT, listed())
    async with opened(server) as remote:
        with pytest.raises(NotFound):
            await remote.objects.copy("a", "b")


@pytest.mark.parametrize("answer", [*LOST, Reply(b"", stall=True)])
async def test_move_was_done(server: NonsenseServer, answer: Reply) -> None:
    """However often the answer is lost: source gone, target there, done."""
    server.on(MOVE, answer)
    server.on(STAT, listed(record("b")))

    async def scene() -> None:
        async with opened(server, timeout_s=HANG_S if answer.stall else PATIENCE_S) as remote:
            await remote.objects.move("a", "b")

    await undisturbed(scene, HANG_S / 4)


async def test_remove_was_done(server: NonsenseServer) -> None:
    """A removal is repeated; what is not there any more is proven gone."""
    server.on("DELETE /storage/v1/object/bucket", LOST[0], reply(200, []))
    server.on(STAT, listed())
    async with opened(server) as remote:
        await remote.objects.remove(["a"])
    assert len(server.seen("DELETE /storage/v1/object/bucket")) == 2


# GETs of other bytes than those that were asked for


def ranged(data: bytes, text: str, etag: str = '"etag-1"') -> Script:
    """Answer a range with a Content-Range of a test's own."""
    return lambda _request: reply(206, data, {"etag": etag, "content-range": text})


@pytest.mark.parametrize(
    "answer",
    [
        ranged(DATA[10:20], f"bytes 10-19/{len(DATA)}", '"etag-2"'),
        ranged(DATA[10:19], f"bytes 10-19/{len(DATA)}"),
        ranged(DATA[10:21], f"bytes 10-19/{len(DATA)}"),
        ranged(DATA[10:20], f"bytes 10-19,30-39/{len(DATA)}"),
        ranged(DATA[10:20], "bytes */4096"),
        lambda _: reply(206, DATA[10:20], {"etag": '"etag-1"', "content-type": "multipart/byteranges; x"}),
        lambda _: reply(200, DATA[10:20], {"etag": '"etag-1"'}),
        lambda _: reply(203, DATA, {"etag": '"etag-1"'}),
        lambda _: reply(200, DATA, {"etag": '"etag-2"'}),
        lambda _: reply(200, DATA),
        lambda _: chunked(DATA[:-1], {"etag": '"etag-1"'}),
    ],
)
async def test_no_other_bytes_are_handed_out(server: NonsenseServer, answer: Script) -> None:
    """Another range, version, length or kind of answer ends in an error before its end is believed."""
    async with opened(server) as remote:
        assert await read(remote, REF) == DATA  # from now on the server's ETags are known to be true
        server.on(GET, answer)
        with pytest.raises(ExaifsError):
            await read(remote, REF, 10, 20)


async def test_versions_are_not_mixed(server: NonsenseServer) -> None:
    """Two ranges of one version: when the object changes in between, the second is refused."""
    new = DATA[::-1]

    def newer(request: Request) -> Reply:
        first, last = (int(part) for part in request.headers["range"].removeprefix("bytes=").split("-"))
        span = {"etag": '"etag-2"', "content-range": f"bytes {first}-{last}/{len(new)}"}
        return reply(206, new[first : last + 1], span)

    async with opened(server) as remote:
        assert await read(remote, REF, 0, 100) == DATA[:100]
        server.on(GET, newer)
        server.on(STAT, listed(record(version="v2")))
        with pytest.raises(ExaifsError):
            await read(remote, REF, 100, 200)


async def test_server_whose_etags_say_nothing(server: NonsenseServer) -> None:
    """Where no ETag vouches, the catalog must list the version before the first byte and after the last."""
    server.on(GET, reply(200, DATA))
    assert await read_all(server) == DATA
    assert len(server.seen(STAT)) == 2
