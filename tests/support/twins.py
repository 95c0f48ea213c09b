"""The same calls on a mount and on a local directory, so that one can be held against the other."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.mounts import MountedDaemon, within


def outcome(function: Callable[[], Any]) -> Any:
    """Return what a call returns, or the name of the errno it fails with."""
    try:
        return function()
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]


@dataclass(frozen=True, slots=True)
class Twins:
    """A directory on a mount and one on a local file system."""

    mount: MountedDaemon
    remote: Path
    local: Path

    def both(self, function: Callable[[Path], Any], *, timeout_s: float = 180) -> tuple[Any, Any]:
        """Call a function with each directory; return what the mount gave, and what was to be expected."""
        found = within(timeout_s, lambda: outcome(lambda: function(self.remote)))
        return found, outcome(lambda: function(self.local))

    def agree(self, function: Callable[[Path], Any], *, timeout_s: float = 180) -> Any:
        """Assert that a function gives the same with each directory, errors included; return that."""
        found, expected = self.both(function, timeout_s=timeout_s)
        assert found == expected, f"the mount gave {found!r}, a local directory {expected!r}"
        return found

    def sh(self, script: str, *, timeout_s: float = 180) -> str:
        """Run a shell script in each directory; assert the same output and tree, and return the output."""
        outputs = []
        for directory in (self.remote, self.local):
            command = f'cd -- "{directory}" && {{ {script}\n}}'
            outputs.append(self.mount.sh(command, timeout_s=timeout_s))
        assert outputs[0] == outputs[1]
        self.agree(tree)
        return outputs[0]


def tree(directory: Path) -> dict[str, tuple[Any, ...]]:
    """Return everything below a directory that two file systems can have in common."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        shown: Any = None
        if path.is_symlink():
            shown = str(path.readlink())
        elif path.is_file():
            shown = path.read_bytes()
        links = 0 if path.is_dir() else status.st_nlink
        size = 0 if path.is_dir() else status.st_size
        found[os.fspath(path.relative_to(directory))] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            links,
            size,
            shown,
        )
    return found
