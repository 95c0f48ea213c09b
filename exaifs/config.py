"""Settings from the environment, overridden by flags, validated once and frozen.

The names of the original deployment are kept; ours start with `EXAIFS_`. Secrets are `SecretStr`, so
that no `repr`, log line or traceback shows them.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from exaifs.errors import ConfigError

MIB = 1024 * 1024
MAX_BUCKET_NAME = 100
"""Characters; the limit of Supabase Storage."""
URL_SHAPE = "must look like https://PROJECT.supabase.co"


def _names(*names: str) -> AliasChoices:
    return AliasChoices(*names)


class _Environment(PydanticBaseSettingsSource):
    """Reads exactly the names that the fields declare.

    The library's own source also reads a variable called like the field (`UID`, `GID`, `BUCKET`), which
    other programs set for themselves. An empty variable counts as not set: Compose files pass those.
    """

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the first declared name that is set, its value, and that it is not JSON."""
        aliases = field.validation_alias
        for name in aliases.choices if isinstance(aliases, AliasChoices) else ():
            if isinstance(name, str) and os.environ.get(name, "").strip():
                return os.environ[name].strip(), name, False
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return what the environment sets, under the names it uses."""
        found = (
            self.get_field_value(field, name) for name, field in self.settings_cls.model_fields.items()
        )
        return {name: value for value, name, _ in found if value is not None}


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
    consistency: Literal["feed", "open"] = Field(
        default="feed", validation_alias=_names("EXAIFS_CONSISTENCY")
    )
    read_only: bool = Field(default=False, validation_alias=_names("EXAIFS_READ_ONLY"))
    allow_other: bool = Field(default=False, validation_alias=_names("EXAIFS_ALLOW_OTHER"))
    uid: int | None = Field(default=None, ge=0, validation_alias=_names("EXAIFS_UID"))
    gid: int | None = Field(default=None, ge=0, validation_alias=_names("EXAIFS_GID"))
    umask: int = Field(default=0o022, ge=0, le=0o777, validation_alias=_names("EXAIFS_UMASK"))
    request_timeout_s: float = Field(
        default=10.0, gt=0, validation_alias=_names("EXAIFS_REQUEST_TIMEOUT_S")
    )
    read_timeout_s: float = Field(default=10.0, gt=0, validation_alias=_names("EXAIFS_READ_TIMEOUT_S"))
    providers_file: Path | None = Field(default=None, validation_alias=_names("EXAIFS_PROVIDERS_FILE"))
    providers: str = Field(default="", validation_alias=_names("EXAIFS_PROVIDERS"))
    url_lifetime_s: int = Field(
        default=3600, ge=1, le=7 * 86400, validation_alias=_names("EXAIFS_URL_LIFETIME_S")
    )
    write_mode: Literal["through", "back"] = Field(
        default="through", validation_alias=_names("EXAIFS_WRITE_MODE")
    )
    write_back_s: float = Field(default=2.0, ge=0, validation_alias=_names("EXAIFS_WRITE_BACK_S"))
    offline_writes: Literal["journal", "refuse"] = Field(
        default="journal", validation_alias=_names("EXAIFS_OFFLINE_WRITES")
    )
    conflict: Literal["last-close", "refuse"] = Field(
        default="last-close", validation_alias=_names("EXAIFS_CONFLICT")
    )
    mcp_token: SecretStr = Field(default=SecretStr(""), validation_alias=_names("EXAIFS_MCP_TOKEN"))
    mcp_token_file: Path | None = Field(default=None, validation_alias=_names("EXAIFS_MCP_TOKEN_FILE"))
    drain_timeout_s: float = Field(default=25.0, ge=0, validation_alias=_names("EXAIFS_DRAIN_TIMEOUT_S"))
    require_online: bool = Field(default=False, validation_alias=_names("EXAIFS_REQUIRE_ONLINE"))
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", validation_alias=_names("EXAIFS_LOG_LEVEL")
    )
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto", validation_alias=_names("EXAIFS_LOG_FORMAT")
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - replaced by ours
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - no file is read behind the user's back
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the key has its own _FILE variable
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take flags, then the environment; nothing else."""
        return init_settings, _Environment(settings_cls)

    @field_validator("umask", mode="before")
    @classmethod
    def _octal(cls, value: Any) -> Any:
        """Read a umask as every shell writes it."""
        if not isinstance(value, str):
            return value
        try:
            return int(value, 8)
        except ValueError:
            raise ValueError("must be octal, such as 022") from None

    @field_validator("supabase_url")
    @classmethod
    def _url(cls, value: str) -> str:
        value = value.strip().rstrip("/")
        if not value:
            return ""
        parts = _split_url(value)
        if parts.hostname in {"supabase.com", "app.supabase.com"}:
            raise ValueError(
                "is the address of the dashboard; the project's own URL, https://PROJECT.supabase.co, "
                "stands there under Project Settings > Data API"
            )
        if parts.path.endswith(("/rest/v1", "/storage/v1", "/auth/v1")):
            raise ValueError(f"must be the project's URL alone, without {parts.path}")
        return value

    @field_validator("cache_dir", "supabase_key_file", "providers_file", "mcp_token_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        """Keep the meaning of a path when the daemon leaves its working directory."""
        return None if value is None else value.expanduser().absolute()

    @field_validator("bucket")
    @classmethod
    def _bucket(cls, value: str) -> str:
        if not value or "/" in value or not value.isprintable() or len(value) > MAX_BUCKET_NAME:
            raise ValueError("must be the name of a bucket, such as user-files")
        return value

    @property
    def key(self) -> str:
        """The service_role key, read from its file where one is named; empty when neither is set.

        Raises:
            ConfigError: the file cannot be read, or is empty.
        """
        return _secret_of(
            self.supabase_key, self.supabase_key_file, "key", "SUPABASE_SERVICE_ROLE_KEY_FILE"
        )

    @property
    def mcp_bearer(self) -> str:
        """The token that clients of `exaifs mcp --http` must send; empty when none is set.

        Raises:
            ConfigError: its file cannot be read or is empty, or it cannot stand in a header.
        """
        token = _secret_of(self.mcp_token, self.mcp_token_file, "token", "EXAIFS_MCP_TOKEN_FILE")
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise ConfigError("EXAIFS_MCP_TOKEN must be printable ASCII without spaces")
        return token

    @property
    def may_keep(self) -> bool:
        """Whether anything may be acknowledged that is in the local journal only."""
        return self.offline_writes == "journal" or self.write_mode == "back"

    @property
    def is_local_server(self) -> bool:
        """Whether the server is on this machine, so that no proxy stands in between."""
        host = urlsplit(self.supabase_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")

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
        if not (self.key.isascii() and self.key.isprintable()) or " " in self.key:
            raise ConfigError(
                "SUPABASE_SERVICE_ROLE_KEY contains characters that no key has (spaces, line breaks, "
                "quotes from another alphabet): copy it again, whole and alone."
            )


def _secret_of(direct: SecretStr, file: Path | None, what: str, variable: str) -> str:
    """Return a secret that is set directly, or held by a file; empty when it is neither.

    Raises:
        ConfigError: the file cannot be read, or holds none: who names one does not want to go without.
    """
    value = direct.get_secret_value().strip()
    if value or file is None:
        return value
    try:
        value = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"cannot read the {what} file {file}: {exc.strerror if isinstance(exc, OSError) else exc}. "
            f"Point {variable} at a file that holds only the {what}."
        ) from exc
    if not value:
        raise ConfigError(
            f"the {what} file {file} is empty. Point {variable} at a file that holds only the {what}."
        )
    return value


def _split_url(value: str) -> SplitResult:
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018 - reading it checks it
    except ValueError:
        raise ValueError(URL_SHAPE) from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(URL_SHAPE)
    if parts.username or parts.password:
        raise ValueError("must not contain a user or password")
    if parts.query or parts.fragment:
        raise ValueError("must not contain ? or #")
    return parts


def load(**overrides: Any) -> Config:
    """Read the environment; overrides that are not None (flags) win.

    Raises:
        ConfigError: a value does not fit, named as the user wrote it.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Config(**given)
    except ValidationError as exc:
        problem = exc.errors(include_input=False, include_url=False)[0]
        raise ConfigError(f"{_as_written(str(problem['loc'][0]), given)}: {_in_words(problem)}") from None


_WORDS = {
    "bool_parsing": "must be true or false",
    "float_parsing": "must be a number",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "int_parsing": "must be a whole number",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
}
"""By the library's kind of error; its own messages speak of inputs and parsing."""


def _in_words(problem: ErrorDetails) -> str:
    words = _WORDS.get(problem["type"])
    if words is None:
        return problem["msg"].removeprefix("Value error, ")
    return words.format(**problem.get("ctx", {}))


def _as_written(where: str, given: dict[str, Any]) -> str:
    """Name a field as the user did: the flag, else the variable."""
    for name, field in Config.model_fields.items():
        aliases = field.validation_alias
        known = aliases.choices if isinstance(aliases, AliasChoices) else ()
        if where == name or where in known:
            return f"--{name.replace('_', '-')}" if name in given else where
    return where
