"""Which failures end a change that waits, and which it outlasts."""

from __future__ import annotations

import pytest

from exaifs.errors import (
    BucketMissing,
    Busy,
    ExaifsError,
    Exists,
    FileTooLarge,
    IntegrityError,
    NameTooLong,
    NoSpace,
    NotFound,
    Rejected,
    RemoteError,
    SchemaMissing,
    Stale,
    Unauthorized,
    Unreachable,
    Unserved,
)
from exaifs.fs.unsent.verdicts import PATIENCE_S, is_hopeless

AT_ONCE = (Rejected, NameTooLong, FileTooLarge, IntegrityError)
NEVER = (Unreachable, Unauthorized, BucketMissing, SchemaMissing, NoSpace, ExaifsError, OSError, ValueError)
LATER = (RemoteError, NotFound, Exists, Stale)
OTHERS_GO_ON = (Busy, Unserved)


@pytest.mark.parametrize("kind", AT_ONCE)
def test_a_refusal_for_good_ends_a_change_at_once(kind: type[ExaifsError]) -> None:
    """The server understood, and will say the same again: what waits behind it may go on."""
    assert is_hopeless(kind("no"), 0.0, others_succeed=False)


@pytest.mark.parametrize("kind", NEVER)
def test_what_somebody_can_mend_is_waited_for(kind: type[Exception]) -> None:
    """No network, a key that expired, a full disk, a bug: nothing acknowledged is given up for these."""
    assert not is_hopeless(kind("no"), 1e9, others_succeed=True)


@pytest.mark.parametrize("kind", LATER)
def test_any_other_answer_ends_a_change_after_an_hour(kind: type[ExaifsError]) -> None:
    """It may be a race; it is none after an hour."""
    assert not is_hopeless(kind("no"), PATIENCE_S - 1, others_succeed=True)
    assert is_hopeless(kind("no"), PATIENCE_S, others_succeed=False)


@pytest.mark.parametrize("kind", OTHERS_GO_ON)
def test_a_server_in_trouble_is_waited_for_unless_others_succeed(kind: type[ExaifsError]) -> None:
    """500 for everything is an outage; 500 for one object for an hour is that object's."""
    assert not is_hopeless(kind("no"), 1e9, others_succeed=False)
    assert not is_hopeless(kind("no"), PATIENCE_S - 1, others_succeed=True)
    assert is_hopeless(kind("no"), PATIENCE_S, others_succeed=True)
