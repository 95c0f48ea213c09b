"""GETs that meet nonsense: typed errors, in time, and never a wrong byte."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest
from pydantic import SecretStr

from exaifs.config import Config
from exaifs.errors import (
    Busy,
    IntegrityError,
    Stale,
    Unauthorized,
    Unreachable,
    Unserved,
)
from exaifs.remote.client import open_remote
from tests.support.broken import (
    DATA,
    GET,
    HTML,
    KEY,
    PATIENCE_S,
    REF,
    STAT,
    TAG,
    listed,
    opened,
    read_all,
    record,
    serve_object,
    storage_failure,
)
from tests.support.nonsense import NonsenseServer, Reply, chunked, reply
from tests.support.pace import undisturbed
from tests.support.ports import own_port
from tests.support.world import read

pytestmark = pytest.mark.anyio


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
        async with opened(server, read_timeout_s=0.6) as remote:
            with anyio.fail_after(PATIENCE_S / 2), pytest.raises(Unreachable):
                await read(remote, REF)

    async def test_no_answer_at_all(self, server: NonsenseServer) -> None:
        """A server that accepts and is silent is unreachable, after the limit for each attempt."""
        server.on(GET, Reply(b"", stall=True))

        async def scene() -> None:
            server.requests.clear()
            async with opened(server, timeout_s=0.3) as remote:
                with anyio.fail_after(PATIENCE_S / 2), pytest.raises(Unreachable):
                    await read(remote, REF)
            # An attempt whose time a busy machine uses up may not have come as far as to ask.
            assert 2 <= len(server.seen(GET)) <= 4

        await undisturbed(scene, 0.1)

    async def test_nobody_listens(self) -> None:
        """A refused connection says which server it was for."""
        address = f"127.0.0.1:{own_port()}"
        config = Config(supabase_url=f"http://{address}", supabase_key=SecretStr(KEY), bucket="bucket")
        async with open_remote(config) as remote:
            with pytest.raises(Unreachable, match=f"connect to {address} "):
                await read(remote, REF)

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
        server.on(GET, storage_failure(status, "some_code"))
        for answer in (listed(record(version="v2")), listed()):
            server.requests.clear()
            server.on(STAT, answer)
            with pytest.raises(Stale):
                await read_all(server, 10, 20)
            assert len(server.seen(GET)) == 1

    async def test_not_found_although_listed(self, server: NonsenseServer) -> None:
        """A 404 alone proves nothing: what the catalog lists is not gone. It is no outage either."""
        server.on(GET, storage_failure(404, "NoSuchKey", "Object not found"))
        with pytest.raises(Unserved):
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


async def test_many_downloads_leave_room_for_the_catalog(server: NonsenseServer) -> None:
    """However many downloads are open, the catalog can be asked, and all of them end."""
    server.on(GET, reply(200, DATA, {"etag": '"of-its-own"'}))
    done = 0

    async def one(call: Callable[[], Awaitable[bytes]]) -> None:
        nonlocal done
        assert await call() == DATA
        done += 1

    async with opened(server) as remote:
        with anyio.fail_after(PATIENCE_S / 2):
            async with anyio.create_task_group() as group:
                for _ in range(60):
                    group.start_soon(one, lambda: read(remote, REF))
    assert done == 60
