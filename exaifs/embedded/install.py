"""Installs `@supabase/lite` from npm: once a machine, atomically, pinned by the package-lock beside it.

The lock has no download addresses, so the user's own npm settings decide where packages come from; its
integrity hashes decide what they must be. Versions live side by side in directories named by the
lock's hash, so an upgrade never pulls modules away from under a server that runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import anyio

from exaifs.embedded.node import PACKAGE_DIR, node_command, npm_script
from exaifs.embedded.process import last_lines, running
from exaifs.embedded.progress import Advance, step
from exaifs.errors import EmbeddedError

INSTALL_DIR_VARIABLE: Final = "EXAIFS_LITE_DIR"
INSTALL_TIMEOUT_S: Final = 900.0
_POLL_S: Final = 0.2
_NPM_FLAGS: Final = (
    "--omit=dev",
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
    "--no-update-notifier",
    "--loglevel=http",
)
_NPM_DEFAULTS: Final = {
    "npm_config_fetch_retry_mintimeout": "1000",
    "npm_config_fetch_retry_maxtimeout": "10000",
}
"""Milliseconds; npm's own 10 and 60 s try a person's patience. The user's environment wins."""

_ADVICE: Final = "Check the network and npm's settings (registry, proxy), then try again."


def default_install_dir() -> Path:
    """Return where lite is kept: `EXAIFS_LITE_DIR`, else below the user's cache directory."""
    named = os.environ.get(INSTALL_DIR_VARIABLE)
    if named:
        return Path(named).absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "exaifs" / "lite"


def lock_hash() -> str:
    """Return a name for what the package files ask for."""
    digest = hashlib.sha256()
    for name in ("package.json", "package-lock.json"):
        digest.update((PACKAGE_DIR / name).read_bytes())
    return digest.hexdigest()[:16]


def cli_script(root: Path) -> Path:
    """Return lite's entry point in an installed tree."""
    return root / "node_modules" / "@supabase" / "lite" / "dist" / "cli" / "index.js"


async def install(install_dir: Path) -> Path:
    """Return the directory that holds the pinned `node_modules`, installing them if need be.

    Any number of processes may call this at once; one installs, the others wait for it.

    Raises:
        EmbeddedError: npm failed, saying why on one line and naming its log.
    """
    target = install_dir / lock_hash()
    if _complete(target):
        return target
    _make_directory(install_dir)
    async with _exclusive(install_dir / ".lock"):
        if not _complete(target):
            await _install_into(install_dir, target)
    return target


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise EmbeddedError(
            f"cannot create {path}: {exc.strerror}. Name another place in {INSTALL_DIR_VARIABLE}."
        ) from exc


def _complete(target: Path) -> bool:
    """Whether an install got to its end: the directory appears by rename, the stamp says of what."""
    stamp = target / ".stamp"
    return (
        stamp.is_file()
        and stamp.read_text(encoding="utf-8") == lock_hash()
        and cli_script(target).is_file()
    )


@asynccontextmanager
async def _exclusive(path: Path) -> AsyncIterator[None]:
    """Hold a file lock; waiting is cancellable."""
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await anyio.sleep(_POLL_S)
        yield


async def _install_into(install_dir: Path, target: Path) -> None:
    log = install_dir / "npm.log"
    with _work_directory(install_dir) as work:
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(PACKAGE_DIR / name, work / name)
        status = await _npm_ci(work, log)
        if status != 0 or not cli_script(work).is_file():
            raise EmbeddedError(
                f"npm could not install the embedded Supabase: {_reason(log, status)}. {_ADVICE} "
                f"Its log: {log}"
            )
        (work / ".stamp").write_text(lock_hash(), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)


@contextmanager
def _work_directory(install_dir: Path) -> Iterator[Path]:
    """Yield an empty directory beside the target; what earlier installs left behind is removed first."""
    for leftover in install_dir.glob("tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix="tmp-", dir=install_dir))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


async def _npm_ci(work: Path, log: Path) -> int:
    """Run `npm ci`; its package cache stays in the work directory and goes with it."""
    cache = work / ".npm"
    command = node_command(npm_script(), "ci", *_NPM_FLAGS, "--cache", str(cache))
    lock = json.loads((PACKAGE_DIR / "package-lock.json").read_text(encoding="utf-8"))
    total = 2 * (len(lock["packages"]) - 1)  # for each package one request for its index, one for its bytes
    with step("Installing the embedded Supabase (once, about 150 MB on disk)", total) as advance:
        async with running(command, cwd=work, env={**_NPM_DEFAULTS, **os.environ}, log=log) as process:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_follow, log, advance)
                with anyio.move_on_after(INSTALL_TIMEOUT_S):
                    await process.wait()
                tasks.cancel_scope.cancel()
            if process.returncode is None:
                raise EmbeddedError(
                    f"npm did not finish within {INSTALL_TIMEOUT_S / 60:.0f} minutes. {_ADVICE} "
                    f"Its log: {log}"
                )
            status = process.returncode
    shutil.rmtree(cache, ignore_errors=True)
    return status


async def _follow(log: Path, advance: Advance) -> None:
    """Turn the lines npm logs for each request into progress, until cancelled."""
    while True:
        advance(_requests_in(log))
        await anyio.sleep(_POLL_S)


def _requests_in(log: Path) -> int:
    return log.read_bytes().count(b"npm http fetch ")


def _reason(log: Path, status: int) -> str:
    """Return what npm said first about its failure."""
    errors = [line for line in last_lines(log, 200) if line.startswith("npm error ")]
    said = [line.removeprefix("npm error ") for line in errors if "A complete log" not in line]
    return "; ".join(said[:2]) if said else f"exit status {status}"
