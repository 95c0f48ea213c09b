"""Servers, proxies and networks that answer nonsense: typed errors, in time, and never a wrong byte."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from pydantic import SecretStr

from exaifs.config import Config
from exaifs.errors import (
    BucketMissing,
    Busy,
    ConfigError,
    ExaifsError,
    Exists,
    FileTooLarge,
    IntegrityError,
    NoSpace,
    NotFound,
    Rejected,
    SchemaMissing,
    Stale,
    Unauthorized,
    Unreachable,
)
from exaifs.model import ObjectRef
from exaifs.remote.bodies import BytesBody, FileBody
from exaifs.remote.client import remote_of
from exaifs.remote.interface import Remote
from exaifs.remote.retry import RetryPolicy
from exaifs.remote.session import open_session
from tests.support.nonsense import NonsenseServer, Reply, Request, chunked, nonsense_server, reply
from tests.support.world import read, upload_of

pytestmark = pytest.mark.anyio

KEY = "sb_secret_never-to-be-shown"
DATA = bytes(range(256)) * 16
REF = ObjectRef("dir/a b.bin", "v1", len(DATA), '"etag-1"')
TAG = {"etag": '"etag-1"'}
HTML = b"<html><body>Please log in to this network.</body></html>"

GET = "GET /storage/v1/object/bucket/dir/a%20b.bin"
PUT = "PUT /storage/v1/object/bucket/"
MOVE = "POST /storage/v1/object/move"
STAT = "POST /rest/v1/rpc/exaifs_stat"
HELLO = "POST /rest/v1/rpc/exaifs_hello"


def record(key: str = REF.key, version: str = "v1") -> dict[str, object]:
    """Return a record as the SQL functions do."""
    return {
        "key": key,
        "version": version,
        "size": len(DATA),
        "etag": '"etag-1"',
        "posix": {},
        "xattrs": {},
    }


def listed(*records: dict[str, object]) -> Reply:
    """Answer `exaifs_stat`."""
    return reply(200, {"records": list(records)})


def storage_failure(status: int, code: str = "", message: str = "") -> Reply:
    """Fail as the storage server does: HTTP 400, and the true status as text in the body."""
    return reply(400, {"statusCode": str(status), "error": code, "code": code, "message": message})


@pytest.fixture
def server() -> Iterator[NonsenseServer]:
    """Start a server that lists one object, and serves it as the real one does."""
    with nonsense_server() as server:
        server.on(STAT, listed(record()))
        server.on(GET, serve_object)
        yield server


def serve_object(request: Request) -> Reply:
    """Answer a GET rightly."""
    text = request.headers.get("range")
    if text is None:
        return reply(200, DATA, TAG)
    first, last = (int(part) for part in text.removeprefix("bytes=").split("-"))
    content_range = f"bytes {first}-{last}/{len(DATA)}"
    return reply(206, DATA[first : last + 1], {**TAG, "content-range": content_range})


@asynccontextmanager
async def opened(server: NonsenseServer, key: str = KEY, timeout_s: float = 0.6) -> AsyncIterator[Remote]:
    """Open the bucket with short limits."""
    config = Config(supabase_url=server.url, supabase_key=SecretStr(key), request_timeout_s=timeout_s)
    async with open_session(config) as session:
        quick = RetryPolicy(first_delay_s=0.01, max_delay_s=0.02, total_s=10)
        yield remote_of(replace(session, retry=quick), "bucket")


async def read_all(server: NonsenseServer, start: int = 0, stop: int | None = None) -> bytes:
    """Read with a new client."""
    async with opened(server) as remote:
        return await read(remote, REF, start, stop)


async def collect(server: NonsenseServer, got: bytearray) -> None:
    """Append what arrives, as long as it does."""
    async with opened(server) as remote, remote.objects.get(REF) as download:
        async for chunk in download.chunks():
            got += chunk


class TestDownload:
    """What a GET may meet."""

    async def test_right_answers(self, server: NonsenseServer) -> None:
        """Whole and ranged reads work, and name the version against caches in between."""
        assert await read_all(server) == DATA
        assert await read_all(server, 100, 200) == DATA[100:200]
        whole, ranged = server.seen(GET)
        assert whole.target.endswith("?v=v1")
        assert "range" not in whole.headers
        assert ranged.headers["range"] == "bytes=100-199"
        assert ranged.headers["accept-encoding"] == "identity"

    @pytest.mark.parametrize(
        "page",
        [
            reply(200, HTML, {"content-type": "text/html"}),
            reply(200, {"message": "maintenance"}),
            chunked(HTML, {"content-type": "text/html"}),
            chunked(DATA),
            reply(302, b"", {"location": "/login"}),
            reply(204, b""),
            reply(404, HTML, {"content-type": "text/html"}),
            reply(503, HTML, {"content-type": "text/html"}),
        ],
        ids=["html", "json", "html-chunked", "no-length", "redirect", "204", "404-html", "503-html"],
    )
    async def test_a_page_is_no_object(self, server: NonsenseServer, page: Reply) -> None:
        """A login, error or maintenance page yields a temporary error and no byte."""
        server.on(GET, page)
        for bounds in ((0, None), (0, 56)):
            with pytest.raises((Unreachable, Busy)):
                await read_all(server, *bounds)

    @pytest.mark.parametrize(
        "answer",
        [
            reply(200, DATA[:-1], TAG),
            reply(200, DATA + b"x", TAG),
            reply(200, b"", TAG),
            chunked(DATA + b"x", TAG),
            reply(200, DATA, {**TAG, "content-encoding": "gzip"}),
        ],
        ids=["short", "long", "empty", "long-chunked", "compressed"],
    )
    async def test_wrong_lengths(self, server: NonsenseServer, answer: Reply) -> None:
        """More or fewer bytes than the version has are no object."""
        server.on(GET, answer)
        with pytest.raises(IntegrityError):
            await read_all(server)

    @pytest.mark.parametrize(
        "content_range",
        ["", "bytes 0-9/4096", "bytes 10-18/4096", "bytes 10-19/4097", "bytes 10-19/*", "items 10-19/4096"],
    )
    async def test_wrong_ranges(self, server: NonsenseServer, content_range: str) -> None:
        """A 206 must be exactly the range that was asked for, of an object of the known size."""
        server.on(GET, reply(206, DATA[10:20], {**TAG, "content-range": content_range}))
        with pytest.raises(IntegrityError):
            await read_all(server, 10, 20)

    async def test_range_ignored(self, server: NonsenseServer) -> None:
        """A 200 to a ranged request is taken as the whole, and no range is asked for again."""
        server.on(GET, reply(200, DATA, TAG))
        async with opened(server) as remote:
            for _ in range(2):
                async with remote.objects.get(REF, 100, 200) as download:
                    assert (download.start, download.ranged) == (0, False)
                assert await read(remote, REF, 100, 200) == DATA[100:200]
        assert "range" in server.requests[0].headers
        assert all("range" not in request.headers for request in server.requests[1:])

    @pytest.mark.parametrize("reset", [True, False])
    async def test_cut_in_the_middle(self, server: NonsenseServer, reset: object) -> None:
        """What came before the cut is right; then there is an error, not an end."""
        server.on(GET, reply(200, DATA[:1000], TAG, length=len(DATA), reset=bool(reset)))
        got = bytearray()
        with pytest.raises(Unreachable):
            await collect(server, got)
        assert got or reset  # a reset may drop what had arrived
        assert DATA.startswith(got)

    async def test_short_without_length(self, server: NonsenseServer) -> None:
        """An end that comes too early is an error also where no length was announced."""
        server.on(GET, chunked(DATA[:-1], TAG))
        with pytest.raises(Unreachable):
            await read_all(server)

    async def test_stall_in_the_middle(self, server: NonsenseServer) -> None:
        """A body that stops coming ends in an error within the time limit."""
        server.on(GET, reply(200, DATA[:1000], TAG, length=len(DATA), stall=True))
        with anyio.fail_after(5):
            with pytest.raises(Unreachable):
                await read_all(server)

    async def test_no_answer_at_all(self, server: NonsenseServer) -> None:
        """A server that accepts and is silent is unreachable, after the limit for each attempt."""
        server.on(GET, Reply(b"", stall=True))
        with anyio.fail_after(10), pytest.raises(Unreachable):
            await read_all(server)
        assert len(server.seen(GET)) == 4

    async def test_nobody_listens(self) -> None:
        """A refused connection says what to check."""
        with nonsense_server() as server:
            pass
        with pytest.raises(Unreachable, match="SUPABASE_URL"):
            await read_all(server)

    @pytest.mark.parametrize(
        "trouble",
        [
            reply(429, {"message": "slow down"}, {"retry-after": "0"}),
            reply(500, {"statusCode": "500", "message": "Internal"}),
            reply(502, HTML),
            storage_failure(503, "LockTimeout"),
            storage_failure(423, "ResourceLocked"),
            storage_failure(544, "DatabaseTimeout"),
            storage_failure(404, "NoSuchKey", "Object not found"),
            Reply(b"", reset=True),
            Reply(b""),
            Reply(b"HTTP/1.1 nonsense\r\n\r\n"),
        ],
    )
    async def test_passing_trouble(self, server: NonsenseServer, trouble: Reply) -> None:
        """What passes is tried again, and the bytes are right then."""
        server.on(GET, trouble, trouble, serve_object)
        assert await read_all(server) == DATA
        assert len(server.seen(GET)) == 3

    async def test_retry_after_is_obeyed(self, server: NonsenseServer) -> None:
        """Where the server says how long to wait, nobody comes earlier."""
        server.on(GET, reply(429, {"message": "slow down"}, {"retry-after": "1"}), serve_object)
        started_s = anyio.current_time()
        assert await read_all(server) == DATA
        assert anyio.current_time() - started_s >= 1

    @pytest.mark.parametrize("status", [404, 416, 500])
    async def test_replaced_meanwhile(self, server: NonsenseServer, status: int) -> None:
        """A refusal while the catalog lists another version, or none, is stale at once."""
        server.on(GET, storage_failure(status))
        for answer in (listed(record(version="v2")), listed()):
            server.requests.clear()
            server.on(STAT, answer)
            with pytest.raises(Stale):
                await read_all(server, 10, 20)
            assert len(server.seen(GET)) == 1

    async def test_not_found_although_listed(self, server: NonsenseServer) -> None:
        """A 404 alone proves nothing: what the catalog lists is not gone."""
        server.on(GET, storage_failure(404, "NoSuchKey", "Object not found"))
        with pytest.raises(Unreachable):
            await read_all(server)

    async def test_not_found_for_a_bad_key(self, server: NonsenseServer) -> None:
        """A 404 that a bad key gets is told apart from an absence."""
        server.on(GET, storage_failure(404, "NoSuchBucket", "Bucket not found"))
        server.on(STAT, reply(401, {"code": "PGRST301", "message": "JWSError"}))
        with pytest.raises(Unauthorized):
            await read_all(server)

    async def test_other_content_of_the_same_length(self, server: NonsenseServer) -> None:
        """Once the server's ETags are known to be the catalog's, another one is no answer."""
        async with opened(server) as remote:
            assert await read(remote, REF) == DATA
            server.on(GET, reply(200, DATA[::-1], {"etag": '"etag-2"'}))
            with pytest.raises(IntegrityError):
                await read(remote, REF)
            server.on(STAT, listed(record(version="v2")))
            with pytest.raises(Stale):
                await read(remote, REF)

    @pytest.mark.parametrize("etag", ["etag-1", 'W/"etag-1"', '"etag-1"'])
    async def test_spellings_of_an_etag(self, server: NonsenseServer, etag: str) -> None:
        """Quotes and weakness that a proxy adds or takes away do not matter; nothing else is asked."""
        server.on(GET, reply(200, DATA, {"etag": etag}))
        assert await read_all(server) == DATA
        assert server.seen(STAT) == []

    async def test_server_with_etags_of_its_own(self, server: NonsenseServer) -> None:
        """Where ETags never agree the catalog is asked, before the first byte and after the last."""
        server.on(GET, reply(200, DATA, {"etag": '"of-its-own"'}))
        assert await read_all(server) == DATA
        assert len(server.seen(STAT)) == 2
        server.on(STAT, listed(record()), listed(record(version="v2")))
        with pytest.raises(Stale):
            await read_all(server)


class TestUpload:
    """What a PUT may meet."""

    async def test_request(self, server: NonsenseServer) -> None:
        """The request says length, plain type, no caching and overwriting; the name is quoted once."""
        server.on(PUT, reply(200, {"Key": "bucket/x"}))
        upload = upload_of(DATA, mime_type="text/plain")
        async with opened(server) as remote:
            await remote.objects.put("d/a b+c=C3=A9.txt", BytesBody(DATA), upload)
        (request,) = server.seen(PUT)
        assert request.target == "/storage/v1/object/bucket/d/a%20b+c=C3=A9.txt"
        assert request.body == DATA
        assert request.headers["content-length"] == str(len(DATA))
        assert "transfer-encoding" not in request.headers
        assert request.headers["content-type"] == "text/plain"
        assert request.headers["cache-control"] == "no-cache"
        assert request.headers["x-upsert"] == "true"
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert request.headers["apikey"] == KEY

    async def test_repeated_from_the_start(self, server: NonsenseServer, tmp_path: Path) -> None:
        """An upload that failed in passing is sent again, whole."""
        path = tmp_path / "file"
        data = DATA * 100
        path.write_bytes(data)
        server.on(PUT, reply(503, HTML), Reply(b"", reset=True), reply(200, {"Key": "bucket/x"}))
        async with opened(server) as remote:
            with path.open("rb") as file:
                await remote.objects.put("x", FileBody(file.fileno(), len(data)), upload_of(data))
        assert [hashlib.sha256(request.body).hexdigest() for request in server.seen(PUT)] == [
            hashlib.sha256(data).hexdigest()
        ] * 3

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (storage_failure(413, "EntityTooLarge", "exceeded the maximum"), FileTooLarge),
            (reply(413, HTML), FileTooLarge),
            (storage_failure(415, "invalid_mime_type"), Rejected),
            (storage_failure(400, "InvalidKey", "Invalid key"), Rejected),
            (storage_failure(403, "Unauthorized", "row-level security policy"), Unauthorized),
            (storage_failure(403, "Unauthorized", '"exp" claim timestamp check failed'), Unauthorized),
            (storage_failure(400, "", "headers must have required property 'authorization'"), Unauthorized),
            (storage_failure(404, "NoSuchBucket", "Bucket not found"), BucketMissing),
            (reply(402, {"message": "exceed_storage_size_quota"}), NoSpace),
            (reply(507, {"message": "full"}), NoSpace),
            (reply(200, HTML), Unreachable),
            (reply(200, ["no object"]), Unreachable),
            (reply(540, {"message": "project paused"}), Unreachable),
            (reply(429, {"message": "slow down"}), Busy),
        ],
    )
    async def test_refusals(self, server: NonsenseServer, answer: Reply, error: type[ExaifsError]) -> None:
        """Every refusal has its own error, also when the answer comes before the body was read."""
        server.on(PUT, answer)
        async with opened(server) as remote:
            with pytest.raises(error) as caught:
                await remote.objects.put("x", BytesBody(DATA), upload_of(DATA))
        assert type(caught.value) is error
        assert KEY not in "".join(traceback.format_exception(caught.value))

    async def test_refused_before_the_body_came(self, server: NonsenseServer) -> None:
        """The reason of a refusal is seen although the body could not be sent."""
        server.refuses_bodies = True
        server.on(PUT, storage_failure(413, "EntityTooLarge"))
        data = bytes(8 * 1024 * 1024)
        async with opened(server) as remote:
            with pytest.raises((FileTooLarge, Unreachable)):
                await remote.objects.put("x", BytesBody(data), upload_of(data))

    async def test_file_that_shrinks(self, server: NonsenseServer, tmp_path: Path) -> None:
        """A file that is shorter than it was said to be is not sent as if it were whole."""
        path = tmp_path / "file"
        path.write_bytes(DATA)
        server.on(PUT, reply(200, {"Key": "bucket/x"}))
        async with opened(server) as remote:
            with path.open("rb") as file, pytest.raises(IntegrityError):
                await remote.objects.put("x", FileBody(file.fileno(), len(DATA) + 1), upload_of(DATA))

    async def test_mime_type_that_is_none(self, server: NonsenseServer) -> None:
        """A type that would break the headers is refused before anything is sent."""
        async with opened(server) as remote:
            with pytest.raises(Rejected):
                await remote.objects.put(
                    "x", BytesBody(b"x"), upload_of(b"x", mime_type="text/plain\r\nx-upsert: false")
                )
        assert server.requests == []


class TestLostAnswers:
    """Calls whose answer never came."""

    async def test_move_was_done(self, server: NonsenseServer) -> None:
        """A move whose answer was lost is settled by looking: done is done."""
        server.on(MOVE, Reply(b"", reset=True), storage_failure(404, "NoSuchKey"))
        server.on(STAT, listed(record("to")))
        async with opened(server) as remote:
            await remote.objects.move("from", "to")
        assert len(server.seen(MOVE)) == 2

    async def test_move_was_not_done(self, server: NonsenseServer) -> None:
        """A move that never arrived is sent again."""
        server.on(MOVE, Reply(b"", reset=True), reply(200, {"message": "Successfully moved"}))
        async with opened(server) as remote:
            await remote.objects.move("from", "to")

    @pytest.mark.parametrize(
        ("answer", "there", "error"),
        [
            (storage_failure(404, "NoSuchKey"), [], NotFound),
            (storage_failure(404, "NoSuchKey"), ["to"], NotFound),
            (storage_failure(409, "KeyAlreadyExists"), ["from", "to"], Exists),
            (storage_failure(404, "NoSuchKey"), ["from"], Unreachable),
        ],
    )
    async def test_refused_move(
        self, server: NonsenseServer, answer: Reply, there: list[str], error: type[ExaifsError]
    ) -> None:
        """A refusal at the first attempt is believed as far as the catalog agrees."""
        server.on(MOVE, answer)
        server.on(STAT, listed(*(record(key) for key in there)))
        async with opened(server) as remote:
            with pytest.raises(error):
                await remote.objects.move("from", "to")

    async def test_remove_that_removed_nothing(self, server: NonsenseServer) -> None:
        """An empty list is no success while the catalog still has the object."""
        server.on("DELETE /storage/v1/object/bucket", reply(200, []))
        async with opened(server) as remote:
            with pytest.raises(Unreachable):
                await remote.objects.remove([REF.key])
            server.on(STAT, listed())
            await remote.objects.remove([REF.key])


class TestFunctions:
    """What a call of an SQL function may meet."""

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (reply(200, HTML), Unreachable),
            (reply(200, b"ok"), Unreachable),
            (reply(200, "text"), Unreachable),
            (reply(200, []), Unreachable),
            (reply(200, {"other": 1}), Unreachable),
            (reply(200, b""), Unreachable),
            (reply(204, b"", length=None), Unreachable),
            (reply(302, b"", {"location": "/login"}), Unreachable),
            (reply(404, HTML), Unreachable),
            (reply(540, {"message": "paused"}), Unreachable),
            (reply(404, {"code": "PGRST202", "message": "Could not find the function"}), SchemaMissing),
            (reply(404, {"code": "42883", "message": "does not exist"}), SchemaMissing),
            (reply(403, {"code": "42501", "message": "permission denied"}), Unauthorized),
            (reply(401, {"code": "PGRST303", "message": "JWT expired"}), Unauthorized),
            (reply(401, {"message": "Invalid API key"}), Unauthorized),
            (reply(401, {"message": "No API key found in request"}), Unauthorized),
            (reply(500, {"code": "57014", "message": "canceling statement"}), Busy),
            (reply(503, {"code": "PGRST002", "message": "schema cache"}), Busy),
            (reply(503, HTML), Busy),
            (reply(429, {"message": "slow down"}), Busy),
            (Reply(b"", reset=True), Unreachable),
            (Reply(b"", stall=True), Unreachable),
        ],
    )
    async def test_errors(self, server: NonsenseServer, answer: Reply, error: type[ExaifsError]) -> None:
        """Every failure has its own error, and none shows the key."""
        server.on(HELLO, answer)
        async with opened(server, timeout_s=0.3) as remote:
            with pytest.raises(error) as caught:
                await remote.catalog.hello()
        assert type(caught.value) is error
        assert KEY not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize(
        ("answer", "advice"),
        [
            (reply(401, {"code": "PGRST303", "message": "JWT expired"}), "expired.*SERVICE_ROLE_KEY"),
            (reply(403, {"code": "42501", "message": "permission denied"}), "SERVICE_ROLE_KEY"),
            (reply(404, {"code": "PGRST202", "message": "no function"}), "exaifs init"),
            (reply(540, {"message": "paused"}), "dashboard"),
            (reply(200, HTML), "SUPABASE_URL"),
            (reply(200, {"schema_version": 7, "cursor": "c", "bucket": None}), "exaifs init"),
        ],
    )
    async def test_advice(self, server: NonsenseServer, answer: Reply, advice: str) -> None:
        """What a person can mend says how."""
        server.on(HELLO, answer)
        async with opened(server) as remote:
            with pytest.raises(ExaifsError, match=advice):
                await remote.catalog.hello()

    async def test_passing_trouble(self, server: NonsenseServer) -> None:
        """A function that was out of reach for a moment is called again."""
        server.on(STAT, reply(503, HTML), Reply(b"", reset=True), listed(record()))
        async with opened(server) as remote:
            assert set(await remote.catalog.stat([REF.key])) == {REF.key}

    async def test_missing_bucket(self, server: NonsenseServer) -> None:
        """A bucket that is not there is no empty bucket."""
        server.on(HELLO, reply(200, {"schema_version": 7, "cursor": "c", "bucket": None}))
        async with opened(server) as remote:
            with pytest.raises(BucketMissing):
                await remote.catalog.hello()


async def test_proxy_is_not_asked_for_loopback(
    server: NonsenseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy in the environment does not stand before a server on this machine."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert await read_all(server) == DATA


@pytest.mark.parametrize("key", ["with space", "new\nline", "schlüssel"])
async def test_keys_that_cannot_be_sent(server: NonsenseServer, key: str) -> None:
    """A key with characters that no key has is refused with advice, and not repeated in the error."""
    with pytest.raises(ConfigError) as caught:
        async with opened(server, key):
            pass
    assert key not in "".join(traceback.format_exception(caught.value))


async def test_many_downloads_leave_room_for_the_catalog(server: NonsenseServer) -> None:
    """However many downloads are open, the catalog can be asked, and all of them end."""
    server.on(GET, reply(200, DATA, {"etag": '"of-its-own"'}))
    done = 0

    async def one(call: Callable[[], Awaitable[bytes]]) -> None:
        nonlocal done
        assert await call() == DATA
        done += 1

    async with opened(server, timeout_s=5) as remote:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for _ in range(60):
                    group.start_soon(one, lambda: read(remote, REF))
    assert done == 60
