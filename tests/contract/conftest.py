"""The worlds of the contract tests: the double under both event loops, and the embedded Supabase."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import pytest

from exaifs.remote.interface import Remote
from tests.support.double import DoubleServer
from tests.support.world import BadKey


@dataclass
class DoubleWorld:
    """A fresh double."""

    server: DoubleServer = field(default_factory=DoubleServer)
    small_server: DoubleServer = field(default_factory=lambda: DoubleServer("small"))
    prefix: str = field(default_factory=lambda: f"t-{uuid.uuid4().hex}/")
    is_real: bool = True
    long_components: bool = True
    remote: Remote = field(init=False)
    small: Remote = field(init=False)

    def __post_init__(self) -> None:
        self.small_server.bucket.size_limit_bytes = 1000
        self.remote = self.server.remote()
        self.small = self.small_server.remote()

    @asynccontextmanager
    async def stranger(self, key: BadKey) -> AsyncIterator[Remote]:
        assert key
        yield self.server.remote(key_is_good=False)

    async def put_as_other(self, key: str, data: bytes, mime_type: str) -> None:
        self.server.bucket.put(key, data, mime_type)

    async def fetch(self, url: str) -> bytes:
        key = unquote(urlsplit(url).path).removeprefix(f"/{self.server.bucket_name}/")
        return self.server.bucket.objects[key].data


@pytest.fixture
def double_world() -> DoubleWorld:
    """A double with nothing in it."""
    return DoubleWorld()
