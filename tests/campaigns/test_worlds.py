"""The campaigns' model: what may be after an action whose outcome is not known, and what may not."""

from __future__ import annotations

import errno
import hashlib

import pytest

from tests.campaigns.actions import Action, Piece
from tests.campaigns.worlds import DIRECTORY, EMPTY, ImpossibleError, Node, Worlds

ONE, TWO, THREE = Piece(1, 100), Piece(2, 100), Piece(3, 100)


def file(*pieces: Piece) -> Node:
    """Return a file of these pieces."""
    return Node("file", b"".join(piece.data() for piece in pieces))


def put(path: str, *pieces: Piece, synced: bool = False) -> Action:
    """Write a file."""
    return Action("put", path, pieces=pieces, synced=synced)


def test_what_is_acknowledged_is_certain() -> None:
    """One tree is right, and every other is wrong."""
    worlds = Worlds()
    worlds.take(Action("mkdir", "d"), "done")
    worlds.take(put("d/a", ONE), "done")
    worlds.take(Action("rename", "d/a", "d/b"), "done")
    assert worlds.differences({"d": DIRECTORY, "d/b": file(ONE)}) == []
    for wrong in (
        {},
        {"d": DIRECTORY},
        {"d": DIRECTORY, "d/b": file(TWO)},
        {"d": DIRECTORY, "d/a": file(ONE)},
        {"d": DIRECTORY, "d/a": file(ONE), "d/b": file(ONE)},
        {"d": DIRECTORY, "d/b": file(ONE), "c": file(TWO)},
    ):
        assert worlds.differences(wrong)


def test_a_rename_that_is_cut_off_loses_nothing() -> None:
    """Either side is right; neither name with the bytes is not, nor both."""
    worlds = Worlds({"a": file(ONE), "b": file(TWO)})
    worlds.take(Action("rename", "a", "b"), "unknown")
    assert worlds.differences({"a": file(ONE), "b": file(TWO)}) == []
    assert worlds.differences({"b": file(ONE)}) == []
    assert worlds.differences({"b": file(TWO)})
    assert worlds.differences({"a": file(ONE), "b": file(ONE)})
    torn = Worlds({"a": file(ONE), "b": file(TWO)}, moves_tear=True)
    torn.take(Action("rename", "a", "b"), "unknown")
    assert torn.differences({"a": file(ONE), "b": file(ONE)}) == []


def test_what_comes_later_rules_out_worlds() -> None:
    """After a rename that may have happened, writing to the old name says nothing of the new one."""
    worlds = Worlds({"a": file(ONE)})
    worlds.take(Action("rename", "a", "b"), "unknown")
    worlds.take(Action("unlink", "b"), "done")
    assert worlds.certain == {}
    assert worlds.differences({}) == []
    assert worlds.differences({"a": file(ONE)})


def test_fsynced_pieces_stay() -> None:
    """What an fsync has acknowledged is the least that is left; before it, what was there is."""
    worlds = Worlds({"a": file(ONE)})
    worlds.take(put("a", TWO, THREE, synced=True), "unknown", synced=1)
    assert worlds.differences({"a": file(TWO)}) == []
    assert worlds.differences({"a": file(TWO, THREE)}) == []
    assert worlds.differences({"a": file(ONE)})
    assert worlds.differences({"a": EMPTY})
    worlds = Worlds({"a": file(ONE)})
    worlds.take(put("a", TWO, THREE), "unknown")
    assert worlds.differences({"a": file(ONE)}) == []
    assert worlds.differences({"a": file(TWO)})


def test_a_write_that_fails_may_leave_its_beginning() -> None:
    """Nothing is known of a file whose close said EIO but that it is no other's."""
    worlds = Worlds({"a": file(ONE)})
    worlds.take(put("a", TWO, THREE), "failed")
    for possible in (file(ONE), file(TWO), file(TWO, THREE), EMPTY):
        assert worlds.differences({"a": possible}) == []
    assert worlds.differences({})
    assert worlds.differences({"a": file(THREE)})


def test_a_directory_moved_half_way() -> None:
    """After an error each file is in one of the two places, and both directories may be there."""
    worlds = Worlds({"d": DIRECTORY, "d/a": file(ONE), "d/b": file(TWO)})
    worlds.take(Action("rename", "d", "e"), "failed")
    both = {"d": DIRECTORY, "e": DIRECTORY}
    assert worlds.differences({**both, "d/a": file(ONE), "e/b": file(TWO)}) == []
    assert worlds.differences({"e": DIRECTORY, "e/a": file(ONE), "e/b": file(TWO)}) == []
    assert worlds.differences({**both, "d/a": file(ONE)})
    cut_off = Worlds({"d": DIRECTORY, "d/a": file(ONE), "d/b": file(TWO)})
    cut_off.take(Action("rename", "d", "e"), "unknown")
    assert cut_off.differences({**both, "d/a": file(ONE), "e/b": file(TWO)})


def test_answers_must_fit() -> None:
    """An errno that no world gives is wrong, and so is a success that none allows."""
    worlds = Worlds({"a": file(ONE)})
    with pytest.raises(ImpossibleError):
        worlds.refused(Action("unlink", "a"), errno.ENOENT)
    worlds.refused(Action("unlink", "b"), errno.ENOENT)
    worlds.refused(Action("rmdir", "a"), errno.ENOTDIR)
    with pytest.raises(ImpossibleError):
        worlds.take(Action("unlink", "b"), "done")
    worlds.take(Action("rename", "a", "b"), "unknown")
    worlds.refused(Action("unlink", "b"), errno.ENOENT)


def test_reads_must_fit() -> None:
    """A reader gets a version that may be there."""
    worlds = Worlds({"a": file(ONE)})
    worlds.take(put("a", TWO), "unknown")
    digests = {worlds.could_read("a", _sha256(file(piece))) for piece in (ONE, TWO)}
    assert digests == {True}
    assert not worlds.could_read("a", _sha256(file(THREE)))
    assert not worlds.could_read("a", None)


def _sha256(node: Node) -> str:
    return hashlib.sha256(node.data).hexdigest()
