"""One piece of work per key, however many wait for it; and what failed is not tried again at once."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import anyio
import structlog

from exaifs.errors import ExaifsError
from exaifs.providers.errors import ProviderError, ProviderTimeout
from exaifs.providers.records import to_time
from exaifs.remote.bodies import Progress

_log = structlog.get_logger(__name__)

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class Flight(Generic[T]):
    """Work under way."""

    owner: str
    """Whom it is done for."""
    done: anyio.Event = field(default_factory=anyio.Event)
    result: T | None = None
    error: ExaifsError | None = None
    listeners: list[Progress] = field(default_factory=list)

    def tell(self, done_bytes: int, total_bytes: int) -> None:
        """Tell whoever waits how far the upload is; nobody is told of an upload that is not needed."""
        for listener in tuple(self.listeners):
            listener(done_bytes, total_bytes)

    async def wait(self, progress: Progress | None = None) -> None:
        """Wait for the end, whatever it is; who stops waiting is told nothing more."""
        if progress is None:
            await self.done.wait()
            return
        self.listeners.append(progress)
        try:
            await self.done.wait()
        finally:
            self.listeners.remove(progress)


class Flights(Generic[K, T]):
    """Work by key. Changed only by synchronous steps.

    Args:
        spawn: starts a task that outlives whoever waits.
        limit_s: how long one piece of work may take.
    """

    def __init__(self, spawn: Callable[..., Any], limit_s: float) -> None:
        self._spawn = spawn
        self._limit_s = limit_s
        self._flights: dict[K, Flight[T]] = {}

    def join(self, key: K, owner: str, work: Callable[[Progress], Awaitable[T]]) -> Flight[T]:
        """Return the work under way for a key, beginning it if there is none.

        Args:
            key: of the work.
            owner: whom it is begun for.
            work: given what tells all who wait how far it is.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = Flight(owner)
            self._spawn(self._run, key, flight, work)
        return flight

    async def _run(self, key: K, flight: Flight[T], work: Callable[[Progress], Awaitable[T]]) -> None:
        try:
            with anyio.fail_after(self._limit_s):
                flight.result = await work(flight.tell)
        except ExaifsError as exc:
            flight.error = exc
        except TimeoutError:
            flight.error = ProviderTimeout(f"not done within {self._limit_s:g} s")
        except Exception as exc:  # noqa: BLE001 - a bug becomes an answer to whoever waits
            _log.exception("bug while getting a provider's file id")
            flight.error = ProviderError(f"unexpected {type(exc).__name__}")
        finally:
            del self._flights[key]
            flight.done.set()


_REMEMBERED = 1000
_PAUSE_S = 30.0
"""getfattr(1) asks twice: the second must not try again what failed a moment ago."""

_MAX_PAUSE_S = 600.0


@dataclass(frozen=True, slots=True)
class _Failure:
    at: float
    until: float
    error: ProviderError


class Failures:
    """The last failure by key, and until when it stands. Times are seconds since the epoch."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: OrderedDict[Hashable, _Failure] = OrderedDict()

    def note(self, key: Hashable, error: ProviderError, pause_s: float = _PAUSE_S) -> None:
        """Remember a failure; the provider's own wish for a pause counts, up to ten minutes."""
        now = self._clock()
        pause_s = min(max(pause_s, error.retry_after_s or 0.0), _MAX_PAUSE_S)
        self._known[key] = _Failure(now, now + pause_s, error)
        self._known.move_to_end(key)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def refuse(self, key: Hashable, error: ProviderError) -> None:
        """Remember a failure that only a change of settings can heal: ask again after ten minutes."""
        self.note(key, error, _MAX_PAUSE_S)

    def forget(self, key: Hashable) -> None:
        """It worked."""
        self._known.pop(key, None)

    def standing(self, key: Hashable) -> ProviderError | None:
        """Return the failure that still stands."""
        failure = self._known.get(key)
        return failure.error if failure is not None and self._clock() < failure.until else None

    def described(self, key: Hashable) -> bytes | None:
        """Return the last failure as JSON."""
        failure = self._known.get(key)
        if failure is None:
            return None
        return json.dumps({"when": to_time(failure.at), **failure.error.to_json()}).encode()
