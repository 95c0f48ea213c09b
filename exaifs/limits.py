"""What this process may use of the host: memory, as its control groups allow, and descriptors.

Asked once, at the start.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_BASE_BYTES = 96 << 20
"""What a daemon takes without its memory tier, and a little more (measured)."""

_SHARE = 4
"""The memory tier takes at most one part in so many of the rest: requests, listings and uploads need memory
too, and the kernel's page cache, which counts in a control group, is the better cache."""

_UNLIMITED = 1 << 60
"""Control groups of version 1 say a number like this where there is no limit."""

_MOST_DESCRIPTORS = 1 << 20
"""Asked for where the hard limit is infinite: the kernel's own default (fs.nr_open)."""


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """Return how much memory this process may take: its control groups' limits, and what the host has.

    Args:
        root: of the file system; for tests.

    Returns:
        The smallest of them; None where nothing is known.
    """
    return min([*_group_limits(root), *_host_memory(root)], default=None)


def memory_tier_bytes(wanted_bytes: int, limit_bytes: int | None) -> int:
    """Return how large the memory tier may be.

    Args:
        wanted_bytes: as configured, the most it may be.
        limit_bytes: of the process; None: not known.
    """
    if limit_bytes is None:
        return wanted_bytes
    return min(wanted_bytes, max(0, limit_bytes - _BASE_BYTES) // _SHARE)


def raise_descriptor_limit() -> int:
    """Allow this process as many descriptors as it may have, and return how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            return soft
        return wanted
    return descriptor_limit()


def descriptor_limit() -> int:
    """Return how many descriptors this process may have."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def _group_limits(root: Path) -> Iterator[int]:
    """Yield the limits of the groups this process is in, from its own up to the top."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        base = root / "sys/fs/cgroup"
        if number == "0" and not controllers:
            places, name = [base, base / "unified"], "memory.max"
        elif "memory" in controllers.split(","):
            places, name = [base / controllers, base / "memory"], "memory.limit_in_bytes"
        else:
            continue
        for place in places:
            for directory in _upwards(path):
                yield from _number(_text(place / directory / name))


def _upwards(path: str) -> Iterator[PurePosixPath]:
    """Yield a group's path and those above it; in a container only the last may exist there."""
    parts = [part for part in PurePosixPath(path).parts if part not in {"/", ".."}]
    for length in range(len(parts), -1, -1):
        yield PurePosixPath(*parts[:length])


def _host_memory(root: Path) -> Iterator[int]:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal" and value.split()[1:] == ["kB"]:
            yield from (1024 * kib for kib in _number(value.split()[0]))


def _number(text: str) -> Iterator[int]:
    """Yield a limit, if the text is one ("max" is none)."""
    value = text.strip()
    if value.isdigit() and int(value) < _UNLIMITED:
        yield int(value)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
