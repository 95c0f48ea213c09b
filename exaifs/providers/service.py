"""File ids for contents: stored ones at once, others by one upload, whoever and how many ask.

An id belongs to (content, provider, account, purpose), never to a path. The row keeps it, guarded by the
hash; between hosts the database decides who was first, and the other deletes its upload. State here is
changed in synchronous steps; uploads run in the service's own task group and outlive who waits for them.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import structlog

from exaifs.errors import InvalidArgument, NoAttribute, NotSupported
from exaifs.model import ObjectRecord
from exaifs.providers.adapters import adapter_of
from exaifs.providers.errors import (
    FileChanged,
    ProviderError,
    ProviderKeyMissing,
    ProviderKeyRejected,
    ProviderTimeout,
)
from exaifs.providers.flights import Failures, Flights
from exaifs.providers.http import open_http
from exaifs.providers.interface import Contents, ProviderFiles
from exaifs.providers.job import Job, Result, Worker
from exaifs.providers.records import StoredId, is_id, stored_id, to_time
from exaifs.providers.sending import refusal_of
from exaifs.providers.settings import ProvidersConfig, ProviderSettings
from exaifs.remote.bodies import Progress
from exaifs.remote.interface import Catalog

_log = structlog.get_logger(__name__)


class ProviderService:
    """Ids of the files of one bucket. Opened by `open`, never constructed.

    Attributes are named as below `user.exai.provider.`: `kimi`, `kimi.uri`, `kimi.expires`, `kimi.error`.
    """

    def __init__(
        self,
        config: ProvidersConfig,
        catalog: Catalog,
        workers: Mapping[str, Worker],
        spawn: Callable[..., Any],
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._catalog = catalog
        self._workers = workers
        self._clock = clock
        self._flights: Flights[tuple[str, ...], Result] = Flights(
            spawn, config.deadline_s + config.upload_limit_s
        )
        self._failures = Failures(clock)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        config: ProvidersConfig,
        catalog: Catalog,
        contents: Contents,
        *,
        clock: Callable[[], float] = time.time,
    ) -> AsyncGenerator[ProviderService]:
        """Open the service; leaving it ends uploads that nobody waits for any more.

        Args:
            config: which providers.
            catalog: the bucket's rows.
            contents: the bucket's bytes.
            clock: seconds since the epoch.
        """
        failure: Exception | None = None
        async with open_http() as client, anyio.create_task_group() as tasks:
            adapters = {name: adapter_of(client, one) for name, one in config.provider.items()}
            workers = {
                name: Worker(
                    config,
                    config.provider[name],
                    adapter=adapter,
                    catalog=catalog,
                    contents=contents,
                    clock=clock,
                )
                for name, adapter in adapters.items()
            }
            try:
                yield cls(config, catalog, workers, tasks.start_soon, clock)
            except Exception as exc:  # noqa: BLE001 - raised again below, not in a group
                failure = exc
            finally:
                tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    @property
    def providers(self) -> Mapping[str, ProviderSettings]:
        """The providers that are turned on, by name."""
        return self._config.provider

    def adapter(self, name: str) -> ProviderFiles:
        """Return the files at a provider, for commands."""
        return self._workers[name].adapter

    # -- reading -----------------------------------------------------------------------------------

    def listed(self, file: ObjectRecord) -> dict[str, bytes]:
        """Return what can be read of a file without any request: ids that are surely good, as stored."""
        values: dict[str, bytes] = {}
        for name in file.provider_file_ids:
            stored = self._ready(name, file) if name in self._workers else None
            if stored is not None:
                values[name] = stored.id.encode()
                values |= {f"{name}.{part}": text for part, text in _parts(stored).items()}
        return values

    def _ready(self, name: str, file: ObjectRecord) -> StoredId | None:
        """Return a stored id that needs neither a check nor a new upload."""
        worker = self._workers[name]
        stored = stored_id(file.provider_file_ids.get(name))
        if stored is None or not stored.fits(file.sha256, _account(worker.settings), worker.purpose(file)):
            return None
        now = self._clock()
        return None if stored.is_ageing(now) or worker.is_due(stored, now) else stored

    async def value(
        self,
        file: ObjectRecord,
        attribute: str,
        *,
        is_owner: bool = True,
        refresh: bool = False,
        progress: Progress | None = None,
    ) -> tuple[bytes, ObjectRecord | None]:
        """Return an attribute, and the file's record if it was changed for that.

        A provider's name uploads the file on first use; its parts never do.

        Args:
            file: as the row describes it now.
            attribute: see the class.
            is_owner: whether the reader may send files away where only the owner may.
            refresh: do not trust what is stored; check it at the provider.
            progress: told of the bytes of an upload, whoever began it.

        Raises:
            NoAttribute: no such provider, or no such value.
            ProviderError: why there is no id.
            RemoteError: the row cannot be asked or changed.
        """
        name, dot, part = attribute.partition(".")
        if dot:
            return self._part(self._worker(name), file, part), None
        found, record = await self.id_of(file, name, is_owner=is_owner, refresh=refresh, progress=progress)
        return found.id.encode(), record

    async def id_of(
        self,
        file: ObjectRecord,
        name: str,
        *,
        is_owner: bool = True,
        refresh: bool = False,
        progress: Progress | None = None,
    ) -> Result:
        """Return an id with all that is known of it, and the file's record; else as `value`.

        An id may be good while no row has it: the row keeps another account's, or Supabase is away.
        """
        worker = self._worker(name)
        stored = None if refresh else self._ready(name, file)
        if stored is not None:
            return stored, None
        return await self._resolve(worker, file, is_owner=is_owner, refresh=refresh, progress=progress)

    def _worker(self, name: str) -> Worker:
        worker = self._workers.get(name)
        if worker is None:
            raise NoAttribute(f"no provider {name!r} is configured")
        return worker

    def _part(self, worker: Worker, file: ObjectRecord, part: str) -> bytes:
        name = worker.settings.name
        if part == "error":
            value = self._failures.described(_subject(worker, file))
        else:
            account = _account(worker.settings)
            stored = stored_id(file.provider_file_ids.get(name))
            if stored is None or not stored.fits(file.sha256, account, worker.purpose(file)):
                stored = worker.ours(file, account)
            value = None if stored is None else _parts(stored).get(part)
        if value is None:
            raise NoAttribute(f"{name} has no {part} for this file")
        return value

    async def _resolve(
        self,
        worker: Worker,
        file: ObjectRecord,
        *,
        is_owner: bool,
        refresh: bool,
        progress: Progress | None,
    ) -> Result:
        name, subject = worker.settings.name, _subject(worker, file)
        try:
            api_key = worker.settings.key
        except ProviderKeyMissing as exc:
            self._failures.note(subject, exc, 0)
            raise
        account, mark = worker.settings.account_of(api_key), worker.settings.fingerprint(api_key)
        refused = self._failures.standing((name, mark)) or self._failures.standing(subject)
        if refused is not None:
            raise refused
        may_upload = worker.settings.upload == "any" or (worker.settings.upload == "owner" and is_owner)
        job = Job(
            file,
            account,
            worker.purpose(file),
            may_upload=may_upload,
            refusal=refusal_of(worker.settings, file),
            refresh=refresh,
        )
        key = (*subject, account, str(may_upload), str(refresh))
        with anyio.move_on_after(self._config.deadline_s):
            while True:
                flight = self._flights.join(key, file.key, partial(self._work, worker, job, mark))
                await flight.wait(progress)
                if flight.error is not None:
                    raise flight.error
                if flight.result is None:
                    raise ProviderError(f"{name}: the service is stopping")
                if flight.owner == file.key:
                    return flight.result
                # Another file with the same content: its upload serves here too, but our row wants it.
        late = ProviderTimeout(f"{name}: not done within {self._config.deadline_s:g} s; it goes on")
        if not flight.done.is_set():  # else how it ended is what counts
            self._failures.note(subject, late, 0)
        raise late

    async def _work(self, worker: Worker, job: Job, mark: str, tell: Progress) -> Result:
        """Get an id; remember how it went.

        Args:
            worker: of the provider.
            job: what is wanted.
            mark: of the API key that is used; the account's label may outlive it.
            tell: told of the bytes of an upload.
        """
        name, subject = worker.settings.name, _subject(worker, job.file)
        try:
            result = await worker.settle(job, tell)
        except ProviderError as exc:
            if isinstance(exc, ProviderKeyRejected):
                self._failures.refuse((name, mark), exc)  # until there is another key
                self._failures.note(subject, exc, 0)
            elif exc is job.refusal or isinstance(exc, FileChanged):
                self._failures.note(subject, exc, 0)  # the provider was not asked, or has not failed
            elif job.may_upload:  # else it says nothing to the owner, who comes next
                self._failures.note(subject, exc)
            _log.warning("no file id from the provider", provider=name, reason=str(exc))
            raise
        self._failures.forget(subject)
        return result

    # -- changing ----------------------------------------------------------------------------------

    async def register(self, file: ObjectRecord, attribute: str, value: bytes) -> ObjectRecord | None:
        """Store an id that was made elsewhere; return the file's record.

        Raises:
            NotSupported: no such provider, or not its id.
            InvalidArgument: not an id, or one that is known for other bytes.
        """
        worker = self._workers.get(attribute)
        if worker is None:
            raise NotSupported(f"{attribute} cannot be set")
        text = value.decode("ascii", errors="replace").strip()
        if not is_id(text):
            raise InvalidArgument("an id has 1 to 1024 printable ASCII characters")
        ready = self._ready(attribute, file)
        if ready is not None and ready.id == text:
            return None
        record = await worker.register(file, text, _account(worker.settings))
        self._failures.forget(_subject(worker, file))
        return record

    async def forget(self, file: ObjectRecord, attribute: str) -> ObjectRecord | None:
        """Forget the id of a file, and of all with the same content; the provider keeps its file.

        Raises:
            NoAttribute: there is none.
            NotSupported: one of the parts.
        """
        if "." in attribute:
            raise NotSupported(f"{attribute} cannot be removed")
        worker = self._workers.get(attribute)
        if worker is None or attribute not in file.provider_file_ids:
            raise NoAttribute(f"no {attribute} id is stored for this file")
        worker.forget_unsaved(file)
        self._failures.forget(_subject(worker, file))
        return await self._catalog.forget_provider_id(file.key, attribute)


def _subject(worker: Worker, file: ObjectRecord) -> tuple[str, ...]:
    """Name what succeeds or fails as one: a content, unless a file's name or type makes a difference."""
    refusal = refusal_of(worker.settings, file)
    return (worker.settings.name, file.ref.content_id, worker.purpose(file), str(refusal or ""))


def _account(settings: ProviderSettings) -> str | None:
    """Name the account; None while there is no key: then any stored id is taken for ours."""
    try:
        return settings.account_of(settings.key)
    except ProviderKeyMissing:
        return settings.account


def _parts(stored: StoredId) -> dict[str, bytes]:
    values = {"uri": stored.uri, "expires": to_time(stored.expires_at)}
    return {part: text.encode() for part, text in values.items() if text is not None}
