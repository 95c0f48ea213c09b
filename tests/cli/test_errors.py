"""Bad input of every kind: one line that says what to do, the documented exit code, no traceback."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.cli.conftest import BareSupabase, Stranger
from tests.cli.support import exaifs
from tests.support.ports import own_port

KEY = "sb_secret_of-these-tests-0123456789abcdef"


def settings(url: str) -> dict[str, str]:
    """Name a server, and a key of the right form."""
    return {"SUPABASE_URL": url, "SUPABASE_SERVICE_ROLE_KEY": KEY}


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({}, ("SUPABASE_URL is not set", "dashboard", "exaifs dev")),
        ({"SUPABASE_URL": "https://x.supabase.co"}, ("SUPABASE_SERVICE_ROLE_KEY is not set", "API Keys")),
        ({**settings("x.supabase.co")}, ("SUPABASE_URL: ", "https://PROJECT.supabase.co")),
        ({**settings("https://supabase.com/dashboard/project/x")}, ("dashboard", "Data API")),
        ({**settings("https://x.supabase.co"), "MAX_CACHE_SIZE_MB": "lots"}, ("MAX_CACHE_SIZE_MB: ",)),
        ({**settings("https://x.supabase.co"), "EXAIFS_UMASK": "8"}, ("EXAIFS_UMASK: ", "octal")),
        (
            {"SUPABASE_URL": "https://x.supabase.co", "SUPABASE_SERVICE_ROLE_KEY_FILE": "/nonexistent/key"},
            ("/nonexistent/key", "SUPABASE_SERVICE_ROLE_KEY_FILE"),
        ),
        (
            {"SUPABASE_URL": "https://x.supabase.co", "SUPABASE_SERVICE_ROLE_KEY": f"{KEY} {KEY}"},
            ("characters that no key has",),
        ),
    ],
)
@pytest.mark.parametrize("command", [("mount", "/nonexistent"), ("init", "--apply")])
def test_a_missing_or_wrong_setting_is_named(
    command: tuple[str, ...], env: dict[str, str], says: tuple[str, ...]
) -> None:
    """The line names the variable and where its value comes from; exit code 2."""
    result = exaifs(*command, env=env)
    assert result.code == 2, result
    for words in says:
        assert words in result.complaint
    assert KEY not in result.output


def test_a_server_that_refuses_is_named_at_once() -> None:
    """A closed port: exit code 3, URL and next step, long before the time for an answer is over."""
    url = f"http://127.0.0.1:{own_port()}"
    started_s = time.monotonic()
    result = exaifs("init", "--apply", env={**settings(url), "EXAIFS_REQUEST_TIMEOUT_S": "600"})
    assert time.monotonic() - started_s < 60
    assert result.code == 3
    assert url in result.complaint
    assert "SUPABASE_URL" in result.complaint


def test_a_name_that_does_not_resolve_is_said_to_be_one() -> None:
    """A typing error in the URL is told apart from a server that is down."""
    result = exaifs("init", "--apply", env=settings("http://no-such-host.invalid"))
    assert result.code == 3
    assert "cannot be resolved" in result.complaint


def test_a_web_page_is_not_taken_for_supabase(stranger: Stranger) -> None:
    """A login page of a proxy answers 200 with HTML: exit code 3, and the line shows what answered."""
    url = stranger.answering(200, "text/html", b"<html><body>Please log in</body></html>")
    result = exaifs("init", "--apply", env=settings(url))
    assert result.code == 3
    assert "no Supabase" in result.complaint
    assert "text/html" in result.complaint


def test_a_paused_project_is_said_to_be_paused(stranger: Stranger) -> None:
    """Supabase's gateway answers 540 then; the line says where to restore it."""
    url = stranger.answering(540, "application/json", b'{"message":"Project paused"}')
    result = exaifs("init", "--apply", env=settings(url))
    assert result.code == 3
    assert "paused" in result.complaint
    assert "dashboard" in result.complaint


def test_a_refused_key_is_exit_code_3(bare_supabase: BareSupabase) -> None:
    """A key with the wrong signature is refused: the line says where the right one is."""
    env = bare_supabase.key(secret="another secret, long enough for everybody", role="service_role")
    result = exaifs("init", "--apply", env=env)
    assert result.code == 3
    assert "the key is refused" in result.complaint
    assert "API Keys" in result.complaint


def test_a_missing_schema_asks_for_the_postgres_url(bare_supabase: BareSupabase) -> None:
    """`init --apply` without EXAIFS_DATABASE_URL explains where to find it, and the other way."""
    result = exaifs("init", "--apply", env=bare_supabase.key(role="service_role"))
    assert result.code == 2
    for words in ("EXAIFS_DATABASE_URL", "Session pooler", "SQL editor"):
        assert words in result.complaint


def test_unmounting_what_is_not_mounted_is_exit_code_4(tmp_path: Path) -> None:
    """The directory is named."""
    result = exaifs("umount", str(tmp_path))
    assert result.code == 4
    assert str(tmp_path) in result.complaint


def test_a_report_that_cannot_be_kept_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    """`fsck --json FILE` may take hours; a FILE that cannot be written is named at once, exit code 2."""
    report = tmp_path / "missing" / "report.json"
    result = exaifs("fsck", "--json", str(report), env=settings(f"http://127.0.0.1:{own_port()}"))
    assert result.code == 2
    assert str(report) in result.complaint
    assert "checking" not in result.output


def test_a_server_that_is_away_is_explained_once(tmp_path: Path) -> None:
    """A first mount that reaches nobody names URL, reason and next step, each of them once."""
    url = f"http://127.0.0.1:{own_port()}"
    env = {**settings(url), "FILE_CACHE_DIR": str(tmp_path / "cache")}
    (tmp_path / "files").mkdir()
    result = exaifs("mount", str(tmp_path / "files"), env=env)
    assert result.code == 3
    for words in (url, "cannot connect", "SUPABASE_URL", "paused"):
        assert result.complaint.count(words) == 1, result
    assert ".." not in result.complaint


@pytest.mark.parametrize(
    "command", [("gc", "--dry-run"), ("provider", "id", "kimi", "a"), ("init", "--apply"), ("fsck",)]
)
def test_a_server_that_is_away_has_a_next_step_in_every_command(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    """Whoever asks Supabase first says where to look when nobody answers, once."""
    env = {
        **settings(f"http://127.0.0.1:{own_port()}"),
        "FILE_CACHE_DIR": str(tmp_path),
        "EXAIFS_PROVIDERS": "kimi",
        "MOONSHOT_API_KEY": "mk-of-these-tests",
    }
    result = exaifs(*command, env=env)
    assert result.code == 3
    assert result.stderr.splitlines()[-1].count("SUPABASE_URL") == 1, result


def test_a_traceback_appears_with_debug_only() -> None:
    """Ordinary errors are for people; the flag or the variable adds the traceback, without secrets."""
    env = settings(f"http://127.0.0.1:{own_port()}")
    plain = exaifs("init", "--apply", env=env)
    assert "Traceback" not in plain.output
    for arguments, more in (
        (("--log-level", "debug"), {}),
        ((), {"EXAIFS_LOG_LEVEL": "debug"}),
    ):
        debug = exaifs("init", "--apply", *arguments, env={**env, **more})
        assert "Traceback" in debug.stderr
        assert debug.code == plain.code
        assert debug.stderr.splitlines()[-1] == plain.complaint
        assert KEY not in debug.output


@pytest.mark.parametrize("command", [("doctor",), ("fsck",), ("mount",)])
@pytest.mark.parametrize(
    ("proxy", "advice"),
    [
        ("socks5://127.0.0.1:9", "httpx[socks]"),
        ("ftp://someone:secret-word@127.0.0.1", "http://HOST:PORT"),
        ("http://someone:secret-word@host:port", "http://HOST:PORT"),
    ],
)
def test_a_proxy_that_cannot_be_used(
    tmp_path: Path, command: tuple[str, ...], proxy: str, advice: str
) -> None:
    """The variable is named, and what to do; never its value, which may hold a password."""
    (tmp_path / "files").mkdir()
    arguments = (*command, str(tmp_path / "files")) if command == ("mount",) else command
    env = {
        **settings("https://x.supabase.co"),
        "FILE_CACHE_DIR": str(tmp_path / "cache"),
        "ALL_PROXY": proxy,
    }
    result = exaifs(*arguments, env=env)
    assert result.code == 2, result
    assert "ALL_PROXY: " in result.complaint
    assert advice in result.complaint
    assert "secret-word" not in result.output
