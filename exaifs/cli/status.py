"""`exaifs status`: shows what a mount says about itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
from rich.table import Table

from exaifs.cli.command import MOUNTPOINT, Session, command as define, log_level, pass_session
from exaifs.cli.output import console, printable, say_json
from exaifs.config import MIB
from exaifs.ops.status import is_well, mount_above, read_status

STYLES: Final = {"online": "green", "catching-up": "cyan", "degraded": "yellow", "offline": "bold red"}
_SHOWN_NAMES: Final = 5
_LABEL_WIDTH: Final = 10
_MINUTE_S: Final = 60.0
_HOUR_S: Final = 3600.0
_DAY_S: Final = 86400.0

Line = tuple[str, str, str | None]
"""Label, text, style."""


@define(
    "status",
    examples=(
        ("exaifs status", "of the mount of the working directory, or of the only mount"),
        ("exaifs status /app/files", "in words; exit code 0 while all is well"),
        ("exaifs status --json /app/files | jq -r .state", "for programs"),
        ("cat /app/files/.exaifs/status.json", "the same snapshot, for programs inside a container"),
    ),
)
@click.argument("directory", metavar="[DIR]", required=False, type=MOUNTPOINT)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@log_level
@pass_session
def command(session: Session, /, *, directory: Path | None, as_json: bool, log_level: str | None) -> int:
    """Show how the mount at DIR is: state, freshness, cache, what waits to be sent.

    No request is made to Supabase. The exit code is 0 when the mount is online (or catching up after its
    start), 1 when it is degraded or offline or when a file or a change of names or attributes could not be
    sent, and 4 when DIR is no exaifs mount, its daemon is gone, or it does not answer within 5 s.
    """
    session.debug = session.debug or log_level == "debug"
    status = read_status(mount_above(None)[0] if directory is None else directory)
    if as_json:
        say_json(status, session.redact, ascii_only=True)  # names need not be text
    else:
        _show(list(lines(status)))
    return 0 if is_well(status) else 1


def _show(shown: list[Line]) -> None:
    out = console()
    if not out.is_terminal:
        for label, text, _style in shown:
            out.print(f"{label:<{_LABEL_WIDTH}}{printable(text)}")
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text, style in shown:
        table.add_row(label, printable(text), style=style)
    # Within the terminal's width, unlike other lines, which may be long.
    out.print(table, soft_wrap=False)


def lines(status: dict[str, Any]) -> Iterator[Line]:
    """Yield what people read, the most important first."""
    state, reason = status["state"], status["reason"]
    yield "state", state if reason is None else f"{state}: {reason}", STYLES.get(state)
    yield "mount", _mount(status["mount"]), None
    yield "server", _server(status["server"]), None
    yield "feed", _feed(status["feed"]), None
    yield "unsent", _queue(status["queue"]), "bold red" if status["queue"]["failed"] else None
    yield from _changes(status["queue"])
    waiting = status.get("conflicts", {}).get("waiting", 0)  # an older daemon does not say
    if waiting:
        yield "conflicts", f"{waiting:,} waiting for a decision, see `exaifs conflicts`", "yellow"
    yield "names", _index(status["index"]), None
    cache = status["cache"]
    for name in ("memory", "disk"):
        yield name, _tier(cache[name], cache["disk_disabled"] if name == "disk" else None), None
    remote = cache["remote"]
    share = f"{_percent(remote['share'])} of reads, " if remote["reads"] else ""
    yield (
        "remote",
        f"{share}{remote['requests']:,} requests, {_size(remote['fetched_bytes'])} fetched",
        None,
    )
    yield "odd keys", _odd_keys(status["odd_keys"]), None


def _mount(mount: dict[str, Any]) -> str:
    flags = [word for word, given in (("read-only", mount["read_only"]),) if given]
    if mount["consistency"] != "feed":
        flags.append(f"consistency {mount['consistency']}")
    details = [
        f"{mount['bucket']} of {mount['server_url']} at {mount['mountpoint']}",
        *flags,
        f"exaifs {mount['version']}",
        f"process {mount['pid']}",
        f"up {_duration(mount['uptime_s'])}",
    ]
    return ", ".join(details)


def _server(server: dict[str, Any]) -> str:
    age_s, offline_s = server["last_answer_age_s"], server["offline_s"]
    last = "no answer yet" if age_s is None else f"answered {_duration(age_s)} ago"
    return last if offline_s is None else f"no answer for {_duration(offline_s)}, {last}"


def _feed(feed: dict[str, Any]) -> str:
    seen = f"{feed['changes_seen']:,} changes seen"
    if feed["live"]:
        return f"live, read to its end {_duration(feed['lag_s'] or 0)} ago, {seen}"
    why = f": {feed['problem']}" if feed["problem"] else ""
    return f"not followed{why}, {seen}"


def _queue(queue: dict[str, Any]) -> str:
    changes = queue["changes_waiting"]
    if not (queue["dirty_open"] or queue["waiting"] or changes):
        return "nothing"
    parts = [f"{queue['waiting']:,} waiting", f"{queue['dirty_open']:,} open and changed"]
    parts += [f"{changes:,} changes of names or attributes"] if changes else []
    if queue["oldest_unsent_age_s"] is not None:
        parts.append(_size(queue["waiting_bytes"]))
        parts.append(f"the oldest for {_duration(queue['oldest_unsent_age_s'])}")
    if queue["failed"]:
        parts.append(f"{queue['failed']:,} FAILED: {queue['last_error']}")
    return ", ".join(parts)


def _changes(queue: dict[str, Any]) -> Iterator[Line]:
    failing, given_up = (
        queue.get("changes_failing", 0),
        queue.get("changes_given_up", 0),
    )  # or an older daemon
    if failing or given_up:
        counted = [f"{failing:,} cannot be carried out yet"] if failing else []
        counted += [f"{given_up:,} given up since the start"] if given_up else []
        yield "changes", f"{', '.join(counted)}: {queue['change_problem']}", "bold red"


def _index(index: dict[str, Any]) -> str:
    again = index["directories_to_list_again"]
    return (
        f"{index['entries']:,} known, {index['loaded_directories']:,} directories loaded"
        + (f" ({again:,} to list again)" if again else "")
        + f", index of {_size(index['database_bytes'])}"
    )


def _tier(tier: dict[str, Any], disabled: str | None) -> str:
    if disabled is not None:
        return f"not used: {disabled}"
    rate = "" if tier["hit_rate"] is None else f", {_percent(tier['hit_rate'])} of what was asked of it"
    return f"{_size(tier['size_bytes'])}, {tier['items']:,} items, {tier['hits']:,} hits{rate}"


def _odd_keys(kinds: dict[str, Any]) -> str:
    found = [
        f"{kind['count']:,} {name.replace('_', ' ')} ({_names(kind)})"
        for name, kind in kinds.items()
        if kind["count"]
    ]
    return "; ".join(found) or "none"


def _names(kind: dict[str, Any]) -> str:
    names = kind["names"][:_SHOWN_NAMES]
    return ", ".join(names) + (", ..." if kind["count"] > len(names) else "")


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / MIB:,.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    return f"{seconds / _HOUR_S:.1f} h" if seconds < _DAY_S else f"{seconds / _DAY_S:.1f} days"
