from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path

import pytest

from tests.mcp.served import Caller, Project, http_caller, http_server, stdio_caller
from tests.providers import contracts
from tests.providers.emulator import Clock, ProviderServer, running
from tests.providers.world import Providers

Connect = Callable[[], AbstractAsyncContextManager[Caller]]

PROVIDER_BYTES = 8_000_000
"""What the provider takes; its own limit is scaled down too far for an upload that takes a while."""


@pytest.fixture
def anyio_backend() -> str:
    """The client's; the server is another process. On trio the official client leaves generators open."""
    return "asyncio"


@pytest.fixture
def openai() -> Iterator[ProviderServer]:
    """A provider."""
    contract = contracts.OpenAIContract(max_bytes=PROVIDER_BYTES)
    with running(ProviderServer(contract)) as server:
        yield server


@pytest.fixture
def project(fresh_bucket: dict[str, str], openai: ProviderServer, tmp_path: Path) -> Project:
    """A bucket, and that provider turned on."""
    providers = Providers(tmp_path, Clock())
    providers.add("openai", openai, max_bytes=PROVIDER_BYTES)
    environment = {
        **fresh_bucket,
        "FILE_CACHE_DIR": str(tmp_path / "cache"),
        "EXAIFS_PROVIDERS_FILE": str(providers.path),
        "EXAIFS_LOG_LEVEL": "debug",
    }
    return Project(environment, tmp_path)


@pytest.fixture(params=["stdio", "http", "stdio-legacy", "http-legacy"])
def connect_anyhow(request: pytest.FixtureRequest, project: Project) -> Iterator[Connect]:
    """Connect a client, by each transport, in the present protocol and in that before."""
    with ExitStack() as stack:
        yield connector(request.param, project, stack)


@pytest.fixture(params=["stdio", "http"])
def connect(request: pytest.FixtureRequest, project: Project) -> Iterator[Connect]:
    """Connect a client, by each transport."""
    with ExitStack() as stack:
        yield connector(request.param, project, stack)


def connector(way: str, project: Project, stack: ExitStack) -> Connect:
    """Return what connects a client."""
    transport, _, age = way.partition("-")
    mode = age or "auto"
    if transport == "stdio":
        return lambda: stdio_caller(project, mode=mode)
    server = stack.enter_context(http_server(project))
    return lambda: http_caller(server.url, mode=mode)
