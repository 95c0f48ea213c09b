"""The bytes of one bucket, over the storage API.

A wrong key makes this API say "not found" as well, so absence is believed only when the catalog, whose
functions run for service_role alone, says so too: `look`. What the server is like (whether it honours
Range, whether its ETags are those in the table) is learned from its answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import anyio
import httpx
import structlog

from exaifs.errors import (
    BucketMissing,
    Busy,
    IntegrityError,
    NameTooLong,
    NotFound,
    Rejected,
    Stale,
    Unreachable,
    Unserved,
)
from exaifs.model import ObjectRef
from exaifs.names import MAX_NAME_BYTES
from exaifs.remote.download import EmptyDownload, Extent, HttpDownload, extent_of, has_etag_of
from exaifs.remote.failures import failure_of, storage_error, translated
from exaifs.remote.interface import Download, SeekableBody, Upload, UploadMemory
from exaifs.remote.looking import Look
from exaifs.remote.relocation import Relocation
from exaifs.remote.session import Session
from exaifs.remote.uploads import Uploads
from exaifs.remote.wire import foreign_answer, quote_key

_log = structlog.get_logger(__name__)

_KEYS_A_REMOVE = 500
"""The storage server's own transaction size; the embedded one takes as many."""

_CLOSE_S = 2.0


class SupabaseBucket:
    """`interface.ObjectStore` on a Supabase project."""

    def __init__(self, session: Session, bucket: str, look: Look) -> None:
        self._session = session
        self._bucket = bucket
        self._look = look
        self._uploads = Uploads(session, bucket, look)
        self._relocation = Relocation(session, bucket, look)
        # What the server showed so far; no await between test and use matters, both only save work.
        self._ignores_range = False
        self._etag_agrees: bool | None = None

    async def put(
        self, key: str, body: SeekableBody, upload: Upload, *, memory: UploadMemory | None = None
    ) -> None:
        """See `interface.ObjectStore`."""
        with _long_names_explained(key):
            await self._uploads.put(key, body, upload, memory)

    # reading

    @asynccontextmanager
    async def get(self, ref: ObjectRef, start: int = 0, stop: int | None = None) -> AsyncIterator[Download]:
        """See `interface.ObjectStore`."""
        stop = ref.size_bytes if stop is None else stop
        if ref.size_bytes == 0:
            yield EmptyDownload()
            return
        if not 0 <= start < stop <= ref.size_bytes:
            raise ValueError(f"not a range of {ref.size_bytes} bytes: [{start}, {stop})")
        async with self._session.downloads.place(f"GET {ref.key}") as left_s:
            policy = self._session.retry.within(left_s)
            download = await policy.run(f"GET {ref.key}", lambda: self._open(ref, start, stop))
            try:
                yield download
            finally:
                with anyio.move_on_after(_CLOSE_S, shield=True):
                    await download.aclose()

    async def _open(self, ref: ObjectRef, start: int, stop: int) -> HttpDownload:
        wants_range = (start, stop) != (0, ref.size_bytes) and not self._ignores_range
        headers = {**self._session.auth_headers, "accept-encoding": "identity"}
        if wants_range:
            headers["range"] = f"bytes={start}-{stop - 1}"
        # The version in the query keeps a CDN from answering with an older object.
        request = self._session.http.build_request(
            "GET",
            self._object_url(ref.key),
            params={"v": ref.version},
            headers=headers,
            timeout=self._session.timeouts(read_s=self._session.read_timeout_s),
        )
        response = await self._answer_to(request, ref)
        try:
            if not response.is_success:
                await self._raise_refusal(response, ref)
            extent = await self._checked(response, ref, start, stop)
        except BaseException:
            with anyio.move_on_after(_CLOSE_S, shield=True):
                await response.aclose()
            raise
        if wants_range and not extent.ranged:
            self._ignores_range = True
        vouched = has_etag_of(response, ref)
        self._session.downloads.moved()
        return HttpDownload(
            response,
            ref,
            extent,
            confirm=None if vouched else lambda: self._confirm(ref),
            moved=self._session.downloads.moved,
        )

    async def _answer_to(self, request: httpx.Request, ref: ObjectRef) -> httpx.Response:
        """Send a GET and wait for the headers; the body may take longer than one answer may."""
        limit_s = self._session.timeout_s
        with translated(f"GET {ref.key}"):
            try:
                with anyio.fail_after(limit_s):
                    return await self._session.http.send(request, stream=True)
            except TimeoutError as exc:
                raise Unreachable(f"GET {ref.key}: no answer in {limit_s:.3g} s") from exc

    async def _checked(self, response: httpx.Response, ref: ObjectRef, start: int, stop: int) -> Extent:
        try:
            extent = extent_of(response, ref, start, stop)
        except IntegrityError:
            await self._confirm(ref)  # the usual reason is another version, and says so
            raise
        if has_etag_of(response, ref):
            self._etag_agrees = True
            return extent
        await self._confirm(ref)
        if self._etag_agrees and ref.etag:
            raise IntegrityError(f"{ref.key}: other content than the catalog lists")
        self._etag_agrees = False if ref.etag else self._etag_agrees
        return extent

    async def _raise_refusal(self, response: httpx.Response, ref: ObjectRef) -> None:
        """Tell a version that is gone from a server in trouble, and both from a wrong key.

        The storage server answers 404 or 500 while an object is replaced, and 404 to a wrong key.
        """
        with translated(f"GET {ref.key}"):
            await response.aread()
        error = storage_error(f"GET {ref.key}", failure_of(response))
        if isinstance(error, NotFound | BucketMissing | Rejected | Busy):
            await self._confirm(ref)
        if isinstance(error, NotFound | BucketMissing | Rejected):
            raise Unserved(f"{error}, although the catalog lists this very version") from error
        raise error

    async def _confirm(self, ref: ObjectRef) -> None:
        """Return if the catalog still lists this version.

        Raises:
            Stale: it does not.
        """
        record = (await self._look([ref.key])).get(ref.key)
        if record is None:
            raise Stale(f"{ref.key} was deleted")
        if record.version != ref.version:
            raise Stale(f"{ref.key} was replaced")

    # names

    async def copy(self, source: str, target: str) -> None:
        """See `interface.ObjectStore`."""
        with _long_names_explained(target):
            await self._relocation.copy(source, target)

    async def move(self, source: str, target: str) -> None:
        """See `interface.ObjectStore`."""
        with _long_names_explained(target):
            await self._relocation.move(source, target)

    async def remove(self, keys: Sequence[str]) -> None:
        """See `interface.ObjectStore`."""
        for position in range(0, len(keys), _KEYS_A_REMOVE):
            batch = list(keys[position : position + _KEYS_A_REMOVE])
            await self._session.moving.run("remove", partial(self._remove_once, batch))

    async def _remove_once(self, keys: list[str]) -> None:
        answer = await self._session.storage(
            "remove",
            "DELETE",
            f"object/{quote_key(self._bucket)}",
            json={"prefixes": keys},
            limit_s=self._session.slow_timeout_s,
        )
        if not isinstance(answer, list):
            raise foreign_answer("remove")
        removed = {item.get("name") for item in answer if isinstance(item, dict)}
        # An anon key removes nothing and is told so with an empty list: what is missing there must be
        # missing in the catalog too.
        missing = [key for key in keys if key not in removed]
        if missing:
            await self._prove_absent(missing)

    async def signed_url(self, key: str, lifetime_s: int) -> str:
        """See `interface.ObjectStore`."""
        return await self._session.reading.run("sign", lambda: self._sign_once(key, lifetime_s))

    async def _sign_once(self, key: str, lifetime_s: int) -> str:
        path = f"object/sign/{quote_key(self._bucket)}/{quote_key(key)}"
        try:
            answer = await self._session.storage(
                f"sign {key}", "POST", path, json={"expiresIn": lifetime_s}
            )
        except (NotFound, BucketMissing):
            await self._prove_absent([key])
            raise
        if not isinstance(answer, dict):
            raise foreign_answer(f"sign {key}")
        # Only the token counts: the embedded server does not quote its path, and spells the name otherwise.
        signed = answer.get("signedURL") or answer.get("signedUrl")
        token = signed.partition("?")[2] if isinstance(signed, str) else ""
        if not token:
            raise foreign_answer(f"sign {key}")
        return f"{self._session.storage_url(path)}?{token}"

    async def _prove_absent(self, keys: Sequence[str]) -> None:
        """Return if the catalog has no such objects either.

        Raises:
            Unserved: it has one; to be tried again.
        """
        found = await self._look(keys)
        if found:
            raise Unserved(f"{min(found)}: the storage server does not find what the catalog lists")

    def _object_url(self, key: str) -> str:
        return self._session.storage_url(f"object/{quote_key(self._bucket)}/{quote_key(key)}")


@contextmanager
def _long_names_explained(key: str) -> Iterator[None]:
    """Say what is wrong where a server keeps key components as file names and fails without a reason."""
    try:
        yield
    except Busy as exc:
        longest = max(len(component) for component in key.split("/"))
        if longest <= MAX_NAME_BYTES:
            raise
        raise NameTooLong(
            f"{key}: a component of the key has {longest} bytes, and this storage server takes no more "
            f"than {MAX_NAME_BYTES}"
        ) from exc
