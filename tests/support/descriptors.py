"""What this process has open: a test asserts that nothing of its own is left."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress


def open_descriptors() -> Counter[str]:
    """Return what is open, and how often.

    Compare with `<=`: what an earlier test left may end at any time, and a number alone does not tell.
    """
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        with suppress(FileNotFoundError):  # that of the listing itself
            found[os.readlink(f"/proc/self/fd/{name}")] += 1  # noqa: PTH115 - no path, but `socket:[123]`
    return found
