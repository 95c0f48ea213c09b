"""Structured logging on stderr, ours and the libraries', with secrets removed from the final line.

Redaction works on rendered text, so that it also covers tracebacks, third-party records, warnings and
uncaught exceptions. `setup` is called once, by the process's entry point, or `setup_library` where the
process is somebody else's; everybody else only asks structlog for a logger.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import sys
import threading
from collections.abc import Iterable, MutableMapping
from types import TracebackType
from typing import IO, Any, Literal
from urllib.parse import quote, quote_plus, unquote, urlsplit

import structlog

from exaifs.config import Config
from exaifs.errors import ConfigError

REDACTED = "[redacted]"

_MIN_SECRET_CHARACTERS = 4
"""Shorter ones would blank out ordinary words; nobody's key is that short."""

_UNMISTAKABLE_CHARACTERS = 16
"""From this length on a secret is also removed from inside a longer word."""

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # JSON Web Tokens, whole or cut off, wherever they come from (signed URLs carry them too).
    (re.compile(r"eyJ[A-Za-z0-9_-]{10,}(?:\.[A-Za-z0-9_-]*){0,2}"), REDACTED),
    (re.compile(r"\bsb_secret_[A-Za-z0-9_-]+"), REDACTED),
    (re.compile(r"(?i)\b(bearer\s+)[^\s'\",;)}\]]+"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)\b(basic\s+)[A-Za-z0-9+/_-]{6,}={0,2}(?=$|[\s'\",;)}\]])"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)\b(api-?key['\"]?\s*[:=,]\s*b?['\"]?)[^\s'\",;:=)}\]]{6,}"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)\b(api-?key\s+)[^\s'\",;:=)}\]]{16,}"), rf"\1{REDACTED}"),
    (re.compile(r"\b([a-z][a-z0-9+.-]*://[^\s:/@'\"]*:)[^\s@/'\"]+@"), rf"\1{REDACTED}@"),
)

_QUIET_LOGGERS = ("httpx", "httpcore", "h2", "hpack", "storage3", "postgrest", "supabase", "pyfuse3")
"""Libraries that log every request, or every worker task, at info or debug."""


class Redactor:
    """Removes known secrets, in the encodings they travel in, and whatever looks like a key.

    Args:
        secrets: plain values; empty and very short ones are ignored.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets for form in _forms(secret.strip())}
        # Longest first, so that a whole key goes before its parts.
        parts = [_literal(form) for form in sorted(forms, key=lambda form: (-len(form), form))]
        self._known = re.compile("|".join(parts)) if parts else None

    def __call__(self, text: str) -> str:
        """Return `text` without secrets."""
        if self._known is not None:
            text = self._known.sub(REDACTED, text)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text


def _forms(secret: str) -> set[str]:
    """Return how one secret may be spelled in text."""
    raw = secret.encode("utf-8", "surrogateescape")
    forms = {
        secret,
        quote(raw, safe=""),
        quote_plus(raw),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
        base64.b64encode(raw).decode().rstrip("="),
        base64.urlsafe_b64encode(raw).decode().rstrip("="),
    }
    if secret.count(".") == 2:  # noqa: PLR2004 - a JSON Web Token has three parts
        _header, payload, signature = secret.split(".")
        forms |= {payload, signature}
    return {form for form in forms if len(form) >= _MIN_SECRET_CHARACTERS}


def _literal(form: str) -> str:
    if len(form) >= _UNMISTAKABLE_CHARACTERS:
        return re.escape(form)
    return rf"(?<![A-Za-z0-9]){re.escape(form)}(?![A-Za-z0-9])"


def secrets_of(config: Config) -> tuple[str, ...]:
    """Return every secret the settings hold: the key, the database URL's password, the token of `mcp`."""
    try:
        key = config.key
    except ConfigError:
        key = config.supabase_key.get_secret_value()
    try:
        token = config.mcp_bearer
    except ConfigError:
        token = config.mcp_token.get_secret_value()
    database_url = config.database_url.get_secret_value()
    try:
        password = urlsplit(database_url).password or ""
    except ValueError:
        password = ""
    return tuple(value for value in (key, token, database_url, password, unquote(password)) if value)


class _RedactingFormatter(structlog.stdlib.ProcessorFormatter):
    """Renders a record, then redacts what came out."""

    def __init__(self, redactor: Redactor, processors: list[Any], foreign: list[Any]) -> None:
        super().__init__(processors=processors, foreign_pre_chain=foreign)
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        return self._redactor(super().format(record))


def setup(
    level: Literal["debug", "info", "warning", "error"] = "info",
    format: Literal["auto", "console", "json"] = "auto",  # noqa: A002 - the word of the flag
    secrets: Iterable[str] = (),
    *,
    stream: IO[str] | None = None,
) -> Redactor:
    """Send all logging to one stream; calling it again replaces what was set up before.

    Args:
        level: the least that is shown; libraries that log every request start at warning.
        format: `console` for people, `json` for collectors; `auto` is coloured on a terminal and plain
            text otherwise.
        secrets: what must never appear.
        stream: standard error unless given.

    Returns:
        The redactor, for other text that leaves the process.
    """
    target = sys.stderr if stream is None else stream
    redactor = Redactor(secrets)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(target)
    handler.setFormatter(_RedactingFormatter(redactor, _final(format, target), shared))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared[:3],
            structlog.stdlib.PositionalArgumentsFormatter(),
            shared[-1],
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # A cached logger would keep the configuration of an earlier call.
        cache_logger_on_first_use=False,
    )
    _log_uncaught()
    return redactor


class _PlainText:
    """Renders an event as one text for the standard library's logging, without secrets."""

    def __init__(self) -> None:
        self.secrets: set[str] = set()

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
        trace = event.pop("exception", None)
        words = [str(event.pop("event", "")), *(f"{key}={value!r}" for key, value in event.items())]
        text = "  ".join(words) if trace is None else f"{'  '.join(words)}\n{trace}"
        return Redactor(self.secrets)(text)


def setup_library(secrets: Iterable[str]) -> None:
    """Log as a library does: through the standard library's logging, as the program has set that up.

    Without any set-up structlog prints every line to standard output, where programs print their results
    or speak a protocol, and shows local variables in tracebacks. A program that has set up structlog itself
    gets our lines there, as they are.

    Args:
        secrets: what must never appear, besides those of earlier calls.
    """
    if not structlog.is_configured():
        structlog.configure(
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.contextvars.merge_contextvars,
                structlog.processors.format_exc_info,
                _without_surrogates,
                _PlainText(),
            ],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger,
            cache_logger_on_first_use=False,
        )
    for processor in structlog.get_config()["processors"]:
        if isinstance(processor, _PlainText):
            processor.secrets.update(secrets)


def _final(format_: str, stream: IO[str]) -> list[Any]:
    """Return the processors that turn an event into one text."""
    first: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, _without_surrogates]
    if format_ == "json":
        return [*first, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    colours = stream.isatty()
    console = structlog.dev.ConsoleRenderer(
        colors=colours,
        pad_event_to=30 if colours else 0,
        # Not rich's: it shows local variables, and wraps lines so that a secret no longer matches.
        exception_formatter=structlog.dev.plain_traceback,
    )
    return [*first, console]


def _without_surrogates(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Make names that are not UTF-8 printable; a log line must never fail for its text."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isascii():
            event[key] = value.encode("utf-8", "backslashreplace").decode()
    return event


def _log_uncaught() -> None:
    """Send exceptions nobody caught through logging, because only there they are redacted."""
    log = structlog.get_logger("exaifs")

    def on_main(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.exit(130)
        log.critical("uncaught exception", exc_info=(kind, error, trace))

    def on_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            trace = (args.exc_type, args.exc_value, args.exc_traceback)
            log.critical("uncaught exception in a thread", exc_info=trace)

    sys.excepthook = on_main
    threading.excepthook = on_thread
