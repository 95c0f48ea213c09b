"""`exaifs mount`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import trio

from exaifs import daemon, logs
from exaifs.cli.command import Session, bucket, command as define, log_level, mountpoint, pass_session
from exaifs.cli.output import note
from exaifs.config import Config
from exaifs.providers.settings import load_providers

CONSISTENCIES: Final = ("feed", "open")
WRITE_MODES: Final = ("through", "back")
OFFLINE_WRITES: Final = ("journal", "refuse")
CONFLICTS: Final = ("last-close", "refuse")
LOG_FORMATS: Final = ("auto", "console", "json")
LOG_NAME: Final = "exaifs.log"


@define(
    "mount",
    examples=(
        ("exaifs mount ./files", "in the foreground; Ctrl-C uploads what is left and unmounts"),
        ("exaifs mount --daemon /app/files", "in the background; `exaifs umount /app/files` ends it"),
        ("exaifs mount --write-mode back ./files", "close does not wait for the network; see exaifs sync"),
        ("exaifs mount --read-only --bucket reports /mnt/reports", "another bucket, for reading only"),
        ("exaifs mount --allow-other --uid 1000 --gid 1000 /app/files", "as root, for a service's user"),
    ),
)
@mountpoint
@click.option("-d", "--daemon", "background", is_flag=True, help="Go to the background once mounted.")
@click.option(
    "--log-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Where --daemon logs to.  [{LOG_NAME} in the cache directory]",
)
@click.option("--read-only", is_flag=True, default=None, help="Refuse every change.  [EXAIFS_READ_ONLY]")
@bucket
@click.option(
    "--consistency",
    type=click.Choice(CONSISTENCIES),
    help="feed: others' changes show in a second; open: every open asks.  [EXAIFS_CONSISTENCY, feed]",
)
@click.option(
    "--write-mode",
    type=click.Choice(WRITE_MODES),
    help="through: close returns once the file is in Supabase; back: once it is safe on this disk.  "
    "[EXAIFS_WRITE_MODE, through]",
)
@click.option(
    "--offline-writes",
    type=click.Choice(OFFLINE_WRITES),
    help="While Supabase is away: keep what is written for later, or fail.  "
    "[EXAIFS_OFFLINE_WRITES, journal]",
)
@click.option(
    "--conflict",
    type=click.Choice(CONFLICTS),
    help="When another host wrote the same file: the last close wins, or ours fails.  "
    "[EXAIFS_CONFLICT, last-close]",
)
@click.option("--allow-other", is_flag=True, default=None, help="Let other users in.  [EXAIFS_ALLOW_OTHER]")
@click.option("--uid", type=int, help="Owner of files that record none.  [EXAIFS_UID, you]")
@click.option("--gid", type=int, help="Group of files that record none.  [EXAIFS_GID, yours]")
@click.option(
    "--umask", metavar="OCTAL", help="Permission bits taken from such files.  [EXAIFS_UMASK, 022]"
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Disk cache and journal.  [FILE_CACHE_DIR, /var/cache/exaifs]",
)
@click.option(
    "--require-online",
    is_flag=True,
    default=None,
    help="Fail if Supabase cannot be reached, instead of serving the cache.  [EXAIFS_REQUIRE_ONLINE]",
)
@click.option("--nonempty", is_flag=True, help="Mount even over a directory that holds files.")
@log_level
@click.option("--log-format", type=click.Choice(LOG_FORMATS), help="How to log.  [EXAIFS_LOG_FORMAT, auto]")
@pass_session
def command(
    session: Session,
    /,
    *,
    directory: Path,
    background: bool,
    log_file: Path | None,
    nonempty: bool,
    **flags: Any,
) -> int:
    """Mount a bucket of Supabase Storage at the directory DIR.

    DIR must exist and be empty. A file is uploaded when it is closed. Without a connection what is in the
    cache is served, and what is written is kept in a journal and uploaded later. A mount that a crash left
    at DIR is replaced.
    """
    config = session.load(**flags)
    config.require_remote()
    providers = load_providers(config.providers_file, config.providers)
    secrets = (*logs.secrets_of(config), *(providers.secrets() if providers else ()))
    logs.setup(config.log_level, config.log_format, secrets)
    target = directory.absolute()
    if background:
        leave = daemon.daemonize((log_file or config.cache_dir / LOG_NAME).absolute())
        ready = partial(_go_on_in_background, leave, config, secrets)
    else:
        ready = partial(_say_mounted, config, directory)
    return trio.run(partial(daemon.run, config, target, ready=ready, nonempty=nonempty))


def _go_on_in_background(leave: Callable[[], None], config: Config, secrets: tuple[str, ...]) -> None:
    leave()
    # Again, because the new standard error is no terminal.
    logs.setup(config.log_level, config.log_format, secrets)


def _say_mounted(config: Config, directory: Path) -> None:
    if sys.stderr.isatty():
        note(f"{config.bucket} is mounted at {directory}. Ctrl-C uploads what is left and unmounts.")
