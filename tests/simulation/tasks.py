"""One task of the storm in a directory of its own, where it knows exactly what may be there.

What an operation that failed, or was cut off by a kill, may have left is kept as several possibilities:
of the bytes of each name, and of its attributes.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from exaifs.errors import (
    Busy,
    ExaifsError,
    Exists,
    FileTooLarge,
    NoAttribute,
    NoSpace,
    NotEmpty,
    NotFound,
    Stale,
    Unreachable,
)
from exaifs.model import AttributeChange, Handle, Ino
from tests.simulation.kernel import Kernel
from tests.simulation.weather import choose

TEMPORARY = (Unreachable, Busy)
TROUBLE = (*TEMPORARY, Stale, NoSpace, FileTooLarge)
NAMES = ("a", "b", "c")
BYTES = (0, 60, 60, 60, 140_000, 1_200_000)
CHUNK_BYTES = 128 * 1024
MARK = b"user.k"

Possible = set[bytes | None]
"""What a path may hold; None: nothing is there."""


def is_trouble(exc: ExaifsError) -> bool:
    """Tell whether an operation may fail like that in a storm: network and disk, not what is there."""
    return isinstance(exc, TROUBLE) or type(exc) is ExaifsError


@dataclass
class Manner:
    """What the attributes of a path may be, apart from its bytes."""

    modes: set[int] = field(default_factory=lambda: {0o644})
    marks: set[bytes | None] = field(default_factory=lambda: {None})

    def joined(self, other: Manner) -> Manner:
        """Return what holds if one or the other does."""
        return Manner(self.modes | other.modes, self.marks | other.marks)


@dataclass
class Held:
    """A handle for reading and writing that stays open over other operations."""

    handle: Handle
    ino: Ino
    name: str | None
    """None: removed, or replaced."""
    content: bytes
    changed: bool = False
    """Whether there may be bytes that no fsync and no close was answered for."""


@dataclass
class Private:
    """A directory that one task alone uses, and what may be in it."""

    path: str
    settings: dict[str, object]
    made: bool = False
    """Whether it is certain to exist."""
    files: dict[str, Possible] = field(default_factory=dict)
    manners: dict[str, Manner] = field(default_factory=dict)
    own: Manner = field(default_factory=lambda: Manner({0o755}))
    """Of the directory."""
    moved: list[tuple[str, str, Possible]] = field(default_factory=list)
    """Renames that may be half done: the content is under the old name, the new one, or both."""
    also: str | None = None
    """Where a directory rename was going that may be half done."""
    former: list[str] = field(default_factory=list)
    """Paths that it had, where nothing is left."""
    late: dict[str, Possible] = field(default_factory=dict)
    """Closes without an answer that were replaced since: if they arrive they are another's to the mount."""
    held: Held | None = None

    def usable(self) -> list[str]:
        """Return the names that are not part of a rename that failed."""
        unsure = {name for old, new, _ in self.moved for name in (old, new)}
        return [name for name in NAMES if name not in unsure]

    def possible(self, name: str) -> Possible:
        return self.files.get(name, {None})

    def manner(self, name: str) -> Manner:
        return self.manners.setdefault(name, Manner())

    def certain(self, name: str) -> bytes | None:
        """Return what a file holds, if that is certain."""
        before = self.possible(name)
        return next(iter(before)) if len(before) == 1 else None

    @property
    def unsure_of_held(self) -> bool:
        return self.held is not None and self.held.changed

    def holds(self, name: str) -> bool:
        return self.held is not None and self.held.name == name


class Task:
    """Plays single operations in its directory, on whichever run of its mount there is.

    Args:
        private: the directory.
        kernel: of the mount.
        chance: chooses.
        fresh: makes contents that are not anywhere else.
        sent: what the bucket holds under a path.
        note: keeps a line for the message of a failure.
        may_fill: whether the disk of the cache may be full.
    """

    def __init__(
        self,
        private: Private,
        kernel: Kernel,
        *,
        chance: random.Random,
        fresh: Callable[[int], bytes],
        sent: Callable[[str], bytes | None],
        note: Callable[[str], None],
        may_fill: bool,
    ) -> None:
        self._private = private
        self._kernel = kernel
        self._chance = chance
        self._fresh = fresh
        self._sent = sent
        self._note = note
        self._may_fill = may_fill
        self._verbs = (
            *(self._write, self._write, self._write, self._read, self._unlink, self._rename, self._append),
            *(
                self._mark,
                self._mark,
                self._cut,
                self._hold,
                self._hold,
                self._hold,
                self._stat,
                self._list,
            ),
        )

    async def step(self) -> None:
        """Do something."""
        private = self._private
        usable = private.usable()
        try:
            if not private.made:
                await self._make()
            elif not usable or self._chance.random() < 0.1:
                await self._rename_all()
            elif private.held is not None and self._chance.random() < 0.6:
                verb = choose(
                    self._chance, [self._poke, self._poke, self._fsync, self._reread, self._close]
                )
                await verb(private.held)
            else:
                await choose(self._chance, self._verbs)(choose(self._chance, usable))
        except ExaifsError as exc:
            if not is_trouble(exc):
                raise
            self._note(f"{private.path}: {exc!r}")
            if isinstance(exc, Stale):
                await self._abandon()  # what was written through it may have been kept aside

    async def finish(self) -> None:
        """Close what is open, as the end of a process does."""
        if self._private.held is not None:
            try:
                await self._close(self._private.held)
            except ExaifsError as exc:
                if not is_trouble(exc):
                    raise
                self._note(f"{self._private.path}: {exc!r}")

    def _path(self, name: str) -> str:
        return f"{self._private.path}/{name}"

    # -- files -------------------------------------------------------------------------------------

    async def _write(self, name: str) -> None:
        """Replace a file, or make it; when close returns it is safe."""
        private, before = self._private, self._private.possible(name)
        path = self._path(name)
        if before == {None}:
            private.manners[name] = Manner()
        try:
            if before == {None}:
                handle, ino = await self._kernel.create(path)
            else:
                handle, ino = await self._kernel.open(path, os.O_RDWR | os.O_TRUNC)
        except (NotFound, Exists):
            assert len(before) > 1, f"{path}: it is certain what is there"
            return
        data = self._fresh(choose(self._chance, BYTES))
        # A truncation is sent when nobody closes the file in order: the handle ends with the process.
        # So is a part of it, where a close that failed or an fsync has left a record, or the disk is full.
        starts = range(0, len(data), CHUNK_BYTES)
        parts = len(before) > 1 or private.holds(name) or self._may_fill
        private.files[name] = before | {data, b""} | {data[:start] for start in starts if parts}
        self._know_held(name, None)
        self._note(f"write {path} {data[:8]!r}")
        try:
            for start in starts:
                await self._kernel.fs.files.write(handle, start, data[start : start + CHUNK_BYTES])
            self._know_held(name, data)
            await self._kernel.fs.files.flush(handle)
            if (
                private.settings["write_mode"] == "through"
                and private.settings["offline_writes"] == "refuse"
            ):
                assert self._sent(path) == data, f"{path} was not sent"
            private.files[name] = {data}
            self._know_held(name, data, changed=False)
            self._note(f"closed {path} {data[:8]!r}")
        finally:
            await self._kernel.release(handle, ino)

    def _know_held(self, name: str, content: bytes | None, *, changed: bool = True) -> None:
        """Follow what another handle did to the file that is held; None: it is not certain."""
        held = self._private.held
        if held is not None and held.name == name:
            held.content, held.changed = b"" if content is None else content, changed

    async def _append(self, name: str) -> None:
        """Write behind the end, have that made durable, and close."""
        private, old = self._private, self._private.certain(name)
        if old is None:
            return
        path, data = self._path(name), old + b"+" * 5
        handle, ino = await self._kernel.open(path, os.O_RDWR)
        private.files[name] = {old, data}
        self._note(f"append {path}")
        try:
            await self._kernel.fs.files.write(handle, len(old), data[len(old) :])
            self._know_held(name, data)
            await self._kernel.fs.files.fsync(handle, False)  # noqa: FBT003 - pyfuse3's signature
            private.files[name] = {data}
            await self._kernel.fs.files.flush(handle)
            self._know_held(name, data, changed=False)
            self._note(f"appended {path}")
        finally:
            await self._kernel.release(handle, ino)

    async def _cut(self, name: str) -> None:
        """Truncate by path; unless somebody has it open that is durable when it returns."""
        private, old = self._private, self._private.certain(name)
        if old is None:
            return
        size = choose(self._chance, [0, len(old) // 2, len(old) + 5])
        data = old[:size].ljust(size, b"\0")
        path = self._path(name)
        self._note(f"truncate {path} to {size}")

        async def act(ino: Ino) -> None:
            private.files[name] = {old, data}
            await self._kernel.fs.namespace.setattr(ino, AttributeChange(size_bytes=size), None)

        await self._kernel.call_ino(path, act)
        self._know_held(name, data)
        if not private.holds(name):
            private.files[name] = {data}
        self._note(f"truncated {path}")

    async def _mark(self, name: str) -> None:
        """Change attributes, of the file or of its directory."""
        private = self._private
        path = choose(self._chance, [private.path, self._path(name)])
        manner = private.own if path == private.path else private.manner(name)
        mode, value = choose(self._chance, [0o600, 0o700, 0o755]), b"%d" % self._chance.randrange(100)
        drops = self._chance.random() < 0.3
        # What is not sent yet has its attributes with it, and loses them with the process.
        is_held = path != private.path and private.holds(name) and private.unsure_of_held
        self._note(f"mark {path} {mode:o} {None if drops else value!r}")

        async def act(ino: Ino) -> None:
            before = set(manner.modes)
            manner.modes.add(mode)
            await self._kernel.fs.namespace.setattr(ino, AttributeChange(mode=mode), None)
            manner.modes = before | {mode} if is_held else {mode}
            marks = set(manner.marks)
            manner.marks.add(None if drops else value)
            if drops:
                try:
                    await self._kernel.fs.xattrs.remove(ino, MARK)
                except NoAttribute:
                    assert None in marks, f"{path} has lost {marks}"
            else:
                await self._kernel.fs.xattrs.set(ino, MARK, value)
            new = {None if drops else value}
            manner.marks = marks | new if is_held else new

        try:
            await self._kernel.call_ino(path, act)
            self._note(f"marked {path}")
        except NotFound:
            assert path == private.path or None in private.possible(name), f"{path} is gone"

    async def _stat(self, name: str) -> None:
        path = self._path(name)
        possible, manner = self._private.possible(name), self._private.manner(name)
        try:
            found = await self._kernel.stat(path)
        except NotFound:
            assert None in possible, f"{path} is gone"
            return
        sizes = {len(data) for data in possible if data is not None}
        if self._private.holds(name) and self._private.held is not None:
            sizes.add(len(self._private.held.content))
        assert found.size_bytes in sizes, f"{path} has {found.size_bytes} bytes, not {sizes}"
        assert found.mode & 0o777 in manner.modes, f"{path} is {found.mode:o}, not one of {manner.modes}"

    async def _list(self, _name: str) -> None:
        private = self._private
        found = set(await self._kernel.ls(private.path))
        unsure = {name for name in NAMES if name not in private.usable()}
        for name in set(NAMES) - unsure:
            possible = private.possible(name)
            assert name in found or None in possible, f"{self._path(name)} is not listed"
            assert name not in found or possible != {None}, f"{self._path(name)} is listed"
        assert found <= set(NAMES), f"{found} in {private.path}"

    async def _read(self, name: str) -> None:
        path, possible = self._path(name), self._private.possible(name)
        try:
            handle, ino = await self._kernel.open(path, os.O_RDONLY)
        except NotFound:
            assert None in possible, f"{path} is gone"
            return
        try:
            data = await self._kernel.read_all(handle)
        finally:
            await self._kernel.release(handle, ino)
        assert data in possible, f"{path}: {data[:8]!r}, not one of {[(p or b'-')[:8] for p in possible]}"

    # -- handles that stay open ----------------------------------------------------------------------

    async def _hold(self, name: str) -> None:
        private, old = self._private, self._private.certain(name)
        if private.held is not None or old is None:
            return
        handle, ino = await self._kernel.open(self._path(name), os.O_RDWR)
        private.held = Held(handle, ino, name, old)
        self._note(f"hold {self._path(name)}")

    async def _poke(self, held: Held) -> None:
        """Write somewhere, without anything that makes it durable."""
        old = held.content
        offset = choose(self._chance, [0, len(old) // 2, len(old), len(old) + 9])
        data = self._fresh(8)
        new = old[:offset].ljust(offset, b"\0") + data + old[offset + 8 :]
        if held.name is not None:
            self._private.files[held.name] = self._private.possible(held.name) | {new}
        await self._kernel.fs.files.write(held.handle, offset, data)
        held.content, held.changed = new, True
        self._note(f"poked {held.name} of {self._private.path} {new[:8]!r} {len(new)}")

    async def _fsync(self, held: Held) -> None:
        await self._kernel.fs.files.fsync(held.handle, False)  # noqa: FBT003 - pyfuse3's signature
        self._note(f"fsynced {held.name} of {self._private.path}")
        self._is_durable(held)

    def _is_durable(self, held: Held) -> None:
        if held.name is not None and held.changed:
            self._private.files[held.name] = {held.content}
        held.changed = False

    async def _reread(self, held: Held) -> None:
        """Who has a file open reads what was written, whatever became of its name."""
        data = await self._kernel.read_all(held.handle)
        assert data == held.content, f"{held.name}: {data[:20]!r} {len(data)}, not {held.content[:20]!r}"

    async def _close(self, held: Held) -> None:
        self._private.held = None
        self._note(f"close {held.name} of {self._private.path}")
        try:
            await self._kernel.fs.files.flush(held.handle)
            self._is_durable(held)
            self._note(f"closed {held.name} of {self._private.path}")
        finally:
            await self._kernel.release(held.handle, held.ino)

    async def _abandon(self) -> None:
        """Close what is open of a name that nobody knows any more."""
        held, self._private.held = self._private.held, None
        if held is not None:
            try:
                await self._kernel.fs.files.flush(held.handle)
            except ExaifsError as exc:
                if not is_trouble(exc):
                    raise
            finally:
                await self._kernel.release(held.handle, held.ino)

    # -- names -------------------------------------------------------------------------------------

    async def _unlink(self, name: str) -> None:
        private, before, path = self._private, self._private.possible(name), self._path(name)
        private.files[name] = before | {None}
        self._note(f"unlink {path}")
        try:
            await self._kernel.unlink(path)
        except NotFound:
            assert None in before, f"{path} is gone"
            return
        private.files[name] = {None}
        self._note(f"unlinked {path}")
        if private.held is not None and private.held.name == name:
            private.held.name = None

    async def _rename(self, name: str) -> None:
        private = self._private
        new = choose(self._chance, private.usable())
        source, target = private.possible(name), private.possible(new)
        if new == name or source == {None}:
            return
        doubt = (name, new, source)
        manner = private.manner(name)
        before = private.manners.get(new, Manner(set(), set()))
        self._note(f"rename {private.path}: {name} to {new}")
        private.files[name], private.files[new] = source | {None}, target | source
        private.manners[new] = manner.joined(before)
        private.moved.append(doubt)
        try:
            await self._kernel.rename(self._path(name), self._path(new))
        except NotFound:
            assert None in source, f"{self._path(name)} is gone"
            if private.holds(name) or private.holds(new):
                await self._abandon()
            return
        except ExaifsError:
            if private.holds(name) or private.holds(new):
                await self._abandon()
            raise
        private.moved.remove(doubt)
        if len(target) > 1:
            private.late[new] = private.late.get(new, set()) | (target - {None})
        private.files[name], private.files[new] = {None}, source - {None}
        private.manners[new] = private.manners.pop(name)
        if private.held is not None and private.held.name in {name, new}:
            private.held.name = new if private.held.name == name else None
        self._note(f"renamed {private.path}: {name} to {new}")

    # -- the directory -----------------------------------------------------------------------------

    async def _make(self) -> None:
        with suppress(Exists):  # the answer to an earlier attempt was lost
            await self._kernel.mkdir(self._private.path)
        self._private.made = True

    async def _rename_all(self) -> None:
        """Rename the directory; if that stops half-way, nobody touches it again."""
        private = self._private
        old, new = private.path, f"{private.path}x"
        if self._chance.random() < 0.3:
            with suppress(Exists):
                await self._kernel.mkdir(new)  # it is renamed over that
        self._note(f"rename {old}")
        private.also = new
        try:
            await self._kernel.rename(old, new)
        except ExaifsError as exc:
            if not (is_trouble(exc) or isinstance(exc, NotFound | NotEmpty)):
                raise
            self._note(f"rename {old}: {exc!r}")
            await self._abandon()
            return
        private.path, private.also = new, None
        private.former.append(old)
        self._note(f"renamed {old}")
