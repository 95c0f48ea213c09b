"""Ports of 127.0.0.1 that stay ours while nobody listens at them."""

from __future__ import annotations

import socket


class Port:
    """A port that no other program gets; it refuses connections until somebody listens at it.

    The number of a socket that was closed may be anybody's a moment later. This one stays bound, without
    listening: who asks for any port gets another one, and a server that names this one and sets
    SO_REUSEADDR, as servers do, may listen here, end and come again.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number = int(self._socket.getsockname()[1])

    def close(self) -> None:
        """Give it back."""
        self._socket.close()


_kept: list[Port] = []


def own_port() -> int:
    """Return a port that is ours until this process ends, and where nobody listens yet."""
    _kept.append(Port())
    return _kept[-1].number
