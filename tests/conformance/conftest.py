from __future__ import annotations

# The fixtures are the same as for the tests of single promises.
from tests.mount.conftest import _fuse, shared_mount, twins  # noqa: F401  # pytest finds them by name
