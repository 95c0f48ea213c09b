"""Two mounts on one bucket without background tasks, a model of what they must show, and final checks.

The bucket itself is the model: what a mount that has taken in every change must show follows from its
objects, and from the names that were made on the mount and are not closed yet.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trio.testing

from exaifs.cache.names.index import Index
from exaifs.config import Config
from exaifs.fs.filesystem import FileSystem
from exaifs.model import ROOT_INO, ObjectRecord
from exaifs.names import OBJECT_MARK, PLACEHOLDER, decode_component
from exaifs.remote.interface import Remote
from tests.simulation.kernel import Kernel
from tests.support.double import DoubleServer

QUIET_POLLS = 4
"""So often nothing new must come: what was left alone is asked again, and that may hide more."""

POLLS = 50
"""A feed that finds something new this often, though nobody writes, never ends."""


@dataclass
class Tree:
    """Paths that must be visible, from what the bucket holds."""

    files: dict[str, str] = field(default_factory=dict)
    """Path to key; symbolic links too."""
    directories: set[str] = field(default_factory=lambda: {""})

    def names(self, directory: str) -> list[str]:
        """Return what a listing must show."""
        every = [*self.files, *self.directories]
        below = [path for path in every if path and path.rpartition("/")[0] == directory]
        return sorted(path.rpartition("/")[2] for path in below)


def visible(server: DoubleServer, pending: set[str]) -> Tree:
    """Return what a mount must show that knows the whole bucket.

    Args:
        server: the bucket.
        pending: keys that were made on the mount and are not in the bucket yet.
    """
    tree = Tree()
    keys = set(server.bucket.objects) | pending
    for key in keys:
        parts = key.split("/")
        for depth in range(1, len(parts)):
            tree.directories.add("/".join(map(decode_component, parts[:depth])))
    for key in keys:
        if key.rpartition("/")[2] == PLACEHOLDER:
            continue
        path = "/".join(map(decode_component, key.split("/")))
        tree.files[path + OBJECT_MARK if path in tree.directories else path] = key
    return tree


@asynccontextmanager
async def opened(config: Config, remote: Remote, directory: Path) -> AsyncIterator[FileSystem]:
    """Open a file system on a cache directory that exists; nothing runs in the background."""
    async with FileSystem.open(config, remote, directory, None) as fs:
        try:
            yield fs
        finally:
            # The end of the process closes these.
            for inode in fs.core.table:
                if inode.staged is not None:
                    inode.staged.rest()


async def settle(server: DoubleServer, *mounts: FileSystem) -> None:
    """Have every mount take in every change, also those it first left alone because of its own."""
    quiet = 0
    for _ in range(POLLS):
        before = server.bucket.cursor
        busy = False
        for fs in mounts:
            busy |= await fs.feed.poll()
            await fs.directories.reconcile()
        await trio.testing.wait_all_tasks_blocked()
        quiet = 0 if busy or server.bucket.cursor != before else quiet + 1
        if quiet == QUIET_POLLS:
            return
    raise AssertionError("the feed never ends")


# -- what must hold when nothing is open and everything was taken in ---------------------------------


async def check_agreement(server: DoubleServer, kernel: Kernel) -> None:
    """A mount shows the bucket: names, bytes, sizes, modes, attributes, targets."""
    tree = visible(server, set())
    for directory in sorted(tree.directories):
        listed = await kernel.ls(directory)
        assert sorted(listed) == tree.names(directory), f"names in {directory!r}"
        for name, attributes in listed.items():
            path = f"{directory}/{name}" if directory else name
            assert await kernel.stat(path) == attributes
            if path in tree.files:
                await _check_file(kernel, path, server.bucket.record(tree.files[path]))
                await _check_bytes(kernel, path, server.bucket.objects[tree.files[path]].data)
            else:
                await _check_directory(kernel, path, server)


async def _check_file(kernel: Kernel, path: str, record: ObjectRecord) -> None:
    attributes = await kernel.stat(path)
    kind = stat.S_IFLNK if record.posix.kind == "symlink" else stat.S_IFREG
    assert stat.S_IFMT(attributes.mode) == kind, path
    assert attributes.size_bytes == record.size_bytes, path
    if record.posix.mode is not None:
        assert stat.S_IMODE(attributes.mode) == record.posix.mode, path
    if record.posix.mtime_ns is not None:
        assert attributes.mtime_ns == record.posix.mtime_ns, path
    await _check_xattrs(kernel, path, record)


async def _check_xattrs(kernel: Kernel, path: str, record: ObjectRecord) -> None:
    listed = await kernel.call_ino(path, kernel.fs.xattrs.list)
    own = {name for name in listed if not name.startswith((b"user.exai.", b"user.checksum.", b"user.mime"))}
    assert own == {name.encode() for name in record.xattrs}, path
    for name, value in record.xattrs.items():
        assert await kernel.fs.xattrs.get(await kernel.walk(path), name.encode()) == value, path
    if record.file_id is not None:
        shown = await kernel.fs.xattrs.get(await kernel.walk(path), b"user.exai.file_id")
        assert shown == record.file_id.encode(), path


async def _check_bytes(kernel: Kernel, path: str, data: bytes) -> None:
    if stat.S_ISLNK((await kernel.stat(path)).mode):
        assert await kernel.call_ino(path, kernel.fs.namespace.readlink) == data, path
        return
    handle, ino = await kernel.open(path, os.O_RDONLY)
    try:
        assert await kernel.read_all(handle) == data, path
    finally:
        await kernel.release(handle, ino)


async def _check_directory(kernel: Kernel, path: str, server: DoubleServer) -> None:
    attributes = await kernel.stat(path)
    assert attributes.is_dir, path
    marker = server.bucket.find(f"{kernel.fs.core.table.get(attributes.ino).entry.key}{PLACEHOLDER}")
    if marker is not None and marker.posix.mode is not None:
        assert stat.S_IMODE(attributes.mode) == marker.posix.mode, path


def check_index(server: DoubleServer, index: Index) -> None:
    """The index is sound, and what it calls loaded is what the bucket lists."""
    for prefix in index.loaded_prefixes():
        assert index.directory(prefix) is not None, f"{prefix!r} is loaded and does not exist"
        listing = server.bucket.list_directory(prefix, "", 10_000)
        known = {entry.key: entry for entry in index.children(prefix)}
        records = {record.key: record for record in listing.records if not record.key.endswith(PLACEHOLDER)}
        folders = {f"{prefix}{folder.component}/": folder for folder in listing.folders}
        assert set(known) == {*records, *folders}, (
            f"keys in {prefix!r}: {set(known) ^ {*records, *folders}}, known {sorted(known)}"
        )
        for key, record in records.items():
            assert known[key].version == record.version, key
            assert known[key].sha256 == record.sha256, key
        for key, folder in folders.items():
            assert known[key].marker == (folder.marker is not None), f"marker of {key!r}"


def check_database(path: Path) -> None:
    """No name waits to be sent, and none is in a directory that does not exist."""
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT parent, name FROM entries WHERE pending").fetchall() == []
        directories = {
            parent + component + "/"
            for parent, component in database.execute(
                "SELECT parent, component FROM entries WHERE kind = 'dir'"
            )
        }
        parents = {parent for (parent,) in database.execute("SELECT DISTINCT parent FROM entries")}
        orphans = parents - {"", *directories}
        assert not orphans, orphans


async def let_go(fs: FileSystem) -> None:
    """Wait a while for what is still being done with files that were sent: they become cached content."""
    with trio.move_on_after(60):
        while any(inode.ino != ROOT_INO for inode in fs.core.table):  # noqa: ASYNC110 - nobody announces it
            await trio.sleep(0.01)


def check_nothing_left(fs: FileSystem, staging: Path, keys: set[str]) -> None:
    """With nothing open and all caches dropped, nothing is held."""
    assert [inode for inode in fs.core.table if inode.ino != ROOT_INO] == []
    assert [key for key in keys if fs.core.index.is_claimed(key)] == []
    # What another host's close has superseded is kept aside.
    assert [path for path in staging.iterdir() if path.suffix != ".conflict"] == []
