"""What is left of a directory after a power cut, worked out from a trace of its writer's system calls.

`trace_command` runs a program under strace; `Disk` plays the trace back on a model that keeps apart what
was written and what was made durable, as strictly as POSIX lets a disk be: a file's bytes are durable after
fsync or fdatasync of that file, a name after fsync of the directory it is in. A rename is one step, as on
every journaling file system.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_CALLS = (
    "openat,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,rename,renameat,renameat2,unlink,"
    "unlinkat,link,linkat,mkdir,mkdirat,rmdir,fsync,fdatasync,sync,syncfs,copy_file_range,sendfile,splice,"
    "fallocate,ioctl,mmap"
)


def trace_command(log: Path) -> tuple[str, ...]:
    """Return the command before a command that traces it; the traced process keeps its parent."""
    return (
        *("strace", "-D", "-f", "-y", "-xx", "-ttt", "-s", str(64 << 20), "--seccomp-bpf"),
        *("-e", f"trace={_CALLS}", "-o", str(log)),
    )


_LINE = re.compile(r"(\d+) +(\d+\.\d+) (.*)", re.DOTALL)
_BEGUN = re.compile(r"(\w+)\((.*) <unfinished \.\.\.>", re.DOTALL)
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>(.*)", re.DOTALL)
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+|\?|0x[0-9a-f]+)(<[^>]*>)?.*", re.DOTALL)
_FD = re.compile(r"(-?\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>(\(deleted\))?")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


@dataclass(frozen=True, slots=True)
class Call:
    """One system call that succeeded."""

    name: str
    arguments: str
    result: int
    began_s: float
    """Seconds since the epoch, as `ended_s`."""
    ended_s: float
    order: int
    """Of the line on which it began."""

    def fd_paths(self) -> list[str]:
        """Return the paths of the descriptors among its arguments; empty for one that was deleted."""
        return ["" if match[3] else _decoded(match[2]).decode() for match in _FD.finditer(self.arguments)]

    def texts(self) -> list[bytes]:
        """Return its strings: paths and data."""
        found = list(_TEXT.finditer(self.arguments))
        assert not any(match[2] for match in found), "strace cut data short"
        return [_decoded(match[1]) for match in found]

    def numbers(self) -> list[int]:
        """Return its plain numbers, in order."""
        bare = _TEXT.sub("", _FD.sub("", self.arguments))
        return [int(word) for word in re.findall(r"(?<![\w<])-?\d+(?!\w)", bare)]

    def paths(self) -> list[str]:
        """Return its path arguments as absolute paths; the program works in the root directory."""
        directories = self.fd_paths()
        names = [os.fsdecode(text) for text in self.texts()]
        bases = directories if self.name.endswith(("at", "at2")) else ["/"] * len(names)
        return [
            os.path.normpath(f"{base}/{name}" if name[:1] != "/" else name)
            for base, name in zip(bases, names, strict=False)
        ]


def _decoded(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def calls(log: Path) -> list[Call]:
    """Read a trace; the calls in the order in which they ended."""
    begun: dict[str, tuple[str, str, float, int]] = {}
    found: list[Call] = []
    for order, line in enumerate(_lines(log)):
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        pid, at_s, rest = match[1], float(match[2]), match[3]
        start, start_order = at_s, order
        if half := _BEGUN.fullmatch(rest):
            begun[pid] = (half[1], half[2], at_s, order)
            continue
        if resumed := _RESUMED.fullmatch(rest):
            name, head, start, start_order = begun.pop(pid)
            rest = f"{name}({head}{resumed[2]}"
        call = _CALL.fullmatch(rest)
        if call is None or call[3] == "?" or call[3].startswith("-"):
            continue
        found.append(Call(call[1], call[2], int(call[3], 0), start, at_s, start_order))
    return found


def _lines(log: Path) -> Iterator[str]:
    with log.open(encoding="ascii", errors="replace") as file:
        for line in file:
            yield line.rstrip("\n")


_Write = tuple[int, bytes] | int
"""Offset and bytes; or a size to cut or extend to."""


@dataclass(slots=True, eq=False)
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, _Write]] = field(default_factory=list)
    """With the order of the call, so that an fsync takes only what was there when it began."""

    def sync(self, before: int) -> None:
        """Make durable what was written by calls before this one."""
        for order, write in self.pending:
            if order < before:
                _apply(self.durable, write)
        self.pending = [(order, write) for order, write in self.pending if order >= before]

    def content(self) -> bytearray:
        """Return what a reader sees."""
        data = bytearray(self.durable)
        for _order, write in self.pending:
            _apply(data, write)
        return data


def _apply(data: bytearray, write: _Write) -> None:
    if isinstance(write, int):
        del data[write:]
        data.extend(bytes(write - len(data)))
        return
    offset, new = write
    data.extend(bytes(max(0, offset - len(data))))
    data[offset : offset + len(new)] = new


@dataclass(frozen=True, slots=True)
class _Rename:
    """A change of names: what stands at `path` goes, `file` stands at `target`; None for nothing."""

    path: str | None
    target: str | None
    file: _File | None
    order: int


class Disk:
    """A directory whose writer is traced.

    Args:
        root: the directory; what is in it now is taken for durable.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)
        self._names: dict[str, _File | None] = {self._root: None}
        """Directories are None."""
        for path in sorted(root.rglob("*")):
            self._names[os.fspath(path)] = None if path.is_dir() else _File(bytearray(path.read_bytes()))
        self._durable = dict(self._names)
        self._changes: list[_Rename] = []

    def play(self, call: Call) -> None:
        """Carry out one call."""
        if call.name in {"openat", "creat"}:
            self._open(call)
        elif call.name in {"write", "pwrite64", "writev", "pwritev", "pwritev2", "ftruncate", "truncate"}:
            self._write(call)
        elif call.name in {"fsync", "fdatasync"}:
            self._sync(call)
        elif call.name in {"sync", "syncfs"}:
            raise AssertionError("nobody syncs everything")
        elif call.name in {"copy_file_range", "sendfile", "splice", "ioctl", "fallocate", "mmap"}:
            self._unusual(call)
        else:
            self._rename(call)

    def _ours(self, path: str) -> bool:
        return path.startswith(self._root + "/")

    def _open(self, call: Call) -> None:
        path = call.paths()[0]
        if not self._ours(path):
            return
        assert "O_TMPFILE" not in call.arguments, "not modelled"
        if path not in self._names and "O_CREAT" in call.arguments:
            self._change(_Rename(None, path, _File(), call.order))
        file = self._names.get(path)
        if "O_TRUNC" in call.arguments and file is not None:
            file.pending.append((call.order, 0))

    def _write(self, call: Call) -> None:
        path = call.paths()[0] if call.name == "truncate" else call.fd_paths()[0]
        if not self._ours(path):
            return
        file = self._names[path]
        assert file is not None
        if call.name in {"truncate", "ftruncate"}:
            file.pending.append((call.order, call.numbers()[-1]))
            return
        data = b"".join(call.texts())[: call.result]
        # Only files that are written from their end on are written without an offset.
        offset = len(file.content()) if call.name in {"write", "writev"} else _offset_of(call)
        file.pending.append((call.order, (offset, data)))

    def _sync(self, call: Call) -> None:
        path = call.fd_paths()[0]
        if path == self._root or self._ours(path):
            file = self._names.get(path)
            if file is not None:
                file.sync(call.order)
            elif path in self._names:
                self._sync_directory(path, call.order)

    def _sync_directory(self, path: str, before: int) -> None:
        left = []
        for change in self._changes:
            touched = {os.path.dirname(each) for each in (change.path, change.target) if each}  # noqa: PTH120
            if path in touched and change.order < before:
                _take(self._durable, change)
            else:
                left.append(change)
        self._changes = left

    def _rename(self, call: Call) -> None:
        paths = call.paths()
        path, target = paths[0], paths[-1]
        if not self._ours(path) and not self._ours(target):
            return
        if call.name in {"mkdir", "mkdirat"}:
            self._change(_Rename(None, path, None, call.order))
        elif call.name in {"unlink", "unlinkat", "rmdir"}:
            self._change(_Rename(path, None, None, call.order))
        else:
            link = call.name.startswith("link")
            self._change(_Rename(None if link else path, target, self._names[path], call.order))

    def _change(self, change: _Rename) -> None:
        _take(self._names, change)
        self._changes.append(change)

    def _unusual(self, call: Call) -> None:
        """Refuse what is not modelled, if it writes to the directory."""
        paths = call.fd_paths()
        if call.name == "mmap":
            writes = "PROT_WRITE" in call.arguments and "MAP_SHARED" in call.arguments
            # SQLite makes its shared memory anew from the log after a crash.
            paths = [path for path in paths if writes and not path.endswith("-shm")]
        if call.name == "ioctl":
            paths = paths if "FICLONE" in call.arguments else []
        if call.name in {"copy_file_range", "sendfile", "splice"}:
            self._copy(call)
            return
        assert not any(self._ours(path) for path in paths), f"{call.name} is not modelled"

    def _copy(self, call: Call) -> None:
        source, target = call.fd_paths()[:2] if call.name != "sendfile" else reversed(call.fd_paths()[:2])
        if not self._ours(target):
            return
        there, new = self._names[target], self._names[source] if self._ours(source) else None
        assert there is not None
        assert new is not None, "copied from outside"
        offsets = [int(text) for text in re.findall(r"\[(\d+)\]", call.arguments)]
        if not offsets:  # from where the last one ended: only ever from the beginning to the end
            offsets = [len(there.content())] * 2
        start, at = offsets
        data = bytes(new.content()[start : start + call.result])
        there.pending.append((call.order, (at, data)))

    def rebuild(self, target: Path, chance: random.Random | None = None) -> None:
        """Write what a power cut now would leave.

        Args:
            target: a directory that is not there yet.
            chance: what was not made durable is on the disk or not, by chance: names up to some change,
                bytes page by page. Without it, nothing of that is.
        """
        names = dict(self._durable)
        for change in self._changes[: chance.randint(0, len(self._changes)) if chance else 0]:
            _take(names, change)
        target.mkdir(parents=True)
        for path, file in sorted(names.items()):
            place = target / os.path.relpath(path, self._root)
            if path.endswith("-shm") or any(os.fspath(up) not in names for up in _above(path, self._root)):
                continue
            if file is None:
                place.mkdir(exist_ok=True)
            else:
                place.write_bytes(_survivor(file, chance))


def _offset_of(call: Call) -> int:
    """Return the offset of a pwrite: its last number, but for pwritev2, which has flags after it."""
    numbers = call.numbers()
    return numbers[-2] if call.name == "pwritev2" else numbers[-1]


def _take(names: dict[str, _File | None], change: _Rename) -> None:
    if change.path is not None and change.target is not None:
        for path in [each for each in names if each.startswith(change.path + "/")]:
            names[change.target + path[len(change.path) :]] = names.pop(path)
    if change.path is not None:
        names.pop(change.path, None)
    if change.target is not None:
        names[change.target] = change.file


def _above(path: str, root: str) -> Iterator[Path]:
    for parent in Path(path).parents:
        yield parent
        if os.fspath(parent) == root:
            return


_PAGE = 4096


def _survivor(file: _File, chance: random.Random | None) -> bytes:
    data = bytearray(file.durable)
    for _order, write in file.pending if chance else []:
        assert chance is not None
        if isinstance(write, int):
            if chance.random() < 0.5:
                _apply(data, write)
            continue
        offset, new = write
        for start in range(0, len(new), _PAGE):
            if chance.random() < 0.5:
                _apply(data, (offset + start, new[start : start + _PAGE]))
    return bytes(data)
