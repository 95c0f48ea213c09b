"""What `exaifs status` makes of a snapshot; the command itself is tested on real mounts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from exaifs.cli.status import lines
from exaifs.ops.status import is_well
from tests.cli.support import exaifs

SNAPSHOT: dict[str, Any] = {
    "format": 1,
    "at_unix_s": 1_800_000_000.5,
    "state": "online",
    "reason": None,
    "mount": {
        "bucket": "user-files",
        "mountpoint": "/app/files",
        "server_url": "https://p.supabase.co",
        "version": "0.1.0",
        "pid": 7,
        "started_unix_s": 1_799_990_000.5,
        "uptime_s": 10_000.0,
        "read_only": False,
        "freshness_s": 1.0,
        "consistency": "feed",
        "cache_directory": "/var/cache/exaifs/p",
    },
    "server": {
        "last_answer_unix_s": 1_800_000_000.0,
        "last_answer_age_s": 0.5,
        "offline_since_unix_s": None,
        "offline_s": None,
        "problem": None,
    },
    "feed": {"live": True, "lag_s": 0.5, "changes_seen": 1234, "problem": None},
    "index": {
        "entries": 100_000,
        "loaded_directories": 1000,
        "directories_to_list_again": 0,
        "database_bytes": 50 << 20,
    },
    "cache": {
        "memory": {"size_bytes": 3 << 20, "items": 4, "hits": 3, "hit_rate": 0.75},
        "disk": {"size_bytes": 0, "items": 0, "hits": 0, "hit_rate": 0.0},
        "remote": {"reads": 1, "share": 0.25, "requests": 2, "fetched_bytes": 3 << 20},
        "hit_rate": 0.75,
        "evictions": 0,
        "disk_disabled": None,
    },
    "queue": {
        "dirty_open": 0,
        "waiting_bytes": 0,
        "changes_waiting": 0,
        "waiting": 0,
        "failed": 0,
        "oldest_unsent_unix_s": None,
        "oldest_unsent_age_s": None,
        "last_error": None,
    },
    "conflicts": {"waiting": 0, "seen": 2},
    "odd_keys": {"empty_segment": {"count": 0, "names": []}, "same_name": {"count": 0, "names": []}},
    "access_counters_waiting": 0,
}


def changed(**parts: Any) -> dict[str, Any]:
    """Return the snapshot with other values."""
    value = copy.deepcopy(SNAPSHOT)
    for name, part in parts.items():
        if isinstance(part, dict):
            value[name].update(part)
        else:
            value[name] = part
    return value


def shown(status: dict[str, Any]) -> dict[str, str]:
    """Return the text by label."""
    return {label: text for label, text, _style in lines(status)}


def test_a_mount_that_is_well() -> None:
    """Everything that matters, in words with units."""
    found = shown(SNAPSHOT)
    assert found["state"] == "online"
    assert found["mount"] == (
        "user-files of https://p.supabase.co at /app/files, exaifs 0.1.0, process 7, up 2.8 h"
    )
    assert found["feed"] == "live, read to its end 0.5 s ago, 1,234 changes seen"
    assert found["unsent"] == "nothing"
    assert found["names"] == "100,000 known, 1,000 directories loaded, index of 50.0 MiB"
    assert found["memory"] == "3.0 MiB, 4 items, 3 hits, 75% of what was asked of it"
    assert found["remote"] == "25% of reads, 2 requests, 3.0 MiB fetched"
    assert found["odd keys"] == "none"
    assert "conflicts" not in found


def test_conflicts_that_wait_are_shown() -> None:
    """Their number, and the command; a daemon that knows nothing of them says nothing."""
    text = shown(changed(conflicts={"waiting": 2}))["conflicts"]
    assert text == "2 waiting for a decision, see `exaifs conflicts`"
    older = copy.deepcopy(SNAPSHOT)
    del older["conflicts"]
    assert "conflicts" not in shown(older)


def test_trouble_is_named() -> None:
    """State, tiers and queue say what is wrong."""
    found = shown(
        changed(
            state="offline",
            reason="no route",
            mount={"consistency": "open", "read_only": True},
            server={"offline_s": 90.0},
            feed={"live": False, "problem": "no route"},
            cache={"disk_disabled": "writing: No space left on device"},
            queue={
                "waiting": 2,
                "failed": 1,
                "dirty_open": 1,
                "waiting_bytes": 3_000_000,
                "changes_waiting": 4,
                "oldest_unsent_age_s": 7200,
                "last_error": "gone",
            },
            odd_keys={"empty_segment": {"count": 9, "names": [f"{n}//x" for n in range(9)]}},
        )
    )
    assert found["state"] == "offline: no route"
    assert "read-only, consistency open" in found["mount"]
    assert found["server"] == "no answer for 2 min, answered 0.5 s ago"
    assert found["feed"].startswith("not followed: no route")
    assert found["unsent"] == (
        "2 waiting, 1 open and changed, 4 changes of names or attributes, 2.9 MiB, "
        "the oldest for 2.0 h, 1 FAILED: gone"
    )
    assert found["disk"] == "not used: writing: No space left on device"
    assert found["odd keys"] == "9 empty segment (0//x, 1//x, 2//x, 3//x, 4//x, ...)"


def test_changes_that_are_stuck_are_named() -> None:
    """What fails, what was given up, and why; nothing of it while all goes well."""
    problem = "move a to b: 404, although the catalog lists it"
    queue = {"changes_waiting": 2, "changes_failing": 1, "changes_given_up": 3, "change_problem": problem}
    found = shown(changed(queue=queue))
    assert found["changes"] == f"1 cannot be carried out yet, 3 given up since the start: {problem}"
    assert "changes" not in shown(SNAPSHOT)


@pytest.mark.parametrize(
    ("status", "well"),
    [
        (SNAPSHOT, True),
        (changed(state="catching-up"), True),
        (changed(queue={"waiting": 3}), True),
        (changed(queue={"waiting": 1, "failed": 1}), False),
        (changed(queue={"changes_waiting": 1, "changes_failing": 0}), True),
        (changed(queue={"changes_waiting": 1, "changes_failing": 1}), False),
        (changed(state="degraded"), False),
        (changed(state="offline"), False),
    ],
)
def test_the_verdict(status: dict[str, Any], *, well: bool) -> None:
    """Well is online or catching up, with nothing that failed to be sent."""
    assert is_well(status) is well


@pytest.mark.parametrize("place", ["", "missing", "/proc", "/dev/null"])
def test_no_mount_is_exit_code_4(place: str, tmp_path: Path) -> None:
    """One line says what is there instead."""
    result = exaifs("status", str(tmp_path / place))
    assert result.code == 4
    assert "mounted" in result.complaint or "not an exaifs mount" in result.complaint
