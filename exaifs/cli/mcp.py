"""`exaifs mcp`: the files of a bucket as tools and resources for language models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import click
import trio

from exaifs import logs
from exaifs.cli.command import Session, bucket, command as define, log_level, pass_session
from exaifs.config import Config
from exaifs.errors import ConfigError
from exaifs.providers.settings import load_providers

if TYPE_CHECKING:
    from exaifs.logs import Redactor

_EXTRA: Final = frozenset({"mcp", "mcp_types", "uvicorn", "starlette"})
LOG_FORMATS: Final = ("auto", "console", "json")


@define(
    "mcp",
    examples=(
        ("exaifs mcp", "for a desktop client, which starts it: over stdin and stdout"),
        ("exaifs mcp --read-only --bucket reports", "without the tools that change something"),
        ("exaifs mcp --http 127.0.0.1:8765", "for clients of this machine, at http://127.0.0.1:8765/mcp"),
        ("EXAIFS_MCP_TOKEN_FILE=token exaifs mcp --http 0.0.0.0:8765", "for others, who send that token"),
    ),
)
@click.option(
    "--http",
    "listen",
    metavar="HOST:PORT",
    help="Serve streamable HTTP there instead. Other hosts than loopback need EXAIFS_MCP_TOKEN.",
)
@click.option(
    "--read-only",
    is_flag=True,
    default=None,
    help="Offer no tool that changes something, or sends files away.  [EXAIFS_READ_ONLY]",
)
@bucket
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Disk cache; that of a running mount may be shared.  [FILE_CACHE_DIR, /var/cache/exaifs]",
)
@log_level
@click.option("--log-format", type=click.Choice(LOG_FORMATS), help="How to log.  [EXAIFS_LOG_FORMAT, auto]")
@pass_session
def command(session: Session, /, *, listen: str | None, **flags: Any) -> None:
    """Serve the files of a bucket to language models, by the Model Context Protocol.

    Over stdin and stdout, until the client closes them; or over HTTP, until SIGTERM. Tools list, find,
    read, store and delete files, and get their ids at LLM providers (EXAIFS_PROVIDERS). Logs go to
    stderr.

    Needs the extra: pip install 'exaifs[mcp]'. The token for HTTP is read from EXAIFS_MCP_TOKEN, or from
    the file that EXAIFS_MCP_TOKEN_FILE names, never from the command line.
    """
    config = session.load(**flags)
    config.require_remote()
    providers = load_providers(config.providers_file, config.providers)
    secrets = (*logs.secrets_of(config), *(providers.secrets() if providers else ()))
    session.redact = logs.setup(config.log_level, config.log_format, secrets)
    try:
        _serve(config, listen, session.redact)
    except ImportError as exc:
        if (exc.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise ConfigError(
            f"`exaifs mcp` needs a package that is not installed, or too old ({exc.name}): "
            "pip install 'exaifs[mcp]'"
        ) from None


def _serve(config: Config, listen: str | None, redact: Redactor) -> None:
    """Import what serves, which takes a second and is an extra; then serve.

    Raises:
        ConfigError: the address does not fit, or needs a token.
        ImportError: the extra is not installed.
    """
    if listen is None:
        from exaifs.mcp.stdio import serve_stdio  # noqa: PLC0415 - see above

        trio.run(serve_stdio, config, redact)
        return
    from exaifs.mcp.http import address_of, serve_http  # noqa: PLC0415 - see above

    address = address_of(listen)
    if not address.is_loopback and not config.mcp_bearer:
        raise ConfigError(
            f"--http {address} can be reached by other machines, so clients must send a token: set "
            "EXAIFS_MCP_TOKEN, or EXAIFS_MCP_TOKEN_FILE to a file that holds it (openssl rand -hex 32)"
        )
    anyio.run(serve_http, config, address, redact, backend="asyncio")
