"""What an adapter does for the service, and what it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from exaifs.model import ObjectRef
from exaifs.remote.interface import Body

State = Literal["alive", "gone", "unknown"]


@dataclass(frozen=True, slots=True)
class Sending:
    """A file to upload."""

    body: Body
    filename: str
    """Holds a part of the hash, so that an upload whose answer was lost can be found by its name."""
    mime_type: str
    purpose: str
    token: str
    """Unique for this upload; for providers that let the caller choose the id."""


@dataclass(frozen=True, slots=True)
class ProviderFile:
    """A file at a provider."""

    id: str
    uri: str | None = None
    """Where requests must name it by address instead of id."""
    expires_at: float | None = None
    """Seconds since the epoch; None: the provider does not say."""


class ProviderFiles(Protocol):
    """The files of one account at one provider. Every call may raise a `ProviderError`."""

    async def upload(self, sending: Sending) -> ProviderFile:
        """Upload once, without repeating, and wait until the file can be used."""

    async def find(self, sending: Sending) -> ProviderFile | None:
        """Look for what an upload left whose answer was lost. None: surely nothing.

        Raises:
            ProviderError: it cannot be told.
        """

    async def check(self, file_id: str, purpose: str) -> State:
        """Tell whether a file is still there; `unknown` where the provider has no way to ask."""

    async def delete(self, file_id: str) -> None:
        """Delete a file; one that is gone already is no error."""


class Contents(Protocol):
    """Where the bytes to upload come from."""

    async def sha256(self, ref: ObjectRef) -> str:
        """Return the hash of a content whose row has none."""

    def body(self, ref: ObjectRef) -> Body:
        """Return the bytes of a content."""
