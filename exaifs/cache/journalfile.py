"""The file of the write journal: its lines, and what can be read of it after a crash.

    exaifs-journal 1
    8f1d2c3b {"add": {"7": {"op": "move", ...}}, "done": [5, 6]}

Each line is one step, with the CRC-32 of what follows the space. A last line without its newline was torn
while it was written, so its step was never acknowledged: it is cut. Any other line that cannot be read is
damage: it is copied aside and named, and the lines behind it count.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from exaifs.errors import JournalError

_log = structlog.get_logger(__name__)

LOG_NAME = "log"
_MAGIC = b"exaifs-journal "
FORMAT = 1
HEADER = _MAGIC + b"%d\n" % FORMAT

_CHECKSUM_CHARACTERS = 8

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
        add: dict[int, Record] = {int(number): dict(record) for number, record in step["add"].items()}
        done = [int(number) for number in step["done"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return add, done


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
            _set_aside(header, aside, loaded)  # what follows may still be lines
    lines = rest.split(b"\n")
    torn = lines.pop()
    for line in lines:
        step = decode(line)
        if step is None:
            _set_aside(line, aside, loaded)
        else:
            _apply(loaded, *step)
    if torn:
        _take_torn(torn, loaded)
    return loaded


def _check_format(header: bytes) -> None:
    number = header.removeprefix(_MAGIC)
    if header.startswith(_MAGIC) and number.isdigit() and int(number) > FORMAT:
        raise JournalError(
            f"the journal of unsent writes is of format {int(number)}; this version knows format {FORMAT}. "
            "Use the newer exaifs that wrote it, or let that one send what is left first."
        )


def _take_torn(torn: bytes, loaded: Loaded) -> None:
    """A last line without its newline: whole by its checksum, or cut while it was written."""
    loaded.is_whole = False
    step = decode(torn)
    if step is not None:
        _apply(loaded, *step)
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
    path.write_bytes(line)
    loaded.damaged.append(path)
    _log.error(
        "a record of unsent writes is damaged; it is kept aside and not carried out", kept_as=str(path)
    )
