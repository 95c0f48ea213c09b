"""No secret in any output: every command, in success and in failure, with debug output."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import BareSupabase, Stranger
from tests.cli.support import exaifs
from tests.support.ports import own_port

PASSWORD = "Pa55w0rd-of-these-tests"
TOKEN = "t0ken-of-these-tests-0123456789"
Commands = tuple[tuple[str, ...], ...]
COMMANDS: Commands = (
    ("version",),
    ("version", "--json"),
    ("doctor",),
    ("doctor", "--json"),
    ("init",),
    ("init", "--apply"),
    ("mount", "/nonexistent/mountpoint"),
    ("umount", "/nonexistent/mountpoint"),
    ("doctor", "--no-such-flag"),
    ("mcp",),
    ("mcp", "--http", "no address"),
    ("mcp", "--http", "256.0.0.1:8765"),
    ("dev", "--state-dir", "/proc/nonexistent"),
)
TALKING: Commands = (
    ("doctor",),
    ("doctor", "--json"),
    ("init", "--apply"),
    ("mount", "/nonexistent/mountpoint"),
)


def parts(secret: str) -> Iterator[str]:
    """Yield the secret, its first half and, of a JWT, each of its parts."""
    yield secret
    yield secret[: len(secret) // 2]
    yield from (part for part in secret.split(".") if len(part) > 10)


def run_everything(env: dict[str, str], tmp_path: Path, commands: Commands = COMMANDS) -> None:
    """Run the commands with this environment, at the loudest level, and look for secrets in the output."""
    more = {
        "EXAIFS_DATABASE_URL": f"postgresql://someone:{PASSWORD}@127.0.0.1:{own_port()}/x",
        "EXAIFS_LOG_LEVEL": "debug",
        "EXAIFS_MCP_TOKEN": TOKEN,
        "FILE_CACHE_DIR": str(tmp_path / "cache"),
    }
    for command in commands:
        result = exaifs(*command, env={**env, **more})
        for secret in (PASSWORD, TOKEN, *parts(env["SUPABASE_SERVICE_ROLE_KEY"])):
            assert secret not in result.output, command
        # A header that is not secret itself would still betray a leak.
        assert not re.search(r"eyJ[A-Za-z0-9_-]{10}", result.output), command


@pytest.mark.embedded
@pytest.mark.slow
def test_nothing_is_shown_when_all_is_well(fresh_bucket: dict[str, str], tmp_path: Path) -> None:
    """A working project with a secret key."""
    run_everything(fresh_bucket, tmp_path)


@pytest.mark.embedded
@pytest.mark.slow
def test_nothing_is_shown_of_a_token(bare_supabase: BareSupabase, tmp_path: Path) -> None:
    """A JWT, on a server without schema."""
    run_everything(bare_supabase.key(role="service_role", note="x" * 30), tmp_path)


@pytest.mark.slow
def test_nothing_is_shown_when_the_server_repeats_the_key(stranger: Stranger, tmp_path: Path) -> None:
    """A proxy that quotes the request's headers in its error page."""
    key = "sb_secret_0123456789-abcdefghijklmnopqrstuvwxyz"
    page = f"Bad request. Your headers: Authorization: Bearer {key}; apikey: {key}".encode()
    url = stranger.answering(400, "text/plain", page)
    run_everything({"SUPABASE_URL": url, "SUPABASE_SERVICE_ROLE_KEY": key}, tmp_path, TALKING)


@pytest.mark.slow
def test_nothing_is_shown_of_a_mangled_key(tmp_path: Path) -> None:
    """Line breaks and foreign quotes make libraries complain about the header, key and all."""
    for key in ("sb_secret_0123456789-abcdef ghijklmnop", "“sb_secret_0123456789-abcdefghijklmnop”"):
        env = {"SUPABASE_URL": "http://127.0.0.1:9", "SUPABASE_SERVICE_ROLE_KEY": key}
        run_everything(env, tmp_path, TALKING)


def test_no_flag_takes_a_secret() -> None:
    """Keys and passwords come from the environment: other users can read a command line."""
    for command in ("mount", "umount", "dev", "init", "doctor", "version"):
        text = exaifs(command, "--help").stdout
        assert not re.search(r"^ +--[a-z-]*(key|password|token|database-url)", text, re.MULTILINE), command
