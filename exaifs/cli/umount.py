"""`exaifs umount`, also called `unmount`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from exaifs import mountpoint as mountpoints
from exaifs.cache.directory import unsent_in
from exaifs.cli.command import Session, Span, command as define, log_level, mountpoint, pass_session
from exaifs.cli.output import note, say
from exaifs.processes import cache_directory_of

TIMEOUT_S: Final = 60.0


@define(
    "umount",
    examples=(
        ("exaifs umount ./files", "waits until everything is uploaded"),
        ("exaifs umount --lazy ./files", "at once, even while programs have files open"),
    ),
)
@mountpoint
@click.option("-l", "--lazy", is_flag=True, help="Detach even while files are open.")
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=Span(min=0),
    default=TIMEOUT_S,
    show_default=True,
    help="How long to wait for the last uploads.",
)
@log_level
@pass_session
def command(
    session: Session, /, *, directory: Path, lazy: bool, timeout_s: float, log_level: str | None
) -> None:
    """Unmount DIR and wait until the daemon has uploaded what it holds.

    A mount left behind by a crash is taken away as well. What could not be uploaded stays in the cache
    directory and is sent by the next mount. (Also: exaifs unmount.)
    """
    session.debug = session.debug or log_level == "debug"
    mount = mountpoints.find(directory)
    cache = None if mount is None else cache_directory_of(mount.path)
    mountpoints.unmount(directory, lazy=lazy, deadline_s=timeout_s, progress=note)
    say(f"unmounted {directory}")
    unsent = 0 if cache is None else unsent_in(cache)
    if unsent:
        changes = "change" if unsent == 1 else "changes"
        note(f"not in Supabase yet: {unsent:,} {changes}, kept in {cache} for the next mount")
