"""Settings from the environment, overridden by flags, validated once and frozen.

The names of the original deployment are kept; ours start with `EXAIFS_`. Secrets are `SecretStr`, so
that no `repr`, log line or traceback shows them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from exaifs.errors import ConfigError

MIB = 1024 * 1024


def _names(*names: str) -> AliasChoices:
    return AliasChoices(*names)


class Config(BaseSettings):
    """Everything that can be set. Field names carry units; aliases are the environment's names."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    supabase_url: str = Field(default="", validation_alias=_names("SUPABASE_URL"))
    supabase_key: SecretStr = Field(
        default=SecretStr(""),
        validation_alias=_names("SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SERVICE_KEY"),
    )
    supabase_key_file: Path | None = Field(
        default=None,
        validation_alias=_names("SUPABASE_SERVICE_ROLE_KEY_FILE", "SUPABASE_SERVICE_KEY_FILE"),
    )
    database_url: SecretStr = Field(default=SecretStr(""), validation_alias=_names("EXAIFS_DATABASE_URL"))
    bucket: str = Field(default="user-files", validation_alias=_names("FILE_STORAGE_BUCKET"))
    cache_dir: Path = Field(default=Path("/var/cache/exaifs"), validation_alias=_names("FILE_CACHE_DIR"))
    memory_cache_bytes: int = Field(
        default=100 * MIB, ge=0, validation_alias=_names("MAX_MEMORY_CACHE_SIZE")
    )
    disk_cache_mb: int = Field(default=1000, ge=0, validation_alias=_names("MAX_CACHE_SIZE_MB"))
    cache_age_days: float = Field(default=30, gt=0, validation_alias=_names("MAX_CACHE_AGE_DAYS"))
    freshness_s: float = Field(default=1.0, gt=0, validation_alias=_names("EXAIFS_FRESHNESS_S"))
    read_only: bool = Field(default=False, validation_alias=_names("EXAIFS_READ_ONLY"))
    allow_other: bool = Field(default=False, validation_alias=_names("EXAIFS_ALLOW_OTHER"))
    uid: int | None = Field(default=None, ge=0, validation_alias=_names("EXAIFS_UID"))
    gid: int | None = Field(default=None, ge=0, validation_alias=_names("EXAIFS_GID"))
    umask: Annotated[int, NoDecode] = Field(
        default=0o022, ge=0, le=0o777, validation_alias=_names("EXAIFS_UMASK")
    )
    request_timeout_s: float = Field(
        default=10.0, gt=0, validation_alias=_names("EXAIFS_REQUEST_TIMEOUT_S")
    )
    drain_timeout_s: float = Field(default=25.0, ge=0, validation_alias=_names("EXAIFS_DRAIN_TIMEOUT_S"))
    require_online: bool = Field(default=False, validation_alias=_names("EXAIFS_REQUIRE_ONLINE"))
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", validation_alias=_names("EXAIFS_LOG_LEVEL")
    )
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto", validation_alias=_names("EXAIFS_LOG_FORMAT")
    )

    @field_validator("umask", mode="before")
    @classmethod
    def _octal(cls, value: Any) -> Any:
        """Read a umask as every shell writes it."""
        return int(value, 8) if isinstance(value, str) else value

    @field_validator("supabase_url")
    @classmethod
    def _url(cls, value: str) -> str:
        if value:
            parts = urlsplit(value)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ValueError("must look like https://PROJECT.supabase.co")
            if parts.username or parts.password:
                raise ValueError("must not contain a user or password")
        return value.rstrip("/")

    @property
    def key(self) -> str:
        """The service_role key, read from its file where one is named.

        Raises:
            ConfigError: the file cannot be read.
        """
        direct = self.supabase_key.get_secret_value().strip()
        if direct or self.supabase_key_file is None:
            return direct
        try:
            return self.supabase_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(
                f"cannot read the key file {self.supabase_key_file}: {exc}. "
                "Point SUPABASE_SERVICE_ROLE_KEY_FILE at a file that holds only the key."
            ) from exc

    def require_remote(self) -> None:
        """Check that a server and a key are named.

        Raises:
            ConfigError: saying which variable is missing and where its value comes from.
        """
        if not self.supabase_url:
            raise ConfigError(
                "SUPABASE_URL is not set. Find it in the Supabase dashboard under Project Settings > "
                "Data API, or run `exaifs dev` for a local server that prints it."
            )
        if not self.key:
            raise ConfigError(
                "SUPABASE_SERVICE_ROLE_KEY is not set. Find it in the Supabase dashboard under Project "
                "Settings > API Keys (service_role or a secret key), or name a file that holds it in "
                "SUPABASE_SERVICE_ROLE_KEY_FILE."
            )


def load(**overrides: Any) -> Config:
    """Read the environment; overrides that are not None (flags) win.

    Raises:
        ConfigError: a value does not fit, named as the user wrote it.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Config(**given)
    except ValidationError as exc:
        first = exc.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}: {first['msg']}") from exc
