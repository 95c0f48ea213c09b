"""Which providers may be used, and how: a built-in table, a TOML file, and the environment.

    # EXAIFS_PROVIDERS_FILE; EXAIFS_PROVIDERS=kimi,openai does the same for built-in ones without a file
    deadline_s = 30
    [provider.kimi]                       # built in: being named here turns it on
    api_key_file = "/run/secrets/kimi"
    [provider.deepseek]                   # any that is compatible with OpenAI
    base_url = "https://api.deepseek.com"
    api_key_env = ["DEEPSEEK_API_KEY"]
    purpose = "user_data"

A key in the environment turns nothing on: reading an attribute sends files away, so that is asked for by
name. Keys are read when they are needed, so a changed key file takes effect at once, and are never shown.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from exaifs.errors import ConfigError
from exaifs.providers.errors import ProviderKeyMissing
from exaifs.providers.mistakes import mistake_in

MB = 1_000_000
"""Providers' limits are written in decimal units."""

_T = TypeVar("_T")

_FormText = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]
"""What stands in one line of a form."""

_DAY_S = 86_400
_NAME = re.compile(r"[a-z0-9-]{1,32}")


class ProviderSettings(BaseModel):
    """One provider."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["openai", "anthropic", "gemini"] = "openai"
    """Which API it speaks; `openai` with all that are compatible."""
    base_url: str
    """Without a slash at the end; for `openai` with the version (`/v1`)."""
    api_key_env: tuple[str, ...] = ()
    """Variables that may hold the key; with `_FILE` added, one that names a file."""
    api_key_file: Path | None = None
    account: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """A label for the account, so that ids survive a new key; else the key itself tells accounts apart."""
    purpose: _FormText = ""
    purpose_by_mime: dict[str, _FormText] = Field(default_factory=dict)
    """Patterns such as `image/*`."""
    max_bytes: int = Field(default=512 * MB, gt=0)
    max_bytes_by_mime: dict[str, int] = Field(default_factory=dict)
    allow_empty: bool = False
    extensions: tuple[str, ...] | None = None
    """Lower case without dot, whatever the file says; None: any."""
    ttl_s: int | None = Field(default=None, gt=0)
    """How long a file lives there, unless the provider says so itself."""
    expires_after_s: int | None = Field(default=None, gt=0)
    """Ask the provider to delete it so long after the upload."""
    check: Literal["retrieve", "list", "none"] = "retrieve"
    """How to find out whether a file is still there."""
    list_paging: Literal["after", "page", "none"] = "after"
    extra_form: dict[_FormText, _FormText] = Field(default_factory=dict)
    api_version: str = "2026-10-21"
    """`anthropic-version`."""
    upload: Literal["owner", "any", "never"] = "owner"
    """Whose reads may send a file away."""
    concurrency: int = Field(default=2, ge=1, le=64)

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("a provider's name has 1 to 32 of a-z, 0-9 and -")
        return value

    @field_validator("api_key_env", "extensions", mode="before")
    @classmethod
    def _one_is_enough(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("extensions")
    @classmethod
    def _as_compared(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else tuple(one.lower().removeprefix(".") for one in value)

    @field_validator("base_url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        parts = urlsplit(value)
        try:
            is_plain = bool(parts.hostname and parts.port != 0)
        except ValueError:
            is_plain = False
        is_plain = is_plain and value.isascii() and value.isprintable() and " " not in value
        if parts.scheme not in {"http", "https"} or not is_plain or parts.username or {*"?#"} & {*value}:
            raise ValueError("must look like https://api.example.com/v1")
        return value.rstrip("/")

    @property
    def host(self) -> str:
        """Where files are sent to."""
        return urlsplit(self.base_url).netloc

    @property
    def key(self) -> str:
        """The API key.

        Raises:
            ProviderKeyMissing: none is set, or its file cannot be read.
        """
        for name in self.api_key_env:
            direct = os.environ.get(name, "").strip()
            file = os.environ.get(f"{name}_FILE", "").strip()
            if direct or file:
                return self._checked(direct or self._read(Path(file)))
        return self._checked("" if self.api_key_file is None else self._read(self.api_key_file))

    def _read(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise ProviderKeyMissing(f"{self.name}: cannot read the key file {path}") from exc

    def _checked(self, key: str) -> str:
        if not key:
            where = " or ".join(self.api_key_env) or "api_key_env"
            raise ProviderKeyMissing(
                f"{self.name}: no API key. Set {where}, or api_key_file in the settings."
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ProviderKeyMissing(f"{self.name}: the API key contains characters that no key has")
        return key

    def fingerprint(self, key: str) -> str:
        """Tell keys apart without showing them."""
        return hashlib.sha256(f"{self.base_url}{key}".encode()).hexdigest()[:12]

    def account_of(self, key: str) -> str:
        """Name the account without showing the key."""
        return self.fingerprint(key) if self.account is None else self.account

    def purpose_of(self, mime_type: str) -> str:
        """Return the purpose under which such a file is uploaded."""
        return _by_mime(self.purpose_by_mime, mime_type, self.purpose)

    def max_bytes_of(self, mime_type: str) -> int:
        """Return the limit for such a file."""
        return _by_mime(self.max_bytes_by_mime, mime_type, self.max_bytes)


def _by_mime(table: Mapping[str, _T], mime_type: str, otherwise: _T) -> _T:
    found = (value for pattern, value in table.items() if fnmatch.fnmatchcase(mime_type, pattern))
    return next(found, otherwise)


class ProvidersConfig(BaseModel):
    """All providers that are turned on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: dict[str, ProviderSettings] = Field(default_factory=dict)
    deadline_s: float = Field(default=30, gt=0)
    """How long a reader waits for an upload."""
    upload_limit_s: float = Field(default=900, gt=0)
    """How long an upload may go on after that."""
    recheck_s: float = Field(default=_DAY_S, gt=0)
    """An id that was not verified for so long is checked before it is given out."""

    def patient(self) -> ProvidersConfig:
        """Return the same for who waits as long as an upload may take: no file system hangs on them."""
        return self.model_copy(update={"deadline_s": self.upload_limit_s})

    def secrets(self) -> tuple[str, ...]:
        """Return the keys that are set, for redaction."""
        found = []
        for settings in self.provider.values():
            try:
                found.append(settings.key)
            except ProviderKeyMissing:
                continue
        return tuple(found)


BUILT_IN: Mapping[str, Mapping[str, Any]] = {
    "openai": {
        "base_url": "https://api.openai.com/v1",
        "api_key_env": ("OPENAI_API_KEY",),
        "purpose": "user_data",
        "allow_empty": True,
    },
    "kimi": {
        "base_url": "https://api.moonshot.ai/v1",
        "api_key_env": ("MOONSHOT_API_KEY", "KIMI_API_KEY"),
        "purpose": "file-extract",
        "purpose_by_mime": {"image/*": "image", "video/*": "video"},
        "max_bytes": 100 * MB,
        "list_paging": "none",
    },
    "glm": {
        "base_url": "https://api.z.ai/api/paas/v4",
        "api_key_env": ("ZAI_API_KEY", "GLM_API_KEY"),
        "purpose": "agent",
        "max_bytes": 100 * MB,
        "ttl_s": 180 * _DAY_S,
        "check": "none",
        "list_paging": "none",
        "extensions": ("pdf", "doc", "xlsx", "ppt", "txt", "jpg", "png"),
    },
    "glm-cn": {
        "base_url": "https://open.bigmodel.cn/api/paas/v4",
        "api_key_env": ("ZHIPUAI_API_KEY", "BIGMODEL_API_KEY"),
        "purpose": "agent",
        "max_bytes": 20 * MB,
        "max_bytes_by_mime": {"image/*": 5 * MB},
        "check": "list",
        "extensions": ("pdf", "docx", "doc", "xls", "xlsx", "txt", "png", "jpg", "jpeg", "csv"),
    },
    "mistral": {
        "base_url": "https://api.mistral.ai/v1",
        "api_key_env": ("MISTRAL_API_KEY",),
        "purpose": "ocr",
        "ttl_s": 30 * _DAY_S,
        "list_paging": "page",
    },
    "anthropic": {
        "kind": "anthropic",
        "base_url": "https://api.anthropic.com",
        "api_key_env": ("ANTHROPIC_API_KEY",),
        "max_bytes": 500 * MB,
        "allow_empty": True,
    },
    "gemini": {
        "kind": "gemini",
        "base_url": "https://generativelanguage.googleapis.com",
        "api_key_env": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        "max_bytes": 2000 * MB,
        "ttl_s": 2 * _DAY_S,
    },
}
"""Defaults; every value can be changed in the file, because providers' documents contradict each other."""


def load_providers(path: Path | None, names: str = "") -> ProvidersConfig | None:
    """Read the settings; None: no provider is turned on.

    Args:
        path: the TOML file, if there is one.
        names: built-in providers to turn on besides, separated by commas.

    Raises:
        ConfigError: saying what is wrong where.
    """
    whole = {} if path is None else _read_file(path)
    tables = _tables(path, whole)
    for name in (name.strip() for name in names.split(",")):
        if name and name not in tables and name not in BUILT_IN:
            known = ", ".join(BUILT_IN)
            raise ConfigError(
                f"EXAIFS_PROVIDERS: {name!r} is not built in ({known}). "
                "Describe it in EXAIFS_PROVIDERS_FILE."
            )
        if name:
            tables.setdefault(name, {})
    whole["provider"] = {
        name: {**BUILT_IN.get(name, {}), **table, "name": name} for name, table in tables.items()
    }
    try:
        config = ProvidersConfig(**whole)
    except ValidationError as exc:
        for_all = ProvidersConfig.model_fields.keys() - {"provider"}
        for_one = ProviderSettings.model_fields.keys() - {"name"}
        mistake = mistake_in(exc, sorted(for_all), sorted(for_one), BUILT_IN)
        raise ConfigError(f"{path or 'EXAIFS_PROVIDERS'}: {mistake}") from None
    return config if config.provider else None


def _tables(path: Path | None, whole: dict[str, Any]) -> dict[str, Any]:
    """Take the providers' tables out of the file.

    Raises:
        ConfigError: something else stands where tables do.
    """
    tables = whole.pop("provider", {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise ConfigError(f"{path}: each provider is a table, [provider.NAME]")
    for name, table in tables.items():
        if "name" in table:
            raise ConfigError(f"{path}: provider.{name}.name: the table's own name is the provider's")
    for name, value in whole.items():
        if isinstance(value, dict):
            meant = "NAME" if name == "providers" else name
            raise ConfigError(f"{path}: [{name}] is no setting; a provider's table is [provider.{meant}]")
    return tables


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read the providers' settings {path}: {exc}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path}: not TOML: {exc}") from exc
