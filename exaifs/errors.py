"""Every exception exaifs raises on purpose, and the one errno each of them becomes.

    ExaifsError                      EIO
    ├── ConfigError                  (command line only: exit code 2)
    ├── MountError                   (command line only: exit code 4)
    │   └── JournalError             the journal of unsent writes cannot be read by this version
    ├── EmbeddedError                (command line only: exit code 1)
    ├── NotFound                     ENOENT   absence is proven (promise 3)
    ├── Exists                       EEXIST
    ├── NotADirectory                ENOTDIR
    ├── IsADirectory                 EISDIR
    ├── NotEmpty                     ENOTEMPTY
    ├── NameTooLong                  ENAMETOOLONG
    ├── InvalidArgument              EINVAL
    ├── BadHandle                    EBADF
    ├── NotPermitted                 EPERM    what a bucket cannot hold: hard links, devices
    ├── NotSupported                 EOPNOTSUPP
    ├── ReadOnly                     EROFS
    ├── FileTooLarge                 EFBIG
    ├── NoSpace                      ENOSPC   the local cache disk is full
    ├── TooManyOpen                  ENFILE   the daemon has as many files open as it may
    ├── NoAttribute                  ENODATA
    ├── AttributeTooLarge            E2BIG
    ├── TryAgain                     EAGAIN   not now: there is unsent data
    ├── Stale                        ESTALE   the version that was opened is gone
    └── RemoteError                  EIO
        ├── Unreachable              EIO      temporary: no answer, or an answer from no Supabase
        │   ├── Unserved             EIO      temporary: the store does not find what the catalog lists
        │   └── HalfDone             EIO      temporary: begun, without an answer, and finished later
        ├── Busy                     EIO      temporary: 423, 429, 5xx; may carry `retry_after_s`
        ├── Unauthorized             EACCES   the key is missing, wrong or not service_role
        │   └── KeyExpired           EACCES   it was good once
        ├── BucketMissing            EIO
        ├── SchemaMissing            EIO      `exaifs init` has not been run
        ├── Rejected                 EINVAL   the server understood and refused: bad key, MIME type
        └── IntegrityError           EIO      bytes that are not what they should be

What a provider of file ids answers has a tree of its own below `ExaifsError`: `providers/errors.py`.

`fuse/translate.py` is the only place where an errno leaves for the kernel; `cli` the only one that
turns these into exit codes. A message says what happened and, for people, what to do next.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class ExaifsError(Exception):
    """Root of all errors raised on purpose."""

    errno: ClassVar[int] = errno.EIO


class ConfigError(ExaifsError):
    """The environment or a flag is missing or wrong."""


class MountError(ExaifsError):
    """The mount cannot be made: /dev/fuse, the mountpoint or the cache directory is in the way."""


class JournalError(MountError):
    """The journal of unsent writes is of a newer format; nothing of it may be lost by going on."""


class EmbeddedError(ExaifsError):
    """The embedded Supabase cannot be installed, started or reached."""


class NotFound(ExaifsError):
    """The name is proven not to exist."""

    errno = errno.ENOENT


class Exists(ExaifsError):
    """The name is taken."""

    errno = errno.EEXIST


class NotADirectory(ExaifsError):
    """A directory is needed."""

    errno = errno.ENOTDIR


class IsADirectory(ExaifsError):
    """A directory cannot be used here."""

    errno = errno.EISDIR


class NotEmpty(ExaifsError):
    """The directory has entries."""

    errno = errno.ENOTEMPTY


class NameTooLong(ExaifsError):
    """A name over 255 bytes, or a path whose object key would pass the store's limit."""

    errno = errno.ENAMETOOLONG


class InvalidArgument(ExaifsError):
    """An argument has a value that no file system could accept."""

    errno = errno.EINVAL


class BadHandle(ExaifsError):
    """A handle that is not open, or not open for this."""

    errno = errno.EBADF


class NotPermitted(ExaifsError):
    """What a bucket cannot hold: hard links, devices, fifos, sockets."""

    errno = errno.EPERM


class NotSupported(ExaifsError):
    """The operation does not exist here."""

    errno = errno.EOPNOTSUPP


class ReadOnly(ExaifsError):
    """The mount is read-only."""

    errno = errno.EROFS


class FileTooLarge(ExaifsError):
    """The file passes the bucket's size limit."""

    errno = errno.EFBIG


class NoSpace(ExaifsError):
    """The local disk has no room for the staged bytes."""

    errno = errno.ENOSPC


class TooManyOpen(ExaifsError):
    """The daemon has no descriptor left for another file."""

    errno = errno.ENFILE


class NoAttribute(ExaifsError):
    """No such extended attribute."""

    errno = errno.ENODATA


class TryAgain(ExaifsError):
    """Not now; it will be possible."""

    errno = errno.EAGAIN


class AttributeTooLarge(ExaifsError):
    """An extended attribute's value passes the limit."""

    errno = errno.E2BIG


class Stale(ExaifsError):
    """The version that was opened no longer exists and was not cached."""

    errno = errno.ESTALE


class RemoteError(ExaifsError):
    """Supabase did not do what was asked."""

    temporary: ClassVar[bool] = False

    waited_out: bool = False
    """Whether the whole time that a caller may wait was spent: asking again at once would double it."""


class Unreachable(RemoteError):
    """No answer, or one that did not come from Supabase."""

    temporary = True


class Unserved(Unreachable):
    """The storage server does not find, or does not move, one object that the catalog lists.

    Supabase answers, so it is not away; the object may be in the middle of being replaced, or its bytes
    are gone.
    """


class HalfDone(Unreachable):
    """A change of several requests that got no answer too late to be left as it is: it is finished later.

    Names show it as done, but whoever asked for it gets the error.
    """


class Busy(RemoteError):
    """The server asks to try again later.

    Args:
        message: what it said.
        retry_after_s: its Retry-After header, where it sent one.
    """

    temporary = True

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unauthorized(RemoteError):
    """The key was refused, or is not a service_role key."""

    errno = errno.EACCES


class KeyExpired(Unauthorized):
    """The key was good, and is not any more: what is known here may still be served."""


class BucketMissing(RemoteError):
    """The bucket does not exist."""


class SchemaMissing(RemoteError):
    """The tables or functions of exaifs are not in the database."""


class Rejected(RemoteError):
    """The server understood the request and refused it for good."""

    errno = errno.EINVAL


class IntegrityError(RemoteError):
    """Bytes whose length, ETag or SHA-256 is not what it should be."""
