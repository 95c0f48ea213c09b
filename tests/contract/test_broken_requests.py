"""Uploads, moves and function calls that meet nonsense: typed errors, in time, without the key in them."""

from __future__ import annotations

import hashlib
import traceback
from pathlib import Path

import pytest

from exaifs.errors import (
    BucketMissing,
    Busy,
    ConfigError,
    ExaifsError,
    Exists,
    FileTooLarge,
    IntegrityError,
    KeyExpired,
    NoSpace,
    NotFound,
    Rejected,
    SchemaMissing,
    Unauthorized,
    Unreachable,
)
from exaifs.remote.bodies import BytesBody, FileBody
from tests.support.broken import (
    DATA,
    HELLO,
    HTML,
    KEY,
    MOVE,
    PATIENCE_S,
    PUT,
    REF,
    RESUMABLE,
    STAT,
    listed,
    opened,
    read_all,
    record,
    storage_failure,
)
from tests.support.nonsense import NonsenseServer, Reply, reply
from tests.support.world import upload_of

pytestmark = pytest.mark.anyio


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
            (storage_failure(403, "Unauthorized", '"exp" claim timestamp check failed'), KeyExpired),
            (storage_failure(400, "", "headers must have required property 'authorization'"), Unauthorized),
            (storage_failure(404, "NoSuchBucket", "Bucket not found"), BucketMissing),
            (reply(402, {"message": "exceed_storage_size_quota"}), NoSpace),
            (reply(507, {"message": "full"}), NoSpace),
            (reply(404, {"message": "no Route matched with those values"}), Unreachable),
            (storage_failure(409, "Duplicate"), Busy),
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
        server.on(RESUMABLE, reply(404, {"message": "Route POST:/upload/resumable not found"}))
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
        assert len(server.seen(MOVE)) == 2

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
            (reply(404, {"message": "no Route matched with those values"}), Unreachable),
            (reply(540, {"message": "paused"}), Unreachable),
            (reply(404, {"code": "PGRST202", "message": "Could not find the function"}), SchemaMissing),
            (reply(404, {"code": "42883", "message": "does not exist"}), SchemaMissing),
            (reply(403, {"code": "42501", "message": "permission denied"}), Unauthorized),
            (reply(401, {"code": "PGRST303", "message": "JWT expired"}), KeyExpired),
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
        async with opened(server, timeout_s=0.3 if answer.stall else PATIENCE_S) as remote:
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
