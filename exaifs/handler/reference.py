"""The helper for tools: from a path to a file id, whatever is configured."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from exaifs import mountpoint
from exaifs.errors import IsADirectory, NotFound
from exaifs.handler.handler import UnifiedFileHandler

_FILE_ID = "user.exai.file_id"
_STATE = "user.exai.state"


@dataclass(frozen=True, slots=True)
class FileReference:
    """How to refer to a file."""

    path: Path
    """The local file, absolute; still there whatever becomes of the id."""
    file_id: str | None
    """Its id in Supabase; None: Supabase is not configured, use the path."""

    @property
    def is_remote(self) -> bool:
        """Whether other hosts can get it, by its id."""
        return self.file_id is not None


async def file_id_for(
    path: str | Path, continuation_id: str | None = None, *, handler: UnifiedFileHandler | None = None
) -> FileReference:
    """Return how to refer to a file: by its id in Supabase, uploaded if need be, else by its path.

        reference = await file_id_for(path, continuation_id)
        prompt.attach(reference.file_id or reference.path)

    A file in a mount of the same bucket has an id already. Any other is uploaded, unless the same bytes are
    there: to uploads/{continuation_id}/ if that is given. Only when Supabase is not configured at all is
    there no id; trouble with one that is configured raises.

    Args:
        path: an existing file.
        continuation_id: the conversation to link it to.
        handler: an open one, which tools with more than one file should share; else one is opened from the
            environment for this call.

    Raises:
        OSError: the file cannot be read.
        IsADirectory: it is a directory.
        ExaifsError: as `UnifiedFileHandler.upload_file`.
    """
    if handler is None:
        async with UnifiedFileHandler() as opened:
            return await file_id_for(path, continuation_id, handler=opened)
    local, mounted_id = await anyio.to_thread.run_sync(_look, path)
    if not handler.is_enabled:
        return FileReference(local, None)
    if mounted_id is not None and await _is_here(handler, mounted_id):
        if continuation_id is not None:
            await handler.link_file_to_conversation(mounted_id, continuation_id)
        return FileReference(local, mounted_id)
    metadata = None if continuation_id is None else {"continuation_id": continuation_id}
    return FileReference(local, await handler.upload_file(local, metadata))


async def _is_here(handler: UnifiedFileHandler, file_id: str) -> bool:
    try:
        return (await handler.stat(file_id)).file_id == file_id
    except NotFound:
        return False


def _look(given: str | Path) -> tuple[Path, str | None]:
    """Return the absolute path, and the id that a mount shows; copies that kept the attribute do not count.

    Raises:
        OSError: no such file.
        IsADirectory: a directory, which has no id, with a project or without.
    """
    path = Path(os.path.abspath(given))  # noqa: PTH100 - without following links: names are kept
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectory(f"{path} is a directory; refer to its files one by one")
    device = found.st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    if not any(mount.is_ours and mount.device == number for mount in mountpoint.mounts()):
        return path, None
    try:
        # What is not sent yet is not what its id stands for.
        is_sent = os.getxattr(path, _STATE) == b"clean"
        return path, os.getxattr(path, _FILE_ID).decode() if is_sent else None
    except OSError as exc:
        if exc.errno in {errno.ENODATA, errno.EAGAIN}:  # it has none yet
            return path, None
        raise
