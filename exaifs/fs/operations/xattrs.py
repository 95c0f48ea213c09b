"""Extended attributes: what exaifs knows of a file, and the user's own `user.*`, all from the row.

Reading and listing make no request, but for reading `provider_ids`' names. Attributes of exaifs itself
cannot be set, but for a provider's id that was made elsewhere.
"""

from __future__ import annotations

import time
from dataclasses import replace

from exaifs.cache.names.entries import Entry
from exaifs.errors import (
    AttributeTooLarge,
    InvalidArgument,
    NoAttribute,
    NotPermitted,
    NotSupported,
)
from exaifs.fs.core import Core
from exaifs.fs.operations.namespace import Namespace
from exaifs.fs.operations.provider_ids import OutsideAttributes
from exaifs.fs.report.virtual import is_virtual
from exaifs.fs.tables.inodes import Inode
from exaifs.fs.unsent.keeping import Keeper
from exaifs.model import Ino
from exaifs.remote.interface import RowPatch

MAX_NAME_BYTES = 255
"""XATTR_NAME_MAX of Linux."""

MAX_VALUE_BYTES = 65536
"""XATTR_SIZE_MAX of Linux."""

_RESERVED = ("user.exai.", "user.checksum.", "user.mime_type")


class Xattrs:
    """Extended attributes of one mount.

    Args:
        core: inodes.
        namespace: changes rows.
        outside: attributes that may ask somebody outside.
        keeper: has the journal know those of unsent files.
    """

    def __init__(
        self, core: Core, namespace: Namespace, outside: OutsideAttributes, keeper: Keeper
    ) -> None:
        self._core = core
        self._outside = outside
        self._table = core.table
        self._namespace = namespace
        self._keeper = keeper

    async def get(self, ino: Ino, name: bytes, uid: int | None = None) -> bytes:
        """Return a value.

        Args:
            ino: whose.
            name: which.
            uid: who asks; None: the daemon itself. Only the owner's reads send files to providers.

        Raises:
            NoAttribute: there is none of that name.
            ExaifsError: a provider's id that cannot be had, with the errno of the reason.
        """
        key = _text(name)
        if self._outside.has(key) and not is_virtual(ino):
            return await self._outside.get(ino, key, uid)
        value = None if is_virtual(ino) else _values(self._table.peek(ino)).get(key)
        if value is None:
            raise NoAttribute(f"no attribute {name!r}")
        return value

    async def list(self, ino: Ino) -> list[bytes]:
        """Return the names that have a value."""
        if is_virtual(ino):
            return []
        inode = self._table.peek(ino)
        return [name.encode() for name in (*_values(inode), *self._outside.listed(inode))]

    async def set(self, ino: Ino, name: bytes, value: bytes) -> None:
        """Set one of the user's own attributes; it is in the row when this returns.

        A provider's id that was made elsewhere can be set, too.

        Raises:
            NotSupported: outside `user.*`, or one of exaifs' own names.
            AttributeTooLarge: over 64 KiB.
        """
        if self._outside.has(_text(name)) and not is_virtual(ino):
            self._core.check_writable()
            await self._outside.set(ino, _text(name), value)
            return
        key = self._changeable(name)
        if len(value) > MAX_VALUE_BYTES:
            raise AttributeTooLarge(f"an attribute has at most {MAX_VALUE_BYTES} bytes")
        inode = self._inode(ino)
        async with inode.lock:
            await self._change(inode, {**inode.entry.xattrs, key: value}, RowPatch(set_xattrs={key: value}))

    async def remove(self, ino: Ino, name: bytes) -> None:
        """Remove one of the user's own attributes, or forget a provider's id.

        Raises:
            NoAttribute: there is none of that name.
        """
        if self._outside.has(_text(name)) and not is_virtual(ino):
            self._core.check_writable()
            await self._outside.remove(ino, _text(name))
            return
        key = self._changeable(name)
        inode = self._inode(ino)
        async with inode.lock:
            if key not in inode.entry.xattrs:
                raise NoAttribute(f"no attribute {name!r}")
            left = {other: value for other, value in inode.entry.xattrs.items() if other != key}
            await self._change(inode, left, RowPatch(drop_xattrs=[key]))

    def _inode(self, ino: Ino) -> Inode:
        if is_virtual(ino):
            raise NotPermitted("made by exaifs; it takes no attributes")
        return self._table.get(ino)

    async def _change(self, inode: Inode, xattrs: dict[str, bytes], patch: RowPatch) -> None:
        if inode.entry.kind == "symlink":
            raise NotPermitted("user attributes exist on files and directories only")
        travels = inode.entry.pending and inode.staged is not None  # with the bytes
        if not inode.unlinked and not travels:
            await self._namespace.patch_row(inode, patch)
        inode.entry = replace(inode.entry, xattrs=xattrs, ctime_ns=time.time_ns())
        if inode.staged is not None:
            inode.staged.touch()
            await self._keeper.keep_again(inode)
        self._table.store(inode)

    def _changeable(self, name: bytes) -> str:
        key = _text(name)
        self._core.check_writable()
        if not key.startswith("user.") or key.startswith(_RESERVED):
            raise NotSupported(f"{key} cannot be set")
        if len(name) > MAX_NAME_BYTES or len(key) <= len("user."):
            raise InvalidArgument("an attribute's name has 6 to 255 bytes")
        return key


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as exc:
        raise InvalidArgument("an attribute's name must be UTF-8") from exc


def _values(inode: Inode) -> dict[str, bytes]:
    """Return every attribute that has a value now."""
    entry = inode.entry
    values: dict[str, bytes] = {}
    if entry.file_id is not None:
        values["user.exai.file_id"] = entry.file_id.encode()
    if not entry.is_dir:
        values["user.exai.state"] = _state(inode).encode()
        values |= _content_values(inode, entry)
    return values | dict(entry.xattrs)


def _content_values(inode: Inode, entry: Entry) -> dict[str, bytes]:
    """Return what is true of the bytes in the bucket, only while they are the file's bytes."""
    if inode.dirty or entry.pending:
        return {}
    values = {"user.exai.version": entry.version.encode(), "user.mime_type": entry.mime_type.encode()}
    if entry.sha256 is not None:
        values["user.checksum.sha256"] = entry.sha256.encode()
    return values


def _state(inode: Inode) -> str:
    if inode.uploading:
        return "uploading"
    if inode.staged is None or not inode.dirty:
        return "clean"
    if inode.staged.kept and inode.staged.acknowledged and not inode.staged.refused:
        return "pending"
    return "dirty" if inode.failure is None else f"failed: {inode.failure}"
