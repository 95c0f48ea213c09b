"""Large answers as plain JSON: the official client takes no server-sent event above 1 MiB.

Clients of the protocol before 2026 are answered by a stream of events. The protocol allows one JSON object
as well, so a large answer that comes first in its stream becomes that. Small ones, and those after news of
the progress, stay events: only uploads tell of progress, and their answers are small.
"""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MAX_EVENT_BYTES: Final = 512 * 1024

_EVENTS: Final = b"text/event-stream"
_DATA: Final = b"data: "


class LargeAnswers:
    """Changes how large answers are sent.

    Args:
        app: answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        is_call = scope["type"] == "http" and scope["method"] == "POST"
        await self._app(scope, receive, _Answer(send) if is_call else send)


class _Answer:
    """Keeps the start of a stream until its first event, or the first sign of life, decides what it is."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._is_json = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _has_type(message, _EVENTS):
            self._start = message
            return
        start, self._start = self._start, None
        if start is not None:
            answer = _large_answer(message.get("body", b""))
            if answer is not None:
                self._is_json = True
                start = {**start, "headers": [*map(_as_json, start["headers"])]}
                message = {**message, "body": answer}
            await self._send(start)
        elif self._is_json:
            message = {**message, "body": b""}  # what ends a stream is no JSON
        await self._send(message)


def _has_type(start: Message, content_type: bytes) -> bool:
    return any(
        name == b"content-type" and value.startswith(content_type) for name, value in start["headers"]
    )


def _as_json(header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    return (header[0], b"application/json") if header[0] == b"content-type" else header


def _large_answer(event: bytes) -> bytes | None:
    """Return the JSON in an event that is too large; None: it is not, or not one event."""
    if len(event) <= _MAX_EVENT_BYTES or not event.endswith((b"\n\n", b"\r\n\r\n")):
        return None
    found = [line.removeprefix(_DATA) for line in event.splitlines() if line.startswith(_DATA)]
    return found[0] if len(found) == 1 else None
