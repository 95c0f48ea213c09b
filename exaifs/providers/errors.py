"""What a provider can answer instead of a file id, each with its one errno.

    ProviderError               EIO           anything else
    ├── ProviderKeyMissing      ENOKEY        configured, but no key in the environment or file
    ├── ProviderKeyRejected     EKEYREJECTED  the provider refuses the key
    ├── ProviderRefused         EPERM         no permission, or the content is refused
    ├── ProviderFileTooLarge    EFBIG         over the provider's size limit
    ├── ProviderFileInvalid     EINVAL        empty, unsupported, or otherwise not taken
    ├── ProviderQuota           EDQUOT        storage, number of files, money
    ├── ProviderBusy            EAGAIN        asked to slow down
    ├── ProviderTimeout         ETIMEDOUT     the upload goes on; the next read returns the id
    ├── ProviderUnreachable     EHOSTUNREACH  DNS, connect, TLS, or the answer was lost
    ├── ProviderOutage          EREMOTEIO     the provider's own failure, 5xx
    ├── ProviderProtocolError   EPROTO        an answer that is none of this provider's
    └── FileChanged             ESTALE        other bytes meanwhile; read the attribute again

Never ENOSYS (it would turn extended attributes off for the whole mount) and never ERANGE (callers would
repeat with a larger buffer). Messages never hold a key.
"""

from __future__ import annotations

import errno
from typing import Any

from exaifs.errors import ExaifsError

MAX_MESSAGE_BYTES = 512


class ProviderError(ExaifsError):
    """A provider did not give an id.

    Args:
        message: for people; without secrets.
        status: of the HTTP answer; None where there was none.
        code: the provider's own.
        retry_after_s: how long it asks to wait.
        may_have_landed: whether the file may be at the provider all the same.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str = "",
        retry_after_s: float | None = None,
        may_have_landed: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        self.may_have_landed = may_have_landed

    def to_json(self) -> dict[str, Any]:
        """Return what `user.exai.provider.NAME.error` shows beside the time."""
        message = str(self).encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore")
        return {
            "errno": errno.errorcode.get(self.errno, str(self.errno)),
            "status": self.status,
            "code": self.code[:64] or None,
            "message": message,
            "retry_after": self.retry_after_s,
        }


class ProviderKeyMissing(ProviderError):
    """No key is set."""

    errno = errno.ENOKEY


class ProviderKeyRejected(ProviderError):
    """The key is wrong, expired or revoked."""

    errno = errno.EKEYREJECTED


class ProviderRefused(ProviderError):
    """Not allowed."""

    errno = errno.EPERM


class ProviderFileTooLarge(ProviderError):
    """Over the provider's limit."""

    errno = errno.EFBIG


class ProviderFileInvalid(ProviderError):
    """The provider does not take this file."""

    errno = errno.EINVAL


class ProviderQuota(ProviderError):
    """The account is full, or out of money."""

    errno = errno.EDQUOT


class ProviderBusy(ProviderError):
    """Too many requests."""

    errno = errno.EAGAIN


class ProviderTimeout(ProviderError):
    """Not done before the deadline."""

    errno = errno.ETIMEDOUT


class ProviderUnreachable(ProviderError):
    """No connection, or a broken one."""

    errno = errno.EHOSTUNREACH


class ProviderOutage(ProviderError):
    """The provider's own failure."""

    errno = errno.EREMOTEIO


class ProviderProtocolError(ProviderError):
    """Not understood."""

    errno = errno.EPROTO


class FileChanged(ProviderError):
    """The file has other bytes now."""

    errno = errno.ESTALE
