"""Random system calls, done on the mount and on a local directory, with every answer compared.

A run is made by its seed alone. What differs by nature is left out: inode numbers, times that nobody set,
sizes and blocks of directories.
"""

# These are system calls, under the names that they have.
# ruff: noqa: PTH104, PTH116, PTH208
from __future__ import annotations

import itertools
import os
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.mounts import within
from tests.support.twins import Twins, outcome, tree

# The embedded server lets no file have the name that a directory once had.
FILES = ("f1", "f2", "f3", "ä", "f 5")
DIRECTORIES = ("d1", "d2", "d3")
FLAGS = (os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW)
MOST_BYTES = 300_000
WEIGHTS = {
    "do_open": 5,
    "do_close": 4,
    "do_write": 4,
    "do_pwrite": 3,
    "do_pread": 4,
    "do_ftruncate": 2,
    "do_fstat": 3,
    "do_replace_content": 3,
    "do_read": 3,
    "do_truncate": 2,
    "do_unlink": 3,
    "do_mkdir": 4,
    "do_rmdir": 2,
    "do_rename": 5,
    "do_rename_directory": 3,
    "do_stat": 4,
    "do_list": 3,
    "do_chmod": 2,
    "do_utime": 2,
    "do_xattr": 2,
}
"""How frequent an operation is; 1 if not named here."""
_DEADLINE_S = 60.0
_CLEARLY_NS = 50_000_000
"""Local file systems take times from a tick of some milliseconds."""


class Difference(AssertionError):
    """The mount did something else than the local directory."""


class Machine:
    """One run.

    Args:
        twins: both directories, empty.
        seed: decides everything.
    """

    def __init__(self, twins: Twins, seed: int) -> None:
        self._twins = twins
        self._seed = seed
        self._random = random.Random(seed)
        self._open: list[tuple[int, int]] = []
        """Descriptors of the same file: on the mount, and local."""
        self._history: deque[str] = deque(maxlen=60)
        self._clock_ns = 1_000_000_000 * 10**9
        self.steps = 0

    def run(self, steps: int, keep_going: Callable[[], bool]) -> None:
        """Take steps, comparing all of the tree now and then.

        Raises:
            Difference: with the seed and what was done last.
        """
        operations = [getattr(self, name) for name in dir(self) if name.startswith("do_")]
        weights = [WEIGHTS.get(operation.__name__, 1) for operation in operations]
        try:
            for number in range(1, steps + 1):
                if not keep_going():
                    break
                self._random.choices(operations, weights)[0]()
                self.steps += 1
                if number % 50 == 0:
                    self.compare()
            self.close_all()
            self.compare()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close what is open, whatever that says."""
        while self._open:
            for fd in self._open.pop():
                within(_DEADLINE_S, lambda fd=fd: outcome(lambda: os.close(fd)))  # type: ignore[misc]  # bound now

    def close_all(self) -> None:
        """Close everything, comparing."""
        while self._open:
            self._on_fd("close", os.close, pop=True)

    def compare(self) -> None:
        """Compare all names, attributes and bytes, and the order of modification times."""
        self._both("tree", tree)
        remote = within(_DEADLINE_S, lambda: _mtimes(self._twins.remote))
        local = _mtimes(self._twins.local)
        ordered = sorted(local, key=lambda path: local[path])
        for earlier, later in itertools.pairwise(ordered):
            if local[later] - local[earlier] > _CLEARLY_NS and remote[later] <= remote[earlier]:
                self._fail(f"mtimes of {earlier!r} and {later!r} are in the wrong order")

    # -- doing -------------------------------------------------------------------------------------

    def _both(self, what: str, function: Callable[[Path], Any]) -> Any:
        found, expected = self._twins.both(function, timeout_s=_DEADLINE_S)
        shown = repr(found)
        self._history.append(f"{what} -> {shown[:80]}")
        if found != expected:
            self._fail(f"{what}: the mount gave {shown[:2000]}, a local directory {repr(expected)[:2000]}")
        return found

    def _fail(self, text: str) -> None:
        history = "\n  ".join(self._history)
        raise Difference(f"seed {self._seed}, step {self.steps}: {text}\nlast steps:\n  {history}")

    def _on_fd(self, what: str, function: Callable[[int], Any], *, pop: bool = False) -> None:
        if not self._open:
            return
        number = self._random.randrange(len(self._open))
        remote, local = self._open.pop(number) if pop else self._open[number]
        self._both(f"{what} #{number}", lambda d: function(remote if d == self._twins.remote else local))

    def _path(self, names: tuple[str, ...] = FILES + DIRECTORIES) -> str:
        depth = self._random.choice((0, 0, 1, 1, 2))
        return "/".join([*self._random.choices(DIRECTORIES, k=depth), self._random.choice(names)])

    def _bytes(self) -> bytes:
        return self._random.randbytes(self._random.choice((0, 1, 10, 4096, 70_000)))

    def _size(self) -> int:
        return self._random.choice((0, 1, 5, 4095, 4096, 4097, self._random.randrange(MOST_BYTES)))

    # -- operations ---------------------------------------------------------------------------------

    def do_open(self) -> None:
        """Open, and keep the descriptor."""
        if len(self._open) >= 5:
            return
        path = self._path(FILES)
        flags = self._random.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR))
        for flag in FLAGS:
            flags |= flag if self._random.random() < 0.3 else 0
        mode = self._random.choice((0o644, 0o600, 0o755))
        fds: list[int] = []

        def open_one(directory: Path) -> None:
            fds.append(os.open(directory / path, flags, mode))

        if self._both(f"open {path} {flags:#o}", open_one) is None:
            self._open.append((fds[0], fds[1]))

    def do_close(self) -> None:
        """Close one."""
        self._on_fd("close", os.close, pop=True)

    def do_write(self) -> None:
        """Write at the position."""
        data = self._bytes()
        self._on_fd(f"write {len(data)}", lambda fd: os.write(fd, data))

    def do_pwrite(self) -> None:
        """Write somewhere."""
        data, offset = self._bytes(), self._size()
        self._on_fd(f"pwrite {len(data)} at {offset}", lambda fd: os.pwrite(fd, data, offset))

    def do_pread(self) -> None:
        """Read somewhere."""
        count, offset = self._size(), self._size()
        self._on_fd(f"pread {count} at {offset}", lambda fd: os.pread(fd, count, offset))

    def do_ftruncate(self) -> None:
        """Resize by descriptor."""
        size = self._size()
        self._on_fd(f"ftruncate {size}", lambda fd: os.ftruncate(fd, size))

    def do_fsync(self) -> None:
        """Make durable."""
        self._on_fd("fsync", os.fsync)

    def do_fstat(self) -> None:
        """Ask by descriptor, be the name gone or not."""
        self._on_fd("fstat", lambda fd: _shown(os.fstat(fd)))

    def do_fchmod(self) -> None:
        """Change a mode by descriptor."""
        self._on_fd("fchmod", lambda fd: os.fchmod(fd, 0o640))

    def do_replace_content(self) -> None:
        """Write a whole file."""
        path, data = self._path(FILES), self._bytes()
        self._both(f"write {path} {len(data)}", lambda d: (d / path).write_bytes(data))

    def do_read(self) -> None:
        """Read a whole file."""
        path = self._path(FILES)
        self._both(f"read {path}", lambda d: (d / path).read_bytes())

    def do_truncate(self) -> None:
        """Resize by name."""
        path, size = self._path(), self._size()
        self._both(f"truncate {path} {size}", lambda d: os.truncate(d / path, size))

    def do_unlink(self) -> None:
        """Remove a name."""
        path = self._path()
        self._both(f"unlink {path}", lambda d: (d / path).unlink())

    def do_mkdir(self) -> None:
        """Make a directory."""
        path, mode = self._path(DIRECTORIES), self._random.choice((0o755, 0o700, 0o2775))
        self._both(f"mkdir {path}", lambda d: (d / path).mkdir(mode))

    def do_rmdir(self) -> None:
        """Remove a directory."""
        path = self._path()
        self._both(f"rmdir {path}", lambda d: (d / path).rmdir())

    def do_rename(self) -> None:
        """Rename a file over whatever is there, or to a free name."""
        old, new = self._path(FILES), self._path(FILES)
        self._both(f"rename {old} {new}", lambda d: os.rename(d / old, d / new))

    def do_rename_directory(self) -> None:
        """Rename a directory."""
        old, new = self._path(DIRECTORIES), self._path(DIRECTORIES)
        self._both(f"rename {old} {new}", lambda d: os.rename(d / old, d / new))

    def do_symlink(self) -> None:
        """Make a link, perhaps to nothing or to itself."""
        target, path = self._path(FILES), self._path(FILES)
        self._both(f"symlink {target} {path}", lambda d: (d / path).symlink_to(target))

    def do_stat(self) -> None:
        """Ask by name, following links or not."""
        path, follow = self._path(), self._random.random() < 0.5
        self._both(f"stat {path}", lambda d: _shown(os.stat(d / path, follow_symlinks=follow)))

    def do_list(self) -> None:
        """List a directory."""
        path = self._path(DIRECTORIES)
        self._both(f"list {path}", lambda d: sorted(os.listdir(d / path)))

    def do_chmod(self) -> None:
        """Change a mode."""
        path, mode = self._path(), self._random.choice((0o700, 0o755, 0o640, 0o444, 0o1777))
        self._both(f"chmod {path} {mode:o}", lambda d: (d / path).chmod(mode))

    def do_utime(self) -> None:
        """Set times; they must be shown and kept."""
        self._clock_ns += 1_000_000_007
        path, moment = self._path(), self._clock_ns

        def set_times(directory: Path) -> int:
            os.utime(directory / path, ns=(moment, moment))
            return os.stat(directory / path).st_mtime_ns

        self._both(f"utime {path}", set_times)

    def do_xattr(self) -> None:
        """Set, get or remove an attribute of the user's."""
        path, name = self._path(), self._random.choice(("user.one", "user.two"))
        value = self._random.randbytes(self._random.choice((0, 3, 2000)))
        call = self._random.choice(("set", "get", "remove"))

        def change(directory: Path) -> Any:
            if call == "set":
                return os.setxattr(directory / path, name, value)
            return (os.getxattr if call == "get" else os.removexattr)(directory / path, name)

        self._both(f"{call}xattr {path} {name}", change)

    def do_copy(self) -> None:
        """Copy within the kernel."""
        old, new = self._path(FILES), self._path(FILES)

        def copy(directory: Path) -> int:
            with (directory / old).open("rb") as source, (directory / new).open("ab") as target:
                return os.copy_file_range(source.fileno(), target.fileno(), 100_000, 0) if old != new else 0

        # Appending is EBADF for copy_file_range everywhere; the file is made all the same.
        self._both(f"copy {old} {new}", copy)


def _shown(status: os.stat_result) -> tuple[int, ...]:
    is_dir = status.st_mode & 0o170000 == 0o040000
    return (status.st_mode, status.st_nlink, status.st_uid, status.st_gid, 0 if is_dir else status.st_size)


def _mtimes(directory: Path) -> dict[str, int]:
    return {str(path.relative_to(directory)): path.lstat().st_mtime_ns for path in directory.rglob("*")}
