"""All the trees that may be there after actions whose outcome is not always known.

An action that was acknowledged has happened; one that failed with an answer that says so has not; any
other, and one that a crash cut off, may have. So there is a set of trees, each of them a *world*. Names
that do not depend on each other are kept apart: a *group* is some paths and the combinations of what they
may be, and what is certain is in no group. That is exact, and small: a rename whose outcome is unknown is
two combinations of two names, and loses nothing in either.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

from tests.campaigns.actions import Action

MAX_COMBINATIONS = 50_000
_WRITE_BYTES = 128 * 1024
"""A long write(2) reaches the daemon in parts of this size, so it may end after any of them."""


@dataclass(frozen=True, slots=True)
class Node:
    """What a path stands for."""

    kind: Literal["file", "directory"]
    data: bytes = b""
    mode: int = 0o644
    xattrs: frozenset[tuple[str, bytes]] = frozenset()

    def __repr__(self) -> str:
        if self.kind == "directory":
            return "directory"
        digest = hashlib.sha256(self.data).hexdigest()[:8]
        attributes = {name: value[:12] for name, value in self.xattrs}
        return f"file({len(self.data)} bytes {self.data[:14]!r} {digest} {self.mode:o} {attributes or ''})"


DIRECTORY = Node("directory", mode=0o755)
EMPTY = Node("file")

Tree = Mapping[str, Node]
"""What is there, by path relative to the root."""

Combination = frozenset[tuple[str, Node]]
"""What a group's paths stand for in one world; a path that is not in it stands for nothing."""

Outcome = Literal["done", "unknown", "failed"]
"""`unknown`: a crash cut it off. `failed`: an error that leaves it open."""


class ImpossibleError(AssertionError):
    """What was acknowledged or answered cannot have been in any world."""


@dataclass(slots=True)
class _Group:
    paths: frozenset[str]
    combinations: set[Combination]


@dataclass(slots=True)
class Worlds:
    """The set of trees.

    Args:
        certain: what is the same in all of them.
        moves_tear: whether a move that was cut off may leave both names of a file, and some files of a
            directory in either place. A move that failed with an error may always.
    """

    certain: dict[str, Node] = field(default_factory=dict)
    moves_tear: bool = False
    _groups: list[_Group] = field(default_factory=list)

    # -- what happened -------------------------------------------------------------------------------

    def take(self, action: Action, outcome: Outcome, synced: int = 0) -> None:
        """Note an action.

        Args:
            action: what was wanted.
            outcome: what is known of it.
            synced: so many pieces were fsynced with success.

        Raises:
            ImpossibleError: it was acknowledged, and could not have happened in any world.
        """
        group = self._gathered(self._touched(action))
        combinations: set[Combination] = set()
        for before in group.combinations:
            after = _after(action, dict(before))
            if after is not None:
                combinations.add(frozenset(after.items()))
            if outcome != "done":
                halves = _between(action, dict(before), after, outcome, synced, torn=self.moves_tear)
                combinations |= {frozenset(half.items()) for half in halves}
        if not combinations:
            raise ImpossibleError(f"{action} was {outcome}, but before it there was {group}")
        self._put(_Group(self._all_paths(group, combinations), combinations))

    def refused(self, action: Action, number: int) -> None:
        """Note an errno that says that nothing was done.

        Raises:
            ImpossibleError: it is wrong in every world.
        """
        group = self._gathered(self._touched(action))
        self._put(group)
        expected = {_errno_of(action, dict(before)) for before in group.combinations}
        if number not in expected:
            names = sorted(errno.errorcode.get(each or 0, "success") for each in expected)
            raise ImpossibleError(f"{action}: {errno.errorcode[number]}, but expected was one of {names}")

    def could_read(self, path: str, sha256: str | None) -> bool:
        """Tell whether a file may have had this content, or (None) may not have been there."""
        found = {
            None if node is None or node.kind != "file" else hashlib.sha256(node.data).hexdigest()
            for node in self.possible(path)
        }
        return sha256 in found

    # -- what may be ---------------------------------------------------------------------------------

    def possible(self, path: str) -> set[Node | None]:
        """Return everything that a path may stand for."""
        for group in self._groups:
            if path in group.paths:
                return {dict(combination).get(path) for combination in group.combinations}
        return {self.certain.get(path)}

    def differences(self, tree: Tree) -> list[str]:
        """Return what about a tree fits no world, in words; nothing if it is one of them."""
        grouped = {path for group in self._groups for path in group.paths}
        wrong = [
            f"{path}: {tree.get(path)}, not {self.certain.get(path)}"
            for path in sorted((set(tree) | set(self.certain)) - grouped)
            if tree.get(path) != self.certain.get(path)
        ]
        for group in self._groups:
            found = frozenset((path, tree[path]) for path in group.paths if path in tree)
            if found not in group.combinations:
                shown = "\n    or ".join(_shown(each) for each in list(group.combinations)[:6])
                wrong.append(
                    f"{_shown(found)}\n    not {shown}\n    ({len(group.combinations)} combinations)"
                )
        return wrong

    def settle(self, tree: Tree) -> None:
        """Go on from a tree that was seen, and is one of these worlds."""
        assert not self.differences(tree)
        self.certain = dict(tree)
        self._groups = []

    # -- groups --------------------------------------------------------------------------------------

    def _touched(self, action: Action) -> set[str]:
        """Return all paths whose state matters to an action, or is changed by it."""
        paths = {action.path, *_parents(action.path)}
        if action.kind in {"rename", "rmdir"}:
            known = set(self.certain) | {path for group in self._groups for path in group.paths}
            below = {path for path in known if path.startswith(action.path + "/")}
            paths |= below
            if action.kind == "rename":
                paths |= {action.target, *_parents(action.target)}
                paths |= {path for path in known if path.startswith(action.target + "/")}
                paths |= {action.target + path[len(action.path) :] for path in below}
        return paths

    def _gathered(self, paths: set[str]) -> _Group:
        """Take all groups that these paths are in out of the set, as one, with those that are certain."""
        involved = [group for group in self._groups if group.paths & paths]
        self._groups = [group for group in self._groups if not group.paths & paths]
        grouped = frozenset[str]().union(*(group.paths for group in involved))
        base = frozenset((path, self.certain.pop(path)) for path in paths - grouped if path in self.certain)
        combinations = {
            base.union(*chosen) for chosen in product(*(group.combinations for group in involved))
        }
        assert len(combinations) <= MAX_COMBINATIONS, (
            "too many unknown outcomes: have the workload end before"
        )
        return _Group(grouped | paths, combinations)

    def _all_paths(self, group: _Group, combinations: Iterable[Combination]) -> frozenset[str]:
        return group.paths | {path for combination in combinations for path, _node in combination}

    def _put(self, group: _Group) -> None:
        """Put a group back; what is the same in all its combinations is certain, and leaves it."""
        same = frozenset[tuple[str, Node]].intersection(*group.combinations)
        self.certain.update(same)
        present = {path for combination in group.combinations for path, _node in combination}
        paths = frozenset(present - {path for path, _node in same})
        if paths:
            self._groups.append(_Group(paths, {combination - same for combination in group.combinations}))


def _shown(combination: Combination) -> str:
    return (
        "{" + ", ".join(f"{path}: {node}" for path, node in sorted(combination, key=lambda i: i[0])) + "}"
    )


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]


# -- what each action does to one tree -------------------------------------------------------------------


def _errno_of(action: Action, tree: dict[str, Node]) -> int | None:
    """Return the errno that an action must get on a tree; None if it succeeds."""
    node = tree.get(action.path)
    number = _errno_above(action.path, tree)
    if number is None and action.kind == "rename":
        number = _errno_above(action.target, tree)
    if number is not None:
        return number
    if action.kind == "rename":
        return _errno_of_rename(action, tree, node)
    if action.kind == "mkdir":
        return None if node is None else errno.EEXIST
    if node is None:
        return None if action.kind in {"put", "append"} else errno.ENOENT
    return _errno_there(action, tree, node)


def _errno_above(path: str, tree: dict[str, Node]) -> int | None:
    """Return the errno of a path that leads through what is no directory."""
    for parent in _parents(path):
        node = tree.get(parent)
        if node is None:
            return errno.ENOENT
        if node.kind != "directory":
            return errno.ENOTDIR
    return None


def _errno_there(action: Action, tree: dict[str, Node], node: Node) -> int | None:
    """Return the errno of an action on something that is there."""
    if action.kind == "rmdir":
        if node.kind != "directory":
            return errno.ENOTDIR
        return errno.ENOTEMPTY if _below(action.path, tree) else None
    if node.kind == "directory" and action.kind not in {"chmod", "setxattr"}:
        return errno.EISDIR
    return None


def _errno_of_rename(action: Action, tree: dict[str, Node], node: Node | None) -> int | None:
    there = tree.get(action.target)
    if node is None:
        return errno.ENOENT
    if node.kind == "directory" and action.target.startswith(action.path + "/"):
        return errno.EINVAL
    if action.path.startswith(action.target + "/"):
        return errno.ENOTEMPTY
    if there is None or action.target == action.path:
        return None
    if there.kind != node.kind:
        return errno.EISDIR if there.kind == "directory" else errno.ENOTDIR
    return errno.ENOTEMPTY if _below(action.target, tree) else None


def _below(path: str, tree: dict[str, Node]) -> list[str]:
    return [each for each in tree if each.startswith(path + "/")]


def _after(action: Action, tree: dict[str, Node]) -> dict[str, Node] | None:
    """Return a tree after an action; None if it fails there."""
    if _errno_of(action, tree) is not None:
        return None
    node = tree.get(action.path)
    after = dict(tree)
    if action.kind == "rename":
        return _moved(action, tree)
    if action.kind == "mkdir":
        after[action.path] = DIRECTORY
    elif action.kind in {"unlink", "rmdir"}:
        del after[action.path]
    elif action.kind != "read":
        after[action.path] = _changed(action, node, len(action.pieces))
    return after


def _changed(action: Action, node: Node | None, pieces: int) -> Node:
    """Return a file after the first pieces of an action were written, or its attributes after it."""
    node = node or EMPTY
    data = b"".join(piece.data() for piece in action.pieces[:pieces])
    if action.kind == "put":
        return replace(node, data=data)
    if action.kind == "append":
        return replace(node, data=node.data + data)
    if action.kind == "patch":
        start = node.data.ljust(action.offset, b"\0") if data else node.data
        return replace(node, data=start[: action.offset] + data + start[action.offset + len(data) :])
    if action.kind == "truncate":
        return replace(node, data=node.data[: action.offset].ljust(action.offset, b"\0"))
    if action.kind == "chmod":
        return replace(node, mode=action.mode)
    assert action.kind == "setxattr"
    kept = {item for item in node.xattrs if item[0] != action.name}
    return replace(node, xattrs=frozenset({*kept, (action.name, action.pieces[0].data())}))


def _moved(action: Action, tree: dict[str, Node]) -> dict[str, Node]:
    if action.path == action.target:
        return dict(tree)
    after = {path: node for path, node in tree.items() if path != action.target}
    for path in [action.path, *_below(action.path, tree)]:
        after[action.target + path[len(action.path) :]] = after.pop(path)
    return after


# -- and what it may leave when it does not end ----------------------------------------------------------


def _between(
    action: Action,
    tree: dict[str, Node],
    after: dict[str, Node] | None,
    outcome: Outcome,
    synced: int,
    *,
    torn: bool,
) -> list[dict[str, Node]]:
    """Return the trees that an action which did not end well may leave, besides that after it."""
    if after is None:
        return [tree]
    if action.kind in {"put", "append", "patch"} and action.pieces:
        return _partly_written(action, tree, outcome, synced)
    if action.kind == "rename" and (torn or outcome == "failed"):
        return [tree, *_torn(action, tree, after)]
    return [tree]


def _partly_written(
    action: Action, tree: dict[str, Node], outcome: Outcome, synced: int
) -> list[dict[str, Node]]:
    """Return what of a file may be kept: what it was until an fsync succeeded, then no less than that.

    Bytes that were neither closed nor fsynced are kept only after an error: the file is closed after it.
    """
    node = tree.get(action.path)
    kept = [] if synced else [tree]
    if action.synced:
        counts = range(max(synced, 1), len(action.pieces) + 1)
        kept += [{**tree, action.path: _changed(action, node, count)} for count in counts]
    if outcome == "failed":
        whole = _changed(action, node, len(action.pieces)).data
        counts = range(len(action.pieces) + 1)
        ends = {len(_changed(action, node, count).data) for count in counts}
        ends |= set(range(0, len(whole), _WRITE_BYTES))
        least = len(_changed(action, node, synced).data) if synced else 0
        if action.kind == "put":
            kept += [
                {**tree, action.path: replace(node or EMPTY, data=whole[:end])}
                for end in ends
                if end >= least
            ]
        else:
            kept += [{**tree, action.path: _changed(action, node, count)} for count in counts]
    return kept


def _torn(action: Action, tree: dict[str, Node], after: dict[str, Node]) -> list[dict[str, Node]]:
    """Return every mixture of a move's two sides: a file at both names, a directory in two places.

    A file may have arrived without its attributes.
    """
    if tree[action.path].kind == "file":
        file, there = tree[action.path], tree.get(action.target, EMPTY)
        bare = replace(file, mode=there.mode, xattrs=there.xattrs)
        return [{**after, action.path: file, action.target: arrived} for arrived in (file, bare)]
    below = [path for path in _below(action.path, tree) if tree[path].kind == "file"]
    directories = [path for path in [action.path, *_below(action.path, tree)] if path not in below]
    new = {path: action.target + path[len(action.path) :] for path in [*below, *directories]}
    mixtures = []
    for places in product((False, True), repeat=len(below)):
        mixture = dict(tree)
        for path, moved in zip(below, places, strict=True):
            if moved:
                mixture[new[path]] = mixture.pop(path)
        for left in product((False, True), repeat=len(directories)):
            here = {**mixture, **{new[path]: tree[path] for path in directories}}
            for path, gone in zip(directories, left, strict=True):
                if gone and not _below(path, {k: v for k, v in here.items() if k != path}):
                    here.pop(path, None)
            mixtures.append(here)
    return mixtures
