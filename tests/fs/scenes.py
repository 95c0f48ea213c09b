"""What the scenarios of unsent writes have in common."""

from __future__ import annotations

from pathlib import Path

from exaifs.cache.conflicts import list_conflicts
from tests.support.double import DoubleServer
from tests.support.paths import Paths, follow


async def sent(paths: Paths) -> None:
    """Return once Supabase has everything."""
    assert await paths.fs.drain(10.0) == 0


async def back(server: DoubleServer, paths: Paths) -> None:
    """Have Supabase answer again, and everything sent."""
    server.online = True
    await sent(paths)
    await follow(paths)


def contents(server: DoubleServer) -> dict[str, bytes]:
    """Return what the bucket holds."""
    return {key: stored.data for key, stored in server.bucket.objects.items()}


def kept_aside(cache: Path) -> list[bytes]:
    """Return the bytes that lost a conflict, oldest first."""
    directory = cache / "conflicts"
    return [(directory / f"{conflict.id}.data").read_bytes() for conflict in list_conflicts(directory)]
