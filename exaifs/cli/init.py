"""`exaifs init`: prints the SQL, or applies it and creates the buckets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click
import trio

from exaifs.cli.command import Session, bucket, command as define, log_level, pass_session
from exaifs.cli.output import note, say
from exaifs.config import Config, load
from exaifs.embedded import serve
from exaifs.errors import ConfigError
from exaifs.ops.setup import WHERE_IS_THE_URL, apply_schema, create_buckets, schema_is_there
from exaifs.remote.schema import as_one_script

HOW_TO_APPLY: Final = """\
To apply it, paste it into the dashboard's SQL editor and press Run, then create the buckets:
  exaifs init --apply
Or let exaifs do both: set EXAIFS_DATABASE_URL to the project's Postgres URL before that command.
"""


@define(
    "init",
    examples=(
        ("exaifs init", "print the SQL, for reading or for the dashboard's SQL editor"),
        ("exaifs init > exaifs.sql", "keep it as a migration of your own"),
        ("EXAIFS_DATABASE_URL=... exaifs init --apply", "apply it, create the buckets"),
        ("exaifs init --apply --bucket reports", "also create and follow another bucket"),
        ("exaifs init --apply --state-dir .exaifs", "the Supabase of `exaifs dev`, while it is stopped"),
    ),
)
@click.option("--apply", "do_apply", is_flag=True, help="Apply the schema, create the buckets.")
@bucket
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="With --apply: the state directory of an embedded Supabase.",
)
@log_level
@pass_session
def command(
    session: Session,
    /,
    *,
    do_apply: bool,
    bucket: str | None,
    state_dir: Path | None,
    log_level: str | None,
) -> None:
    """Prepare a Supabase project: tables, functions and trigger, and the private buckets.

    Without --apply the SQL is printed and nothing is touched. With --apply it is run through Postgres, at
    the URL in EXAIFS_DATABASE_URL; where the SQL was pasted into the dashboard's SQL editor already, no
    Postgres URL is needed. Tables that the project has keep their rows. Repeating it does no harm.

    The Postgres URL: in the dashboard press Connect and copy the URI under Session pooler, with your
    database password. The password is read from the environment only, never from the command line.
    """
    config = session.load(bucket=bucket, log_level=log_level)
    if not do_apply:
        if state_dir is not None:
            raise click.UsageError("--state-dir goes with --apply.")
        sys.stdout.write(as_one_script())
        sys.stdout.flush()
        note(HOW_TO_APPLY)
    elif state_dir is not None:
        trio.run(_apply_embedded, config, state_dir)
    else:
        _apply(config)


def _apply(config: Config) -> None:
    config.require_remote()
    database_url = config.database_url.get_secret_value().strip()
    if database_url:
        apply_schema(database_url, _Section("Schema"))
    elif trio.run(schema_is_there, config):
        _Section("Schema")("all of it", "was there")
    else:
        raise ConfigError(
            "the schema is not in the project yet and EXAIFS_DATABASE_URL is not set. "
            f"{WHERE_IS_THE_URL} Or run `exaifs init` and paste what it prints into the SQL editor."
        )
    trio.run(create_buckets, config, _Section("Buckets"))
    say("Ready. Next: exaifs doctor")


async def _apply_embedded(config: Config, state_dir: Path) -> None:
    """Start the embedded Supabase once: its own command line applies what is new."""
    async with serve(state_dir) as server:
        _Section("Schema")("all of it", "is there")
        own = load(supabase_url=server.url, supabase_key=server.service_key, bucket=config.bucket)
        await create_buckets(own, _Section("Buckets"))
    say("Ready. Next: exaifs dev")


class _Section:
    """Prints what was done, below a title that appears with the first line."""

    def __init__(self, title: str) -> None:
        self._title = title

    def __call__(self, what: str, happened: str) -> None:
        if self._title:
            say(self._title, "bold")
            self._title = ""
        say(f"  {what:<28}{happened}")
