"""`exaifs dev`: the embedded Supabase."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
import trio

from exaifs import logs
from exaifs.cli.command import MOUNTPOINT, Session, command as define, log_level, pass_session
from exaifs.embedded.dev import run_dev


@define(
    "dev",
    examples=(
        ("exaifs dev --mount ./files", "everything at once: server, samples, mount"),
        ("exaifs dev --env-file .env", "the server alone; `set -a; . ./.env` in another shell"),
        ("exaifs dev > dev.env", "the same with a pipe: URL and key go to stdout"),
    ),
)
@click.option(
    "--env-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write URL and key to this file, readable for you alone, instead of to stdout.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port on 127.0.0.1.  [that of the last run, else a free one]",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".exaifs"),
    show_default=True,
    help="Where database, objects, keys and cache are kept.",
)
@click.option(
    "--mount",
    "mount_at",
    metavar="DIR",
    type=MOUNTPOINT,
    help="Also mount user-files here; made if missing.",
)
@click.option(
    "--samples/--no-samples", default=True, help="Put sample files in at the first mount.  [samples]"
)
@log_level
@pass_session
def command(
    session: Session,
    /,
    *,
    env_file: Path | None,
    port: int,
    state_dir: Path,
    mount_at: Path | None,
    samples: bool,
    log_level: str | None,
) -> int:
    """Run a Supabase on this machine: no account, no Docker; loopback only.

    Installs the server once (about 150 MB, from npm), applies the schema, creates the buckets and prints
    URL and key as an env file. Ctrl-C stops everything it started; the files stay for the next time.
    For trying and testing, not for production.
    """
    config = session.load(log_level=log_level)
    logs.setup(config.log_level, config.log_format, logs.secrets_of(config))
    return trio.run(partial(run_dev, samples=samples), state_dir, port, env_file, mount_at)
