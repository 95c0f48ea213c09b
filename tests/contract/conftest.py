"""The worlds of the contract tests: the double under both event loops, and the embedded Supabase."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from exaifs.errors import KeyExpired
from exaifs.remote.interface import Remote
from tests.support.broken import GET, STAT, listed, record, serve_object
from tests.support.double import DoubleServer
from tests.support.http_world import HttpWorld, Server, open_world
from tests.support.nonsense import NonsenseServer, nonsense_server
from tests.support.world import BadKey


@dataclass
class DoubleWorld:
    """A fresh double."""

    server: DoubleServer = field(default_factory=DoubleServer)
    small_server: DoubleServer = field(default_factory=lambda: DoubleServer("small"))
    prefix: str = field(default_factory=lambda: f"t-{uuid.uuid4().hex}/")
    is_real: bool = True
    long_components: bool = True
    resumes: bool = True
    remote: Remote = field(init=False)
    small: Remote = field(init=False)

    def __post_init__(self) -> None:
        self.small_server.bucket.size_limit_bytes = 1000
        self.remote = self.server.remote()
        self.small = self.small_server.remote()

    @asynccontextmanager
    async def stranger(self, key: BadKey) -> AsyncIterator[Remote]:
        if key != "expired":
            yield self.server.remote(key_is_good=False)
            return
        self.server.inject("*", KeyExpired("the key has expired"), times=1000)
        yield self.server.remote()
        self.server.clear_faults()

    async def put_as_other(self, key: str, data: bytes, mime_type: str) -> None:
        self.server.bucket.put(key, data, mime_type)

    async def fetch(self, url: str) -> bytes:
        key = unquote(urlsplit(url).path).removeprefix(f"/{self.server.bucket_name}/")
        return self.server.bucket.objects[key].data

    async def delete_conversation(self, continuation_id: str) -> None:
        self.server.house.delete_conversation(continuation_id)


@pytest.fixture
def double_world() -> DoubleWorld:
    """A double with nothing in it."""
    return DoubleWorld()


@pytest.fixture(scope="session")
def embedded_server(embedded_supabase: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Name the session's embedded Supabase and the keys that it must refuse."""
    key = embedded_supabase["SUPABASE_SERVICE_ROLE_KEY"]
    server = Server(
        url=embedded_supabase["SUPABASE_URL"],
        key=key,
        bad_keys={
            "wrong": f"{key[:-4]}{key[-4:].swapcase()}0",
            "anon": _publishable_key(tmp_path_factory.getbasetemp(), key),
        },
        is_real=False,
        long_components=False,
    )
    server.create_buckets()
    return server


def _publishable_key(base: Path, secret_key: str) -> str:
    for path in base.glob("embedded*/keys.json"):
        keys = json.loads(path.read_text())
        if keys["secret_key"] == secret_key:
            return str(keys["publishable_key"])
    raise AssertionError("the embedded server keeps its keys elsewhere now")


@pytest.fixture
async def embedded_world(embedded_server: Server) -> AsyncIterator[HttpWorld]:
    """Give each test its own place on the embedded server."""
    async with open_world(embedded_server) as world:
        yield world


@pytest.fixture
def server() -> Iterator[NonsenseServer]:
    """Start a server that lists one object, and serves it as the real one does; tests then break it."""
    with nonsense_server() as server:
        server.on(STAT, listed(record()))
        server.on(GET, serve_object)
        yield server
