"""What a caller is told when the disk of the staged files fails."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from exaifs.errors import ExaifsError, FileTooLarge, NoSpace, TooManyOpen


def disk_error(exc: OSError) -> ExaifsError:
    """Return the error for people and for the kernel."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace("the cache disk is full: free space or set FILE_CACHE_DIR to another disk")
    if exc.errno == errno.EFBIG:
        return FileTooLarge("no file of the cache disk can be that large")
    if exc.errno in (errno.EMFILE, errno.ENFILE):
        return TooManyOpen("too many files are being written at once: raise the limit (ulimit -Hn)")
    return ExaifsError(f"the cache disk failed: {exc}")


@contextmanager
def disk_errors() -> Iterator[None]:
    """Translate what the block raises.

    Raises:
        NoSpace, FileTooLarge, TooManyOpen, ExaifsError: see `disk_error`.
    """
    try:
        yield
    except OSError as exc:
        raise disk_error(exc) from exc
