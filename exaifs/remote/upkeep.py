"""The seam for housekeeping: what nobody needs any more, as SQL judges it.

Kept by `housekeeping.py` on a real server and by the double of the tests, as `interface` says of the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Finding:
    """What `exaifs gc` found: a file or a row that can go; migration 0011 says by which rule."""

    kind: str
    """expired, orphan or queued: a file; row or entry: a row without one; malformed: only to be shown."""
    key: str
    version: str
    """Of the object; of an entry, its id."""
    size_bytes: int
    note: str
    """expires_at; why it is queued; else when it was last used."""


@dataclass(frozen=True, slots=True)
class FindingPage:
    """Some of what was looked at, in an order of the server's."""

    findings: tuple[Finding, ...]
    scanned: int
    """How many rows were looked at."""
    next_after: str | None
    """Give it as `after` for the next page; None at the end."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of objects that were to be removed; what is in neither will be taken again."""

    gone: frozenset[str]
    kept: frozenset[str]
    """Another file took the place, or a conversation has it again."""


class Housekeeping(Protocol):
    """Deleting what is to go, beside any number of others who do the same; migration 0011.

    Objects are taken or condemned first, then removed (`ObjectStore.remove`), then settled. A file that was
    written or linked meanwhile is not removed. What is not settled is taken again when its lease is over.
    """

    async def take_deletions(self, limit: int, lease_s: int) -> tuple[tuple[str, ...], bool]:
        """Take objects of deleted conversations, oldest first; tell whether there may be more."""

    async def settle_deletions(self, keys: Sequence[str]) -> Settled:
        """Tell what became of objects that were taken, and forget those."""

    async def trim_log(self, keep_hours: int) -> int:
        """Drop entries of the change log that are older; return how many."""

    async def scan(
        self, what: Literal["files", "entries", "queue"], older_s: int, after: str, limit: int
    ) -> FindingPage:
        """Look at a page of files and their rows, of rows in `files`, or of what is queued already."""

    async def condemn(self, findings: Sequence[Finding], older_s: int, lease_s: int) -> tuple[str, ...]:
        """Take those of the files found that can still go; return their keys."""

    async def drop_rows(self, findings: Sequence[Finding], older_s: int) -> tuple[Finding, ...]:
        """Delete those of the rows found that still have no object; return them."""
