"""What uploads of a staged file may have left in the bucket: an answer may be lost."""

from __future__ import annotations

import secrets

from exaifs.model import ObjectRecord

_REMEMBERED = 100
"""Of so many uploads, the newest: a file may stay open for weeks, and its record names them all."""


class Traces:
    """Of one staged file, and of those it replaces."""

    def __init__(self) -> None:
        self.write_ids: list[str] = []
        """Of uploads from here, so that one whose answer was lost is known again as ours."""
        self.sent: dict[str, int] = {}
        """SHA-256 and size in bytes of what was sent from here, for servers that keep no write ids."""
        self.tried = False
        """Whether one was begun, so that the bucket may have an object of it."""
        self.unanswered = False
        """Whether one was begun, and none succeeded since."""
        self._is_used = False  # the newest write id, as far as is known

    def new_id(self) -> str:
        """Return what identifies an upload of other bytes; one that was never used is forgotten."""
        if self.write_ids and not self._is_used:
            self.write_ids.pop()
        self.write_ids.append(secrets.token_hex(16))
        del self.write_ids[:-_REMEMBERED]
        self._is_used = False
        return self.write_ids[-1]

    def begin(self, sha256: str, size_bytes: int) -> None:
        """Note that an upload begins, by the newest id: whatever becomes of it, it may arrive."""
        self.tried = self.unanswered = self._is_used = True
        self._add({sha256: size_bytes})

    def resume(self, write_ids: list[str], sent: dict[str, int]) -> None:
        """Go on with those of an earlier run: who knows which were begun."""
        self.write_ids, self.sent = write_ids, sent
        self.tried = self.unanswered = self._is_used = True

    def add(self, others: Traces) -> None:
        """Take in those of a file that is replaced, as older ones."""
        own, self.sent = self.sent, dict(others.sent)
        self._add(own)
        self.write_ids[:0] = others.write_ids
        self._is_used |= others._is_used
        self.tried |= others.tried
        self.unanswered |= others.unanswered

    def _add(self, sent: dict[str, int]) -> None:
        for sha256, size_bytes in sent.items():
            self.sent.pop(sha256, None)  # the newest come last
            self.sent[sha256] = size_bytes
        for oldest in list(self.sent)[:-_REMEMBERED]:
            del self.sent[oldest]

    def may_be(self, record: ObjectRecord) -> bool:
        """Tell whether an object may be what an upload that had no answer has left."""
        if not self.unanswered:
            return False
        if record.write_id is None and record.sha256 is None:
            return record.size_bytes in self.sent.values()
        return record.write_id in self.write_ids
