"""Getting one id at one provider: from the rows, checked where that is due, else by an upload."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import anyio
import structlog

from exaifs.errors import InvalidArgument, NoAttribute, RemoteError
from exaifs.model import ObjectRecord
from exaifs.providers.errors import FileChanged, ProviderError, ProviderRefused
from exaifs.providers.interface import Contents, ProviderFiles, State
from exaifs.providers.records import StoredId, stored_id
from exaifs.providers.sending import send, sending_of
from exaifs.providers.settings import ProvidersConfig, ProviderSettings
from exaifs.remote.bodies import Progress, ReportingBody
from exaifs.remote.interface import Catalog
from exaifs.turns import Turns

_log = structlog.get_logger(__name__)

_CHECK_LIMIT_S = 10.0
_ASK_AGAIN_S = 300.0
"""How long an id is trusted that could not be checked, or not noted as checked."""

_REMEMBERED = 1000

Result = tuple[StoredId, ObjectRecord | None]


@dataclass(frozen=True, slots=True)
class Job:
    """What is wanted."""

    file: ObjectRecord
    account: str
    purpose: str
    may_upload: bool
    refusal: ProviderError | None = None
    """Why the file is not sent, though an id that its content has already is good: by its name, type or
    size the provider does not take it."""
    refresh: bool = False
    """Check what is stored, even if that is not due."""


class Worker:
    """Ids at one provider.

    Args:
        config: limits for all.
        settings: of this provider.
        adapter: its files.
        catalog: the rows.
        contents: the bytes.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        config: ProvidersConfig,
        settings: ProviderSettings,
        *,
        adapter: ProviderFiles,
        catalog: Catalog,
        contents: Contents,
        clock: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.adapter = adapter
        self._config = config
        self._catalog = catalog
        self._contents = contents
        self._clock = clock
        self._slots = anyio.Semaphore(settings.concurrency)
        self._turns = Turns()
        """Of contents: what is asked for in different ways is looked up and sent by one at a time."""
        self._ours: OrderedDict[tuple[str, str, str], StoredId] = OrderedDict()
        """Uploads from here by content, account and purpose. They count while no row keeps them: Supabase
        was away, or the row has another account's."""
        self._unsaved: set[str] = set()
        """Which of them no row has been told of."""
        self._trusted: OrderedDict[str, float] = OrderedDict()
        """Ids that could not be checked, or not noted as checked, and until when they are given out."""

    def purpose(self, file: ObjectRecord) -> str:
        """Return the purpose for this file."""
        return self.settings.purpose_of(file.mime_type)

    def is_due(self, stored: StoredId, now: float) -> bool:
        """Tell whether an id must be checked before it is given out."""
        return (
            self.settings.check != "none"
            and stored.is_due(now, self._config.recheck_s)
            and self._trusted.get(stored.id, 0.0) <= now
        )

    async def settle(self, job: Job, tell: Progress) -> Result:
        """Return an id that is good now, and the file's record if the row was written.

        Args:
            job: what is wanted.
            tell: told of the bytes of an upload.

        Raises:
            ProviderError, RemoteError: why there is none.
            NoAttribute: there is none, and uploads are off.
        """
        started = anyio.current_time()
        sha256 = job.file.sha256
        if sha256 is None:
            if job.refusal is not None and self.settings.name not in job.file.provider_file_ids:
                raise job.refusal  # it has no id, and is not fetched to find one of its content
            sha256 = await self._contents.sha256(job.file.ref)
        async with self._turns.taken((sha256, job.account, job.purpose)):
            return await self._settle(job, sha256, started, tell)

    async def _settle(self, job: Job, sha256: str, started: float, tell: Progress) -> Result:
        held = self._held(job, sha256)
        if held is not None and not held.is_ageing(self._clock()):
            # Supabase is not asked: while it is away, a good id stays good.
            checked = await self._checked(job, held, sha256)
            if checked is not None:
                return await self._store(job, sha256, checked)
        rejected: list[StoredId] = []
        try:
            for stored in await self._known(job, sha256):
                if stored.is_ageing(self._clock()):
                    rejected.append(stored)
                    continue
                checked = await self._checked(job, stored, sha256)
                if checked is not None:
                    return await self._store(job, sha256, checked, is_new=checked.id in self._unsaved)
            uploaded = await self._upload(job, sha256, started, tell)
        except (ProviderError, RemoteError, NoAttribute) as exc:
            ageing, now = next(iter(rejected), held), self._clock()
            if ageing is None or not ageing.is_ageing(now) or ageing.is_expired(now):
                raise
            _log.info("an id near its end is given out once more", reason=str(exc))
            return ageing, None
        for stored in rejected[1:]:
            # By the database's clock they may look good still, and would win.
            with suppress(RemoteError):  # then the new one cannot be noted either
                await self._catalog.forget_provider_id(job.file.key, self.settings.name, stored.id)
        replaced = rejected[0] if rejected else None
        return await self._store(job, sha256, uploaded, replaced, is_new=True)

    def _held(self, job: Job, sha256: str) -> StoredId | None:
        """Return what the file's own row has, if it fits."""
        stored = stored_id(job.file.provider_file_ids.get(self.settings.name))
        return stored if stored is not None and stored.fits(sha256, job.account, job.purpose) else None

    async def _known(self, job: Job, sha256: str) -> list[StoredId]:
        """Return what is stored for these bytes and fits, the longest-lived first, also what is over."""
        found = [
            stored
            for record in await self._catalog.find_provider_ids(sha256, self.settings.name)
            if (stored := stored_id(record)) is not None
        ]
        key = (sha256, job.account, job.purpose)
        ours = self._ours.get(key)
        is_anothers = any(stored.account not in {None, job.account} for stored in found)
        if ours is not None and (is_anothers or ours.id in self._unsaved):
            found.append(ours)
        fitting = [stored for stored in found if stored.fits(sha256, job.account, job.purpose)]
        return sorted(fitting, key=lambda stored: -(stored.expires_at or float("inf")))

    async def _checked(self, job: Job, stored: StoredId, sha256: str) -> StoredId | None:
        """Return an id that may be given out; None: the provider has deleted it.

        What an earlier design stored names no account: the one that has the file is now known.
        """
        now = self._clock()
        if not job.refresh and not self.is_due(stored, now):
            return stored
        state = await self._ask(stored, job.purpose)
        if state == "gone":
            _log.info("the provider has deleted a file; its id is forgotten", provider=self.settings.name)
            self._drop_ours(stored.id)
            await self._catalog.forget_provider_id(job.file.key, self.settings.name, stored.id)
            return None
        if state == "unknown":
            # An outage must not turn a good id into an error.
            self._trust(stored, now)
            return stored
        self._trusted.pop(stored.id, None)
        account, purpose = stored.account or job.account, stored.purpose or job.purpose
        return replace(stored, verified_at=now, sha256=sha256, account=account, purpose=purpose)

    def _trust(self, stored: StoredId, now: float) -> None:
        """Give an id out for a while without asking anybody again."""
        self._trusted[stored.id] = now + _ASK_AGAIN_S
        if len(self._trusted) > _REMEMBERED:
            self._trusted.popitem(last=False)

    async def _ask(self, stored: StoredId, purpose: str) -> State:
        with anyio.move_on_after(_CHECK_LIMIT_S):
            try:
                return await self.adapter.check(stored.id, purpose)
            except ProviderError as exc:
                _log.info("an id could not be checked", provider=self.settings.name, reason=str(exc))
        return "unknown"

    async def _upload(self, job: Job, sha256: str, started: float, tell: Progress) -> StoredId:
        if not job.may_upload and self.settings.upload == "never":
            raise NoAttribute(f"{self.settings.name} has no id of this file, and uploads are off")
        if job.refusal is not None:
            raise job.refusal
        if not job.may_upload:
            raise ProviderRefused(f"{self.settings.name}: only the mount's owner may send files there")
        body = ReportingBody(self._contents.body(job.file.ref), tell)
        sending = sending_of(job.file, sha256, job.purpose, body)
        async with self._slots:
            _log.info(
                "sending a file to a provider",
                provider=self.settings.name,
                host=self.settings.host,
                size_bytes=body.size_bytes,
            )
            sent = await send(self.adapter, sending, started + self._config.deadline_s)
        now = self._clock()
        ttl_s = self.settings.ttl_s
        return StoredId(
            id=sent.id,
            uri=sent.uri,
            sha256=sha256,
            purpose=job.purpose,
            account=job.account,
            size_bytes=body.size_bytes,
            uploaded_at=now,
            expires_at=sent.expires_at or (None if ttl_s is None else now + ttl_s),
            verified_at=now,
        )

    async def _store(
        self,
        job: Job,
        sha256: str,
        stored: StoredId,
        replaced: StoredId | None = None,
        *,
        is_new: bool = False,
    ) -> Result:
        """Write an id into the file's row, unless it stands there; the winner's id is returned."""
        name, file = self.settings.name, job.file
        if file.provider_file_ids.get(name) == stored.to_json():
            return stored, None
        key = (sha256, job.account, job.purpose)
        if stored == self._ours.get(key) and self._is_anothers(file, job):
            return stored, None
        try:
            answer = await self._catalog.set_provider_id(
                file.key,
                name,
                stored.to_json(),
                sha256=sha256,
                expected_id=None if replaced is None else replaced.id,
                version=file.version,
            )
        except RemoteError as exc:
            if not is_new:
                _log.info("an id could not be noted", provider=name, reason=str(exc))
                self._trust(stored, self._clock())
                return stored, None
            _log.warning("an id is kept in memory only", provider=name, reason=str(exc))
            self._keep(key, stored)
            self._unsaved.add(stored.id)
            return stored, None
        self._unsaved.discard(stored.id)
        if answer.stored:
            self._keep(key, stored)
            return stored, answer.record
        if is_new:
            await self._discard(stored)
        winner = stored_id(answer.current)
        if winner is None:
            raise FileChanged(f"{name}: the file was changed or removed meanwhile")
        return winner, answer.record

    def _is_anothers(self, file: ObjectRecord, job: Job) -> bool:
        """Tell whether the row has another account's id: then ours is kept here, not fought over."""
        held = stored_id(file.provider_file_ids.get(self.settings.name))
        return held is not None and held.account not in {None, job.account}

    def _keep(self, key: tuple[str, str, str], stored: StoredId) -> None:
        self._ours[key] = stored
        if len(self._ours) > _REMEMBERED:
            self._unsaved.discard(self._ours.popitem(last=False)[1].id)

    def _drop_ours(self, file_id: str) -> None:
        for key in [key for key, stored in self._ours.items() if stored.id == file_id]:
            self._unsaved.discard(self._ours.pop(key).id)

    def ours(self, file: ObjectRecord, account: str | None) -> StoredId | None:
        """Return what was uploaded from here for a content, whether or not a row has it."""
        return self._ours.get((file.sha256 or "", account or "", self.purpose(file)))

    def forget_unsaved(self, file: ObjectRecord) -> None:
        """Forget what is known of a content without its row."""
        for stored in [stored for key, stored in self._ours.items() if key[0] == file.sha256]:
            self._drop_ours(stored.id)

    async def _discard(self, stored: StoredId) -> None:
        """Another host was first: delete our upload. What cannot be deleted stays listed for pruning."""
        name = self.settings.name
        try:
            await self.adapter.delete(stored.id)
            await self._catalog.drop_provider_file(name, stored.account or "", stored.id)
        except (ProviderError, RemoteError) as exc:
            _log.warning("a second upload stays at the provider", provider=name, reason=str(exc))

    async def register(self, file: ObjectRecord, file_id: str, account: str | None) -> ObjectRecord | None:
        """Store an id made elsewhere, whatever was there.

        Raises:
            InvalidArgument: it is known here for other bytes. Programs that copy attributes bring such ids
                with files that were changed since.
            FileChanged: other bytes are there now.
        """
        sha256 = file.sha256 or await self._contents.sha256(file.ref)
        now = self._clock()
        stored = StoredId(
            id=file_id,
            sha256=sha256,
            purpose=self.purpose(file),
            account=account,
            size_bytes=file.size_bytes,
            uploaded_at=now,
            expires_at=None if self.settings.ttl_s is None else now + self.settings.ttl_s,
            origin="registered",
        )
        answer = await self._catalog.set_provider_id(
            file.key, self.settings.name, stored.to_json(), sha256=sha256, version=file.version
        )
        if answer.of_other_bytes:
            raise InvalidArgument(
                f"{self.settings.name}: that id is known for other bytes than this file's"
            )
        if not answer.stored:
            raise FileChanged(f"{self.settings.name}: the file was changed or removed meanwhile")
        return answer.record
