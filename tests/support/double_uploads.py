"""Uploads on the double: bodies that arrive, break off, and are taken up again."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from exaifs.errors import IntegrityError, Unreachable
from exaifs.remote.interface import SeekableBody, Upload, UploadMemory

_MIB = 1024 * 1024


@dataclass
class _Partial:
    key: str
    upload: Upload
    size_bytes: int
    data: bytearray = field(default_factory=bytearray)


@dataclass
class Uploads:
    """What has arrived of bodies that are not whole yet."""

    resumable: bool = True
    """False: as the embedded server, which takes a body whole or not at all."""
    resumable_above_bytes: int = 6 * _MIB
    received_bytes: int = 0
    """Body bytes that came in, those of uploads that broke off included."""
    _partial: dict[str, _Partial] = field(default_factory=dict)
    _count: int = 0
    _break_after_bytes: int | None = None

    def break_off(self, after_bytes: int) -> None:
        """Cut the next upload once so many of its bytes have arrived; what has arrived is kept."""
        self._break_after_bytes = after_bytes

    def expire(self) -> None:
        """Forget every upload that is not whole."""
        self._partial.clear()

    async def receive(
        self,
        key: str,
        body: SeekableBody,
        upload: Upload,
        memory: UploadMemory | None,
        on_the_way: Callable[[], Awaitable[None]],
    ) -> bytes:
        """Return the body once all of it is there; `on_the_way` is awaited before each chunk.

        Raises:
            Unreachable: cut off, as was asked for.
            IntegrityError: the body has another length than it says.
        """
        keeps = self.resumable and body.size_bytes > self.resumable_above_bytes
        partial = self._taken_up(key, body, upload, memory) if keeps else _Partial(key, upload, 0)
        async for chunk in body.chunks(len(partial.data)):
            await on_the_way()
            partial.data += chunk
            self.received_bytes += len(chunk)
            if self._break_after_bytes is not None and len(partial.data) >= self._break_after_bytes:
                self._break_after_bytes = None
                raise Unreachable("the connection broke")
        if len(partial.data) != body.size_bytes:
            raise IntegrityError(f"the body had {len(partial.data)} bytes, not {body.size_bytes}")
        return bytes(partial.data)

    def done(self, key: str, upload: Upload, memory: UploadMemory | None) -> None:
        """Note that the object is there."""
        for number, partial in list(self._partial.items()):
            if (partial.key, partial.upload) == (key, upload):
                del self._partial[number]
        if memory is not None:
            memory.forget()

    def _taken_up(
        self, key: str, body: SeekableBody, upload: Upload, memory: UploadMemory | None
    ) -> _Partial:
        found = self._partial.get(_number(memory.load()) if memory else "")
        if found is not None and (found.key, found.upload, found.size_bytes) == (
            key,
            upload,
            body.size_bytes,
        ):
            return found
        self._count += 1
        fresh = self._partial[str(self._count)] = _Partial(key, upload, body.size_bytes)
        if memory is not None:
            memory.save(json.dumps({"upload": str(self._count)}))
        return fresh


def _number(text: str | None) -> str:
    try:
        value = json.loads(text or "")
    except ValueError:
        return ""
    return str(value.get("upload")) if isinstance(value, dict) else ""
