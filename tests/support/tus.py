"""A small strict TUS server (https://tus.io, version 1.0.0), as Supabase Storage speaks it.

It cuts connections, loses answers and refuses on demand. What a client does wrong is noted in
`problems`; the real server would refuse it, or store something else.
"""

from __future__ import annotations

import base64
import json
import socket
import socketserver
import struct
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

PIECE_BYTES = 6 * 1024 * 1024
_ROUTE = "/storage/v1/upload/resumable"
_LINGER_RESET = struct.pack("ii", 1, 0)


@dataclass
class PartialUpload:
    """An upload that is not an object yet."""

    length: int
    metadata: dict[str, str]
    data: bytearray = field(default_factory=bytearray)
    finished: bool = False


@dataclass
class Stored:
    """An object, and what came with it."""

    data: bytes
    user: dict[str, Any]
    mime_type: str
    version: str


@dataclass(frozen=True)
class Refusal:
    """An answer that is given instead of doing anything."""

    status: int
    body: str = ""
    headers: tuple[tuple[str, str], ...] = (("tus-resumable", "1.0.0"), ("content-type", "text/plain"))


class TusServer(socketserver.ThreadingTCPServer):
    """One bucket behind TUS, plain PUT and `exaifs_stat`."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.uploads: dict[str, PartialUpload] = {}
        self.objects: dict[str, Stored] = {}
        self.requests: list[str] = []
        """Methods, with `PUT` and `stat` for what is not TUS."""
        self.pieces: list[int] = []
        """Announced sizes."""
        self.received_bytes = 0
        self.problems: list[str] = []
        self.keeps_metadata = True
        self.closing = threading.Event()
        self._cuts: list[int] = []
        self._lost: Counter[str] = Counter()
        self._lost_from_bytes: int | None = None
        self._refusals: dict[str, list[Refusal | None]] = {}
        self._stalled: set[str] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def cut_at(self, *received_bytes: int) -> None:
        """Reset the connection each time so many body bytes have come in, over all requests."""
        self._cuts = sorted(received_bytes)

    def lose_answer(self, method: str, times: int = 1) -> None:
        """Do what is asked and reset the connection instead of answering."""
        self._lost[method] += times

    def lose_answers_from(self, received_bytes: int) -> None:
        """Lose every answer once so many body bytes have come in."""
        self._lost_from_bytes = received_bytes

    def recover(self) -> None:
        """Lose no answer, and cut nothing, any more."""
        self._lost_from_bytes = None
        self._lost.clear()
        self._cuts.clear()

    def refuse(self, method: str, *refusals: Refusal | None) -> None:
        """Answer the next requests with these; None for the right answer."""
        self._refusals[method] = list(refusals)

    def stall(self, method: str) -> None:
        """Take these requests, and never answer."""
        self._stalled.add(method)

    # used by the handler

    def next_refusal(self, method: str) -> Refusal | None:
        """Return what to answer instead."""
        left = self._refusals.get(method)
        return left.pop(0) if left else None

    def takes(self, wanted_bytes: int) -> tuple[int, bool]:
        """Return how many of the next bytes to read, and whether to cut then."""
        if self._cuts and self._cuts[0] <= self.received_bytes + wanted_bytes:
            return self._cuts.pop(0) - self.received_bytes, True
        return wanted_bytes, False

    def loses(self, method: str) -> bool:
        """Whether this answer is lost."""
        self._lost[method] -= 1
        limit = self._lost_from_bytes
        return self._lost[method] >= 0 or (limit is not None and self.received_bytes >= limit)

    def hangs(self, method: str) -> bool:
        """Whether to keep silent."""
        return method in self._stalled and not self.closing.wait(120)

    def expect(self, fact: object, problem: str) -> None:
        """Note what a client does wrong."""
        if not fact:
            self.problems.append(problem)

    def store(self, key: str, data: bytes, user: dict[str, Any], mime_type: str, version: str) -> None:
        """Put an object in place."""
        self.objects[key] = Stored(data, user if self.keeps_metadata else {}, mime_type, version)

    def records(self, keys: list[str]) -> list[dict[str, Any]]:
        """Return what `exaifs_stat` says."""
        return [
            {
                "key": key,
                "version": found.version,
                "size": len(found.data),
                "sha256": found.user.get("sha256"),
                "write_id": found.user.get("write_id"),
            }
            for key in keys
            if (found := self.objects.get(key)) is not None
        ]


class _Cut(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TusServer

    def log_message(self, *_args: object) -> None:
        """Say nothing."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (_Cut, ConnectionError):
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self.connection.close()

    def _answer(
        self, method: str, status: int, headers: dict[str, str] | None = None, body: str = ""
    ) -> None:
        if self.server.hangs(method) or self.server.loses(method):
            raise _Cut
        data = body.encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refused(self, method: str) -> bool:
        self.server.requests.append(method)
        refusal = self.server.next_refusal(method)
        if refusal is not None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self._answer(method, refusal.status, dict(refusal.headers), refusal.body)
        return refusal is not None

    def _check_tus(self) -> None:
        expect = self.server.expect
        expect(self.headers["tus-resumable"] == "1.0.0", f"{self.command} without tus-resumable")
        expect("authorization" in self.headers, f"{self.command} without a key")
        if self.command != "HEAD":
            expect(self.headers["x-upsert"] == "true", f"{self.command} without x-upsert")

    def _upload(self) -> PartialUpload | None:
        found = self.server.uploads.get(self.path.rpartition("/")[2])
        if found is None:
            headers = {"tus-resumable": "1.0.0", "content-type": "text/plain"}
            self._answer(self.command, 404, headers, "The file for this url was not found\n")
        return found

    def do_POST(self) -> None:
        """Create an upload, or answer `exaifs_stat`."""
        if self.path != _ROUTE:
            self._stat()
            return
        if self._refused("POST"):
            return
        self._check_tus()
        self.server.expect(self.headers["content-length"] == "0", "a creation with bytes")
        pairs = [pair.split(" ") for pair in self.headers["upload-metadata"].split(",")]
        metadata = {name: base64.b64decode(value, validate=True).decode() for name, value in pairs}
        version = str(uuid.uuid4())
        path = f"{metadata['bucketName']}/{metadata['objectName']}/{version}"
        number = base64.urlsafe_b64encode(path.encode()).decode().rstrip("=")
        self.server.uploads[number] = PartialUpload(int(self.headers["upload-length"]), metadata)
        # As the real server in production: https, and whatever host it believes in.
        location = f"https://elsewhere.invalid{_ROUTE}/{number}"
        self._answer("POST", 201, {"tus-resumable": "1.0.0", "location": location})

    def _stat(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append("stat")
        with self.server.lock:
            records = self.server.records(asked["p_keys"])
        body = json.dumps({"records": records})
        self._answer("stat", 200, {"content-type": "application/json"}, body)

    def do_HEAD(self) -> None:
        """Tell how much of an upload is there."""
        if self._refused("HEAD"):
            return
        self._check_tus()
        upload = self._upload()
        if upload is not None:
            facts = {"upload-offset": str(len(upload.data)), "upload-length": str(upload.length)}
            self._answer("HEAD", 200, {"tus-resumable": "1.0.0", "cache-control": "no-store", **facts})

    def do_PATCH(self) -> None:
        """Take a piece; the last one makes the object."""
        if self._refused("PATCH"):
            return
        self._check_tus()
        upload = self._upload()
        if upload is None:
            return
        offset, announced = int(self.headers["upload-offset"]), int(self.headers["content-length"])
        expect = self.server.expect
        expect(self.headers["content-type"] == "application/offset+octet-stream", "a piece of another type")
        expect(announced == min(PIECE_BYTES, upload.length - offset), f"a piece of {announced} at {offset}")
        expect("transfer-encoding" not in self.headers, "a piece of unknown length")
        self.server.pieces.append(announced)
        if offset != len(upload.data):
            self.rfile.read(announced)
            self._answer("PATCH", 409, {"tus-resumable": "1.0.0"}, "Upload-Offset conflict\n")
            return
        self._receive(upload.data, announced)
        if len(upload.data) == upload.length and not self._finished(upload):
            return
        self._answer("PATCH", 204, {"tus-resumable": "1.0.0", "upload-offset": str(len(upload.data))})

    def _finished(self, upload: PartialUpload) -> bool:
        refusal = self.server.next_refusal("finish")
        if refusal is not None:
            self._answer("PATCH", refusal.status, dict(refusal.headers), refusal.body)
            return False
        number = self.path.rpartition("/")[2]
        version = base64.urlsafe_b64decode(f"{number}==").decode().rpartition("/")[2]
        user = json.loads(upload.metadata["metadata"])
        mime_type, key = upload.metadata["contentType"], upload.metadata["objectName"]
        with self.server.lock:
            self.server.store(key, bytes(upload.data), user, mime_type, version)
        upload.finished = True
        return True

    def do_PUT(self) -> None:
        """Take an object whole."""
        if self._refused("PUT"):
            return
        key = unquote(urlsplit(self.path).path).split("/", 5)[5]
        user = json.loads(base64.b64decode(self.headers["x-metadata"]))
        data = bytearray()
        self._receive(data, int(self.headers["content-length"]))
        with self.server.lock:
            self.server.store(key, bytes(data), user, self.headers["content-type"], str(uuid.uuid4()))
        self._answer("PUT", 200, {"content-type": "application/json"}, json.dumps({"Key": key}))

    def _receive(self, into: bytearray, announced: int) -> None:
        left = announced
        while left:
            wanted, cut = self.server.takes(min(left, 65536))
            data = self.rfile.read(wanted)
            if len(data) < wanted:
                raise _Cut
            into += data
            left -= len(data)
            self.server.received_bytes += len(data)
            if cut:
                raise _Cut


@contextmanager
def tus_server() -> Iterator[TusServer]:
    """Serve on a free port of loopback for as long as the block runs."""
    with TusServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join(10)
