from pathlib import Path

import pytest

from tests.cache.bucket import Site


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run every test of the cache under both event loops."""
    backend: str = request.param
    return backend


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Return an empty cache directory and an empty bucket, with the limits of a default mount."""
    return Site(tmp_path)
