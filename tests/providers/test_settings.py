"""Settings, records and the table of errors, without a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from exaifs.errors import ConfigError
from exaifs.providers.errors import ProviderKeyMissing
from exaifs.providers.failures import failure
from exaifs.providers.records import StoredId, from_time, is_id, stored_id, to_time
from exaifs.providers.settings import BUILT_IN, ProvidersConfig, ProviderSettings, load_providers
from tests.providers.emulator import KEY


def write(tmp_path: Path, text: str) -> Path:
    """Write a settings file."""
    path = tmp_path / "providers.toml"
    path.write_text(text)
    return path


def test_off_until_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key in the environment turns nothing on; a name does, in either place."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert load_providers(None) is None
    assert load_providers(write(tmp_path, "deadline_s = 5")) is None
    config = load_providers(write(tmp_path, "[provider.kimi]\n"), "openai, gemini,")
    assert config is not None
    assert list(config.provider) == ["kimi", "openai", "gemini"]
    assert config.provider["openai"].key == KEY
    assert config.secrets() == (KEY,)
    assert KEY not in repr(config)


def test_the_built_in_table() -> None:
    """Every built-in provider works by name alone, with the limits of its documents."""
    config = load_providers(None, ",".join(BUILT_IN))
    assert config is not None
    table = {
        name: (one.kind, one.purpose, one.check, one.max_bytes, one.ttl_s)
        for name, one in config.provider.items()
    }
    assert table == {
        "openai": ("openai", "user_data", "retrieve", 512_000_000, None),
        "kimi": ("openai", "file-extract", "retrieve", 100_000_000, None),
        "glm": ("openai", "agent", "none", 100_000_000, 180 * 86400),
        "glm-cn": ("openai", "agent", "list", 20_000_000, None),
        "mistral": ("openai", "ocr", "retrieve", 512_000_000, 30 * 86400),
        "anthropic": ("anthropic", "", "retrieve", 500_000_000, None),
        "gemini": ("gemini", "", "retrieve", 2_000_000_000, 2 * 86400),
    }
    kimi = config.provider["kimi"]
    assert [kimi.purpose_of(mime) for mime in ("image/png", "video/mp4", "text/plain")] == [
        "image",
        "video",
        "file-extract",
    ]
    assert config.provider["glm-cn"].max_bytes_of("image/jpeg") == 5_000_000


def test_any_compatible_provider_by_a_few_lines(tmp_path: Path) -> None:
    """One that is not built in needs an address; a built-in one can be changed in every value."""
    config = load_providers(
        write(
            tmp_path,
            '[provider.qwen]\nbase_url = "https://example.com/v1/"\npurpose = "file-extract"\n'
            '[provider.kimi]\nbase_url = "https://api.moonshot.cn/v1"\naccount = "team"\n',
        )
    )
    assert config is not None
    assert config.provider["qwen"].base_url == "https://example.com/v1"
    assert config.provider["kimi"].host == "api.moonshot.cn"
    assert config.provider["kimi"].account_of("any key") == "team"


def test_the_example_in_the_readme(tmp_path: Path) -> None:
    """It is what an operator copies, so it is taken; and it names settings that there are."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    [example] = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    config = load_providers(write(tmp_path, example))
    assert config is not None
    assert list(config.provider) == ["kimi", "deepseek"]
    known = ProviderSettings.model_fields.keys() | ProvidersConfig.model_fields.keys()
    named = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", example.replace("user_data", "")))
    assert named <= known


def test_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From a variable, a file that a variable names, or the settings; changed files count at once."""
    file = tmp_path / "key"
    file.write_text("from-file\n")
    text = f'[provider.x]\nbase_url = "http://x"\napi_key_env = ["X_KEY"]\napi_key_file = "{file}"\n'
    config = load_providers(write(tmp_path, text))
    assert config is not None
    provider = config.provider["x"]
    assert provider.key == "from-file"
    first = provider.account_of(provider.key)
    file.write_text("changed")
    assert provider.key == "changed"
    assert provider.account_of(provider.key) != first
    other = tmp_path / "other"
    other.write_text("by-name")
    monkeypatch.setenv("X_KEY_FILE", str(other))
    assert provider.key == "by-name"
    monkeypatch.setenv("X_KEY", "direct")
    assert provider.key == "direct"
    for bad in ("two words", "ключ"):
        monkeypatch.setenv("X_KEY", bad)
        with pytest.raises(ProviderKeyMissing) as caught:
            _ = provider.key
        assert bad not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[provider.x]\n", "base_url: is needed, because 'x' is not built in (openai, "),
        ('[provider.x]\nbase_url = "ftp://x"\n', "https://"),
        ('[provider.x]\nbase_url = "https://u:p@x"\n', "https://"),
        ('[provider.X]\nbase_url = "https://x"\n', "a-z"),
        ("[provider.kimi]\npurpse = 1\n", "purpse: no such setting; did you mean purpose?"),
        ("[provider.kimi]\nwhatever = 1\n", "there are: account, allow_empty, api_key_env"),
        ('[provider.kimi]\napi_key = "sk-x"\n', "api_key_file"),
        ('[provider.kimi]\nname = "x"\n', "provider.kimi.name"),
        ("[provider.kimi]\ndeadline_s = 3\n", "above the first"),
        ("deadline = 3\n[provider.kimi]\n", "did you mean deadline_s?"),
        ("[kimi]\n", "[provider.kimi]"),
        ("[providers.kimi]\n", "[provider.NAME]"),
        ('[provider.kimi]\nbase_url = "https://x/v1#a"\n', "https://"),
        ('[provider.kimi]\nbase_url = "https://x:99999"\n', "https://"),
        ('[provider.kimi]\nbase_url = "https://x/a b"\n', "https://"),
        ('[provider.kimi]\npurpose = "a\\r\\nb"\n', "purpose"),
        ('[provider.kimi]\nextra_form = {"a\\n" = "b"}\n', "extra_form"),
        ('[provider.kimi]\nupload = "sometimes"\n', "upload"),
        ("deadline_s = 0\n[provider.kimi]\n", "deadline_s"),
        ("provider = 3", "table"),
        ("[provider", "TOML"),
    ],
)
def test_mistakes_are_named(text: str, complaint: str, tmp_path: Path) -> None:
    """A wrong setting stops the start, and is named with its file."""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_providers(path)
    assert complaint in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_is_meant_is_taken(tmp_path: Path) -> None:
    """One variable without a list; extensions with their dots, and large."""
    config = load_providers(
        write(tmp_path, '[provider.kimi]\napi_key_env = "X_KEY"\nextensions = [".PDF", "Txt"]\n')
    )
    assert config is not None
    assert config.provider["kimi"].api_key_env == ("X_KEY",)
    assert config.provider["kimi"].extensions == ("pdf", "txt")


def test_unknown_names_and_files(tmp_path: Path) -> None:
    """A name that is not built in, and a file that is not there."""
    with pytest.raises(ConfigError, match="not built in"):
        load_providers(None, "nobody")
    with pytest.raises(ConfigError, match="cannot read"):
        load_providers(tmp_path / "missing.toml")


def test_records_survive_the_row() -> None:
    """What is written is read again; strings are ids; nonsense is nothing."""
    stored = StoredId(
        "f-1", "uri", "ab" * 32, "p", "acc", 5, uploaded_at=1e9, expires_at=2e9, verified_at=1.5e9
    )
    assert stored_id(stored.to_json()) == stored
    assert stored_id("f-1") == StoredId("f-1")
    nonsense: list[Any] = [None, 1, "", "a\nb", " a", "ä", {}, {"id": 5}, {"id": "x" * 1025}, []]
    assert [stored_id(value) for value in nonsense] == [None] * len(nonsense)
    assert stored_id({"id": "x", "expires_at": "nonsense", "size": "5", "uri": 3}) == StoredId("x")
    assert not is_id(None)


def test_times() -> None:
    """Seconds and RFC 3339 in UTC are read; anything else is unknown."""
    assert to_time(0) == "1970-01-01T00:00:00Z"
    assert from_time("2026-11-21T10:00:00.123Z") == from_time("2026-11-21T10:00:00Z")
    assert from_time("2026-11-21T10:00:00+00:00") == from_time("2026-11-21 10:00:00Z")
    assert from_time(1_700_000_000) == 1_700_000_000
    for value in (None, True, 0, -1, "", "soon", "2026-13-41T10:00:00Z", "2026-11-21T10:00:00+02:00"):
        assert from_time(value) is None


def test_when_an_id_is_good() -> None:
    """The margin is an hour or a tenth of the lifetime; checks are due daily, not after an upload."""
    short = StoredId("f", uploaded_at=0.0, expires_at=1000.0)
    assert [short.is_ageing(now) for now in (0, 899, 900, 1000)] == [False, False, True, True]
    long = StoredId("f", uploaded_at=0.0, expires_at=1e6)
    assert [long.is_ageing(now) for now in (1e6 - 3601, 1e6 - 3600)] == [False, True]
    assert [short.is_expired(now) for now in (999, 1000)] == [False, True]
    checked = StoredId("f", uploaded_at=0.0, verified_at=0.0)
    assert [checked.is_due(now, 10) for now in (11, 3599, 3600)] == [False, False, True]
    assert StoredId("f").is_due(0, 86400)
    assert not StoredId("f", sha256="a").fits("b", None, "")
    assert not StoredId("f", account="a").fits(None, "b", "")
    assert not StoredId("f", purpose="a").fits(None, None, "b")
    assert StoredId("f").fits("b", "c", "d")


def test_messages_hold_no_key() -> None:
    """A provider that repeats the key in its answer does not bring it into ours."""
    body = f'{{"error": {{"message": "Incorrect API key: {KEY}", "code": "invalid_api_key"}}}}'.encode()
    error = failure("openai", 401, body, secrets=(KEY,))
    assert KEY not in str(error)
    assert "[redacted]" in str(error)
    details = b'[{"reason": "API_KEY_INVALID"}]'
    gemini = b'{"error": {"code": 400, "message": "API key not valid.", "details": %s}}' % details
    said = str(failure("gemini", 400, gemini))
    assert said == "gemini: 400 API_KEY_INVALID API key not valid. Set a valid API key for this provider."
    assert failure("x", 429, b"", "inf").retry_after_s is None
    assert failure("x", 429, b"", "7").retry_after_s == 7
