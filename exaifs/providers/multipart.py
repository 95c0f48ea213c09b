"""A multipart/form-data body whose length is known before it is read.

httpx's own encoder reads files on the event loop's thread, and puts fields where it likes; here `purpose`
stands before the file, as some providers require.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping

from exaifs.remote.interface import Body


class Multipart:
    """A form with one file.

    Args:
        fields: sent before the file, in order.
        filename: as the provider shall see it.
        mime_type: of the file.
        body: the file.
    """

    def __init__(self, fields: Mapping[str, str], filename: str, mime_type: str, body: Body) -> None:
        boundary = secrets.token_hex(16)
        self._body = body
        parts = [
            f'--{boundary}\r\ncontent-disposition: form-data; name="{_quoted(name)}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        parts.append(
            f"--{boundary}\r\n"
            f'content-disposition: form-data; name="file"; filename="{_quoted(filename)}"\r\n'
            f"content-type: {mime_type}\r\n\r\n"
        )
        self._head = "".join(parts).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self.size_bytes = len(self._head) + body.size_bytes + len(self._tail)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Parts(self._head, self._body.chunks(), self._tail)


def _quoted(text: str) -> str:
    """Escape as browsers do (HTML standard, multipart/form-data encoding)."""
    return text.replace("\r", "%0D").replace("\n", "%0A").replace('"', "%22")


class _Parts(AsyncIterator[bytes]):
    """Head, body, tail. A plain object: an upload that ends early leaves nothing to close."""

    def __init__(self, head: bytes, chunks: AsyncIterator[bytes], tail: bytes) -> None:
        self._head = head
        self._chunks: AsyncIterator[bytes] | None = chunks
        self._tail = tail

    async def __anext__(self) -> bytes:
        if self._head:
            head, self._head = self._head, b""
            return head
        if self._chunks is not None:
            try:
                return await anext(self._chunks)
            except StopAsyncIteration:
                self._chunks = None
        if self._tail:
            tail, self._tail = self._tail, b""
            return tail
        raise StopAsyncIteration
