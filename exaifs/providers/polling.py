"""Waiting for a provider that looks through a file before it can be used."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio

_FIRST_PAUSE_S = 0.5
_MAX_PAUSE_S = 5.0

File = Mapping[str, Any]


async def processed(
    file: File, is_working: Callable[[File], bool], look: Callable[[], Awaitable[File]]
) -> File:
    """Return a file as it is when the provider is done; whoever waits has a deadline.

    Args:
        file: as the answer to the upload describes it.
        is_working: whether it cannot be used yet.
        look: asks for it again.
    """
    pause_s = _FIRST_PAUSE_S
    while is_working(file):
        await anyio.sleep(pause_s)
        pause_s = min(pause_s * 2, _MAX_PAUSE_S)
        file = await look()
    return file
