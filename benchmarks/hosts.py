"""What the benchmarks run on: a Supabase, and mounts of it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.conftest import LITE_DIR, START_TIMEOUT_S, environment_for, read_env_file
from tests.support.mounts import MountedDaemon

_MIB = 1 << 20


@contextmanager
def supabase(directory: Path) -> Iterator[dict[str, str]]:
    """Yield the environment that names a server: the caller's own, else an embedded one."""
    if os.environ.get("SUPABASE_URL"):
        yield {name: os.environ[name] for name in ("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY")}
        return
    with process(["-m", "exaifs.embedded", str(directory), "--until-eof"]) as started:
        yield read_env_file(started, START_TIMEOUT_S)


@contextmanager
def process(arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python program that ends when its standard input does."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment_for({"EXAIFS_LITE_DIR": str(LITE_DIR)}),
        start_new_session=True,
    ) as started:
        assert started.stdin is not None
        try:
            yield started
        finally:
            started.stdin.close()
            try:
                started.wait(30)
            except subprocess.TimeoutExpired:
                started.kill()


def client(environment: Mapping[str, str]) -> httpx.Client:
    """Return what direct HTTP is measured with: one kept connection."""
    key = environment["SUPABASE_SERVICE_ROLE_KEY"]
    headers = {"apikey": key, "Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=environment["SUPABASE_URL"], headers=headers, timeout=60, trust_env=False)


def new_bucket(environment: Mapping[str, str]) -> dict[str, str]:
    """Create and register a bucket; return the environment that names it."""
    bucket = f"bench-{secrets.token_hex(4)}"
    with client(environment) as http:
        settings = {"id": bucket, "name": bucket, "public": False, "file_size_limit": 50 * _MIB}
        http.post("/storage/v1/bucket", json=settings).raise_for_status()
        http.post("/rest/v1/rpc/exaifs_register_bucket", json={"p_bucket": bucket}).raise_for_status()
    return {**environment, "FILE_STORAGE_BUCKET": bucket}


def host(environment: Mapping[str, str], directory: Path) -> MountedDaemon:
    """Return a mount with mountpoint, cache and log in a directory, not started yet."""
    directory.mkdir(exist_ok=True)
    path = directory / "mnt"
    settings = {
        **environment,
        "FILE_CACHE_DIR": str(directory / "cache"),
        "EXAIFS_LOG_FORMAT": "json",
    }
    return MountedDaemon(
        ["-m", "exaifs", "mount", str(path)], path, environment=settings, log_path=directory / "log"
    )


def rss_mb(pid: int) -> float:
    """Return a process's resident memory in 10^6 bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
