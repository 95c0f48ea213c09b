"""The real providers: upload, find, check, delete.

As in the product, a key in the environment is not enough: EXAIFS_TEST_PROVIDERS names those to try.
"""

from __future__ import annotations

import hashlib
import os

import pytest

from exaifs.model import ObjectRecord
from exaifs.providers.adapters import adapter_of
from exaifs.providers.errors import ProviderKeyMissing
from exaifs.providers.http import open_http
from exaifs.providers.sending import sending_of
from exaifs.providers.settings import BUILT_IN, load_providers
from exaifs.remote.bodies import BytesBody

pytestmark = [pytest.mark.anyio, pytest.mark.live, pytest.mark.usefixtures("way_out")]


@pytest.fixture
def anyio_backend() -> str:
    """Under trio, as in a mount; one upload is enough."""
    return "trio"


@pytest.mark.parametrize("name", BUILT_IN)
async def test_round_trip(name: str) -> None:
    """What the emulation says of a provider is true of the provider."""
    config = load_providers(None, name)
    assert config is not None
    settings = config.provider[name]
    if name not in os.environ.get("EXAIFS_TEST_PROVIDERS", "").split(","):
        pytest.skip("not tried: EXAIFS_TEST_PROVIDERS does not name it")
    try:
        _ = settings.key
    except ProviderKeyMissing as exc:
        pytest.skip(f"not tried: {exc}")
    data = b"exaifs live test " + os.urandom(8).hex().encode()
    file = ObjectRecord(key="exaifs-live.txt", version="v", size_bytes=len(data), mime_type="text/plain")
    purpose = settings.purpose_of(file.mime_type)
    sending = sending_of(file, hashlib.sha256(data).hexdigest(), purpose, BytesBody(data))
    async with open_http() as client:
        adapter = adapter_of(client, settings)
        made = await adapter.upload(sending)
        try:
            expected = {"unknown"} if settings.check == "none" else {"alive"}
            assert await adapter.check(made.id, purpose) in expected
            if settings.check != "none":
                found = await adapter.find(sending)
                assert found is not None
                assert found.id == made.id
        finally:
            await adapter.delete(made.id)
        assert await adapter.check(made.id, purpose) in {"gone", "unknown"}
