"""Fixtures that every level may use: one embedded Supabase a session, one bucket a test."""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import structlog
from hypothesis import HealthCheck, settings
from pydantic import AliasChoices

from exaifs.config import Config

REPOSITORY = Path(__file__).parent.parent
LITE_DIR = Path(os.environ.get("EXAIFS_LITE_DIR", REPOSITORY / ".exaifs" / "lite"))
"""Where the Node packages are shared between all test runs."""

START_TIMEOUT_S = 600.0
"""Covers the first run ever, which installs the Node packages."""
STOP_TIMEOUT_S = 120.0

PATIENT = {"EXAIFS_REQUEST_TIMEOUT_S": "60", "EXAIFS_READ_TIMEOUT_S": "60"}
"""Settings for programs of tests that are not about these limits: how long a busy machine takes to answer
is not their subject. Who tests a server that hangs sets limits of its own."""

settings.register_profile(
    "exaifs",
    # How long an example takes is the machine's; and a run that passed passes again.
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=os.environ.get("EXAIFS_THOROUGH", "") == "",
    print_blob=True,
)
settings.load_profile("exaifs")

GIVEN = dict(os.environ)
"""The environment as it was before `pytest_configure`, for tests that are told by it what to reach."""

_PROXIES = {f"{name}_proxy" for name in ("http", "https", "all", "no")}
_OF_PROGRAMS = {"CDPATH", "BASH_ENV", "ENV", "POSIXLY_CORRECT", "GREP_OPTIONS", "NOTIFY_SOCKET"}
_OF_PRINTING = {"COLUMNS", "NO_COLOR", "FORCE_COLOR"}


def pytest_configure(config: pytest.Config) -> None:
    """Have the tests find on every machine what they find on a new one.

    They hear Ctrl-C: background jobs of a shell ignore it, and so would every program of the tests. New
    files have the usual permissions. No setting of exaifs, no proxy, and nothing that a git hook or a
    service manager leaves to its programs reaches them.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.umask(0o022)
    # Processes of pytest-xdist inherit the environment from the first one: each clears its own.
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        return
    for name in GIVEN:
        if (
            name in _setting_names() | _OF_PROGRAMS | _OF_PRINTING
            or name.lower() in _PROXIES
            or name.startswith(("PG", "GIT_"))
        ):
            del os.environ[name]


def _setting_names() -> set[str]:
    """Return the variables that exaifs reads, but for those that say where it is installed."""
    aliases = [field.validation_alias for field in Config.model_fields.values()]
    return {str(name) for alias in aliases if isinstance(alias, AliasChoices) for name in alias.choices}


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Have no test's logging reach the next one: structlog knows one set-up a process."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def way_out() -> Iterator[None]:
    """Give tests that leave this machine its proxies."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in GIVEN.items():
            if name.lower() in _PROXIES:
                patch.setenv(name, value)
        yield


def environment_for(supabase: dict[str, str]) -> dict[str, str]:
    """Return this process's environment with another Supabase in place of any that it names."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SUPABASE_")}
    return {**kept, **supabase}


def read_env_file(process: subprocess.Popen[bytes], deadline_s: float) -> dict[str, str]:
    """Read the two lines that `python -m exaifs.embedded` prints when it answers."""
    assert process.stdout is not None
    end = time.monotonic() + deadline_s
    data = b""
    while data.count(b"\n") < 2:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
        chunk = os.read(process.stdout.fileno(), 4096) if ready else b""
        if not chunk:
            pytest.fail(f"the embedded Supabase did not start (exit status {process.poll()}): see stderr")
        data += chunk
    return dict(line.split("=", 1) for line in data.decode().splitlines())


@pytest.fixture(scope="session")
def embedded_supabase(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Run one embedded Supabase for the whole session; yield SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY.

    It is a process of its own, and ends when its stdin closes: also when this one is killed.
    """
    state_dir = tmp_path_factory.mktemp("embedded")
    with subprocess.Popen(
        [sys.executable, "-m", "exaifs.embedded", str(state_dir), "--until-eof"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment_for({"EXAIFS_LITE_DIR": str(LITE_DIR)}),
        start_new_session=True,
    ) as process:
        try:
            yield read_env_file(process, START_TIMEOUT_S)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture
def fresh_bucket(embedded_supabase: dict[str, str]) -> dict[str, str]:
    """Create and register a bucket that no other test knows; return the environment that names it."""
    return new_bucket(embedded_supabase)


def new_bucket(embedded_supabase: dict[str, str]) -> dict[str, str]:
    """Create and register a bucket of a new name; return the environment that names it.

    Its limits are those of `user-files`. It stays until the session's server goes, which costs nothing. The
    programs that get the environment are patient with a busy machine.
    """
    bucket = f"test-{secrets.token_hex(6)}"
    key = embedded_supabase["SUPABASE_SERVICE_ROLE_KEY"]
    with httpx.Client(
        base_url=embedded_supabase["SUPABASE_URL"],
        headers={"apikey": key, "Authorization": f"Bearer {key}"},
        timeout=60,
        trust_env=False,
    ) as client:
        limits = {"id": bucket, "name": bucket, "public": False, "file_size_limit": 50 * 1024 * 1024}
        client.post("/storage/v1/bucket", json=limits).raise_for_status()
        client.post("/rest/v1/rpc/exaifs_register_bucket", json={"p_bucket": bucket}).raise_for_status()
    return {**embedded_supabase, "FILE_STORAGE_BUCKET": bucket, **PATIENT}
