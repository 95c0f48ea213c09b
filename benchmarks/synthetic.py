"""A server that answers as Supabase does for a bucket of any size, out of a sorted list of keys.

It costs next to nothing, so that what is measured is the mount. `python -m benchmarks.synthetic OBJECTS`
prints its address, and ends with its standard input.
"""

from __future__ import annotations

import json
import sys
import threading
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

BIG = 10_000
"""Files in the directory `big`."""
DIRECTORIES = 1_000
LEVELS = 40

_PAGE = 1000


def keys_of(objects: int) -> list[str]:
    """Return so many keys: one large directory, a thousand smaller ones, one deep path."""
    keys = [f"big/{number:06}.txt" for number in range(BIG)]
    deep = "deep/" + "".join(f"{level}/" for level in range(LEVELS))
    keys.append(deep + "file.txt")
    rest = objects - len(keys)
    keys += [f"dirs/{number % DIRECTORIES:04}/{number // DIRECTORIES:04}.txt" for number in range(rest)]
    return sorted(keys)


class Bucket:
    """The answers; see `exaifs/remote/migrations`."""

    def __init__(self, objects: int) -> None:
        self.keys = keys_of(objects)

    def record(self, key: str) -> dict[str, Any]:
        """Return a record like a real one: hash, file id and attributes of its own."""
        digest = sha256(key.encode()).hexdigest()
        return {
            "key": key,
            "version": str(UUID(hex=digest[:32])),
            "size": len(key),
            "mime": "text/plain",
            "etag": f'"{digest[:32]}"',
            "created_ns": "1700000000123456789",
            "updated_ns": "1700000000123456789",
            "file_id": str(UUID(hex=digest[32:])),
            "sha256": digest,
            "write_id": digest[:32],
            "posix": {"mode": 0o644, "uid": 0, "gid": 0, "mtime_ns": "1700000000123456789", "kind": "file"},
            "xattrs": {},
            "provider_file_ids": {},
        }

    def exaifs_hello(self, **_rest: Any) -> Any:
        """Say that everything is as it should be."""
        bucket = {"id": "bench", "public": False, "file_size_limit": None, "allowed_mime_types": None}
        return {
            "schema_version": 99, "bucket": bucket, "trigger_installed": True, "bucket_registered": True,
            "trigger_errors": 0,
        }  # fmt: skip

    def exaifs_changes(self, **_rest: Any) -> Any:
        """Nothing ever changes."""
        return {"changes": [], "cursor": "c", "more": False, "continuous": True}

    def exaifs_list_directory(self, *, p_prefix: str, p_after: str, p_limit: int, **_rest: Any) -> Any:
        """Return a page of one level, jumping over what is below its folders."""
        start = p_after[:-1] + "0" if p_after.endswith("/") else p_after + "\0"
        position = bisect_left(self.keys, max(start, p_prefix) if p_after else p_prefix)
        records: list[Any] = []
        folders: list[Any] = []
        last = None
        while position < len(self.keys) and self.keys[position].startswith(p_prefix):
            if len(records) + len(folders) == p_limit:
                return {"records": records, "folders": folders, "next": last}
            key = self.keys[position]
            name, slash, _ = key[len(p_prefix) :].partition("/")
            if slash:
                folders.append({"name": name, "marker": None})
                last = f"{p_prefix}{name}/"
                position = bisect_left(self.keys, f"{p_prefix}{name}0", position)
            else:
                records.append(self.record(key))
                last = key
                position += 1
        return {"records": records, "folders": folders, "next": None}

    def exaifs_list_tree(self, *, p_prefix: str, p_after: str, p_limit: int, **_rest: Any) -> Any:
        """Return a page of everything below."""
        start = bisect_left(self.keys, p_after + "\0" if p_after else p_prefix)
        page = [key for key in self.keys[start : start + p_limit] if key.startswith(p_prefix)]
        more = len(page) == p_limit
        return {"records": [self.record(key) for key in page], "next": page[-1] if more else None}


class Handler(BaseHTTPRequestHandler):
    """Calls the method that a POST names."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, bucket: Bucket, *args: Any) -> None:
        self._bucket = bucket
        super().__init__(*args)

    def do_POST(self) -> None:
        """Answer one call."""
        parameters = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer: Callable[..., Any] | None = getattr(self._bucket, self.path.rpartition("/")[2], None)
        body = b"{}" if answer is None else json.dumps(answer(**parameters)).encode()
        self.send_response(200 if answer is not None else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_values: object) -> None:
        """Stay silent."""


def main() -> None:
    """Serve until standard input ends."""
    bucket = Bucket(int(sys.argv[1]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, bucket))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"SUPABASE_URL=http://127.0.0.1:{server.server_port}\n")
    sys.stdout.write("SUPABASE_SERVICE_ROLE_KEY=sb_secret_benchmark\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.shutdown()


if __name__ == "__main__":
    main()
