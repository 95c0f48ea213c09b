"""A gate before a server that counts: what a mount costs is measured where its requests leave the host."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field

from tests.support.gate import Gate

_REQUEST_LINE = re.compile(rb"(?:GET|HEAD|POST|PUT|PATCH|DELETE) (/[^ ]*) HTTP/1\.1\r\n")
_LONGEST_LINE = 4096


@dataclass(slots=True)
class Traffic:
    """What passed since the last `CountingGate.reset`."""

    requests: list[str] = field(default_factory=list)
    """Last component of each request's path: the name of the function, or of the object."""
    sent_bytes: int = 0
    received_bytes: int = 0

    def besides(self, *names: str) -> list[str]:
        """Return the requests for anything else."""
        return [name for name in self.requests if name not in names]


class CountingGate(Gate):
    """A gate that notes every request of HTTP/1.1 without TLS.

    `traffic` is what passed since the start or the last `reset`.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.traffic = Traffic()
        self._count_lock = threading.Lock()

    def reset(self) -> Traffic:
        """Begin anew; return what was counted until now."""
        with self._count_lock:
            before, self.traffic = self.traffic, Traffic()
        return before

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        back = threading.Thread(target=self._answers, args=(far, near), daemon=True)
        back.start()
        self._questions(near, far)
        back.join()
        near.close()
        far.close()

    def _questions(self, near: socket.socket, far: socket.socket) -> None:
        # A request line may arrive in two pieces: the end of what came before is looked at again.
        tail = b""
        with suppress(OSError):
            while data := near.recv(65536):
                text = tail + data
                found = list(_REQUEST_LINE.finditer(text))
                with self._count_lock:
                    self.traffic.sent_bytes += len(data)
                    self.traffic.requests += [
                        match[1].partition(b"?")[0].rpartition(b"/")[2].decode() for match in found
                    ]
                tail = text[max(found[-1].end() if found else 0, len(text) - _LONGEST_LINE) :]
                far.sendall(data)
        with suppress(OSError):
            far.shutdown(socket.SHUT_WR)

    def _answers(self, far: socket.socket, near: socket.socket) -> None:
        with suppress(OSError):
            while data := far.recv(65536):
                with self._count_lock:
                    self.traffic.received_bytes += len(data)
                near.sendall(data)
        with suppress(OSError):
            near.shutdown(socket.SHUT_WR)
