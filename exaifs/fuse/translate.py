"""pyfuse3's structures ↔ the values of `model`, and the one place where an errno leaves for the kernel.

pyfuse3 answers the kernel only for `FUSEError`; any other exception would end the main loop and with
it the mount. So every handler wears `answered`.
"""

from __future__ import annotations

import errno
import functools
import inspect
import os
import sqlite3
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import structlog
import trio

from exaifs.errors import ExaifsError, NoSpace, RemoteError, Stale
from exaifs.model import MAX_TIME_NS, AttributeChange, Attributes, Caller

_log = structlog.get_logger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Self = TypeVar("_Self")

_SECTOR_BYTES = 512
"""Unit of st_blocks, see stat(2)."""

_BLOCK_BYTES = 131072
"""st_blksize: what cp and cat read and write at once."""

_QUESTIONS = {
    "lookup": {errno.ENOENT},
    "getxattr": {errno.ENODATA, errno.EOPNOTSUPP},
    "open": {errno.ESTALE},
}
"""Failures that are ordinary answers: programs ask for names and attributes that need not exist, and the
kernel looks a name up again that stands for another file now."""

_SHOWN = ("inode", "parent_inode", "name", "name_old", "name_new", "parent_inode_new", "fh", "off", "size")
"""Handler parameters that a log line names."""


def entry_attributes(
    attributes: Attributes, *, entry_timeout_s: float, attr_timeout_s: float
) -> pyfuse3.EntryAttributes:
    """Return what the kernel is told about an inode, and for how long it may believe it."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = attributes.ino
    # Inode numbers are never used again, so the generation stays 0.
    entry.generation = 0
    entry.entry_timeout = entry_timeout_s
    entry.attr_timeout = attr_timeout_s
    entry.st_mode = attributes.mode
    entry.st_nlink = attributes.nlink
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_rdev = 0
    entry.st_size = attributes.size_bytes
    entry.st_blksize = _BLOCK_BYTES
    entry.st_blocks = -(-attributes.size_bytes // _SECTOR_BYTES)
    entry.st_atime_ns = attributes.atime_ns
    entry.st_mtime_ns = attributes.mtime_ns
    entry.st_ctime_ns = attributes.ctime_ns
    return entry


def attribute_change(attributes: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> AttributeChange:
    """Return what setattr asks for. A new ctime is not asked for but follows from any change."""
    return AttributeChange(
        mode=attributes.st_mode & 0o7777 if fields.update_mode else None,
        uid=attributes.st_uid if fields.update_uid else None,
        gid=attributes.st_gid if fields.update_gid else None,
        size_bytes=attributes.st_size if fields.update_size else None,
        atime_ns=_kept(attributes.st_atime_ns) if fields.update_atime else None,
        mtime_ns=_kept(attributes.st_mtime_ns) if fields.update_mtime else None,
    )


def _kept(time_ns: int) -> int:
    """Return the nearest time that can be kept, as the kernel does for other file systems."""
    return min(max(time_ns, 0), MAX_TIME_NS)


def caller(context: pyfuse3.RequestContext) -> Caller:
    """Return who sent the request."""
    return Caller(uid=context.uid, gid=context.gid, pid=context.pid, umask=context.umask)


def errno_of(error: BaseException) -> int:
    """Return the errno for whatever a handler raised."""
    if isinstance(error, ExaifsError):
        return error.errno
    if isinstance(error, sqlite3.Error):
        return errno.ENOSPC if "full" in str(error) else errno.EIO
    if isinstance(error, OSError):
        # Local files and the local index. Other numbers would describe the cache directory, not
        # what the caller asked about.
        return errno.ENOSPC if error.errno in (errno.ENOSPC, errno.EDQUOT) else errno.EIO
    return errno.EIO


def answered(
    handler: Callable[Concatenate[_Self, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[_Self, _P], Coroutine[Any, Any, _T]]:
    """Turn whatever a handler raises into an answer to the kernel, and log it once.

    Cancellation passes, because it ends the main loop on purpose.
    """
    operation = handler.__name__
    names = list(inspect.signature(handler).parameters)[1:]
    shown = [(position, name) for position, name in enumerate(names) if name in _SHOWN]

    @functools.wraps(handler)
    async def wrapper(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await handler(self, *args, **kwargs)
        except Exception as exc:  # noqa: BLE001 - a mount must outlive every bug in a handler
            error: BaseException = exc
        except BaseExceptionGroup as group:
            cancelled, rest = group.split(trio.Cancelled)
            if cancelled is None:
                raise
            if rest is not None:
                _log.warning("request failed while stopping", operation=operation, exc_info=rest)
            raise cancelled from None
        error = _single(error)
        code = errno_of(error)
        _log_failure(operation, code, error, {name: _printable(args[position]) for position, name in shown})
        raise pyfuse3.FUSEError(code)

    return wrapper


def _single(error: BaseException) -> BaseException:
    """Look inside groups: nurseries wrap even a single error."""
    while isinstance(error, BaseExceptionGroup):
        known = [inner for inner in error.exceptions if isinstance(inner, ExaifsError | BaseExceptionGroup)]
        if len(known) != len(error.exceptions):
            return error
        error = known[0]
    return error


def _printable(value: Any) -> Any:
    return os.fsdecode(value) if isinstance(value, bytes) else value


def _log_failure(operation: str, code: int, error: BaseException, arguments: dict[str, Any]) -> None:
    name = errno.errorcode.get(code, str(code))
    if not isinstance(error, ExaifsError):
        _log.error("bug or local fault", operation=operation, errno=name, **arguments, exc_info=error)
    elif code in _QUESTIONS.get(operation, ()):
        _log.debug("answered", operation=operation, errno=name, **arguments)
    elif isinstance(error, RemoteError | NoSpace | Stale):
        _log.warning("request failed", operation=operation, errno=name, reason=str(error), **arguments)
    else:
        _log.info("request refused", operation=operation, errno=name, reason=str(error), **arguments)


def quiet_errno(code: int) -> Callable[..., Any]:
    """Return a handler that refuses without a log line, for what the kernel asks by itself."""

    async def refuse(_self: Any, *_args: Any) -> Any:
        raise pyfuse3.FUSEError(code)

    return refuse
