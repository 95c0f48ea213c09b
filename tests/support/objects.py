"""What the embedded Supabase has, asked past exaifs."""

from __future__ import annotations

import httpx

_ATTEMPTS = 20


def get_whole(client: httpx.Client, url: str) -> httpx.Response:
    """Ask for an object; once more when a write that goes on meanwhile tears the answer.

    The embedded server sends the length that it has looked up and then the file, which a replacing upload
    has emptied in between: the answer breaks off.

    Raises:
        httpx.TransportError: every answer broke off.
    """
    for _attempt in range(_ATTEMPTS - 1):
        try:
            return client.get(url)
        except httpx.RemoteProtocolError:
            continue
    return client.get(url)
