"""What mounts and buckets show, as values to compare; and mounts that end where they are."""

from __future__ import annotations

import copy
import random
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from exaifs.config import load
from exaifs.errors import Unreachable
from exaifs.fs.filesystem import FileSystem
from exaifs.names import PLACEHOLDER
from tests.simulation.weather import Weather, distant
from tests.support.double import DoubleServer
from tests.support.double_state import BucketState
from tests.support.paths import Paths

TRAVEL_S = 0.01
"""To the server and back, each: it has done what was asked before we hear of it."""


def gentle() -> Weather:
    """Return a network that loses nothing, and takes its time."""
    return Weather(random.Random(1), 0.0, TRAVEL_S)


@dataclass(frozen=True)
class Node:
    """What a path shows."""

    kind: str
    data: bytes | None = b""
    """None: not to be had while offline; of a directory: nor are its names."""
    mode: int = 0o644
    xattrs: tuple[tuple[str, bytes], ...] = ()
    mtime_ns: int | None = None
    """None: not compared."""

    @property
    def content(self) -> bytes:
        """The bytes, where they are known."""
        return self.data or b""

    def matches(self, found: Node) -> bool:
        """Tell whether what was found is this."""
        data = self.data if found.data is None else found.data
        mtime_ns = found.mtime_ns if self.mtime_ns is not None else None
        return replace(found, data=data, mtime_ns=mtime_ns) == self


Tree = tuple[tuple[str, Node], ...]
"""Paths in order, with what they show."""


def tree_of(nodes: dict[str, Node]) -> Tree:
    """Return paths and what they show as a value."""
    return tuple(sorted(nodes.items()))


def is_tree(found: dict[str, Node], tree: Tree) -> bool:
    """Tell whether a tree is what was found."""
    hidden = tuple(f"{path}/" for path, node in found.items() if node.kind == "dir" and node.data is None)
    wanted = {path: node for path, node in tree if not path.startswith(hidden)}
    return wanted.keys() == found.keys() and all(node.matches(found[path]) for path, node in wanted.items())


def copied(bucket: BucketState) -> BucketState:
    """Return a copy of all that the server knows."""
    twin = copy.copy(bucket)
    twin.objects = {key: replace(stored) for key, stored in bucket.objects.items()}
    twin.rows = {
        key: replace(row, xattrs=dict(row.xattrs), provider_file_ids=dict(row.provider_file_ids))
        for key, row in bucket.rows.items()
    }
    twin._log = list(bucket._log)
    return twin


def short(nodes: dict[str, Node]) -> str:
    """Return a tree for people."""
    shown = []
    for path, node in sorted(nodes.items()):
        data = node.data or b""
        begin = data[:6].decode(errors="replace")
        more = f"{node.mode:o}{dict(node.xattrs) or ''}:{node.mtime_ns}"
        shown.append(f"{path}={node.kind[0]}:{begin}*{len(data)}:{more}")
    return " ".join(shown)


@asynccontextmanager
async def mounted(
    server: DoubleServer, cache: Path, settings: dict[str, object], weather: Weather | None = None
) -> AsyncIterator[Paths]:
    """Be mounted; at the end everything stops where it is."""
    if weather is None:
        weather = gentle()
    config = load(uid=1000, gid=1000, freshness_s=1.0, **settings)
    async with FileSystem.open(config, distant(server.remote(), weather), cache, None) as fs:
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(fs.run)
                yield Paths(fs)
                nursery.cancel_scope.cancel()
        finally:
            for inode in fs.core.table:
                if inode.staged is not None:
                    inode.staged.rest()


async def shown(paths: Paths, directory: str = "") -> dict[str, Node]:
    """Return what a mount shows."""
    nodes: dict[str, Node] = {}
    for name in await paths.ls(directory):
        path = f"{directory}/{name}" if directory else name
        attributes = await paths.stat(path)
        mode = stat.S_IMODE(attributes.mode)
        if attributes.is_dir:
            below = await _below(paths, path)
            xattrs = await _xattrs(paths, path)
            nodes[path] = Node("dir", None if below is None else b"", mode, xattrs)
            nodes |= below or {}
        elif stat.S_ISLNK(attributes.mode):
            nodes[path] = Node("symlink", await _read_link(paths, path), mode)
        else:
            data = await _read(paths, path)
            assert data is None or attributes.size_bytes == len(data), path
            nodes[path] = Node("file", data, mode, await _xattrs(paths, path), attributes.mtime_ns)
    return nodes


async def _below(paths: Paths, directory: str) -> dict[str, Node] | None:
    try:
        await paths.ls(directory)
    except Unreachable:
        return None
    return await shown(paths, directory)


async def _read(paths: Paths, path: str) -> bytes | None:
    try:
        return await paths.read(path)
    except Unreachable:
        return None


async def _read_link(paths: Paths, path: str) -> bytes | None:
    try:
        return (await paths.readlink(path)).encode()
    except Unreachable:
        return None


async def _xattrs(paths: Paths, path: str) -> tuple[tuple[str, bytes], ...]:
    names = [name for name in await paths.listxattr(path) if name in {"user.k", "user.l"}]
    return tuple(sorted([(name, await paths.getxattr(path, name)) for name in names]))


def stored(server: DoubleServer) -> dict[str, Node]:
    """Return what the bucket holds."""
    nodes: dict[str, Node] = {}
    for key in server.bucket.objects:
        parts = key.split("/")
        for depth in range(1, len(parts)):
            path = "/".join(parts[:depth])
            marker = server.bucket.find(f"{path}/{PLACEHOLDER}")
            mode = 0o755
            xattrs: tuple[tuple[str, bytes], ...] = ()
            if marker is not None:
                mode = marker.posix.mode or mode
                xattrs = tuple(sorted(marker.xattrs.items()))
            nodes[path] = Node("dir", mode=mode, xattrs=xattrs)
        if parts[-1] != PLACEHOLDER:
            record = server.bucket.record(key)
            data = server.bucket.objects[key].data
            if record.posix.kind == "symlink":
                nodes[key] = Node("symlink", data, 0o777)
            else:
                xattrs = tuple(sorted(record.xattrs.items()))
                nodes[key] = Node("file", data, record.posix.mode or 0, xattrs, record.posix.mtime_ns)
    return nodes
