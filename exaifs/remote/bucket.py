"""The bytes of one bucket, over the storage API.

A wrong key makes this API say "not found" as well, so absence is believed only when the catalog, whose
functions run for service_role alone, says so too: `look`. What the server is like (whether it honours
Range, whether its ETags are those in the table) is learned from its answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import anyio
import httpx
import structlog

from exaifs.errors import (
    BucketMissing,
    Busy,
    Exists,
    IntegrityError,
    NameTooLong,
    NotFound,
    Rejected,
    Stale,
    Unreachable,
)
from exaifs.model import ObjectRecord, ObjectRef
from exaifs.names import MAX_NAME_BYTES
from exaifs.remote.download import EmptyDownload, Extent, HttpDownload, extent_of, has_etag_of
from exaifs.remote.failures import failure_of, storage_error, translated
from exaifs.remote.interface import Body, Download, SeekableBody, Upload, UploadMemory
from exaifs.remote.session import Session, json_of
from exaifs.remote.streams import BodyStream
from exaifs.remote.wire import foreign_answer, quote_key, upload_headers

_log = structlog.get_logger(__name__)

_KEYS_A_REMOVE = 500
"""The storage server's own transaction size; the embedded one takes as many."""

_CLOSE_S = 2.0

Look = Callable[[Sequence[str]], Awaitable[Mapping[str, ObjectRecord]]]
"""Asks the catalog, once and with proof of the key, for the records of some keys."""


class SupabaseBucket:
    """`interface.ObjectStore` on a Supabase project."""

    def __init__(self, session: Session, bucket: str, look: Look) -> None:
        self._session = session
        self._bucket = bucket
        self._look = look
        # What the server showed so far; no await between test and use matters, both only save work.
        self._ignores_range = False
        self._etag_agrees: bool | None = None

    async def put(
        self, key: str, body: SeekableBody, upload: Upload, *, memory: UploadMemory | None = None
    ) -> None:
        """See `interface.ObjectStore`."""
        headers = upload_headers(body.size_bytes, upload)
        async with self._session.transfers:
            with _long_names_explained(key):
                await self._session.retry.run("PUT", lambda: self._put_once(key, body, headers))
        if memory is not None:
            memory.forget()

    async def _put_once(self, key: str, body: Body, headers: dict[str, str]) -> None:
        request = self._session.http.build_request(
            "PUT",
            self._object_url(key),
            headers={**self._session.auth_headers, **headers},
            timeout=self._session.timeouts(read_s=self._session.slow_timeout_s),
        )
        request.stream = BodyStream(body)
        what = f"PUT {key}"
        with translated(what):
            response = await self._session.http.send(request)
        if not response.is_success:
            error = storage_error(what, failure_of(response))
            if isinstance(error, NotFound | Exists):  # no reason to refuse an overwrite: a race inside
                raise Busy(str(error)) from error
            raise error
        if not isinstance(json_of(what, response), dict):
            raise foreign_answer(what)

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
        async with self._session.transfers:
            download = await self._session.retry.run("GET", lambda: self._open(ref, start, stop))
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
            "GET", self._object_url(ref.key), params={"v": ref.version}, headers=headers
        )
        with translated(f"GET {ref.key}"):
            response = await self._session.http.send(request, stream=True)
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
        return HttpDownload(response, ref, extent, None if vouched else lambda: self._confirm(ref))

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
            raise Unreachable(f"{error}, although the catalog lists this very version") from error
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
            await self._session.retry.run("copy", lambda: self._copy_once(source, target))

    async def _copy_once(self, source: str, target: str) -> None:
        try:
            await self._transfer("copy", source, target)
        except (NotFound, BucketMissing):
            await self._prove_absent([source])
            raise

    async def move(self, source: str, target: str) -> None:
        """See `interface.ObjectStore`."""
        if source == target:
            await self._prove_present(source)
            return
        lost = False  # whether an earlier attempt may have been carried out

        async def attempt() -> None:
            nonlocal lost
            try:
                await self._transfer("move", source, target)
            except (NotFound, BucketMissing, Exists):
                await self._settle_move(source, target, lost=lost)
            except (Unreachable, Busy):
                lost = True
                raise

        with _long_names_explained(target):
            await self._session.retry.run("move", attempt)

    async def _settle_move(self, source: str, target: str, *, lost: bool) -> None:
        """Find out what a refused move means.

        Raises:
            Exists: the target is taken.
            NotFound: there is no source.
        """
        found = await self._look([source, target])
        there, taken = source in found, target in found
        if there and taken:
            raise Exists(f"{target} is taken")
        if there:
            raise Unreachable(f"move {source}: refused, although {target} is free")
        if not (lost and taken):
            raise NotFound(f"no object {source}")
        _log.info("a move had been done before its answer was lost", source=source, target=target)

    async def _transfer(self, what: str, source: str, target: str) -> None:
        await self._session.storage(
            f"{what} {source}",
            "POST",
            f"object/{what}",
            json={"bucketId": self._bucket, "sourceKey": source, "destinationKey": target},
            headers={"x-upsert": "true"},
            limit_s=self._session.slow_timeout_s,
        )

    async def remove(self, keys: Sequence[str]) -> None:
        """See `interface.ObjectStore`."""
        for position in range(0, len(keys), _KEYS_A_REMOVE):
            batch = list(keys[position : position + _KEYS_A_REMOVE])
            await self._session.retry.run("remove", partial(self._remove_once, batch))

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
        return await self._session.retry.run("sign", lambda: self._sign_once(key, lifetime_s))

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
            Unreachable: it has one; to be tried again.
        """
        found = await self._look(keys)
        if found:
            raise Unreachable(f"{min(found)}: the storage server does not find what the catalog lists")

    async def _prove_present(self, key: str) -> None:
        if not await self._look([key]):
            raise NotFound(f"no object {key}")

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
