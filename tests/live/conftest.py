"""The Supabase that the environment names: a real project, or the storage server on this machine.

SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY name it, with the schema applied (`exaifs init --apply`).
ANON_KEY and EXPIRED_KEY, where set, are keys that it must refuse. EXAIFS_TEST_LONG_COMPONENTS=0 says that
its storage keeps each key component as one file name. Only buckets called exaifs-contract* are touched.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.conftest import GIVEN
from tests.support.http_world import HttpWorld, Server, open_world
from tests.support.world import BadKey


@pytest.fixture(scope="session")
def live_server(way_out: None) -> Iterator[Server]:
    """Name the server; without one the tests are skipped where they are collected."""
    assert way_out is None
    url = GIVEN["SUPABASE_URL"]
    key = GIVEN["SUPABASE_SERVICE_ROLE_KEY"]
    bad_keys: dict[BadKey, str] = {
        "wrong": key[:-8] + key[-8:].swapcase(),
        "anon": GIVEN.get("ANON_KEY", ""),
        "expired": GIVEN.get("EXPIRED_KEY", ""),
    }
    server = Server(
        url=url,
        key=key,
        bad_keys={name: bad_key for name, bad_key in bad_keys.items() if bad_key},
        is_real=True,
        long_components=GIVEN.get("EXAIFS_TEST_LONG_COMPONENTS", "1") != "0",
    )
    server.create_buckets()
    yield server
    server.remove_buckets()


@pytest.fixture
async def world(live_server: Server) -> AsyncIterator[HttpWorld]:
    """Give each test its own place on the live server."""
    async with open_world(live_server) as world:
        yield world
