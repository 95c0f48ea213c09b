"""How long a caller waits for servers that take everything and answer nothing."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import anyio
import pytest
from pydantic import SecretStr

from exaifs.config import Config
from exaifs.errors import Busy, RemoteError, Unreachable
from exaifs.remote.bodies import BytesBody
from exaifs.remote.client import open_remote
from exaifs.remote.interface import Access, Remote, RowPatch
from tests.support.broken import (
    DATA,
    GET,
    HTML,
    PATIENCE_S,
    PUT,
    REF,
    RESUMABLE,
    STAT,
    TAG,
    listed,
    opened,
    record,
)
from tests.support.nonsense import NonsenseServer, Reply, Request, reply
from tests.support.pace import stopwatch, undisturbed
from tests.support.world import read, upload_of

pytestmark = pytest.mark.anyio

LIMIT_S = 0.6
SLACK_S = 0.5
"""For what has to be done besides waiting."""

Call = Callable[[Remote], Awaitable[object]]

READS: dict[str, Call] = {
    "GET": lambda remote: read(remote, REF),
    "range": lambda remote: read(remote, REF, 10, 20),
    "stat": lambda remote: remote.catalog.stat(["a"]),
    "list": lambda remote: remote.catalog.list_directory(""),
    "tree": lambda remote: remote.catalog.list_tree(""),
    "hello": lambda remote: remote.catalog.hello(),
    "changes": lambda remote: remote.catalog.changes(""),
    "sign": lambda remote: remote.objects.signed_url("a", 60),
}
"""What somebody waits for who reads or lists."""

CHANGES: dict[str, Call] = {
    "PUT": lambda remote: remote.objects.put("a", BytesBody(DATA), upload_of(DATA)),
    "large PUT": lambda remote: remote.objects.put("a", BytesBody(bytes(30 << 20)), upload_of(b"")),
    "copy": lambda remote: remote.objects.copy("a", "b"),
    "move": lambda remote: remote.objects.move("a", "b"),
    "remove": lambda remote: remote.objects.remove(["a"]),
    "commit": lambda remote: remote.catalog.commit("a", upload_of(DATA)),
    "patch": lambda remote: remote.catalog.patch("a", RowPatch()),
    "touch": lambda remote: remote.catalog.touch([Access("a", 1, 1)]),
}
"""What somebody waits for who closes, renames or removes."""


@asynccontextmanager
async def client(url: str, limit_s: float = LIMIT_S) -> AsyncIterator[Remote]:
    """Open a client with the limits of these tests and the retry policy that a mount has."""
    config = Config(
        supabase_url=url,
        supabase_key=SecretStr("sb_secret_x"),
        bucket="bucket",
        request_timeout_s=limit_s,
        read_timeout_s=limit_s,
    )
    async with open_remote(config) as remote:
        yield remote


async def waited(remote: Remote, call: Call) -> float:
    """Return how long a call takes to fail."""
    async with stopwatch() as watch:
        with anyio.fail_after(PATIENCE_S), pytest.raises(RemoteError) as caught:
            await call(remote)
        assert caught.value.temporary
        return watch.elapsed_s


@pytest.fixture(params=["silent", "unread", "unaccepted"])
def black_hole(request: pytest.FixtureRequest) -> Iterator[str]:
    """Start a server that takes connections, or not even that, and answers nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0 if request.param == "unaccepted" else 100)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        fillers = []
        if request.param == "unaccepted":
            # With a full backlog the kernel drops further SYNs, as a firewall does.
            for _ in range(4):
                filler = socket.socket()
                filler.settimeout(0)
                filler.connect_ex(listener.getsockname())
                fillers.append(filler)
        if request.param == "silent":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        yield url
        for filler in fillers:
            filler.close()


async def all_waited(url: str, calls: Mapping[str, Call]) -> dict[str, float]:
    """Return how long each call takes to fail, all of them at once."""
    times: dict[str, float] = {}

    async def one(name: str, call: Call) -> None:
        async with client(url) as remote:
            times[name] = await waited(remote, call)

    async with anyio.create_task_group() as group:
        for name, call in calls.items():
            group.start_soon(one, name, call)
    return times


async def test_reads_fail_in_time(black_hole: str) -> None:
    """Nobody who reads or lists waits longer than the limit, whatever is tried meanwhile."""
    times = await all_waited(black_hole, READS)
    assert max(times.values()) < LIMIT_S + SLACK_S, times


async def test_changes_fail_in_time(black_hole: str) -> None:
    """A server that hangs holds a close, rename or removal for three times the limit of an answer.

    What may have arrived is looked for once more at the end.
    """
    times = await all_waited(black_hole, CHANGES)
    assert max(times.values()) < 3 * LIMIT_S + LIMIT_S + SLACK_S, times


async def test_a_queue_of_reads_fails_in_time(black_hole: str) -> None:
    """However many read at once: all are told within the limit, not one dozen after the other."""
    async with client(black_hole) as remote:
        times: list[float] = []

        async def one() -> None:
            times.append(await waited(remote, READS["GET"]))

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(one)
        assert len(times) == 50
        assert max(times) < LIMIT_S + 2 * SLACK_S


async def test_slow_refusals_add_up_to_the_limit(server: NonsenseServer) -> None:
    """Attempts that each take a while are ended together, and the reason is told."""

    def slowly(_request: Request) -> Reply:
        server.closing.wait(0.8)
        return reply(503, HTML)

    async def scene() -> None:
        async with client(server.url, 2.0) as remote, stopwatch() as watch:
            with pytest.raises(Busy, match="503"):
                await remote.catalog.stat(["a"])
            assert watch.elapsed_s < 2.0 + SLACK_S

    server.on(STAT, slowly)
    await undisturbed(scene, 0.5)


async def test_stall_in_the_middle_of_a_body(server: NonsenseServer) -> None:
    """A body that stops coming ends after the limit, and says that the time is used up."""
    server.on(GET, reply(200, DATA[:1000], TAG, length=len(DATA), stall=True))
    async with client(server.url) as remote, stopwatch() as watch:
        with pytest.raises(Unreachable) as caught:
            await read(remote, REF)
        assert watch.elapsed_s < LIMIT_S + SLACK_S
        assert caught.value.waited_out


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_of_an_hour(server: NonsenseServer, status: int) -> None:
    """A server cannot make anybody wait for longer than the limit: the caller is told at once."""
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    for asked in ("3600", date):
        server.on(STAT, reply(status, {"message": "later"}, {"retry-after": asked}))
        server.on(PUT, reply(status, {"message": "later"}, {"retry-after": asked}))
        for call in (READS["stat"], CHANGES["PUT"]):
            async with client(server.url, PATIENCE_S) as remote:
                assert await waited(remote, call) < PATIENCE_S / 2


async def test_retry_after_as_a_date(server: NonsenseServer) -> None:
    """The date is meant by the clock of the server, which may be a year off."""
    now = datetime.now(UTC).replace(microsecond=0) - timedelta(days=365)
    headers = {
        "date": format_datetime(now, usegmt=True),
        "retry-after": format_datetime(now + timedelta(seconds=1), usegmt=True),
    }
    server.on(STAT, reply(429, {"message": "slow down"}, headers), listed(record()))
    async with opened(server) as remote:
        started = anyio.current_time()
        assert await remote.catalog.stat([REF.key])
        assert 1 <= anyio.current_time() - started < PATIENCE_S


@pytest.mark.parametrize("text", ["-1", "soon", "1e9", "٣", "Thu, 99 Foo 2026 00:00:00 GMT", "0"])
async def test_retry_after_that_is_none(server: NonsenseServer, text: str) -> None:
    """What is no Retry-After is as good as none."""
    answer = reply(429, {"message": "x"}, {"retry-after": text})
    server.on(STAT, answer, listed(record()))
    async with opened(server) as remote:
        with anyio.fail_after(PATIENCE_S):
            assert await remote.catalog.stat([REF.key])


async def test_put_that_is_slow_to_answer(server: NonsenseServer) -> None:
    """A server may need longer than for another answer to put away what it has got."""

    def slowly(_request: Request) -> Reply:
        server.closing.wait(3.0)
        return reply(200, {"Key": "bucket/a"})

    async def scene() -> None:
        server.requests.clear()
        async with client(server.url, 2.0) as remote:
            await CHANGES["PUT"](remote)
        assert len(server.seen(PUT)) == 1

    server.on(PUT, slowly)
    await undisturbed(scene, 0.5)


async def test_hanging_uploads_do_not_hold_back_reads(server: NonsenseServer) -> None:
    """While every place for uploads is taken by one that hangs, reads and listings go on."""
    server.on(RESUMABLE, reply(404, {"message": "no route"}))
    server.on(PUT, Reply(b"", stall=True))
    async with client(server.url, PATIENCE_S) as remote, anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(remote.objects.put, "a", BytesBody(DATA), upload_of(DATA))
        with anyio.fail_after(PATIENCE_S / 2):
            while len(server.seen(PUT)) < 8:  # noqa: ASYNC110 - a thread of the server sets no event
                await anyio.sleep(0.01)
        for _ in range(20):
            assert await read(remote, REF) == DATA
            assert await remote.catalog.stat([REF.key])
        assert len(server.seen(PUT)) == 8
        group.cancel_scope.cancel()
