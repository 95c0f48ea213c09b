"""A damaged index is set aside and rebuilt; unsent files are never part of what is thrown away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from exaifs.errors import Unreachable
from tests.fs.conftest import Mount
from tests.support.double import DoubleServer

pytestmark = pytest.mark.anyio


def cut(path: Path) -> None:
    """Leave half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def scribble(path: Path) -> None:
    """Overwrite the middle, and leave the header."""
    data = bytearray(path.read_bytes())
    data[4096 : len(data)] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    """Leave nothing."""
    path.write_bytes(b"")


def nonsense(path: Path) -> None:
    """Be no database at all."""
    path.write_bytes(b"not a database" * 1000)


@pytest.mark.parametrize("damage", [cut, scribble, empty, nonsense])
async def test_a_damaged_index_is_rebuilt(
    server: DoubleServer, mount: Mount, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Everything is listed anew, what was damaged is kept beside it, and unsent files are sent."""
    for number in range(200):
        server.bucket.put(f"d/{number:03}", b"x")
    async with mount(offline_writes="refuse", drain_s=0.5) as paths:
        assert len(await paths.ls("d")) == 200
        server.online = False
        with pytest.raises(Unreachable):
            await paths.create("d/unsent", b"precious")
    server.online = True
    index = tmp_path / "cache" / "index.db"
    for suffix in ("-wal", "-shm"):
        index.with_name(index.name + suffix).unlink(missing_ok=True)
    damage(index)
    async with mount(offline_writes="refuse") as paths:
        assert len(await paths.ls("d")) == 201
        assert await paths.read("d/unsent") == b"precious"
        assert await paths.fs.drain(60) == 0
    assert server.bucket.objects["d/unsent"].data == b"precious"
    if damage is not empty:
        assert list(index.parent.glob("index.db.damaged-*")) != []
