"""A contract world on a server that speaks HTTP: the embedded Supabase, or one from the environment."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
from pydantic import SecretStr

from exaifs.config import Config
from exaifs.remote.client import open_remote
from exaifs.remote.interface import Remote
from exaifs.remote.wire import quote_key
from tests.support.broken import PATIENCE_S
from tests.support.world import BadKey

BUCKET = "exaifs-contract"
SMALL_BUCKET = "exaifs-contract-small"
_LIMITS = {BUCKET: 50 * 1024 * 1024, SMALL_BUCKET: 1000}


@dataclass(frozen=True)
class Server:
    """Where a Supabase is, and the keys that it must refuse (as far as there are any)."""

    url: str
    key: str
    bad_keys: Mapping[BadKey, str]
    is_real: bool
    long_components: bool

    def client(self) -> httpx.Client:
        """Return a client that knows nothing of exaifs, for tests to set things up."""
        headers = {"apikey": self.key, "Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_S, trust_env=False)

    def create_buckets(self) -> None:
        """Make and register the buckets of the contract tests, unless they are there."""
        with self.client() as client:
            for name, limit_bytes in _LIMITS.items():
                settings = {"id": name, "name": name, "public": False, "file_size_limit": limit_bytes}
                answer = client.post("/storage/v1/bucket", json=settings)
                assert answer.is_success or "exist" in answer.text, answer.text
                client.post(
                    "/rest/v1/rpc/exaifs_register_bucket", json={"p_bucket": name}
                ).raise_for_status()

    def remove_buckets(self) -> None:
        """Delete the buckets of the contract tests, unless a failed test left something in them."""
        with self.client() as client:
            for name in _LIMITS:
                client.delete(f"/storage/v1/bucket/{name}")

    def config(self, bucket: str, key: str | None = None) -> Config:
        """Return the settings of a client."""
        return Config(
            supabase_url=self.url,
            supabase_key=SecretStr(self.key if key is None else key),
            bucket=bucket,
            request_timeout_s=PATIENCE_S,
            read_timeout_s=PATIENCE_S,
        )


@dataclass
class HttpWorld:
    """See `tests.support.world.World`."""

    server: Server
    remote: Remote
    small: Remote
    prefix: str
    is_real: bool
    long_components: bool
    resumes: bool

    @asynccontextmanager
    async def stranger(self, key: BadKey) -> AsyncIterator[Remote]:
        bad_key = self.server.bad_keys.get(key)
        if bad_key is None:
            pytest.skip(f"no {key} key of this server is known")
        async with open_remote(self.server.config(BUCKET, bad_key)) as remote:
            yield remote

    async def put_as_other(self, key: str, data: bytes, mime_type: str) -> None:
        headers = {"content-type": mime_type, "x-upsert": "true"}
        with self.server.client() as client:
            path = f"/storage/v1/object/{BUCKET}/{quote_key(key)}"
            client.put(path, content=data, headers=headers).raise_for_status()

    async def fetch(self, url: str) -> bytes:
        async with httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as client:
            answer = await client.get(url)
        return answer.raise_for_status().content

    async def delete_conversation(self, continuation_id: str) -> None:
        with self.server.client() as client:
            where = {"continuation_id": f"eq.{continuation_id}"}
            client.delete("/rest/v1/conversations", params=where).raise_for_status()


@asynccontextmanager
async def open_world(server: Server) -> AsyncIterator[HttpWorld]:
    """Give a test its own prefix, and clean up behind it."""
    async with AsyncExitStack() as stack:
        remote = await stack.enter_async_context(open_remote(server.config(BUCKET)))
        small = await stack.enter_async_context(open_remote(server.config(SMALL_BUCKET)))
        prefix = f"t-{uuid.uuid4().hex}/"
        yield HttpWorld(
            server, remote, small, prefix, server.is_real, server.long_components, resumes=server.is_real
        )
        await _empty(remote, prefix)
        await _empty(small, prefix)


async def _empty(remote: Remote, prefix: str) -> None:
    records, after = await remote.catalog.list_tree(prefix)
    await remote.objects.remove([record.key for record in records])
    assert after is None
