"""A request that is cancelled while it is sent leaves nothing behind for the garbage collector."""

from __future__ import annotations

import gc
import warnings

import pytest
import trio

from exaifs.config import load
from exaifs.remote.client import open_remote

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Run under trio, which warns of generators that were left suspended."""
    return "trio"


async def test_a_cancelled_send_leaves_no_generator() -> None:
    """A server that does not read: the call is given up, and the collector finds no generator of it."""
    config = {"supabase_key": "sb_secret_of_nobody", "bucket": "user-files"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listener.socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, _never_read, [listener])
            async with open_remote(load(supabase_url=f"http://127.0.0.1:{port}", **config)) as remote:
                with trio.move_on_after(0.5) as scope:
                    await remote.catalog.stat(["k" * 900] * 40_000)
                assert scope.cancelled_caught
            nursery.cancel_scope.cancel()
        gc.collect()
        await trio.lowlevel.checkpoint()
    assert [str(warning.message) for warning in caught if warning.category is ResourceWarning] == []


async def _never_read(stream: trio.SocketStream) -> None:
    """Accept, and let the client's buffers fill up."""
    async with stream:
        await trio.sleep_forever()
