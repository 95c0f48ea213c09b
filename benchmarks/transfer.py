"""Bytes: small files and a large one, against the same requests without a mount."""

from __future__ import annotations

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import httpx

from benchmarks.hosts import client, host, new_bucket, supabase
from benchmarks.results import Report, timed, typical
from tests.support.mounts import MountedDaemon

_SMALL = 100
_SMALL_BYTES = 10 * 1024
_LARGE_BYTES = 50_000_000
_FIRST_BYTES = 4096


def run(report: Report, directory: Path) -> None:
    """Measure."""
    with supabase(directory / "server") as server:
        environment = new_bucket(server)
        bucket = environment["FILE_STORAGE_BUCKET"]
        mount = host(environment, directory / "host")
        with mount, client(environment) as http:
            _small(report, mount, http, bucket, directory)
            _large(report, mount, http, bucket, directory)


def _small(report: Report, mount: MountedDaemon, http: httpx.Client, bucket: str, directory: Path) -> None:
    contents = [os.urandom(_SMALL_BYTES) for _ in range(2 * _SMALL)]
    (mount.path / "d").mkdir()

    def write() -> None:
        for number in range(_SMALL):
            (mount.path / f"d/{number}").write_bytes(contents[number])

    def put() -> None:
        for number in range(_SMALL):
            _put(http, bucket, f"direct/{number}", contents[_SMALL + number])

    direct = timed(put) / _SMALL * 1e3
    written = timed(write) / _SMALL * 1e3
    report.add("write of 10 KiB, closed and durable", written, "ms", direct, "PUT and commit")
    _forget(mount, directory)

    def read() -> None:
        for number in range(_SMALL):
            (mount.path / f"d/{number}").read_bytes()

    def get() -> None:
        for number in range(_SMALL):
            _get(http, bucket, f"direct/{number}")

    direct = timed(get) / _SMALL * 1e3
    report.add("read of 10 KiB, first", timed(read) / _SMALL * 1e3, "ms", direct, "GET")
    again = typical(read) / _SMALL * 1e3
    local = directory / "small"
    local.write_bytes(contents[0])
    limit = typical(lambda: [local.read_bytes() for _ in range(_SMALL)]) / _SMALL * 1e3
    report.add("read of 10 KiB again", again, "ms", limit, "ext4")


def _large(report: Report, mount: MountedDaemon, http: httpx.Client, bucket: str, directory: Path) -> None:
    data = os.urandom(_LARGE_BYTES)
    local = directory / "large"
    direct = timed(lambda: _put(http, bucket, "direct/large", os.urandom(_LARGE_BYTES)))
    written = timed(lambda: (mount.path / "large").write_bytes(data))
    report.add("write of 50 MB, closed and durable", written, "s", direct, "PUT and commit")
    local.write_bytes(data)
    _forget(mount, directory)
    direct = timed(lambda: _get(http, bucket, "direct/large"))
    report.add("first 4 KiB of 50 MB", timed(lambda: _head(mount.path / "large")), "s", direct, "whole GET")
    _forget(mount, directory)
    whole = timed((mount.path / "large").read_bytes)
    report.add("50 MB, first", whole, "s", direct, "GET")
    cached = typical((mount.path / "large").read_bytes)
    report.add("50 MB again", cached, "s", typical(local.read_bytes), "ext4")


def _forget(mount: MountedDaemon, directory: Path) -> None:
    """Begin with an empty cache."""
    mount.stop()
    shutil.rmtree(directory / "host/cache")
    mount.start()
    list((mount.path / "d").iterdir())


def _put(http: httpx.Client, bucket: str, key: str, data: bytes) -> None:
    digest = sha256(data).hexdigest()
    headers = {"content-type": "application/octet-stream", "x-upsert": "true"}
    http.put(f"/storage/v1/object/{bucket}/{key}", content=data, headers=headers).raise_for_status()
    fields = {
        "exaifs": 1,
        "sha256": digest,
        "write_id": uuid4().hex,
        "mime": "application/octet-stream",
        "size": len(data),
        "posix": {},
        "xattrs": {},
    }
    # As text: the embedded server passes objects wrongly.
    call = {"p_bucket": bucket, "p_key": key, "p_fields": json.dumps(fields)}
    http.post("/rest/v1/rpc/exaifs_commit", json=call).raise_for_status()


def _get(http: httpx.Client, bucket: str, key: str) -> None:
    http.get(f"/storage/v1/object/{bucket}/{key}").raise_for_status()


def _head(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        file.read(_FIRST_BYTES)
