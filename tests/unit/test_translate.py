from __future__ import annotations

import errno
import sqlite3
import stat
from collections.abc import Callable

import pyfuse3
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from exaifs import errors
from exaifs.errors import ExaifsError
from exaifs.fuse.translate import answered, entry_attributes, errno_of
from exaifs.model import Attributes, Ino


class Handlers:
    """Handlers that raise what they are given."""

    def __init__(self, error: Callable[[], BaseException]) -> None:
        self._error = error

    @answered
    async def lookup(self, parent_inode: int, name: bytes, _ctx: object) -> int:
        del parent_inode, name
        raise self._error()

    @answered
    async def getxattr(self, inode: int, name: bytes, _ctx: object) -> bytes:
        del inode, name
        raise self._error()

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        del fh, off, buf
        raise self._error()

    @answered
    async def flush(self, fh: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._fail)
            nursery.start_soon(self._fail)
        del fh

    async def _fail(self) -> None:
        raise self._error()


def _every_error() -> list[type[ExaifsError]]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, ExaifsError)]


@pytest.mark.parametrize("kind", _every_error())
def test_each_error_of_ours_becomes_its_errno(kind: type[ExaifsError]) -> None:
    """The number in the tree is the number the kernel gets."""
    with pytest.raises(pyfuse3.FUSEError) as caught, capture_logs() as logs:
        trio.run(Handlers(lambda: kind("why")).lookup, 1, b"name", None)
    assert caught.value.errno == kind.errno
    assert len(logs) == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("bug"), errno.EIO),
        (AssertionError(), errno.EIO),
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (OSError(errno.EDQUOT, "quota"), errno.ENOSPC),
        (OSError(errno.ENOENT, "a cache file"), errno.EIO),
        (PermissionError(errno.EACCES, "the cache directory"), errno.EIO),
        (sqlite3.OperationalError("database or disk is full"), errno.ENOSPC),
        (sqlite3.OperationalError("disk I/O error"), errno.EIO),
        (TimeoutError(), errno.EIO),
    ],
)
def test_foreign_errors(error: Exception, expected: int) -> None:
    """Only a full disk keeps its number; others would be about the cache, not about the caller's file."""
    assert errno_of(error) == expected
    with pytest.raises(pyfuse3.FUSEError) as caught, capture_logs() as logs:
        trio.run(Handlers(lambda: error).write, 1, 0, b"secret bytes")
    assert caught.value.errno == expected
    assert [record["log_level"] for record in logs] == ["error"]
    assert logs[0]["exc_info"] is error
    assert "secret bytes" not in repr(logs)


def test_a_group_of_our_errors_is_one_of_them() -> None:
    """Nurseries wrap errors in groups; the caller still gets the errno inside."""
    with pytest.raises(pyfuse3.FUSEError) as caught, capture_logs():
        trio.run(Handlers(lambda: errors.FileTooLarge("big")).flush, 1)
    assert caught.value.errno == errno.EFBIG


def test_cancellation_passes() -> None:
    """Cancelled ends the request without an answer, alone or in a group, with no log line."""

    async def main(call: Callable[[], Handlers]) -> None:
        with trio.move_on_after(0.01) as scope:
            await call().flush(1)
        assert scope.cancelled_caught

    class Waits(Handlers):
        async def _fail(self) -> None:
            await trio.sleep_forever()

    with capture_logs() as logs:
        trio.run(main, lambda: Waits(KeyError), clock=trio.testing.MockClock(autojump_threshold=0))
    assert logs == []


def test_an_error_beside_a_cancellation_does_not_escape() -> None:
    """A group of Cancelled and something else leaves the handler as Cancelled alone."""

    class Both(Handlers):
        tasks = 0

        async def _fail(self) -> None:
            self.tasks += 1
            if self.tasks == 1:
                await trio.sleep_forever()
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError("while stopping")

    async def main() -> None:
        with trio.move_on_after(1) as scope:
            await Both(KeyError).flush(1)
        assert scope.cancelled_caught

    with capture_logs() as logs:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert [record["event"] for record in logs] == ["request failed while stopping"]


@pytest.mark.parametrize(
    ("operation", "error", "level"),
    [
        ("lookup", errors.NotFound("n"), "debug"),
        ("getxattr", errors.NoAttribute("n"), "debug"),
        ("getxattr", errors.NotSupported("n"), "debug"),
        ("lookup", errors.Unreachable("n"), "warning"),
        ("lookup", errors.NameTooLong("n"), "info"),
        ("getxattr", errors.Stale("n"), "warning"),
        ("write", errors.FileTooLarge("n"), "info"),
        ("write", errors.NoSpace("n"), "warning"),
        ("write", errors.ReadOnly("n"), "info"),
    ],
)
def test_log_levels(operation: str, error: ExaifsError, level: str) -> None:
    """Questions are debug, refusals info, trouble a warning; each line names what it was about."""
    handlers = Handlers(lambda: error)
    calls: dict[str, Callable[[], object]] = {
        "lookup": lambda: trio.run(handlers.lookup, 7, b"na\xffme", None),
        "getxattr": lambda: trio.run(handlers.getxattr, 7, b"user.x", None),
        "write": lambda: trio.run(handlers.write, 7, 0, b""),
    }
    with pytest.raises(pyfuse3.FUSEError), capture_logs() as logs:
        calls[operation]()
    assert [(record["log_level"], record["operation"]) for record in logs] == [(level, operation)]
    shown = {"lookup": ("parent_inode", 7), "getxattr": ("inode", 7), "write": ("fh", 7)}[operation]
    assert logs[0][shown[0]] == shown[1]


def test_attributes() -> None:
    """What stat(2) shows is what the layers below said, to the nanosecond."""
    given = Attributes(Ino(5), stat.S_IFREG | 0o640, 1, 1000, 100, 513, 1, 2_000_000_003, 4)
    entry = entry_attributes(given, entry_timeout_s=2.5, attr_timeout_s=1.5)
    assert (entry.st_ino, entry.st_mode, entry.st_nlink) == (5, stat.S_IFREG | 0o640, 1)
    assert (entry.st_uid, entry.st_gid, entry.st_size, entry.st_blocks) == (1000, 100, 513, 2)
    assert (entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns) == (1, 2_000_000_003, 4)
    assert (entry.entry_timeout, entry.attr_timeout) == (2.5, 1.5)
