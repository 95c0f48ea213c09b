"""A journal that the disk damaged: what is whole is recovered, what is not is named and kept."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.campaigns.host import Host, plan_for, replay
from tests.campaigns.modes import BACK
from tests.campaigns.worlds import Node, Tree, Worlds
from tests.conftest import new_bucket
from tests.support.mounts import within
from tests.support.proxy import Proxy

pytestmark = [
    pytest.mark.mount,
    pytest.mark.embedded,
]

SECONDS = float(os.environ.get("EXAIFS_CRASH_S") or "0")
SEED = int(os.environ.get("EXAIFS_CRASH_SEED") or "1")
ACTIONS = 16
SAMPLE = None if SECONDS else 3
"""So many damages of each kind; None for all."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What is done to the journal."""

    words: str
    data: bytes
    whole_bytes: int
    """So much at the beginning is as it was."""
    torn: bool
    """Whether it looks like a write that the end of the power cut short."""


def cuts(journal: bytes, chance: random.Random) -> Iterator[Damage]:
    """Cut it at the end of each record, and somewhere inside of each."""
    start = 0
    for number, line in enumerate(journal.splitlines(keepends=True)):
        end = start + len(line)
        inside = [start + 1, start + len(line) // 2, end - 1, chance.randrange(start + 1, end)]
        for at in [*chance.sample(inside, 2), end]:
            if at < len(journal):
                yield Damage(
                    f"cut at byte {at} in record {number}",
                    journal[:at],
                    min(start, at) if at < end else end,
                    torn=True,
                )
        start = end


def flips(journal: bytes, chance: random.Random) -> Iterator[Damage]:
    """Flip one bit in each record."""
    start = 0
    for number, line in enumerate(journal.splitlines(keepends=True)):
        at = chance.randrange(start, start + len(line))
        data = bytearray(journal)
        data[at] ^= 1 << chance.randrange(8)
        yield Damage(f"a bit flipped at byte {at} in record {number}", bytes(data), start, torn=False)
        start += len(line)


def tails(journal: bytes, chance: random.Random) -> Iterator[Damage]:
    """Append what some file systems leave behind the end: zeros, and old blocks."""
    for size in (1, 100, 4096, 70_000):
        yield Damage(f"{size} zeros appended", journal + bytes(size), len(journal), torn=True)
    yield Damage("noise appended", journal + chance.randbytes(500), len(journal), torn=True)


@dataclass(frozen=True, slots=True)
class Captured:
    """A cache directory after a kill, and how it came to be."""

    cache: Path
    before: Tree
    lines: list[dict[str, Any]]

    @property
    def journal(self) -> Path:
        """The log in this directory."""
        (found,) = self.cache.glob("*/journal/log")
        return found

    def wrong(self, found: Mapping[str, bytes | int | None], whole_bytes: int) -> list[str]:
        """Return what may not be found if only so much of the log is whole.

        What no later action has touched is as it was acknowledged. All else is some version that once was
        there, nothing, or an error: a later record, now lost, may have let its bytes go.
        """
        worlds = Worlds(dict(self.before))
        versions = {node.data for node in self.before.values()}
        touched: set[str] = set()
        safe: dict[str, Node] = {}
        is_safe = True
        lines = [line for line in self.lines if "synced" not in line]
        for want, answer in zip(lines[::2], lines[1::2], strict=True):
            is_safe = is_safe and answer["watched_bytes"] <= whole_bytes
            replay([want, answer], worlds)
            versions |= {node.data for node in worlds.certain.values()}
            if is_safe:
                safe = dict(worlds.certain)
            elif answer["got"] is None:
                touched |= {path for path in (want["want"]["path"], want["want"]["target"]) if path}
        wrong = []
        for path in sorted({*found, *safe}):
            data, node = found.get(path), safe.get(path)
            expected = node.data if node is not None and node.kind == "file" else None
            if any(path == one or path.startswith(f"{one}/") for one in touched):
                if isinstance(data, bytes) and data not in versions:
                    wrong.append(f"{path}: {data[:20]!r}, {len(data)} bytes, was never there")
            elif data != expected:
                wrong.append(f"{path}: {data!r:.60}, not {expected!r:.60}")
        return wrong


def read_all(root: Path) -> dict[str, bytes | int | None]:
    """Return the bytes of each file below a directory, or the errno of reading it; None: no file."""
    found: dict[str, bytes | int | None] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        try:
            found[name] = None if path.is_dir() else path.read_bytes()
        except OSError as exc:
            found[name] = exc.errno
    return found


def digests(directory: Path) -> set[str]:
    """Return what all staged files below a cache directory hold, wherever they were moved to."""
    return {
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and path.stat().st_size
    }


def staged(directory: Path) -> set[str]:
    """Return what is staged in a cache directory."""
    return {
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.glob("*/staging/*.data")
        if path.stat().st_size
    }


@pytest.mark.timeout(1800)
def test_a_damaged_journal(embedded_supabase: dict[str, str], tmp_path: Path) -> None:
    """Nothing acknowledged is lost: of a damaged journal all before the damage is served, the rest is kept.

    The daemon always mounts. It says what it found, and no staged bytes go while a damaged record might
    have named them.
    """
    chance = random.Random(SEED)
    environment = {**new_bucket(embedded_supabase), **BACK}
    with Proxy(environment["SUPABASE_URL"]) as proxy:
        environment["SUPABASE_URL"] = proxy.url
        captured = _capture(environment, proxy, tmp_path)
        journal = captured.journal.read_bytes()
        assert len(journal.splitlines()) >= ACTIONS // 2
        for kind in (cuts, flips, tails):
            damages = list(kind(journal, chance))
            for damage in damages if SAMPLE is None else chance.sample(damages, SAMPLE):
                _recover(environment, captured, damage, tmp_path / "damaged")


def _capture(environment: dict[str, str], proxy: Proxy, tmp_path: Path) -> Captured:
    """Have a daemon killed whose work could not be sent."""
    with Host(tmp_path / "first", environment) as host:
        host.start()
        host.work(plan_for({}, host.path, SEED, actions=8), tmp_path / "before")
        host.wait_sent()
        before = host.tree()
        proxy.refuse()
        (watched,) = host.cache.glob("*/journal/log")
        plan = plan_for(
            before, host.path, SEED + 1, first_number=1000, actions=ACTIONS, reads=0, watched=str(watched)
        )
        lines = host.work(plan, tmp_path / "manifest")
        host.kill()
        sizes = [line["watched_bytes"] for line in lines if "got" in line]
        assert sizes == sorted(sizes), "the journal was rewritten meanwhile: positions say nothing"
        host.cache.rename(tmp_path / "captured")
    return Captured(tmp_path / "captured", before, lines)


def _recover(environment: dict[str, str], captured: Captured, damage: Damage, place: Path) -> None:
    """Start a daemon on a copy with a damaged journal; Supabase is away."""
    with Host(place, environment) as host:
        shutil.copytree(captured.cache, host.cache)
        (journal,) = host.cache.glob("*/journal/log")
        journal.write_bytes(damage.data)
        kept = staged(host.cache)
        host.start()
        wrong = captured.wrong(within(120, lambda: read_all(host.path)), damage.whole_bytes)
        assert not wrong, f"{damage.words}:\n" + "\n".join(wrong) + f"\n{host.tail()}"
        host.kill()
        assert host.traces() == [], damage.words
        if not damage.torn:
            alarms = [one for one in host.daemon.records() if one.get("level") in {"warning", "error"}]
            assert any("journal" in str(one.get("event")) for one in alarms), f"{damage.words}: {alarms}"
            lost = kept - digests(host.cache)
            assert not lost, f"{damage.words}: staged bytes are gone\n{host.tail()}"
    shutil.rmtree(place)
