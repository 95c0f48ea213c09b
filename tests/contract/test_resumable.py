"""Large uploads over real HTTP to a strict TUS server: cuts, lost answers, restarts, refusals."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from exaifs.cache.unsent.uploadmemory import FileUploadMemory
from exaifs.errors import (
    BucketMissing,
    Busy,
    ExaifsError,
    FileTooLarge,
    NoSpace,
    Rejected,
    Unauthorized,
    Unreachable,
)
from exaifs.model import Posix
from exaifs.remote.bodies import BytesBody
from exaifs.remote.interface import Upload, UploadMemory
from tests.support.broken import HTML, PATIENCE_S, opened
from tests.support.pace import stopwatch, undisturbed
from tests.support.tus import PIECE_BYTES, Refusal, TusServer, tus_server
from tests.support.world import CountedBody, NotedMemory, upload_of

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
DATA = random.Random(1).randbytes(20 * MIB + 1)
"""Four pieces, the last of them short."""
UPLOAD = upload_of(DATA)
JSON = (("content-type", "application/json"),)
PAGE = (("content-type", "text/html"),)


@pytest.fixture
def server() -> Iterator[TusServer]:
    """Start a TUS server; at the end nothing may have been wrong in what it was sent."""
    with tus_server() as server:
        yield server
    assert server.problems == []


async def put(
    server: TusServer,
    *,
    data: bytes = DATA,
    upload: Upload = UPLOAD,
    memory: UploadMemory | None = None,
    timeout_s: float = PATIENCE_S,
) -> None:
    """Upload with a new client, as a new process would."""
    async with opened(server, timeout_s=timeout_s) as remote:
        await remote.objects.put("d/a b", BytesBody(data), upload, memory=memory)


class TestWay:
    """Which way an upload goes."""

    async def test_pieces(self, server: TusServer) -> None:
        """Pieces of exactly 6 MiB but the last, no byte twice, and everything that a PUT brings along."""
        await put(server)
        assert server.pieces == [PIECE_BYTES] * 3 + [2 * MIB + 1]
        assert server.received_bytes == len(DATA)
        assert server.requests == ["POST", *["PATCH"] * 4]
        stored = server.objects["d/a b"]
        assert stored.data == DATA
        assert stored.mime_type == UPLOAD.mime_type
        assert stored.user["sha256"] == UPLOAD.sha256
        assert stored.user["write_id"] == UPLOAD.write_id
        assert Posix.from_json(stored.user["posix"]) == UPLOAD.posix
        (upload,) = server.uploads.values()
        assert upload.metadata["cacheControl"] == "no-cache"

    async def test_small_bodies_go_whole(self, server: TusServer) -> None:
        """Up to 6 MiB one PUT is all that is sent."""
        data = DATA[:PIECE_BYTES]
        await put(server, data=data, upload=upload_of(data))
        assert server.requests == ["PUT"]
        await put(server, data=data + b"x", upload=upload_of(data + b"x"))
        assert server.requests == ["PUT", "POST", "PATCH", "PATCH"]

    @pytest.mark.parametrize(
        "answer",
        [
            Refusal(404, '{"message":"Route POST:/upload/resumable not found","statusCode":404}', JSON),
            Refusal(404, '{"message":"no Route matched with those values"}', JSON),
            Refusal(400, '{"statusCode":"404","error":"Bucket not found","message":"x"}', JSON),
            Refusal(405, "", PAGE),
            Refusal(501, "", PAGE),
            Refusal(404, HTML.decode(), PAGE),
            Refusal(200, HTML.decode(), PAGE),
            Refusal(302, "", (("location", "/login"),)),
        ],
    )
    async def test_server_without_tus(self, server: TusServer, answer: Refusal) -> None:
        """It gets the body whole, once, and is not asked for every upload."""
        server.refuse("POST", answer)
        memory = NotedMemory("old")
        async with opened(server) as remote:
            for _ in range(3):
                await remote.objects.put("a", BytesBody(DATA), UPLOAD, memory=memory)
        assert server.requests == ["POST", "PUT", "PUT", "PUT"]
        assert server.received_bytes == 3 * len(DATA)
        assert memory.load() is None

    async def test_no_is_believed_when_the_put_works(self, server: TusServer) -> None:
        """A gateway that answers nonsense to everything does not end resumable uploads."""
        server.refuse("POST", Refusal(404, HTML.decode(), PAGE))
        server.refuse("PUT", *[Refusal(404, HTML.decode(), PAGE)] * 4)
        async with opened(server) as remote:
            with pytest.raises(Unreachable):
                await remote.objects.put("a", BytesBody(DATA), UPLOAD)
            await remote.objects.put("a", BytesBody(DATA), UPLOAD)
        assert server.requests[-5:] == ["POST", *["PATCH"] * 4]


class TestCuts:
    """Connections that break."""

    @pytest.mark.parametrize(
        "cut", [1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 13 * MIB + 7, len(DATA) - 1, len(DATA)]
    )
    async def test_cut_anywhere(self, server: TusServer, cut: int) -> None:
        """What had arrived is not sent again."""
        server.cut_at(cut)
        await put(server)
        assert server.objects["d/a b"].data == DATA
        assert server.received_bytes == len(DATA)

    async def test_any_number_of_cuts(self, server: TusServer) -> None:
        """As long as each attempt gets further, an upload is not given up."""
        server.cut_at(*range(MIB, 20 * MIB, MIB))
        await put(server)
        assert server.objects["d/a b"].data == DATA
        assert server.received_bytes == len(DATA)
        assert server.requests.count("HEAD") == 19

    async def test_no_progress(self, server: TusServer) -> None:
        """A server that cuts at the same byte again and again is given up, as after any other failure."""
        server.cut_at(*[7 * MIB] * 9)
        with pytest.raises(Unreachable):
            await put(server)
        assert server.received_bytes == 7 * MIB
        assert server.requests.count("PATCH") <= 6

    @pytest.mark.parametrize("method", ["POST", "HEAD", "PATCH"])
    async def test_lost_answer(self, server: TusServer, method: str) -> None:
        """An answer that was lost on the way costs no byte."""
        server.cut_at(9 * MIB)
        server.lose_answer(method)
        await put(server)
        assert server.objects["d/a b"].data == DATA
        assert server.received_bytes == len(DATA)

    async def test_lost_last_answer(self, server: TusServer) -> None:
        """All bytes were in, nobody said so: what is there is found by looking."""
        server.lose_answer("PATCH", times=4)
        await put(server)
        assert server.received_bytes == len(DATA)
        assert server.requests[-2:] == ["HEAD", "stat"]

    async def test_lost_last_answer_and_upload(self, server: TusServer) -> None:
        """The same where the server forgets an upload once it is an object."""
        server.lose_answer("PATCH", times=4)
        server.refuse("HEAD", None, None, None, Refusal(404))
        await put(server)
        assert server.received_bytes == len(DATA)
        assert server.requests[-2:] == ["HEAD", "stat"]

    async def test_last_step_fails(self, server: TusServer) -> None:
        """All bytes are in and the server could not make the object of them: it tries again, bytes stay."""
        server.refuse("finish", Refusal(503, "lock timeout"), Refusal(500, "Internal"))
        await put(server)
        assert server.objects["d/a b"].data == DATA
        assert server.received_bytes == len(DATA)
        assert server.pieces[4:] == [0, 0]


class TestRestart:
    """Another process goes on."""

    async def cut_off(self, server: TusServer, memory: UploadMemory, upload: Upload = UPLOAD) -> None:
        """Leave an upload behind of which 13 MiB have arrived."""
        server.cut_at(*[13 * MIB] * 9)
        with pytest.raises(Unreachable):
            await put(server, memory=memory, upload=upload)
        server.recover()
        assert server.received_bytes == 13 * MIB

    async def test_goes_on(self, server: TusServer, tmp_path: Path) -> None:
        """What an earlier process sent is not sent again; the note is gone at the end."""
        path = tmp_path / "a.upload"
        await self.cut_off(server, FileUploadMemory(path))
        assert path.exists()
        server.requests.clear()
        await put(server, memory=FileUploadMemory(path))
        assert server.requests == ["HEAD", "PATCH", "PATCH"]
        assert server.received_bytes == len(DATA)
        assert server.objects["d/a b"].data == DATA
        assert not path.exists()

    async def test_killed_before_the_last_answer(self, server: TusServer) -> None:
        """The earlier process had sent everything: nothing is sent, and the object is not made again."""
        memory = NotedMemory()
        server.lose_answers_from(len(DATA))
        with pytest.raises(Unreachable):
            await put(server, memory=memory)
        server.recover()
        version = server.objects["d/a b"].version
        await put(server, memory=memory)
        assert memory.load() is None
        assert server.received_bytes == len(DATA)
        assert server.objects["d/a b"].version == version

    @pytest.mark.parametrize(
        "change",
        [
            {"write_id": "another"},
            {"sha256": "0" * 64},
            {"posix": Posix(mode=0o600)},
            {"mime_type": "text/html"},
            {"xattrs": {"user.a": b"x"}},
        ],
        ids=lambda change: next(iter(change)),
    )
    async def test_another_upload(self, server: TusServer, change: dict[str, object]) -> None:
        """Only the very same upload goes on: the server has the other one's hash and attributes."""
        memory = NotedMemory()
        await self.cut_off(server, memory, replace(UPLOAD, **change))  # type: ignore[arg-type]  # by field
        server.requests.clear()
        await put(server, memory=memory)
        assert server.requests[0] == "POST"
        assert server.objects["d/a b"].user["write_id"] == UPLOAD.write_id
        assert server.objects["d/a b"].user["sha256"] == UPLOAD.sha256

    @pytest.mark.parametrize("status", [400, 403, 404, 410])
    async def test_expired(self, server: TusServer, status: int) -> None:
        """An upload that the server does not know any more starts over."""
        memory = NotedMemory()
        await self.cut_off(server, memory)
        server.refuse("HEAD", Refusal(status))
        await put(server, memory=memory)
        assert server.received_bytes == 13 * MIB + len(DATA)
        assert server.objects["d/a b"].data == DATA

    @pytest.mark.parametrize("status", [404, 410])
    async def test_expires_meanwhile(self, server: TusServer, status: int) -> None:
        """The same when it shows only at the next piece."""
        memory = NotedMemory()
        await self.cut_off(server, memory)
        server.refuse("PATCH", Refusal(status, "gone"))
        await put(server, memory=memory)
        assert server.objects["d/a b"].data == DATA

    @pytest.mark.parametrize(
        "facts", [("5", "7"), (str(len(DATA) + 1), str(len(DATA))), ("x", str(len(DATA)))]
    )
    async def test_other_size(self, server: TusServer, facts: tuple[str, str]) -> None:
        """An upload with another size, or more than that, is not ours."""
        memory = NotedMemory()
        await self.cut_off(server, memory)
        names = ("upload-offset", "upload-length")
        headers = (("tus-resumable", "1.0.0"), *zip(names, facts, strict=True))
        server.refuse("HEAD", Refusal(200, "", headers))
        await put(server, memory=memory)
        assert server.objects["d/a b"].data == DATA

    async def test_wrong_offset(self, server: TusServer) -> None:
        """Who is told that its offset is wrong asks for the right one."""
        memory = NotedMemory()
        await self.cut_off(server, memory)
        stale = (("tus-resumable", "1.0.0"), ("upload-offset", "0"), ("upload-length", str(len(DATA))))
        server.refuse("HEAD", Refusal(200, "", stale))
        await put(server, memory=memory)
        assert server.received_bytes == len(DATA)
        assert server.objects["d/a b"].data == DATA

    async def test_server_that_forgets_everything(self, server: TusServer) -> None:
        """Nobody starts over for ever."""
        server.refuse("PATCH", *[Refusal(404, "gone")] * 99)
        with pytest.raises(Unreachable):
            await put(server)
        assert server.requests.count("POST") <= 12


class TestTrouble:
    """Refusals, and servers that hang."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        """One event loop: the tables are long."""
        return "trio"

    @pytest.mark.parametrize("method", ["POST", "PATCH"])
    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (Refusal(413, "Maximum size exceeded\n"), FileTooLarge),
            (Refusal(413, HTML.decode(), PAGE), FileTooLarge),
            (Refusal(400, "Invalid key: x"), Rejected),
            (Refusal(415, "mime type text/x is not supported"), Rejected),
            (Refusal(403, "new row violates row-level security policy"), Unauthorized),
            (Refusal(400, '{"statusCode":"403","code":"AccessDenied","message":"x"}', JSON), Unauthorized),
            (Refusal(402, '{"message":"exceed_storage_size_quota"}', JSON), NoSpace),
            (Refusal(507, "full"), NoSpace),
        ],
    )
    async def test_refusals(
        self, server: TusServer, method: str, answer: Refusal, error: type[ExaifsError]
    ) -> None:
        """Every refusal has the error that it has after a PUT, and is not repeated."""
        server.refuse(method, answer)
        with pytest.raises(error) as caught:
            await put(server)
        assert type(caught.value) is error
        assert server.requests.count(method) == 1
        assert server.objects == {}

    async def test_missing_bucket(self, server: TusServer) -> None:
        """A bucket that is not there says what to do."""
        server.refuse("POST", Refusal(404, "Bucket not found"))
        with pytest.raises(BucketMissing, match="exaifs init"):
            await put(server)

    @pytest.mark.parametrize("method", ["POST", "HEAD", "PATCH"])
    @pytest.mark.parametrize("status", [408, 423, 429, 499, 500, 502, 503, 520, 544])
    async def test_passing_trouble(self, server: TusServer, method: str, status: int) -> None:
        """What passes is tried again, and no byte that had arrived is sent twice."""
        server.cut_at(MIB)
        server.refuse(method, Refusal(status, "x"), Refusal(status, HTML.decode(), PAGE))
        await put(server, data=DATA[: 8 * MIB], upload=upload_of(DATA[: 8 * MIB]))
        assert server.objects["d/a b"].data == DATA[: 8 * MIB]
        assert server.received_bytes == 8 * MIB

    @pytest.mark.parametrize("method", ["POST", "HEAD", "PATCH"])
    async def test_lasting_trouble(self, server: TusServer, method: str) -> None:
        """What lasts is told as it is."""
        server.cut_at(MIB)
        server.refuse(method, *[Refusal(503, "database is down")] * 99)
        with pytest.raises(Busy, match="database is down" if method != "HEAD" else "503"):
            await put(server)

    @pytest.mark.parametrize("method", ["POST", "HEAD", "PATCH"])
    async def test_server_that_hangs(self, server: TusServer, method: str) -> None:
        """Nothing moves: after three times the limit of an answer the caller is told."""
        server.cut_at(MIB)
        server.stall(method)
        async with stopwatch() as watch:
            with pytest.raises(Unreachable):
                await put(server, timeout_s=0.5)
            # The MiB before took its time, too.
            assert watch.elapsed_s < 1.5 + 2

    async def test_slow_but_moving(self, server: TusServer) -> None:
        """An upload that takes longer than all limits goes on as long as something moves."""

        async def scene() -> None:
            server.received_bytes = 0
            async with opened(server, timeout_s=1) as remote:
                body = _SlowBody(DATA[: 7 * MIB])
                await remote.objects.put("a", body, upload_of(body.data))
            assert server.objects["a"].data == body.data
            assert server.received_bytes == 7 * MIB

        await undisturbed(scene, 0.2)


class _SlowBody(CountedBody):
    """Takes five seconds to read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data

    async def chunks(self, start: int = 0) -> AsyncIterator[bytes]:
        """Yield one MiB at a time, with a pause before each."""
        for position in range(start, len(self.data), MIB):
            await anyio.sleep(0.75)
            yield self.data[position : position + MIB]
