"""What migrations 0010 and 0011 do, on a `BucketState`: conversations, the delete queue, what gc finds."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from exaifs.names import PLACEHOLDER, decode_component, encode_name
from exaifs.remote.upkeep import Finding, FindingPage, Settled
from tests.support.double_state import BucketState

_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\dt([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?(z|[+-]\d\d:[0-5]\d)", re.IGNORECASE | re.ASCII
)
_MADE = {"generated", "cache"}


def continuation_of(key: str | None) -> str | None:
    """Return the conversation in whose directory a file is."""
    parts = (key or "").split("/", 2)
    if len(parts) < 3 or parts[0] != "uploads" or not parts[1] or not parts[2]:
        return None
    return None if parts[2].endswith(PLACEHOLDER) else decode_component(parts[1])


@dataclass(slots=True)
class Queued:
    """An entry of the delete queue."""

    version: str
    reason: str
    spare_linked: bool = True
    lease_until_ns: int = 0


class HouseRows:
    """Metadata of programs, conversations and the queue of one bucket."""

    def __init__(self, bucket: BucketState, now_ns: Callable[[], int]) -> None:
        self._bucket = bucket
        self._now_ns = now_ns
        self.metadata: dict[str, dict[str, Any]] = {}
        """By file id."""
        self.conversations: dict[str, set[str]] = {}
        """File ids by continuation id."""
        self.entries: dict[str, tuple[str, int]] = {}
        """Key and time of the row in `files`, by file id."""
        self.queue: dict[str, Queued] = {}
        bucket.on_place = self._place
        bucket.is_guarded = self._is_guarded

    # conversations

    def _place(self, file_id: str, before: str | None, after: str | None) -> None:
        """A row was made or written anew (None before), moved, or deleted (None after)."""
        left, joined = continuation_of(before), continuation_of(after)
        fields = self.metadata.setdefault(file_id, {})
        if left is not None and left != joined:
            if fields.get("continuation_id") == left:
                del fields["continuation_id"]
            self.conversations.get(left, set()).discard(file_id)
            if not self._is_linked(file_id):
                self.entries.pop(file_id, None)
        if before is not None and after is not None:
            moved = before.rpartition("/")[0] != after.rpartition("/")[0]
            if moved and fields.get("file_type") in _MADE:
                fields.setdefault("moved_from", before)
            if file_id in self.entries:
                self.entries[file_id] = (after, self.entries[file_id][1])
        if joined is not None and after is not None:
            self.link(file_id, after, joined)

    def link(self, file_id: str, key: str, continuation_id: str) -> bool:
        """Make a file part of a conversation; False: it was before."""
        self.metadata.setdefault(file_id, {}).setdefault("continuation_id", continuation_id)
        self.entries.setdefault(file_id, (key, self._now_ns()))
        files = self.conversations.setdefault(continuation_id, set())
        is_new = file_id not in files
        files.add(file_id)
        return is_new

    def _is_linked(self, file_id: str | None) -> bool:
        return any(file_id in files for files in self.conversations.values())

    def delete_conversation(self, continuation_id: str) -> None:
        """Delete its row, as a program does."""
        files = self.conversations.pop(continuation_id, set())
        for file_id in files:
            if not self._is_linked(file_id):
                self.entries.pop(file_id, None)
        folder = f"uploads/{encode_name(continuation_id)}/"
        for key, stored in self._bucket.objects.items():
            file_id = self._bucket.rows[key].file_id
            named = self.metadata.get(file_id, {}).get("continuation_id") == continuation_id
            if (file_id in files or named or key.startswith(folder)) and not self._is_linked(file_id):
                self.queue[key] = Queued(stored.version, f"conversation {continuation_id}")

    # the queue

    def _is_condemned(self, key: str) -> bool:
        entry, stored = self.queue[key], self._bucket.objects.get(key)
        row = self._bucket.rows.get(key)
        spared = entry.spare_linked and row is not None and self._is_linked(row.file_id)
        return stored is not None and stored.version == entry.version and not spared

    def _is_guarded(self, key: str) -> bool:
        """Whether another file must not be deleted now, because it took the place of a condemned one."""
        entry = self.queue.get(key)
        return entry is not None and entry.lease_until_ns > self._now_ns() and not self._is_condemned(key)

    def take_deletions(self, limit: int, lease_s: int) -> tuple[tuple[str, ...], bool]:
        """See `Housekeeping`."""
        now_ns = self._now_ns()
        free = [key for key, entry in self.queue.items() if entry.lease_until_ns <= now_ns][:limit]
        self.settle_deletions(free)
        keys = tuple(sorted(key for key in free if key in self.queue))
        for key in keys:
            self.queue[key].lease_until_ns = now_ns + lease_s * 10**9
        return keys, bool(free)

    def settle_deletions(self, keys: Sequence[str]) -> Settled:
        """See `Housekeeping`."""
        for key in keys:
            if key in self.queue and not self._is_condemned(key):
                del self.queue[key]
        settled = frozenset(keys) - self.queue.keys()
        kept = settled & self._bucket.objects.keys()
        return Settled(settled - kept, kept)

    # what gc finds

    def scan(
        self, what: Literal["files", "entries", "queue"], older_s: int, after: str, limit: int
    ) -> FindingPage:
        """See `Housekeeping`."""
        everything = {"files": [*self._bucket.rows], "entries": [*self.entries], "queue": [*self.queue]}
        page = [name for name in sorted(everything[what]) if name > after][:limit]
        find = {"files": self._file, "entries": self._entry, "queue": self._queued}[what]
        findings = [find(name, older_s) for name in page]
        found = tuple(finding for finding in findings if finding is not None)
        return FindingPage(found, len(page), page[-1] if len(page) == limit else None)

    def _file(self, key: str, older_s: int) -> Finding | None:
        row, stored = self._bucket.rows[key], self._bucket.objects.get(key)
        if stored is None:
            return Finding("row", key, "", 0, "")
        kind, note = self._kind(key, row.file_id), ""
        before_ns = self._now_ns() - older_s * 10**9
        used_ns = max(stored.created_ns, stored.updated_ns, row.last_accessed_ns)
        if kind is None or (kind == "orphan" and used_ns > before_ns):
            return None
        if kind != "orphan":
            note = str(self.metadata[row.file_id]["expires_at"])
        return Finding(kind, key, stored.version, len(stored.data), note)

    def _kind(self, key: str, file_id: str) -> str | None:
        fields = self.metadata.get(file_id, {})
        expires_at = fields.get("expires_at")
        if key.endswith(PLACEHOLDER):
            return None
        if expires_at is not None:
            if not isinstance(expires_at, str) or not _RFC3339.fullmatch(expires_at):
                return "malformed"
            past = datetime.fromisoformat(expires_at.upper()).timestamp() * 10**9 <= self._now_ns()
            return "expired" if past else None
        continuation = continuation_of(key)
        made = fields.get("file_type") in _MADE and "moved_from" not in fields
        claims = made if continuation is None else continuation not in self.conversations
        return "orphan" if claims and not self._is_linked(file_id) else None

    def _entry(self, file_id: str, older_s: int) -> Finding | None:
        key, at_ns = self.entries[file_id]
        there = key in self._bucket.objects or any(
            row.file_id == file_id and name in self._bucket.objects
            for name, row in self._bucket.rows.items()
        )
        young = at_ns > self._now_ns() - older_s * 10**9
        return None if there or young else Finding("entry", key, file_id, 0, "")

    def _queued(self, key: str, _older_s: int) -> Finding | None:
        if not self._is_condemned(key):
            return None
        entry, stored = self.queue[key], self._bucket.objects[key]
        return Finding("queued", key, entry.version, len(stored.data), entry.reason)

    def condemn(self, findings: Sequence[Finding], older_s: int, lease_s: int) -> tuple[str, ...]:
        """See `Housekeeping`."""
        now_ns = self._now_ns()
        condemned = []
        for finding in findings:
            again = self._file(finding.key, older_s) if finding.key in self._bucket.rows else None
            entry = self.queue.get(finding.key)
            busy = entry is not None and entry.lease_until_ns > now_ns
            same = again is not None and again.version == finding.version
            if again is not None and same and again.kind in {"orphan", "expired"} and not busy:
                self.queue[finding.key] = Queued(
                    again.version, f"gc: {again.kind}", again.kind != "expired", now_ns + lease_s * 10**9
                )
                condemned.append(finding.key)
        return tuple(sorted(condemned))

    def drop_rows(self, findings: Sequence[Finding], older_s: int) -> tuple[Finding, ...]:
        """See `Housekeeping`."""
        return tuple(finding for finding in findings if self._drop(finding, older_s))

    def _drop(self, finding: Finding, older_s: int) -> bool:
        if finding.kind == "row":
            gone = finding.key not in self._bucket.objects
            return gone and self._bucket.rows.pop(finding.key, None) is not None
        if finding.version not in self.entries or self._entry(finding.version, older_s) is None:
            return False
        del self.entries[finding.version]
        for files in self.conversations.values():
            files.discard(finding.version)
        return True
