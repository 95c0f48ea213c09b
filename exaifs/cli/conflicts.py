"""`exaifs conflicts`: the bytes that lost when two hosts wrote one file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import trio

from exaifs import logs
from exaifs.cache.unsent.conflicts import Conflict, Version
from exaifs.cli.command import (
    CONTEXT,
    MOUNTPOINT,
    Session,
    bucket,
    command as define,
    log_level,
    pass_session,
    write_examples,
)
from exaifs.cli.output import note, printable, say, say_json
from exaifs.config import Config
from exaifs.errors import ConfigError
from exaifs.ops.conflict_diff import AskRow, Comparison, Side, compare, row_asker
from exaifs.ops.conflict_restore import restore as restore_bytes
from exaifs.ops.conflicts import Store, described, discard_all, find_store

_FORMAT: Final = 1
_LABEL_WIDTH: Final = 8
_SIDE_WIDTH: Final = 40
_UNKNOWN: Final = "not known"
_SOURCES: Final = {
    "mount": "now, through the mount",
    "row": "now, by its row",
    "description": "when it happened",
}
_DIFF_STYLES: Final = {"+": "green", "-": "red", "@": "cyan"}

EXAMPLES: Final = (
    ("exaifs conflicts /app/files", "what is kept for the mount"),
    (
        "exaifs conflicts --json | jq -r '.conflicts[].id'",
        "for the bucket of the environment, mounted or not",
    ),
    ("exaifs conflicts diff 20260131-120000-1a2b3c4d", "what is different"),
    (
        "exaifs conflicts restore 20260131-120000-1a2b3c4d",
        "write it back; what is there now is kept instead",
    ),
    ("exaifs conflicts discard --all --yes", "delete all that is kept"),
)


class _Group(click.Group):
    """Lists where no member is named; its help ends with examples."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Have `exaifs conflicts [DIR]` mean `exaifs conflicts list [DIR]`."""
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = ["list", *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[list] [OPTIONS] [DIR] | diff | restore | discard")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, EXAMPLES)
        super().format_epilog(ctx, formatter)


@click.group("conflicts", cls=_Group, context_settings=CONTEXT)
def command() -> None:
    """List the bytes that lost when two hosts wrote one file; compare, restore or discard them.

    The last close wins. What it replaced is kept on the host that noticed, in its cache directory, until
    somebody decides. So are unsent bytes that were damaged or whose name was lost. DIR is a mountpoint;
    without it the store is that of SUPABASE_URL, FILE_STORAGE_BUCKET and FILE_CACHE_DIR. No key is
    needed, and nothing need be mounted. A directory that is called like a member is written ./diff.
    """


json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
cache_dir = click.option(
    "--cache-dir", type=click.Path(path_type=Path), help="The cache directory.  [FILE_CACHE_DIR]"
)
mount_option = click.option(
    "--mount",
    "mount_at",
    metavar="DIR",
    type=MOUNTPOINT,
    help="The mount.  [that of the cache directory, if there is one]",
)


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (log_level, cache_dir, bucket):
        function = option(function)
    return function


@define(
    "list",
    examples=(
        ("exaifs conflicts list /app/files", "what is kept for the mount"),
        ("exaifs conflicts list --json", "for programs"),
    ),
)
@click.argument("mount_at", metavar="[DIR]", type=MOUNTPOINT, required=False)
@json_flag
@_options
@pass_session
def list_(session: Session, /, *, mount_at: Path | None, as_json: bool, **flags: Any) -> None:
    """List what is kept, oldest first: id, path, time, reason, and both versions."""
    store = _store(session, mount_at, flags)
    known, lost = store.known(), store.undescribed()
    if as_json:
        say_json(
            {
                "format": _FORMAT,
                "directory": str(store.directory),
                "mountpoint": None if store.mount is None else str(store.mount),
                "conflicts": [described(store, conflict) for conflict in known],
                "undescribed": lost,
            },
            session.redact,
            ascii_only=True,  # names need not be text
        )
        return
    for conflict in known:
        _show(conflict)
    if not store.cache_directory.is_dir():
        note(f"no conflicts: there is no cache directory {store.cache_directory}")
    elif not known:
        note("no conflicts")
    if lost:
        note(f"{lost} files in {store.directory} have no readable description: exaifs fsck --repair")


def _show(conflict: Conflict) -> None:
    say(f"{conflict.id}  {printable(conflict.path or 'path not known')}", "bold")
    _line("when", _time(conflict.noted_ns))
    _line("reason", conflict.reason)
    _line("kept", _version(conflict.kept))
    _line("winner", "nothing, or not known" if conflict.winner is None else _version(conflict.winner))


def _line(label: str, text: str) -> None:
    say(f"    {label:<{_LABEL_WIDTH}}{printable(text)}")


def _version(version: Version) -> str:
    when = "" if version.written_ns is None else f", written {_time(version.written_ns)}"
    return f"{version.size_bytes:,} bytes{when} by {version.host or 'another host'}"


def _time(when_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when_ns / 1e9))


@define(
    "diff",
    examples=(
        ("exaifs conflicts diff 20260131-120000-1a2b3c4d", "both sides, and the lines of a text"),
        (
            "exaifs conflicts diff --mount /app/files 20260131-120000-1a2b3c4d",
            "compare with that mount's file",
        ),
    ),
)
@click.argument("conflict_id", metavar="ID")
@mount_option
@json_flag
@_options
@pass_session
def diff(
    session: Session, /, *, conflict_id: str, mount_at: Path | None, as_json: bool, **flags: Any
) -> None:
    """Show size, time, SHA-256 and host of what was kept and of what is there instead.

    The file is read through the mount, and texts are compared line by line: + is what restoring would
    bring. Where the bucket is not mounted, its row is asked for; while Supabase is away, what was noted
    counts.
    """
    store = _store(session, mount_at, flags)
    conflict = store.find(conflict_id)
    found = trio.run(compare, store, conflict, _asker(session, flags))
    if as_json:
        about = {"id": conflict.id, "path": conflict.path, "reason": conflict.reason}
        say_json(about | found.to_json(), session.redact, ascii_only=True)
        return
    _show(conflict)
    say()
    _show_sides(found)


def _asker(session: Session, flags: dict[str, Any]) -> AskRow | None:
    try:
        config = session.load(**flags)
        config.require_remote()
    except ConfigError:
        return None
    return row_asker(config)


def _show_sides(found: Comparison) -> None:
    rows: tuple[tuple[str, Callable[[Side], str]], ...] = (
        ("size", lambda side: f"{side.size_bytes:,} bytes"),
        ("time", lambda side: _UNKNOWN if side.written_ns is None else _time(side.written_ns)),
        ("host", lambda side: side.host or _UNKNOWN),
    )
    say(f"{'':<{_LABEL_WIDTH}}{'kept':<{_SIDE_WIDTH}}{_SOURCES[found.source]}", "bold")
    current = found.current
    for label, text in rows:
        other = "-" if current is None else text(current)
        say(f"{label:<{_LABEL_WIDTH}}{text(found.kept):<{_SIDE_WIDTH}}{other}")
    say(f"{'sha256':<{_LABEL_WIDTH}}{found.kept.sha256}")
    say(f"{'':<{_LABEL_WIDTH}}{'-' if current is None else current.sha256 or _UNKNOWN}")
    if found.note:
        note(found.note)
    if found.lines:
        say()
    for line in found.lines or ():
        say(printable(line.replace("\t", "    ")), _DIFF_STYLES.get(line[:1]))


@define(
    "restore",
    examples=(
        ("exaifs conflicts restore 20260131-120000-1a2b3c4d", "to where it belonged"),
        ("exaifs conflicts restore --to /tmp/mine.txt 20260131-120000-1a2b3c4d", "to another place"),
    ),
)
@click.argument("conflict_id", metavar="ID")
@mount_option
@click.option(
    "--to",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Write to this file instead, in a mount or outside.",
)
@click.option("--keep", is_flag=True, help="Keep the conflict afterwards.")
@click.option(
    "--force", is_flag=True, help="Replace a file outside of a mount; take bytes that are damaged."
)
@_options
@pass_session
def restore(
    session: Session,
    /,
    *,
    conflict_id: str,
    mount_at: Path | None,
    to: Path | None,
    keep: bool,
    force: bool,
    **flags: Any,
) -> None:
    """Write the kept bytes back, through the mount, as the content of the file.

    The file is overwritten in place: it keeps its id, mode and attributes. What it holds now becomes a
    conflict of its own first, so nothing is lost and restoring that one takes this back. The conflict is
    discarded only after close(2) has succeeded, that is when the bytes are in Supabase (or in the journal
    of the mount, while Supabase is away). A conflict whose path is not known needs --to. Files outside of
    a mount are never replaced without --force.
    """
    store = _store(session, mount_at, flags)
    done = restore_bytes(store, conflict_id, to, force=force, keep=keep)
    how = "has this content already" if done.was_identical else "has the kept content now"
    say(printable(f"{done.path} {how}"))
    if done.previous is not None:
        note(f"what was there is kept as {done.previous}")


@define(
    "discard",
    examples=(
        ("exaifs conflicts discard 20260131-120000-1a2b3c4d", "asks first, on a terminal"),
        ("exaifs conflicts discard --all --yes", "in scripts"),
    ),
)
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Discard all that is kept now.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@mount_option
@_options
@pass_session
def discard(
    session: Session,
    /,
    *,
    ids: tuple[str, ...],
    everything: bool,
    yes: bool,
    mount_at: Path | None,
    **flags: Any,
) -> None:
    """Delete kept bytes for good. Asks first on a terminal; elsewhere --yes is needed."""
    if bool(ids) == everything:
        raise click.UsageError("Name ids, or give --all.")
    store = _store(session, mount_at, flags)
    chosen = store.known() if everything else [store.find(conflict_id) for conflict_id in ids]
    if chosen and not yes:
        _confirm(chosen)
    discard_all(store, chosen)
    say(f"discarded {len(chosen)}")


def _confirm(chosen: list[Conflict]) -> None:
    if not os.isatty(sys.stdin.fileno()):
        raise click.UsageError("Nobody is there to ask: give --yes.")
    for conflict in chosen:
        _show(conflict)
    click.confirm(f"Delete the bytes of {len(chosen)} conflicts for good?", abort=True, err=True)


def _store(session: Session, mount_at: Path | None, flags: dict[str, Any]) -> Store:
    logs.setup(flags["log_level"] or "warning", "auto", ())
    return find_store(mount_at, partial(_load, session, flags))


def _load(session: Session, flags: dict[str, Any]) -> Config:
    config = session.load(**flags)
    secrets = logs.secrets_of(config)
    session.redact = logs.setup(flags["log_level"] or "warning", config.log_format, secrets)
    return config


for _member in (list_, diff, restore, discard):
    command.add_command(_member)
