"""Large uploads to the live Supabase, with connections that break and processes that end.

Between client and server stands a gate that counts and cuts. It speaks no TLS, so these tests run against
servers on plain HTTP only.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from exaifs.cache.unsent.uploadmemory import FileUploadMemory
from exaifs.model import Posix
from exaifs.remote.bodies import FileBody
from exaifs.remote.client import open_remote
from exaifs.remote.interface import Upload
from tests.conftest import GIVEN
from tests.support.gate import Gate
from tests.support.http_world import BUCKET, HttpWorld, Server
from tests.support.world import read, upload_of

URL = GIVEN.get("SUPABASE_URL", "")
if not (URL.startswith("http://") and GIVEN.get("SUPABASE_SERVICE_ROLE_KEY")):
    pytest.skip(
        "set SUPABASE_URL (http) and SUPABASE_SERVICE_ROLE_KEY to upload to a live Supabase",
        allow_module_level=True,
    )

pytestmark = [pytest.mark.anyio, pytest.mark.live]

MIB = 1024 * 1024
SIZE_BYTES = 20 * MIB + 12_345
HEADERS_BYTES = 64 * 1024
"""More than the requests of one upload have besides the body."""
PIECE_BYTES = 6 * MIB

SENDER = """
import anyio, os, sys
from pathlib import Path
from exaifs.cache.unsent.uploadmemory import FileUploadMemory
from exaifs.config import load
from exaifs.model import Posix
from exaifs.remote.bodies import FileBody
from exaifs.remote.client import open_remote
from exaifs.remote.interface import Upload

key, path, sha256, write_id = sys.argv[1:]

async def main():
    upload = Upload(sha256, "application/x-test", Posix(mode=0o640), write_id)
    with open(path, "rb") as file:
        body = FileBody(file.fileno(), os.path.getsize(path))
        async with open_remote(load()) as remote:
            await remote.objects.put(key, body, upload, memory=FileUploadMemory(Path(path + ".upload")))

anyio.run(main, backend="trio")
"""
"""A process that uploads a file and remembers; the server and the key come from its environment."""


class CuttingGate(Gate):
    """A gate that counts what goes to the server, breaks connections, and gets stuck.

    `cuts` are totals at which the connection that carries the byte is broken; from `stuck_at` on nothing
    goes through any more.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.sent_bytes = 0
        self.cuts: list[int] = []
        self.stuck_at: int | None = None
        self.stuck = threading.Event()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
        back.start()
        with suppress(OSError):
            while data := near.recv(65536):
                if self.stuck_at is not None and self.sent_bytes >= self.stuck_at:
                    self.stuck.set()
                    self.hang()
                self._flowing.wait()
                far.sendall(data)
                self.sent_bytes += len(data)
                if self.cuts and self.sent_bytes >= self.cuts[0]:
                    self.cuts.pop(0)
                    break
        for end in (near, far):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        back.join()
        near.close()
        far.close()


@pytest.fixture
def gate(live_server: Server) -> Iterator[CuttingGate]:
    """Stand before the live server."""
    with CuttingGate(live_server.url) as gate:
        yield gate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a file of four pieces."""
    path = tmp_path / "data"
    path.write_bytes(random.Random(11).randbytes(SIZE_BYTES))
    return path


async def check(world: HttpWorld, key: str, data: bytes, upload: Upload) -> None:
    """Compare the object and its row with what was sent."""
    record = await world.remote.catalog.commit(key, upload)
    assert (record.size_bytes, record.sha256) == (len(data), upload.sha256)
    assert (record.write_id, record.posix) == (upload.write_id, upload.posix)
    assert await read(world.remote, record.ref) == data


async def test_a_connection_that_breaks(
    world: HttpWorld, live_server: Server, gate: CuttingGate, path: Path
) -> None:
    """A cut in the third piece costs that piece at most, and one that the server refuses for its offset."""
    data = path.read_bytes()  # noqa: ASYNC240 - a test may block
    key, upload = f"{world.prefix}cut.bin", upload_of(data)
    gate.cuts = [15 * MIB]
    behind = Server(gate.url, live_server.key, {}, is_real=True, long_components=False)
    with path.open("rb") as file:
        async with open_remote(behind.config(BUCKET)) as remote:
            await remote.objects.put(key, FileBody(file.fileno(), SIZE_BYTES), upload)
    assert gate.cuts == []
    # Sent anew it would be 15 MiB more.
    assert SIZE_BYTES < gate.sent_bytes < SIZE_BYTES + 3 * MIB + PIECE_BYTES + HEADERS_BYTES
    await check(world, key, data, upload)


def start(url: str, live_server: Server, key: str, path: Path, upload: Upload) -> subprocess.Popen[bytes]:
    """Start a process that uploads a file."""
    environment = {
        **os.environ,
        "SUPABASE_URL": url,
        "SUPABASE_SERVICE_ROLE_KEY": live_server.key,
        "FILE_STORAGE_BUCKET": BUCKET,
    }
    arguments = [key, str(path), upload.sha256, upload.write_id]
    return subprocess.Popen([sys.executable, "-c", SENDER, *arguments], env=environment)


async def test_process_that_is_killed(
    world: HttpWorld, live_server: Server, gate: CuttingGate, path: Path
) -> None:
    """Kill -9 in the third piece; the next process asks what is there and sends only the rest."""
    data = path.read_bytes()  # noqa: ASYNC240 - a test may block
    key = f"{world.prefix}killed.bin"
    upload = replace(upload_of(data), mime_type="application/x-test", posix=Posix(mode=0o640))
    note = path.with_name("data.upload")
    gate.stuck_at = 14 * MIB
    with start(gate.url, live_server, key, path, upload) as process:
        try:
            assert gate.stuck.wait(30)
        finally:
            process.send_signal(signal.SIGKILL)
    gate.stuck_at = None
    gate.open()

    offset = stored_offset(live_server, json.loads(note.read_text())["upload"])
    assert 2 * PIECE_BYTES <= offset < SIZE_BYTES
    assert await world.remote.catalog.stat([key]) == {}
    before = gate.sent_bytes
    with start(gate.url, live_server, key, path, upload) as process:
        assert process.wait(60) == 0
    assert gate.sent_bytes - before < SIZE_BYTES - offset + HEADERS_BYTES
    assert FileUploadMemory(note).load() is None
    await check(world, key, data, upload)


def stored_offset(server: Server, upload_id: str) -> int:
    """Ask how much of an upload is there, until the server has noticed that its client is gone."""
    headers = {"authorization": f"Bearer {server.key}", "apikey": server.key, "tus-resumable": "1.0.0"}
    url = f"{server.url}/storage/v1/upload/resumable/{upload_id}"
    end = time.monotonic() + 30
    offset = ""
    while time.monotonic() < end:
        answer = httpx.head(url, headers=headers, timeout=30, trust_env=False)
        before, offset = offset, answer.headers.get("upload-offset", "")
        if offset and offset == before:
            return int(offset)
        time.sleep(0.5)
    raise AssertionError(f"no offset, or one that grows: {offset!r}")
