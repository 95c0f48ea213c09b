"""Uploads in pieces, by the TUS protocol (https://tus.io, version 1.0.0) as Supabase Storage speaks it.

An upload is created, sent piece by piece, and visible when the last byte is in; the row then has hash,
attributes and write id in the same transaction, as after a PUT. After a cut the server is asked how much it
has. A note in the caller's memory names the upload, so that another process can do the same.

Whether a server speaks TUS shows in its answer to the first creation, which carries no bytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from typing import Final

import anyio
import httpx

from exaifs.errors import Busy, ExaifsError, Exists, NotFound, Unreachable
from exaifs.remote.failures import Failure, failure_of, storage_error, translated
from exaifs.remote.interface import UploadMemory
from exaifs.remote.retry import RetryPolicy
from exaifs.remote.sending import Sending
from exaifs.remote.session import Session
from exaifs.remote.wire import foreign_answer, resumable_metadata

PIECE_BYTES: Final = 6 * 1024 * 1024
"""Supabase's documentation: exactly 6 MiB a piece, but for the last; and resumable above that size."""

_ASK_AGAIN_S = 600.0
"""A server without TUS is asked again after this time: what said no may have been a gateway in trouble."""

_MAX_RESTARTS = 2
_NO_ROUTE = frozenset({400, 404, 405, 501})
"""Answers to a creation that come from no TUS server: the PUT that follows shows what is really wrong."""

_TUS: Final = {"tus-resumable": "1.0.0", "x-upsert": "true"}
_ID = re.compile(r"[A-Za-z0-9_.~=-]{1,4096}", re.ASCII)
_FORMAT = 1


class Resumable:
    """The resumable uploads of one bucket."""

    def __init__(self, session: Session, bucket: str) -> None:
        self._session = session
        self._bucket = bucket
        # No await between test and use matters: both only save requests.
        self._missing_until = float("-inf")
        self._said_no = False

    async def put(self, sending: Sending, policy: RetryPolicy, memory: UploadMemory | None) -> bool:
        """Upload in pieces; return False, with nothing sent, where that does not pay or is not possible."""
        if sending.size_bytes <= PIECE_BYTES or anyio.current_time() < self._missing_until:
            return False
        transfer = _Transfer(self._session, self._bucket, sending, memory)
        taken = await sending.run(policy, "upload", transfer.attempt, done=True)
        self._said_no = not taken
        return taken

    def put_worked(self, sending: Sending) -> None:
        """Note that a plain PUT has worked: then the answer before was meant, and holds for a while."""
        if self._said_no and sending.size_bytes > PIECE_BYTES:
            self._missing_until = anyio.current_time() + _ASK_AGAIN_S


class _Transfer:
    """One upload in pieces: what is known of it at the server."""

    def __init__(
        self, session: Session, bucket: str, sending: Sending, memory: UploadMemory | None
    ) -> None:
        self._session = session
        self._sending = sending
        self._memory = memory
        self._metadata = resumable_metadata(bucket, sending.key, sending.upload)
        self._id = self._remembered()
        self._offset: int | None = None  # None: unknown, to be asked
        self._restarts = 0

    async def attempt(self) -> bool:
        """Go on until the object is there; False if the server has no resumable uploads."""
        if self._id is None and not await self._create():
            return False
        while True:
            if self._offset is None:
                arrived = await self._ask_offset()
            else:
                arrived = await self._send_piece(self._offset)
            if arrived:
                return True

    async def _create(self) -> bool:
        response = await self._ask(
            "POST", "", {"upload-length": str(self._sending.size_bytes), "upload-metadata": self._metadata}
        )
        found = response.headers.get("location", "").rstrip("/").rpartition("/")[2]
        if response.status_code == httpx.codes.CREATED and _ID.fullmatch(found):
            # Whatever host and scheme the server believes it has: the way to it is the configured one.
            self._id, self._offset = found, 0
            self._remember()
            return True
        failure = _failure_of(response)
        if not _speaks_tus(response) and (not response.is_error or failure.status in _NO_ROUTE):
            return False
        if response.is_success:
            raise foreign_answer(f"upload {self._sending.key}")
        raise self._error(failure)

    async def _ask_offset(self) -> bool:
        """Ask how much the server has; return True if that is a finished object."""
        response = await self._ask("HEAD", f"/{self._id}")
        failure = Failure(response.status_code)
        if response.is_error:
            error = self._error(failure)
            if isinstance(error, Busy):
                raise error
            return await self._start_over()  # gone; or the creation will say what is wrong
        if not _speaks_tus(response):
            raise foreign_answer(f"upload {self._sending.key}")
        offset = _number(response, "upload-offset")
        length = _number(response, "upload-length")
        if offset is None or length != self._sending.size_bytes or offset > length:
            return await self._start_over()
        if offset == length:
            self._sending.may_have_arrived = True
            if await self._has_arrived():
                return True
        self._offset = offset
        self._sending.progress.confirmed(offset)
        return False

    async def _send_piece(self, start: int) -> bool:
        """Send what follows; return True with the last byte.

        With all bytes there but no object, an empty piece has the server try once more to finish.
        """
        size_bytes = self._sending.size_bytes
        stop = min(start + PIECE_BYTES, size_bytes)
        self._offset = None
        response = await self._ask("PATCH", f"/{self._id}", {"upload-offset": str(start)}, (start, stop))
        if response.status_code in {httpx.codes.NOT_FOUND, httpx.codes.GONE}:
            return await self._start_over()
        if response.is_error:
            raise self._error(_failure_of(response))
        offset = _number(response, "upload-offset")
        if not _speaks_tus(response) or offset is None or not start <= offset <= stop:
            raise foreign_answer(f"upload {self._sending.key}")
        self._sending.progress.confirmed(offset)
        self._offset = offset
        return offset == size_bytes

    async def _start_over(self) -> bool:
        """Create the upload anew, which the server does not know any more; True if it had been finished."""
        if await self._has_arrived():
            return True
        self._restarts += 1
        if self._restarts > _MAX_RESTARTS:
            raise Unreachable(f"upload {self._sending.key}: the server keeps losing what was sent")
        self._id = self._offset = None
        if not await self._create():
            raise Unreachable(f"upload {self._sending.key}: the server takes no more uploads in pieces")
        return False

    async def _has_arrived(self) -> bool:
        return await self._sending.has_arrived(_version_in(self._id))

    async def _ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, piece: tuple[int, int] = (0, 0)
    ) -> httpx.Response:
        timeout_s = self._session.slow_timeout_s if method == "PATCH" else self._session.timeout_s
        request = self._session.http.build_request(
            method,
            self._session.storage_url(f"upload/resumable{path}"),
            headers={**self._session.auth_headers, **_TUS, **(headers or {})},
            timeout=self._session.timeouts(read_s=timeout_s),
        )
        if method != "HEAD":
            request.headers["content-length"] = str(piece[1] - piece[0])
            request.stream = self._sending.piece(*piece)
        if method == "PATCH":
            request.headers["content-type"] = "application/offset+octet-stream"
        with translated(f"upload {self._sending.key}"):
            return await self._session.http.send(request)

    def _error(self, failure: Failure) -> ExaifsError:
        error = storage_error(f"upload {self._sending.key}", failure)
        # A wrong offset, or a race inside as at a PUT: the offset is asked for again.
        return Busy(str(error)) if isinstance(error, NotFound | Exists) else error

    # the note

    def _identity(self) -> dict[str, str | int]:
        """Return what must be equal for an upload to be taken up again: bytes, place and attributes."""
        upload = self._sending.upload
        return {
            "format": _FORMAT,
            "key": self._sending.key,
            "size": self._sending.size_bytes,
            "sha256": upload.sha256,
            "write_id": upload.write_id,
            "metadata": hashlib.sha256(self._metadata.encode()).hexdigest(),
        }

    def _remembered(self) -> str | None:
        text = None if self._memory is None else self._memory.load()
        try:
            note = json.loads(text or "null")
        except ValueError:
            return None
        found = note.pop("upload", None) if isinstance(note, dict) else None
        if not isinstance(found, str) or not _ID.fullmatch(found) or note != self._identity():
            return None
        self._sending.may_have_arrived = True
        return found

    def _remember(self) -> None:
        if self._memory is not None:
            self._memory.save(json.dumps({**self._identity(), "upload": self._id}))


def _speaks_tus(response: httpx.Response) -> bool:
    return "tus-resumable" in response.headers


def _failure_of(response: httpx.Response) -> Failure:
    """Read an error; TUS servers answer in plain text, with the true status."""
    failure = failure_of(response)
    if failure.from_supabase or not _speaks_tus(response):
        return failure
    message = " ".join(response.text.split())[:200]
    return Failure(response.status_code, "TusError", message, failure.retry_after_s)


def _number(response: httpx.Response, name: str) -> int | None:
    text = response.headers.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None


def _version_in(upload_id: str | None) -> str:
    """Return the version that the object will have: the id is base64url of bucket/name/version."""
    try:
        text = base64.urlsafe_b64decode(f"{upload_id}===").decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
    return text.rpartition("/")[2]
