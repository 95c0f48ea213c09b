"""Whether a change that waits, and failed, can still be carried out: what cannot must not stop its names.

    the answer                                    what becomes of the change
    no answer; key, bucket or schema not there    waits, however long
    408, 423, 429, 5xx                            waits; an hour of it while others succeed: given up
    404 for what the catalog lists                likewise
    a quota is used up, the local disk is full    waits: room can be made
    name, type or size refused                    given up at once
    bytes in the way that cannot be kept          given up at once
    any other refusal                             given up after an hour

Given up: nothing is deleted or replaced, and names show again what the bucket has.
"""

from __future__ import annotations

from exaifs.errors import (
    Busy,
    ExaifsError,
    Exists,
    FileTooLarge,
    IntegrityError,
    InvalidArgument,
    NameTooLong,
    NotFound,
    Rejected,
    RemoteError,
    Stale,
    Unserved,
)
from exaifs.fs.contact import is_away

PATIENCE_S = 3600.0
"""How long a change is tried that Supabase, which answers, does not carry out."""


def is_final(exc: BaseException) -> bool:
    """Tell whether the same request would get the same answer for ever."""
    return isinstance(exc, NameTooLong | Rejected | FileTooLarge | InvalidArgument | IntegrityError)


def is_hopeless(exc: BaseException, failing_s: float, *, others_succeed: bool) -> bool:
    """Tell whether a change is to be given up.

    Args:
        exc: why it failed now.
        failing_s: since it failed first, without an absence of Supabase in between.
        others_succeed: whether other changes were carried out since then.
    """
    if is_final(exc):
        return True
    if failing_s < PATIENCE_S or not isinstance(exc, ExaifsError):
        return False
    if is_away(exc):
        return isinstance(exc, Busy | Unserved) and others_succeed
    return isinstance(exc, RemoteError | NotFound | Exists | Stale)
