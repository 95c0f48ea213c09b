from __future__ import annotations

import base64
import io
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import structlog

from exaifs import logs
from exaifs.config import Config

JWT = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    ".eyJyb2xlIjoic2VydmljZV9yb2xlIiwiaXNzIjoic3VwYWJhc2UifQ"
    ".c2lnbmF0dXJlLW9mLXRoZS10ZXN0LWtleS1vbmx5"
)
SECRET = "sb_secret_N7UND0UgjKTVK-Uodkm0Hg_xSvEMPvz"
PASSWORD = "p@ss/word=9"


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    sys.excepthook = hooks
    logging.captureWarnings(capture=False)


def _setup(format_: str = "auto", level: str = "debug") -> io.StringIO:
    stream = io.StringIO()
    logs.setup(level, format_, [JWT, SECRET, PASSWORD], stream=stream)  # type: ignore[arg-type]  # literals
    return stream


@pytest.mark.parametrize("format_", ["auto", "console", "json"])
@pytest.mark.parametrize(
    "text",
    [
        JWT,
        SECRET,
        PASSWORD,
        quote(PASSWORD, safe=""),
        base64.b64encode(JWT.encode()).decode(),
        JWT.split(".")[1],
        JWT.split(".")[2],
        f"Bearer {JWT}",
        f"{{'apikey': '{SECRET}', 'Authorization': 'Bearer {SECRET}'}}",
        f"[(b'apikey', b'{SECRET}')]",
        f"postgresql://postgres:{quote(PASSWORD, safe='')}@db.example:5432/postgres",
    ],
)
def test_known_secrets_never_appear(format_: str, text: str) -> None:
    """No spelling of a known secret reaches the log, as event, value or argument, in any format."""
    stream = _setup(format_)
    log = structlog.get_logger("test")
    log.info(text)
    log.warning("event", value=text, nested={"deep": [text]}, raw=text.encode())
    logging.getLogger("third.party").error("failed: %s", text)
    written = stream.getvalue()
    assert "event" in written
    for secret in (JWT, SECRET, PASSWORD, quote(PASSWORD, safe=""), *JWT.split(".")[1:]):
        assert secret not in written
        assert base64.b64encode(secret.encode()).decode().rstrip("=") not in written


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Authorization: Bearer abc.def.ghi", "Bearer "),
        ("apikey: 0123456789abcdef", "apikey: "),
        ("apikey 0123456789abcdef", "apikey "),
        ("https://x.supabase.co/o/sign/a?token=eyJhbGciOiJIUzI1NiJ9.eyJhIjoxfQ.c2ln", "token="),
        ("postgresql://me:hunter22@db:5432/p", "postgresql://me:"),
        ("sb_secret_0123456789abcdef", ""),
    ],
)
def test_what_looks_like_a_key_is_removed(text: str, kept: str) -> None:
    """Keys nobody announced are recognised by their form; the words around them stay."""
    cleaned = logs.Redactor()(text)
    assert logs.REDACTED in cleaned
    assert kept in cleaned
    for part in ("abc.def", "0123456789abcdef", "hunter22", "c2ln", "eyJ"):
        assert part not in cleaned


@pytest.mark.parametrize(
    "text",
    ["a basic check of /app/files", "uploads/1/key.txt", "apikey missing", "user-files", "12:30:01 x@y"],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    """Redaction does not eat messages that hold no secret."""
    assert logs.Redactor([JWT, "", "ab"])(text) == text


@pytest.mark.parametrize("format_", ["auto", "json"])
def test_tracebacks_are_redacted(format_: str) -> None:
    """A secret in an exception's message or its cause is removed from the traceback."""
    stream = _setup(format_)

    def fail() -> None:
        try:
            int(f"bad header {SECRET}")
        except ValueError as exc:
            raise RuntimeError(JWT) from exc

    for log_it in (structlog.get_logger("a").exception, logging.getLogger("b").exception):
        try:
            fail()
        except RuntimeError:
            log_it("it failed")
    written = stream.getvalue()
    assert written.count("RuntimeError: ") == 2
    assert "bad header" in written
    assert SECRET not in written
    assert JWT.split(".")[2] not in written


def test_warnings_go_through_logging() -> None:
    """A Python warning is a redacted log line too."""
    stream = _setup()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"careless {SECRET}", stacklevel=1)
    assert "careless" in stream.getvalue()
    assert SECRET not in stream.getvalue()


def test_request_logs_of_the_http_library_are_off() -> None:
    """At info and debug httpx would log each request."""
    stream = _setup(level="debug")
    logging.getLogger("httpx").info("HTTP Request: GET")
    logging.getLogger("httpcore.connection").debug("connect_tcp.started")
    assert stream.getvalue() == ""


def test_names_that_are_not_utf8_are_printable() -> None:
    """A file name with undecodable bytes must not break the line."""
    stream = _setup("json")
    structlog.get_logger("a").info("x", name=b"\xff.txt".decode("utf-8", "surrogateescape"))
    assert ".txt" in stream.getvalue()
    stream.getvalue().encode("utf-8")


def test_secrets_of_reads_the_key_file(tmp_path: Path) -> None:
    """The key is a secret wherever it is kept, and so is the database password, quoted or not."""
    key_file = tmp_path / "key"
    key_file.write_text(JWT + "\n")
    config = Config(
        supabase_key_file=key_file,
        database_url=f"postgresql://u:{quote(PASSWORD, safe='')}@h/d",
    )
    found = logs.secrets_of(config)
    assert JWT in found
    assert PASSWORD in found


def test_an_uncaught_exception_is_redacted() -> None:
    """What ends the process is written through the same formatter."""
    program = f"from exaifs import logs; logs.setup(secrets=[{SECRET!r}]); raise ValueError({SECRET!r})"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 1
    assert "ValueError" in result.stderr
    # The source line of `python -c` is not shown, so the message is the only place.
    assert SECRET not in result.stderr
