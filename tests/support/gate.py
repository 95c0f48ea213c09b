"""A TCP gate before a server on loopback, so that a test can take the server away and bring it back."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.support.ports import Port


class Gate:
    """Forwards connections to a server while open; while closed it refuses them and cuts what runs.

    Args:
        url: the server behind.

    `url` is the address to use instead; it stays the same.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = (parts.hostname, parts.port)
        self._listener: socket.socket | None = None
        self._pairs: list[socket.socket] = []
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._port = Port()
        self.url = f"http://127.0.0.1:{self._port.number}"

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._port.close()

    def open(self) -> None:
        """Let connections through."""
        self._flowing.set()
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self._port.number))
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def hang(self) -> None:
        """Keep every connection and carry nothing, as a server does that is stuck."""
        self._flowing.clear()

    def close(self) -> None:
        """Refuse new connections and cut the others."""
        with self._lock:
            listener, self._listener = self._listener, None
            pairs, self._pairs = self._pairs, []
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for end in pairs:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        # Last: what was held up goes nowhere any more.
        self._flowing.set()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # it was closed
            while True:
                near, _address = listener.accept()
                threading.Thread(target=self._let_through, args=(listener, near), daemon=True).start()

    def _let_through(self, listener: socket.socket, near: socket.socket) -> None:
        """Carry a connection, unless the gate was closed while it was made."""
        with near, suppress(OSError), socket.create_connection(self._target, timeout=60) as far:
            far.settimeout(None)
            with self._lock:
                if self._listener is not listener:
                    return
                self._pairs += [near, far]
            self._carry(near, far)

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        """Move bytes both ways until both ends are done."""
        back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
        back.start()
        self._pump(near, far)
        back.join()
        near.close()
        far.close()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
