"""The cache of programs beside a mount: a place of their own in its directory, and what others have there.

A mount holds its cache directory exclusively, index and all. So each program takes `clients/N` in it, the
first whose lock is free, with contents and a small database of its own. What the mount or another program
has complete is linked over by its hash (or copied, where links are refused), compared with its name, and
is then this program's too: nobody ever evicts, changes or waits for what somebody else owns. A place
outlives its program; the next one takes it over as it is.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sqlite3
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

import anyio.to_thread
import structlog

from exaifs.cache.data.contents import CacheLimits, ContentStore
from exaifs.cache.data.source import Downloads
from exaifs.cache.directory import directory_of
from exaifs.cache.localfile import copy_contents, create, sha256_of_file, unlink_quietly
from exaifs.cache.names.database import open_database
from exaifs.errors import ConfigError
from exaifs.model import ObjectRef

_log = structlog.get_logger(__name__)

_CLIENTS = "clients"
_LOCK = "lock"


class ClientCache:
    """The content store of one program, and its neighbours' contents. Opened by `open` only."""

    def __init__(self, directory: Path, contents: ContentStore) -> None:
        self.contents = contents
        self._directory = directory
        self.staging = directory / "staging"
        """For files that will be given to `contents.adopt`; on the same file system."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls, cache_dir: Path, identity: str, objects: Downloads, limits: CacheLimits
    ) -> AsyncGenerator[ClientCache]:
        """Take a free place in the cache directory of a bucket.

        Args:
            cache_dir: `FILE_CACHE_DIR`; a mount may be using it.
            identity: names project and bucket.
            objects: the bucket.
            limits: of this program's own tiers.

        Raises:
            ConfigError: the directory cannot be written.
        """
        async with AsyncExitStack() as stack:
            try:
                directory = stack.enter_context(_place(directory_of(cache_dir, identity)))
                database = stack.enter_context(
                    closing(open_database(directory / "contents.sqlite3", identity))
                )
                (directory / "staging").mkdir(mode=0o700, exist_ok=True)
                _clear(directory / "staging")
            except (OSError, sqlite3.Error) as exc:
                raise ConfigError(
                    f"cannot use the cache directory {cache_dir}: {exc}. Make it writable, or name another "
                    "one: local_cache_dir, FILE_CACHE_DIR."
                ) from exc
            store = await stack.enter_async_context(ContentStore.open(directory, database, objects, limits))
            yield cls(directory, store)

    def new_staged(self) -> Path:
        """Return a name in `staging` that nobody has had before."""
        return self.staging / secrets.token_hex(8)

    async def borrow(self, ref: ObjectRef) -> None:
        """Take over a content that a mount or another program has complete, if there is one.

        Trouble is no error: the bucket has the bytes.
        """
        sha256 = self.contents.sha256_of(ref)
        if sha256 is None or ref.size_bytes == 0 or self.contents.local_path(ref) is not None:
            return
        staged = self.new_staged()
        taken = await anyio.to_thread.run_sync(self._take, sha256, ref.size_bytes, staged)
        if taken:
            await self.contents.adopt(staged, sha256, ref.size_bytes)

    def _take(self, sha256: str, size_bytes: int, staged: Path) -> bool:
        name = f"content/{sha256[:2]}/{sha256}"
        base = self._directory.parent
        for source in (base.parent / name, *base.glob(f"*/{name}")):
            if source.is_relative_to(self._directory):
                continue
            try:
                _link_or_copy(source, staged)
                if _is(staged, sha256, size_bytes):
                    return True
                _log.warning("a neighbour's cached content is damaged, not used", path=str(source))
            except OSError:
                pass
            unlink_quietly(staged)
        return False

    async def drop_idle(self) -> int:
        """Remove what programs that have ended left in their places; return how many contents."""
        return await anyio.to_thread.run_sync(_drop_idle, self._directory)


@contextmanager
def _place(base: Path) -> Iterator[Path]:
    """Hold the first place that is free."""
    number = 0
    while True:
        directory = base / _CLIENTS / str(number)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _held(directory) as is_ours:
            if is_ours:
                yield directory
                return
        number += 1


@contextmanager
def _held(directory: Path) -> Iterator[bool]:
    """Lock a place, if nobody has it. The lock file stays: removing it could unlock somebody."""
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, another owner, or a file system without links
        fd = create(target)
        try:
            copy_contents(source, fd)
        finally:
            os.close(fd)


def _is(path: Path, sha256: str, size_bytes: int) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.fstat(fd).st_size == size_bytes and sha256_of_file(fd, size_bytes) == sha256
    finally:
        os.close(fd)


def _clear(directory: Path) -> None:
    for path in directory.iterdir():
        unlink_quietly(path)


def _drop_idle(ours: Path) -> int:
    dropped = 0
    for directory in ours.parent.iterdir():
        if directory == ours:
            continue
        with suppress(OSError), _held(directory) as is_idle:
            if is_idle:
                dropped += sum(1 for path in (directory / "content").rglob("*") if path.is_file())
                for path in directory.iterdir():
                    if path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    elif path.name != _LOCK:
                        unlink_quietly(path)
    return dropped
