"""Bodies on their way into the bucket: large ones in pieces where the server can do that, else one PUT."""

from __future__ import annotations

from exaifs.errors import Busy, Exists, NotFound
from exaifs.remote.failures import failure_of, storage_error, translated
from exaifs.remote.interface import SeekableBody, Upload, UploadMemory
from exaifs.remote.looking import Look
from exaifs.remote.resumable import Resumable
from exaifs.remote.sending import Sending
from exaifs.remote.session import Session, json_of
from exaifs.remote.wire import foreign_answer, quote_key, upload_headers


class Uploads:
    """Uploads to one bucket."""

    def __init__(self, session: Session, bucket: str, look: Look) -> None:
        self._session = session
        self._bucket = bucket
        self._look = look
        self._resumable = Resumable(session, bucket)

    async def put(self, key: str, body: SeekableBody, upload: Upload, memory: UploadMemory | None) -> None:
        """See `interface.ObjectStore.put`."""
        headers = upload_headers(body.size_bytes, upload)
        lane = self._session.uploads
        sending = Sending(key, body, upload, lane, self._look)
        async with lane.place(f"PUT {key}") as left_s:
            policy = self._session.retry.within(left_s)
            if not await self._resumable.put(sending, policy, memory):
                await sending.run(policy, "PUT", lambda: self._put_once(sending, headers), done=None)
                self._resumable.put_worked(sending)
        if memory is not None:
            memory.forget()

    async def _put_once(self, sending: Sending, headers: dict[str, str]) -> None:
        if await sending.has_arrived():  # an earlier attempt
            return
        sending.may_have_arrived = False
        path = f"object/{quote_key(self._bucket)}/{quote_key(sending.key)}"
        request = self._session.http.build_request(
            "PUT",
            self._session.storage_url(path),
            headers={**self._session.auth_headers, **headers},
            timeout=self._session.timeouts(read_s=self._session.slow_timeout_s),
        )
        request.stream = sending.piece(0, sending.size_bytes)
        what = f"PUT {sending.key}"
        with translated(what):
            response = await self._session.http.send(request)
        if not response.is_success:
            error = storage_error(what, failure_of(response))
            if isinstance(error, NotFound | Exists):  # no reason to refuse an overwrite: a race inside
                raise Busy(str(error)) from error
            raise error
        if not isinstance(json_of(what, response), dict):
            raise foreign_answer(what)
