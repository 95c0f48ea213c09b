"""Where a program's cache may be."""

from __future__ import annotations

import os
from pathlib import Path

from exaifs import mountpoint
from exaifs.errors import ConfigError


def check_place(cache_dir: Path) -> None:
    """Refuse a cache directory in a mount: what is cached would be stored in the bucket.

    Raises:
        ConfigError: it is in one.
    """
    given = Path(os.path.abspath(cache_dir))  # noqa: PTH100 - a mount that hangs is not asked
    for path in (given, given.resolve()):
        mount = mountpoint.around(path)
        if mount is not None and mount.is_ours:
            raise ConfigError(
                f"the cache directory {cache_dir} is in the mount {mount.path}: set FILE_CACHE_DIR, or "
                "local_cache_dir, to a directory outside"
            )
