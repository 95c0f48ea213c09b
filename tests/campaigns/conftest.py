"""Campaigns need mounts and the embedded Supabase."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _fuse(request: pytest.FixtureRequest) -> None:
    """Where there is /dev/fuse, mount tests run or fail; only without it they are left out."""
    if request.node.get_closest_marker("mount") and not Path("/dev/fuse").exists():
        pytest.skip("NO /dev/fuse HERE: nothing that mounts is tested")
