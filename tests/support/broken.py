"""A client that wastes no time on a server that a test dictates, and the answers such tests need."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from pydantic import SecretStr

from exaifs.config import Config
from exaifs.model import ObjectRef
from exaifs.remote.client import remote_of
from exaifs.remote.interface import Remote
from exaifs.remote.retry import RetryPolicy
from exaifs.remote.session import open_session
from tests.support.nonsense import NonsenseServer, Reply, Request, reply
from tests.support.tus import TusServer
from tests.support.world import read

KEY = "sb_secret_never-to-be-shown"
DATA = bytes(range(256)) * 16
REF = ObjectRef("dir/a b.bin", "v1", len(DATA), '"etag-1"')
TAG = {"etag": '"etag-1"'}
HTML = b"<html><body>Please log in to this network.</body></html>"

GET = "GET /storage/v1/object/bucket/dir/a%20b.bin"
PUT = "PUT /storage/v1/object/bucket/"
RESUMABLE = "POST /storage/v1/upload/resumable"
COPY = "POST /storage/v1/object/copy"
MOVE = "POST /storage/v1/object/move"
STAT = "POST /rest/v1/rpc/exaifs_stat"
HELLO = "POST /rest/v1/rpc/exaifs_hello"

PATIENCE_S = 60.0
"""No server that answers at all needs so long, however busy the machine."""


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


def serve_object(request: Request) -> Reply:
    """Answer a GET rightly."""
    text = request.headers.get("range")
    if text is None:
        return reply(200, DATA, TAG)
    first, last = (int(part) for part in text.removeprefix("bytes=").split("-"))
    content_range = f"bytes {first}-{last}/{len(DATA)}"
    return reply(206, DATA[first : last + 1], {**TAG, "content-range": content_range})


@asynccontextmanager
async def opened(
    server: NonsenseServer | TusServer,
    key: str = KEY,
    timeout_s: float = PATIENCE_S,
    read_timeout_s: float = PATIENCE_S,
) -> AsyncIterator[Remote]:
    """Open the bucket with short pauses between attempts.

    Args:
        server: where it is.
        key: of the project.
        timeout_s: for one answer. Only where a server is silent should a test make it short.
        read_timeout_s: for a read, all attempts together.
    """
    config = Config(
        supabase_url=server.url,
        supabase_key=SecretStr(key),
        request_timeout_s=timeout_s,
        read_timeout_s=read_timeout_s,
    )
    async with open_session(config) as session:
        quick = RetryPolicy(first_delay_s=0.01, max_delay_s=0.02)
        yield remote_of(replace(session, retry=quick), "bucket")


async def read_all(server: NonsenseServer, start: int = 0, stop: int | None = None) -> bytes:
    """Read with a new client."""
    async with opened(server) as remote:
        return await read(remote, REF, start, stop)
