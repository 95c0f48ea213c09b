"""What control groups leave for the memory tier, on directory trees as hosts and containers have them."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from exaifs.limits import memory_limit_bytes, memory_tier_bytes

MIB = 1 << 20


def tree(root: Path, files: dict[str, str]) -> Path:
    """Make a root with these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "limit_bytes"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal:        1024 kB\nMemFree: 1 kB\n"}, MIB),
        ({"proc/meminfo": "MemTotal: much\nnonsense"}, None),
        # Version 2, in a container that sees its own group as the root.
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "268435456\n"}, 256 * MIB),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, None),
        # Version 2, under systemd: the smallest on the way up counts.
        (
            {
                "proc/self/cgroup": "0::/system.slice/exaifs@app.service\n",
                "sys/fs/cgroup/system.slice/exaifs@app.service/memory.max": "max\n",
                "sys/fs/cgroup/system.slice/memory.max": f"{512 * MIB}\n",
                "sys/fs/cgroup/other.slice/memory.max": "1\n",
                "proc/meminfo": "MemTotal: 8000000 kB\n",
            },
            512 * MIB,
        ),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": f"{100 * MIB}\n",
                "sys/fs/cgroup/a/memory.max": f"{900 * MIB}\n",
            },
            100 * MIB,
        ),
        # The path of a group outside what the container sees.
        ({"proc/self/cgroup": "0::/../../x\n", "sys/fs/cgroup/memory.max": "1048576\n"}, MIB),
        # Version 1: the host's path, of which the container sees the end only, mounted as the root.
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{300 * MIB}\n",
            },
            300 * MIB,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/jobs/1\n0::/\n",
                "sys/fs/cgroup/memory/jobs/1/memory.limit_in_bytes": f"{200 * MIB}\n",
                "sys/fs/cgroup/memory/jobs/memory.limit_in_bytes": "9223372036854771712\n",
            },
            200 * MIB,
        ),
        # Both: version 1 for memory, version 2 beside it.
        (
            {
                "proc/self/cgroup": "4:hugetlb,memory:/x\n0::/x\n",
                "sys/fs/cgroup/hugetlb,memory/x/memory.limit_in_bytes": f"{50 * MIB}\n",
                "sys/fs/cgroup/unified/x/memory.max": "max\n",
            },
            50 * MIB,
        ),
        ({"proc/self/cgroup": "nonsense\n\n::\n4:memory\n", "sys/fs/cgroup/memory.max": "12"}, None),
    ],
)
def test_the_limit(tmp_path: Path, files: dict[str, str], limit_bytes: int | None) -> None:
    """The smallest limit of the process's own groups and the host; what is not there is no limit."""
    assert memory_limit_bytes(tree(tmp_path, files)) == limit_bytes


def test_this_host_has_memory() -> None:
    """The real root can be read."""
    limit_bytes = memory_limit_bytes()
    assert limit_bytes is not None
    assert limit_bytes > 64 * MIB


@pytest.mark.parametrize(
    ("limit_mib", "tier_mib"), [(None, 100), (64, 0), (96, 0), (256, 40), (496, 100), (8000, 100)]
)
def test_the_share(limit_mib: int | None, tier_mib: int) -> None:
    """A quarter of what the daemon itself leaves, at most what is configured, nothing where it is tight."""
    limit_bytes = None if limit_mib is None else limit_mib * MIB
    assert memory_tier_bytes(100 * MIB, limit_bytes) == tier_mib * MIB
    assert memory_tier_bytes(0, limit_bytes) == 0


@pytest.mark.parametrize(("soft", "hard"), [(64, 200), (200, 200)])
def test_descriptors_are_raised(soft: int, hard: int) -> None:
    """The soft limit becomes the hard one."""
    code = (
        "import resource; from exaifs.limits import *\n"
        "assert raise_descriptor_limit() == descriptor_limit() == 200\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (200, 200)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
    )
    assert done.returncode == 0, done.stderr
