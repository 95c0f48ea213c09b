from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from exaifs.config import Config
from exaifs.handler.handler import UnifiedFileHandler
from exaifs.handler.service import FileService
from tests.conftest import PATIENT
from tests.support.double import DoubleServer
from tests.support.double_files import DoubleFiles

Write = Callable[[str, bytes], Path]


@dataclass
class Double:
    """A bucket in memory, and what opens programs on it."""

    base: Path
    server: DoubleServer = field(default_factory=DoubleServer)
    files: DoubleFiles = field(init=False)

    def __post_init__(self) -> None:
        self.files = DoubleFiles(self.server)

    def open(
        self, cache: str = "cache", disk_cache_mb: int = 100
    ) -> AbstractAsyncContextManager[FileService]:
        """Open one more program; those with the same cache directory share it."""
        config = Config(cache_dir=self.base / cache, disk_cache_mb=disk_cache_mb, memory_cache_bytes=0)
        return FileService.open(config, self.server.remote(), self.files)


@pytest.fixture
def double(tmp_path: Path) -> Double:
    """A bucket with nothing in it."""
    return Double(tmp_path)


@pytest.fixture
async def service(double: Double) -> AsyncIterator[FileService]:
    """A program on the double."""
    async with double.open() as service:
        yield service


@pytest.fixture
def local(tmp_path: Path) -> Write:
    """Write a local file."""

    def write(name: str, data: bytes) -> Path:
        path = tmp_path / "local" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def make_handler(
    fresh_bucket: dict[str, str], tmp_path: Path, unconfigured: None
) -> Callable[[], UnifiedFileHandler]:
    """Make handlers of a bucket on the embedded Supabase, all on one cache directory."""
    assert unconfigured is None
    return lambda: UnifiedFileHandler(
        supabase_url=fresh_bucket["SUPABASE_URL"],
        supabase_key=fresh_bucket["SUPABASE_SERVICE_ROLE_KEY"],
        local_cache_dir=tmp_path / "cache",
        bucket_name=fresh_bucket["FILE_STORAGE_BUCKET"],
        max_memory_cache_size=1 << 20,
    )


@pytest.fixture
def unconfigured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that names no project, a cache directory of this test, and patience."""
    for name in os.environ:
        if name.startswith(("SUPABASE_", "EXAIFS_PROVIDERS")):
            monkeypatch.delenv(name)
    for name, value in {**PATIENT, "FILE_CACHE_DIR": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
