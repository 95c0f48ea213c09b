"""What `exaifs sync` says of what is left: which, and why."""

from __future__ import annotations

from typing import Any

from exaifs.ops.sync import Left, described

FILE: dict[str, Any] = {"what": "file", "path": "d/f", "source": None, "problem": None, "size_bytes": 5}
MOVE: dict[str, Any] = {"what": "move", "path": "b", "source": "a", "problem": None, "size_bytes": 0}


def test_a_line_says_what_waits_and_why() -> None:
    """Of a change also which, and of a move both names."""
    assert described(FILE) == "d/f"
    assert described({**FILE, "problem": "too large"}) == "d/f: too large"
    assert described({**MOVE, "problem": "later"}) == "move a to b: later"
    assert described({**MOVE, "what": "remove", "source": None}) == "remove b"


def test_what_was_tried_in_vain_is_named_while_one_waits() -> None:
    """The first of it, whatever waits beside it without trouble."""
    assert Left([FILE, MOVE], [], []).problem is None
    assert Left([FILE, {**MOVE, "problem": "later"}], [], []).problem == "move a to b: later"
