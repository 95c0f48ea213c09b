"""The file of the write journal: its lines, and what can be read of it after a crash.

    exaifs-journal 1
    8f1d2c3b {"add": {"7": {"op": "move", ...}}, "done": [5, 6]}

Each line is one step, with the CRC-32 of what follows the space. A last line without its newline was torn
while it was written, so its step was never acknowledged: it is cut. Any other line that cannot be read is
damage: it is copied aside and named, and the lines beside it count, also where the newline between is lost.
"""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from exaifs.errors import JournalError

_log = structlog.get_logger(__name__)

DIRECTORY = "journal"
"""Of the journal, in a cache directory."""

LOG_NAME = "log"
_MAGIC = b"exaifs-journal "
FORMAT = 1
HEADER = _MAGIC + b"%d\n" % FORMAT

_CHECKSUM_CHARACTERS = 8

_BEGINNING = re.compile(rb'[0-9a-f]{8} \{"')
"""How a line begins. No string inside one looks like this, for its quotes are escaped."""

Record = Mapping[str, Any]
"""One thing that waits, as JSON; `intents` knows what it says."""


@dataclass(slots=True)
class Loaded:
    """What a journal file held.

    Attributes:
        records: those that are not done, by number, oldest first.
        damaged: names of the files that damaged lines were copied to.
    """

    records: dict[int, Record] = field(default_factory=dict)
    highest: int = 0
    damaged: list[Path] = field(default_factory=list)
    size_bytes: int = 0
    is_whole: bool = True
    """Whether the file may be appended to as it is."""


def encode(add: Mapping[int, Record], done: Iterable[int]) -> bytes:
    """Return the line of one step."""
    step = {"add": {str(number): dict(record) for number, record in add.items()}, "done": sorted(done)}
    body = json.dumps(step, separators=(",", ":"), sort_keys=True).encode("ascii")
    return b"%08x %b\n" % (zlib.crc32(body), body)


def decode(line: bytes) -> tuple[dict[int, Record], list[int]] | None:
    """Read a line without its newline; None if it is damaged."""
    checksum, space, body = line.partition(b" ")
    if not space or len(checksum) != _CHECKSUM_CHARACTERS or checksum != b"%08x" % zlib.crc32(body):
        return None
    try:
        step = json.loads(body)
        found = {int(number): dict(record) for number, record in step["add"].items()}
        done = [int(number) for number in step["done"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(sorted(found.items())), done


def read_journal(directory: Path) -> Loaded:
    """Read a journal without changing anything; damaged lines are only counted as such.

    Args:
        directory: holds the file `log`, or not.

    Raises:
        JournalError: it is of a format that this version does not know.
        OSError: it cannot be read.
    """
    return parse(content_of(directory), None)


def content_of(directory: Path) -> bytes:
    """Return the bytes of a journal's file; nothing where there is none."""
    try:
        return (directory / LOG_NAME).read_bytes()
    except FileNotFoundError:
        return b""


def parse(content: bytes, aside: Path | None) -> Loaded:
    """Read the lines of a journal.

    Args:
        content: of the file.
        aside: directory for copies of damaged lines; None: make none.

    Raises:
        JournalError: it is of a format that this version does not know.
    """
    loaded = Loaded(size_bytes=len(content))
    header, newline, rest = content.partition(b"\n")
    if header + newline != HEADER:
        _check_format(header)
        loaded.is_whole = False
        if not content.startswith(HEADER[: len(content)]):
            _take_damaged(header, aside, loaded)  # what follows may still be lines
    lines = rest.split(b"\n")
    torn = lines.pop()
    for line in lines:
        step = decode(line)
        if step is None:
            _take_damaged(line, aside, loaded)
        else:
            _apply(loaded, *step)
    if torn:
        _take_torn(torn, aside, loaded)
    return loaded


def _take_damaged(line: bytes, aside: Path | None, loaded: Loaded) -> None:
    """Apply the whole lines in a damaged one, whose newlines are lost, and set it aside."""
    loaded.is_whole = False
    starts = [match.start() for match in _BEGINNING.finditer(line)]
    for start, end in zip(starts, [*starts, len(line)][1:], strict=True):
        step = decode(line[start:end]) or decode(line[start : end - 1])
        if step is not None:
            _apply(loaded, *step)
    _set_aside(line, aside, loaded)


def _check_format(header: bytes) -> None:
    number = header.removeprefix(_MAGIC)
    if header.startswith(_MAGIC) and number.isdigit() and int(number) > FORMAT:
        raise JournalError(
            f"the journal of unsent writes is of format {int(number)}; this version knows format {FORMAT}. "
            "Use the newer exaifs that wrote it, or let that one send what is left first."
        )


def _take_torn(torn: bytes, aside: Path | None, loaded: Loaded) -> None:
    """A last line without its newline: whole by its checksum, or cut while it was written."""
    loaded.is_whole = False
    step = decode(torn)
    if step is not None:
        _apply(loaded, *step)
    elif decode(torn[:-1]) is not None or len(_BEGINNING.findall(torn)) > 1:
        _take_damaged(torn, aside, loaded)  # there were newlines, which are something else now
    else:
        _log.info("cut the journal's last line, which was never finished", size_bytes=len(torn))


def _apply(loaded: Loaded, add: Mapping[int, Record], done: Sequence[int]) -> None:
    for number in done:
        loaded.records.pop(number, None)
    loaded.records.update(add)
    loaded.highest = max(loaded.highest, *add, *done, 0)


def _set_aside(line: bytes, aside: Path | None, loaded: Loaded) -> None:
    loaded.is_whole = False
    if aside is None:
        loaded.damaged.append(Path(f"{LOG_NAME} (line {len(loaded.damaged) + 1} of the damaged)"))
        return
    path = aside / f"damaged-{time.time_ns()}-{len(loaded.damaged)}"
    with path.open("wb") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())  # its name, with that of the journal's new file
    loaded.damaged.append(path)
    _log.error(
        "a record of the journal is damaged; it is kept aside and not carried out", kept_as=str(path)
    )
