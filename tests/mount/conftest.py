from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from tests.conftest import new_bucket
from tests.support.gate import Gate
from tests.support.mounts import REPOSITORY, MountedDaemon, within
from tests.support.objects import get_whole
from tests.support.twins import Twins

StoredBytes = Callable[[str], bytes | None]


@pytest.fixture(autouse=True)
def _fuse() -> None:
    """Where there is /dev/fuse, mount tests run or fail; only without it they are left out."""
    if not Path("/dev/fuse").exists():
        pytest.skip("NO /dev/fuse HERE: nothing that mounts is tested")


@pytest.fixture
def memory_mount(tmp_path: Path) -> Iterator[MountedDaemon]:
    """The FUSE adapter on a file system in memory."""
    daemon = MountedDaemon(
        ["-m", "tests.support.mount_memfs", str(tmp_path / "mnt"), str(tmp_path / "lookups")],
        tmp_path / "mnt",
        environment={},
        log_path=tmp_path / "log",
    )
    with daemon:
        yield daemon


@pytest.fixture
def mount_environment(fresh_bucket: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """What `exaifs mount` needs to know to mount a bucket of this test."""
    return {
        **fresh_bucket,
        "FILE_CACHE_DIR": str(tmp_path / "cache"),
        "EXAIFS_LOG_FORMAT": "json",
        "EXAIFS_LOG_LEVEL": "info",
    }


@pytest.fixture
def gate(mount_environment: dict[str, str]) -> Iterator[Gate]:
    """Stands between the mount and its Supabase. Name it before the mount, to be opened before it."""
    with Gate(mount_environment["SUPABASE_URL"]) as gate:
        mount_environment["SUPABASE_URL"] = gate.url
        yield gate


def exaifs_mount(environment: Mapping[str, str], tmp_path: Path, *flags: str) -> MountedDaemon:
    """Return a mount of the environment's bucket, not started yet."""
    path = tmp_path / "mnt"
    return MountedDaemon(
        ["-m", "exaifs", "mount", str(path), *flags],
        path,
        environment=environment,
        log_path=tmp_path / "log",
        secrets=[environment["SUPABASE_SERVICE_ROLE_KEY"]],
    )


@pytest.fixture
def mount(mount_environment: dict[str, str], tmp_path: Path) -> Iterator[MountedDaemon]:
    """`exaifs mount` on an empty bucket of the embedded Supabase."""
    with exaifs_mount(mount_environment, tmp_path) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def shared_mount(
    embedded_supabase: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedDaemon]:
    """One mount for the tests of a module, open to other users where that is allowed (root)."""
    directory = tmp_path_factory.mktemp("shared")
    directory.chmod(0o755)
    environment = {
        **new_bucket(embedded_supabase),
        "FILE_CACHE_DIR": str(directory / "cache"),
        "EXAIFS_LOG_FORMAT": "json",
        "EXAIFS_LOG_LEVEL": "info",
    }
    flags = ["--allow-other"] if os.geteuid() == 0 else []
    with exaifs_mount(environment, directory, *flags) as daemon:
        yield daemon


@pytest.fixture
def twins(shared_mount: MountedDaemon, tmp_path: Path) -> Iterator[Twins]:
    """An empty directory on the shared mount, and one on a local file system."""
    name = f"t{secrets.token_hex(4)}"
    remote, local = shared_mount.path / name, tmp_path / "local"
    local.mkdir()
    within(120, remote.mkdir)
    yield Twins(shared_mount, remote, local)
    within(120, lambda: shutil.rmtree(remote, ignore_errors=True))


@pytest.fixture
def stored(fresh_bucket: dict[str, str]) -> Iterator[StoredBytes]:
    """Ask the server itself for an object's bytes; None when there is none."""
    key = fresh_bucket["SUPABASE_SERVICE_ROLE_KEY"]
    headers = {"apikey": key, "Authorization": f"Bearer {key}"}
    base = f"{fresh_bucket['SUPABASE_URL']}/storage/v1/object/{fresh_bucket['FILE_STORAGE_BUCKET']}/"
    with httpx.Client(headers=headers, timeout=120, trust_env=False) as client:

        def get(name: str) -> bytes | None:
            answer = get_whole(client, base + quote(name))
            return answer.content if answer.status_code == httpx.codes.OK else None

        yield get


def exaifs(
    environment: Mapping[str, str], *arguments: str, timeout_s: float = 180, hangs: bool = False
) -> tuple[int, str]:
    """Run an exaifs command; return its exit code and everything it printed.

    Args:
        environment: the settings.
        arguments: after the program's name.
        timeout_s: how long it may take.
        hangs: whether the mount that it asks does not answer. Else a command that waited five seconds in
            vain has met a machine that stood still, and is run once more, as people do.
    """
    for _attempt in range(3):
        code, output = _run(environment, arguments, timeout_s)
        if hangs or "does not answer" not in output:
            break
    return code, output


def _run(environment: Mapping[str, str], arguments: tuple[str, ...], timeout_s: float) -> tuple[int, str]:
    result = subprocess.run(
        [sys.executable, "-m", "exaifs", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": str(REPOSITORY),
            **environment,
        },
        text=True,
        timeout=timeout_s,
        cwd="/",
        check=False,
    )
    return result.returncode, result.stdout
