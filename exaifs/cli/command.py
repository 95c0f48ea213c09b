"""What every command has: examples in its help, and the session that the error handler reads."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from exaifs.config import Config, load
from exaifs.logs import Redactor, secrets_of

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_ANY_LENGTH: Final = 1000
CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_SECRET_VARIABLES: Final = (
    "SUPABASE_SERVICE_ROLE_KEY",
    "SUPABASE_SERVICE_KEY",
    "EXAIFS_DATABASE_URL",
    "EXAIFS_MCP_TOKEN",
    "PGPASSWORD",
)


def _redactor_of_environment() -> Redactor:
    return Redactor(os.environ.get(name, "") for name in _SECRET_VARIABLES)


@dataclass(slots=True)
class Session:
    """What the error handler must know; `redact` works before any setting is read."""

    debug: bool = field(default_factory=lambda: os.environ.get("EXAIFS_LOG_LEVEL", "").strip() == "debug")
    redact: Redactor = field(default_factory=_redactor_of_environment)

    def load(self, **flags: Any) -> Config:
        """Read the configuration, flags first.

        Raises:
            ConfigError: a value does not fit.
        """
        config = load(**flags)
        self.debug = config.log_level == "debug"
        self.redact = Redactor(secrets_of(config))
        return config


pass_session = click.make_pass_decorator(Session)


class Span(click.FloatRange):
    """A length of time; not `nan`, which every range admits because it compares with nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a number in the range."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is no number.", param, ctx)
        return number


def write_examples(formatter: click.HelpFormatter, examples: Sequence[tuple[str, str]]) -> None:
    """Write a section of command lines and what they do, as they are."""
    if not examples:
        return
    with formatter.section("Examples"):
        for line, meaning in examples:
            indent = " " * formatter.current_indent
            formatter.write(f"{indent}{line}\n")
            if meaning:
                formatter.write(f"{indent}    {meaning}\n")


class ExampleCommand(click.Command):
    """A command whose help ends with examples.

    Args:
        examples: pairs of a command line and what it does, printed as they are.
    """

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **more: Any) -> None:
        super().__init__(*args, **more)
        self._examples = examples

    def get_short_help_str(self, limit: int = 0) -> str:  # noqa: ARG002 - click's signature
        """Return the whole first sentence: help breaks lines, and half a sentence says nothing."""
        return super().get_short_help_str(_ANY_LENGTH)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, then the epilog."""
        write_examples(formatter, self._examples)
        super().format_epilog(ctx, formatter)


def command(
    name: str, *, examples: Sequence[tuple[str, str]]
) -> Callable[[Callable[..., Any]], ExampleCommand]:
    """Make a function a command with examples in its help."""
    return click.command(name, cls=ExampleCommand, examples=examples, context_settings=CONTEXT)


class _Mountpoint(click.Path):
    """A directory that is not looked at: the base class calls stat(2), which hangs on a mount that does."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,  # noqa: ARG002 - click's signature
        ctx: click.Context | None,  # noqa: ARG002 - same
    ) -> Path:
        return Path(value)


MOUNTPOINT: Final = _Mountpoint()
mountpoint = click.argument("directory", metavar="DIR", type=MOUNTPOINT)
log_level = click.option(
    "--log-level",
    type=click.Choice(LOG_LEVELS),
    help="How much to log; debug also shows tracebacks.  [EXAIFS_LOG_LEVEL, info]",
)
bucket = click.option("--bucket", metavar="NAME", help="The bucket.  [FILE_STORAGE_BUCKET, user-files]")
