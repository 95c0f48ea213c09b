"""What `doctor` and `init` ask: in seconds where nobody answers, patiently where somebody does."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from exaifs.config import Config
from exaifs.errors import Unreachable
from exaifs.remote.probe import ANSWER_TIMEOUT_S, open_probe
from tests.support.broken import HELLO, KEY, PATIENCE_S
from tests.support.nonsense import NonsenseServer, Reply, Request, reply
from tests.support.pace import undisturbed

pytestmark = pytest.mark.anyio

BUCKETS = "GET /storage/v1/bucket"


@pytest.fixture
def anyio_backend() -> str:
    """One event loop is enough here."""
    return "trio"


def settings(server: NonsenseServer, timeout_s: float) -> Config:
    """Return settings with this limit for an answer."""
    return Config(supabase_url=server.url, supabase_key=SecretStr(KEY), request_timeout_s=timeout_s)


async def test_who_has_answered_may_take_longer(server: NonsenseServer) -> None:
    """A server that is there, and busy, is not told to be down."""

    def slowly(_request: Request) -> Reply:
        server.closing.wait(ANSWER_TIMEOUT_S + 1)
        return reply(200, {"schema_version": 1})

    server.on(BUCKETS, reply(200, []))
    server.on(HELLO, slowly)

    async def scene() -> None:
        async with open_probe(settings(server, PATIENCE_S)) as probe:
            assert await probe.list_buckets() == ()
            assert await probe.call("exaifs_hello") == {"schema_version": 1}

    await undisturbed(scene, ANSWER_TIMEOUT_S / 4)


async def test_the_limit_that_was_kept_is_named(server: NonsenseServer) -> None:
    """The first answer has four seconds, whatever is set; the words say which limit it was."""
    server.on(BUCKETS, Reply(b"", stall=True))
    async with open_probe(settings(server, PATIENCE_S)) as probe:
        with pytest.raises(Unreachable, match="does not answer within 4 s"):
            await probe.list_buckets()
