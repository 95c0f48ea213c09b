from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.providers.emulator import Clock, Contract, ProviderServer, running
from tests.providers.world import Providers

Start = Callable[[Contract], ProviderServer]


@pytest.fixture
def clock() -> Clock:
    """Time, for provider and service alike."""
    return Clock()


@pytest.fixture
def start(clock: Clock) -> Iterator[Start]:
    """Start provider servers, which end with the test."""
    with ExitStack() as stack:
        yield lambda contract: stack.enter_context(running(ProviderServer(contract, clock)))


@pytest.fixture
def providers(tmp_path: Path, clock: Clock) -> Providers:
    """Settings in a file, as an operator writes them."""
    return Providers(tmp_path, clock)
