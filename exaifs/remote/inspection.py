"""Objects against their rows, as `exaifs fsck` asks for them: the SQL functions of migration 0012."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exaifs.remote.session import Session
from exaifs.remote.wire import foreign_answer, list_of, next_from_json


@dataclass(frozen=True, slots=True)
class RowFinding:
    """One thing that is wrong, or worth knowing, about a key; migration 0012 lists the kinds."""

    kind: str
    key: str
    note: str


@dataclass(frozen=True, slots=True)
class RowFindings:
    """Those of a page of keys, in byte order."""

    findings: Sequence[RowFinding]
    scanned: int
    """How many keys were looked at."""
    next_after: str | None
    """Give it as `after` for the next page; None at the end."""


class Inspection:
    """Questions about one bucket, and repairs. Every method may be repeated, and raises `RemoteError`."""

    def __init__(self, session: Session, bucket: str) -> None:
        self._session = session
        self._bucket = bucket

    async def scan(self, after: str = "", limit: int = 1000) -> RowFindings:
        """Look at a page of all keys that have an object or a row."""
        answer = await self._call("exaifs_fsck_scan", p_after=after, p_limit=limit)
        scanned = answer.get("scanned")
        if not isinstance(scanned, int):
            raise foreign_answer("exaifs_fsck_scan")
        findings = tuple(
            RowFinding(_text(value, "kind"), _text(value, "key"), _text(value, "note"))
            for value in list_of(answer, "findings")
        )
        return RowFindings(findings, scanned, next_from_json(answer))

    async def repair(self, key: str) -> dict[str, str]:
        """Mend what is wrong at a key now; return what was done, by kind."""
        answer = await self._call("exaifs_fsck_repair", p_key=key)
        return {_text(value, "kind"): _text(value, "done") for value in list_of(answer, "done")}

    async def set_hash(self, key: str, version: str, before: str | None, sha256: str) -> bool:
        """Note what the bytes of a version hash to; False: object or row are others by now.

        Args:
            key: of the object.
            version: whose bytes were read.
            before: what the row says; None: nothing.
            sha256: what it is.
        """
        answer = await self._call(
            "exaifs_fsck_set_hash",
            p_key=key,
            p_version=version,
            p_before=before or "",
            p_sha256=sha256,
        )
        return answer.get("set") is True

    async def register(self) -> None:
        """Have the trigger follow the bucket, and make the rows that are missing."""
        await self._call("exaifs_register_bucket")

    async def _call(self, function: str, **params: Any) -> Mapping[str, Any]:
        return await self._session.ask(function, {"p_bucket": self._bucket, **params})


def _text(value: Any, name: str) -> str:
    text = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(text, str):
        raise foreign_answer(name)
    return text
