"""The command group: finds commands, turns every error into one line and an exit code.

Commands are imported when they are called, so that `exaifs doctor` still runs where, say, libfuse is
missing, and `exaifs --help` is quick. A command returns its exit code, or None for 0.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Final

import click

from exaifs import __version__
from exaifs.cli.command import CONTEXT, Session
from exaifs.cli.output import complain
from exaifs.errors import ConfigError, ExaifsError, MountError, Unauthorized, Unreachable
from exaifs.ops.advice import CHECK_URL

COMMANDS: Final = {
    "mount": "Mount a bucket at a directory.",
    "umount": "Unmount a directory, also one left behind by a crash.",
    "sync": "Wait until everything that was written is in Supabase.",
    "status": "Show how a mount is: state, cache, what waits to be sent.",
    "conflicts": "List, compare, restore and discard bytes that lost to another host's.",
    "fsck": "Compare bucket, rows, cache and journal; repair what loses nothing.",
    "dev": "Run a Supabase on this machine, for trying and testing.",
    "init": "Print or apply the database schema; create the buckets.",
    "provider": "File ids at LLM providers: list, id, check, forget, prune.",
    "gc": "Delete orphans, expired files and rows without a file; shows them first.",
    "mcp": "Serve the files to language models, by the Model Context Protocol.",
    "doctor": "Test the connection and this machine, and name the fix.",
    "version": "Show versions.",
}
ALIASES: Final = {"unmount": "umount"}

EXIT_FAILED, EXIT_USAGE, EXIT_REMOTE, EXIT_MOUNT, EXIT_INTERRUPTED = 1, 2, 3, 4, 130
EXIT_CODES: Final = (
    ("0", "it worked"),
    ("1", "the operation failed, a check of the doctor did, a mount is not well, or fsck found problems"),
    ("2", "wrong usage, or a setting is missing or wrong"),
    ("3", "Supabase cannot be reached, or refuses the key"),
    ("4", "mount trouble: /dev/fuse, the mountpoint or the cache directory"),
    ("130", "interrupted by Ctrl-C"),
)
START: Final = (
    (
        "Try it without a Supabase project",
        (("exaifs dev --mount ./files", "a Supabase on this machine, mounted; Ctrl-C stops both"),),
    ),
    (
        "With a project: set SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY, then",
        (
            ("exaifs init", "once: the SQL that the project needs"),
            ("exaifs doctor", "test everything"),
            ("exaifs mount ./files", "mount; Ctrl-C unmounts"),
        ),
    ),
)
ENVIRONMENT: Final = (
    ("SUPABASE_URL", "the project's URL, https://PROJECT.supabase.co"),
    ("SUPABASE_SERVICE_ROLE_KEY", "its service_role or secret key (or ..._FILE: a file that holds it)"),
    ("FILE_STORAGE_BUCKET", "the bucket; user-files unless set"),
    ("FILE_CACHE_DIR", "the disk cache; /var/cache/exaifs unless set"),
    ("EXAIFS_DATABASE_URL", "Postgres URL, for `exaifs init --apply` only"),
    ("EXAIFS_PROVIDERS", "LLM providers that files may be sent to; off unless set"),
    ("EXAIFS_LOG_LEVEL", "debug, info, warning or error"),
    ("EXAIFS_...", "more in the README, under Settings"),
)


class _Interrupted(Exception):
    """Ctrl-C, past click, which would print an empty line of its own."""


class _Commands(click.Group):
    """A group whose members are modules of this package, imported on use."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as exc:
            raise _Interrupted from exc

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - same
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        command = importlib.import_module(f"exaifs.cli.{name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Environment (flags win)"):
            formatter.write_dl(list(ENVIRONMENT))
        with formatter.section("Exit codes"):
            formatter.write_dl(list(EXIT_CODES))
        super().format_epilog(ctx, formatter)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        for title, lines in START:
            with formatter.section(title):
                formatter.write_dl(list(lines))


@click.group(
    cls=_Commands,
    context_settings=CONTEXT,
    epilog="`exaifs COMMAND --help` explains a command, with examples.",
)
@click.version_option(__version__, prog_name="exaifs", message="%(prog)s %(version)s")
def group() -> None:
    """Show a Supabase Storage bucket as a directory of plain files."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    session = Session()
    try:
        code = group.main(
            args=None if argv is None else list(argv),
            prog_name="exaifs",
            standalone_mode=False,
            obj=session,
        )
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has what it wanted; Python must not complain while shutting down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_FAILED
    except BaseException as exc:  # noqa: BLE001 - the last frame: whatever it is becomes one line
        code = _report(exc, session)
    sys.exit(code if isinstance(code, int) else 0)


def _report(exc: BaseException, session: Session) -> int:
    """Explain an error on one line and return the exit code."""
    cause = _cause(exc)
    if isinstance(cause, SystemExit):
        return cause.code if isinstance(cause.code, int) else EXIT_FAILED
    if isinstance(cause, (KeyboardInterrupt, _Interrupted, click.Abort)):
        if sys.stderr.isatty():
            sys.stderr.write("\n")  # below the terminal's own ^C
        complain("interrupted")
        return EXIT_INTERRUPTED
    if isinstance(cause, click.exceptions.NoArgsIsHelpError):
        click.echo(cause.format_message(), err=True)
        return EXIT_USAGE
    if session.debug:
        sys.stderr.write(session.redact("".join(traceback.format_exception(exc))))
    complain(session.redact(_explain(cause)))
    return next((code for kinds, code in _CODES if isinstance(cause, kinds)), EXIT_FAILED)


_CODES: Final[tuple[tuple[tuple[type[BaseException], ...], int], ...]] = (
    ((click.ClickException, ConfigError), EXIT_USAGE),
    ((Unreachable, Unauthorized), EXIT_REMOTE),
    ((MountError,), EXIT_MOUNT),
)


def _explain(cause: BaseException) -> str:
    """Return the line for people; what exaifs did not raise itself gets its next step here."""
    match cause:
        case click.UsageError():
            path = cause.ctx.command_path if cause.ctx else "exaifs"
            text = f"{cause.format_message()} See `{path} --help`."
        case click.ClickException():
            text = cause.format_message()
        case Unreachable() if "SUPABASE_URL" not in str(cause):
            text = f"{str(cause).rstrip('.')}. {CHECK_URL}"
        case ExaifsError():
            text = str(cause) or type(cause).__name__
        case ImportError():
            text = (
                f"a part of exaifs cannot be loaded: {cause}. Install it again (libfuse is in Debian's "
                "package fuse3), then run `exaifs doctor`."
            )
        case OSError():
            text = f"{cause.strerror or cause}{f': {cause.filename}' if cause.filename else ''}"
        case _:
            text = (
                f"unexpected {type(cause).__name__}: {cause}. This is a fault of exaifs; repeat it with "
                "EXAIFS_LOG_LEVEL=debug and report what it prints."
            )
    return text


def _cause(exc: BaseException) -> BaseException:
    """Return the error that matters in a group: Ctrl-C, then one of ours, else the first."""
    if not isinstance(exc, BaseExceptionGroup):
        return exc
    leaves = [_cause(inner) for inner in exc.exceptions]
    return min(
        leaves,
        key=lambda leaf: (not isinstance(leaf, KeyboardInterrupt), not isinstance(leaf, ExaifsError)),
    )
