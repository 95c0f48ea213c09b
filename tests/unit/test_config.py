"""Settings: flags over environment, the names of the original deployment, secrets never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from exaifs.config import MIB, Config, load
from exaifs.errors import ConfigError

NAMES = (
    "SUPABASE_URL",
    "SUPABASE_SERVICE_ROLE_KEY",
    "SUPABASE_SERVICE_KEY",
    "SUPABASE_SERVICE_ROLE_KEY_FILE",
    "SUPABASE_SERVICE_KEY_FILE",
    "FILE_STORAGE_BUCKET",
    "FILE_CACHE_DIR",
    "MAX_MEMORY_CACHE_SIZE",
    "MAX_CACHE_SIZE_MB",
    "MAX_CACHE_AGE_DAYS",
    "EXAIFS_UMASK",
    "EXAIFS_UID",
    "EXAIFS_READ_ONLY",
    "EXAIFS_LOG_LEVEL",
    "EXAIFS_DATABASE_URL",
)
KEY = "sb_secret_only-for-this-test-0123456789"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_defaults_are_those_of_the_original_deployment() -> None:
    """Nothing set: the bucket, tiers and cache directory that the documentation promises."""
    config = load()
    assert config.bucket == "user-files"
    assert config.memory_cache_bytes == 100 * MIB
    assert (config.disk_cache_mb, config.cache_age_days) == (1000, 30)
    assert config.cache_dir == Path("/var/cache/exaifs")
    assert config.umask == 0o022


def test_the_environment_is_read_by_its_documented_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each documented variable reaches its setting; a umask is octal as in every shell."""
    values = {
        "SUPABASE_URL": "https://abc.supabase.co/",
        "SUPABASE_SERVICE_KEY": KEY,
        "FILE_STORAGE_BUCKET": "reports",
        "FILE_CACHE_DIR": "/tmp/cache",
        "MAX_MEMORY_CACHE_SIZE": "1048576",
        "MAX_CACHE_SIZE_MB": "5",
        "MAX_CACHE_AGE_DAYS": "0.5",
        "EXAIFS_UMASK": "077",
        "EXAIFS_READ_ONLY": "true",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    config = load()
    assert config.supabase_url == "https://abc.supabase.co"
    assert (config.key, config.bucket) == (KEY, "reports")
    assert (config.cache_dir, config.memory_cache_bytes) == (Path("/tmp/cache"), MIB)
    assert (config.disk_cache_mb, config.cache_age_days) == (5, 0.5)
    assert (config.umask, config.read_only) == (0o077, True)


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag that was given overrides; one that was not (None) leaves the environment alone."""
    monkeypatch.setenv("FILE_STORAGE_BUCKET", "from-environment")
    monkeypatch.setenv("EXAIFS_LOG_LEVEL", "error")
    config = load(bucket="from-flag", log_level=None)
    assert (config.bucket, config.log_level) == ("from-flag", "error")


def test_the_role_key_wins_over_its_older_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both names set: SUPABASE_SERVICE_ROLE_KEY counts."""
    monkeypatch.setenv("SUPABASE_SERVICE_KEY", "old")
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", KEY)
    assert load().key == KEY


@pytest.mark.parametrize("name", ["UID", "GID", "BUCKET", "UMASK", "CACHE_DIR", "LOG_LEVEL", "READ_ONLY"])
def test_variables_of_others_are_not_read(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A variable called like a setting, but not documented, belongs to another program."""
    monkeypatch.setenv(name, "77")
    assert load() == Config()


@pytest.mark.parametrize("name", ["EXAIFS_UID", "MAX_CACHE_SIZE_MB", "EXAIFS_READ_ONLY", "SUPABASE_URL"])
def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Compose files pass empty variables for what the user left out."""
    monkeypatch.setenv(name, "")
    assert load() == Config()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_CACHE_SIZE_MB", "many"),
        ("MAX_CACHE_AGE_DAYS", "0"),
        ("EXAIFS_UMASK", "9"),
        ("EXAIFS_LOG_LEVEL", "loud"),
        ("FILE_STORAGE_BUCKET", "a/b"),
        ("SUPABASE_URL", "abc.supabase.co"),
        ("SUPABASE_URL", "https://user:secret@abc.supabase.co"),
        ("SUPABASE_URL", "https://supabase.com/dashboard/project/abc"),
        ("SUPABASE_URL", "https://abc.supabase.co/rest/v1"),
        ("SUPABASE_URL", "http://host:port"),
    ],
)
def test_a_wrong_value_is_named_as_it_was_written(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """The error starts with the variable's own name and fits on one line."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        load()
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("EXAIFS_FRESHNESS_S", "soon", "must be a number"),
        ("EXAIFS_FRESHNESS_S", "0", "must be more than 0"),
        ("MAX_MEMORY_CACHE_SIZE", "100MB", "must be a whole number"),
        ("EXAIFS_UID", "-5", "must be at least 0"),
        ("EXAIFS_URL_LIFETIME_S", "999999", "must be at most 604800"),
        ("EXAIFS_READ_ONLY", "maybe", "must be true or false"),
        ("EXAIFS_WRITE_MODE", "fast", "must be 'through' or 'back'"),
    ],
)
def test_a_wrong_value_is_told_in_plain_words(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    """The error says what the value must be, not what a library could not parse."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{name}: {said}$"):
        load()


def test_a_wrong_flag_is_named_as_a_flag() -> None:
    """What came from the command line is not blamed on the environment."""
    with pytest.raises(ConfigError, match=r"^--umask: must be octal"):
        load(umask="x9")


def test_the_key_may_stand_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The _FILE variable names a file; white space around the key does not matter."""
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY_FILE", str(file))
    assert load().key == KEY


def test_an_unreadable_key_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error names the file and the variable."""
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"none.*SUPABASE_SERVICE_ROLE_KEY_FILE"):
        _ = load().key


def test_an_empty_secret_file_is_not_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A secret that did not arrive must not leave a server open, nor files unsent: it is an error."""
    file = tmp_path / "empty"
    file.write_text(" \n")
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY_FILE", str(file))
    monkeypatch.setenv("EXAIFS_MCP_TOKEN_FILE", str(file))
    with pytest.raises(ConfigError, match=r"key file .*empty is empty.*SUPABASE_SERVICE_ROLE_KEY_FILE"):
        _ = load().key
    with pytest.raises(ConfigError, match=r"token file .*empty is empty.*EXAIFS_MCP_TOKEN_FILE"):
        _ = load().mcp_bearer
    monkeypatch.setenv("EXAIFS_MCP_TOKEN", "token")
    assert load().mcp_bearer == "token"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "SUPABASE_URL is not set"),
        ({"supabase_url": "http://127.0.0.1:1"}, "SUPABASE_SERVICE_ROLE_KEY is not set"),
        (
            {"supabase_url": "http://127.0.0.1:1", "supabase_key": f"{KEY} {KEY}"},
            "characters that no key has",
        ),
        ({"supabase_url": "http://127.0.0.1:1", "supabase_key": f"“{KEY}”"}, "characters that no key has"),
    ],
)
def test_what_a_server_needs_is_asked_for(settings: dict[str, str], said: str) -> None:
    """Missing and mangled values are explained without showing the key."""
    with pytest.raises(ConfigError) as caught:
        load(**settings).require_remote()
    assert said in str(caught.value)
    assert KEY not in str(caught.value)


def test_no_text_form_shows_a_secret() -> None:
    """Neither repr nor str nor a dump holds the key or the database URL."""
    config = load(supabase_key=KEY, database_url=f"postgresql://u:{KEY}@host/db")
    for text in (repr(config), str(config), str(config.model_dump()), config.model_dump_json()):
        assert KEY not in text


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:54321", True),
        ("http://[::1]:1", True),
        ("http://localhost", True),
        ("https://abc.supabase.co", False),
    ],
)
def test_a_server_on_this_machine_is_known(url: str, *, local: bool) -> None:
    """No proxy stands between this machine and itself."""
    assert load(supabase_url=url).is_local_server is local


def test_a_path_keeps_its_meaning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A relative cache directory is fixed at once: a daemon changes its working directory."""
    monkeypatch.chdir(tmp_path)
    assert load(cache_dir="cache").cache_dir == tmp_path / "cache"
