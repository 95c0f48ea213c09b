import pytest


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run every test of the cache under both event loops."""
    backend: str = request.param
    return backend
