"""Real programs while the network breaks: what they were told is true when it is whole again."""

from __future__ import annotations

import fnmatch
import os
import random
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.campaigns import weathers
from tests.campaigns.actions import Piece
from tests.campaigns.faults.programs import PROGRAMS, Program
from tests.campaigns.host import Host
from tests.campaigns.looking import BucketClient, bucket_differences, mounted_tree
from tests.campaigns.modes import MODES, REFUSE, Settings, name_of
from tests.campaigns.worlds import Node
from tests.conftest import new_bucket
from tests.support.mounts import within
from tests.support.proxy import Proxy

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

SECONDS = float(os.environ.get("EXAIFS_FAULTS_S") or "0")
_PROGRAM_DEADLINE_S = 240.0


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small tree to copy from, outside of the mount."""
    root = tmp_path / "source"
    (root / "sub/deep").mkdir(parents=True)
    for number, path in enumerate(("1", "2", "3", "sub/4", "sub/5", "sub/deep/6"), start=1):
        (root / path).write_bytes(Piece(number, number * 700).data())
    (root / "sub/large").write_bytes(Piece(9, 400_000).data())
    (root / "2").chmod(0o755)
    return root


def run(program: str, directory: Path, source: Path, host: Host | None = None) -> tuple[int, str]:
    """Run a script in a directory; return its exit code and everything it printed."""
    process = subprocess.Popen(
        ["bash", "-c", f'umask 022; mkdir -p -- "$0" && cd -- "$0" && {{ {program}\n}}', str(directory)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": os.environ["PATH"], "HOME": "/", "LC_ALL": "C.UTF-8", "SOURCE": str(source)},
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=_PROGRAM_DEADLINE_S)
    except subprocess.TimeoutExpired:
        if host is not None:
            host.kill()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=120)
        raise
    return process.returncode, output


def comparable(tree: Mapping[str, Node], program: Program) -> dict[str, Node]:
    """Leave out what differs by its nature."""
    return {
        path: node
        for path, node in tree.items()
        if not any(fnmatch.fnmatch(path, one) for one in program.unlike)
    }


def strange(tree: Mapping[str, Node], program: Program, *known: Mapping[str, Node]) -> list[str]:
    """Return the files of a program that failed whose bytes nobody ever wrote, not even as a beginning."""
    versions = [node.data for each in known for node in each.values() if node.kind == "file"]
    versions += program.passing
    return [
        path
        for path, node in tree.items()
        if node.kind == "file"
        and ".git/" not in f"/{path}"
        and path not in program.in_place
        and not any(data.startswith(node.data) for data in versions)
    ]


@pytest.mark.parametrize("settings", MODES if SECONDS else [MODES[-1]], ids=name_of)
def test_programs_in_bad_weather(
    embedded_supabase: dict[str, str], tmp_path: Path, source: Path, settings: Settings
) -> None:
    """A program that succeeded has done what it does on a local disk; one that failed can be run again.

    Only a mount that refuses what it cannot send may let one fail. Integrity checks pass on the mount and
    on a new one that knows only the bucket.
    """
    environment = {**new_bucket(embedded_supabase), **settings}
    chance = random.Random(name_of(settings))
    programs = PROGRAMS if SECONDS else chance.sample(PROGRAMS, 2)
    failed: list[str] = []
    with (
        Proxy(environment["SUPABASE_URL"], seed=7) as proxy,
        Host(tmp_path, {**environment, "SUPABASE_URL": proxy.url}) as host,
    ):
        host.start()
        for program in programs:
            shadow, there = tmp_path / "shadow" / program.name, host.path / program.name
            shadow.parent.mkdir(exist_ok=True)
            code, output = run(program.script, shadow, source)
            assert code == 0, output
            within(120, there.mkdir)
            proxy.weather = chance.choice([weathers.LIGHT, weathers.HEAVY])
            code, output = run(program.script, there, source, host)
            proxy.clear()
            if code != 0:
                failed.append(f"{program.name}: {output}\n{host.tail(40)}")
                host.wait_sent(90)
                tree = host.tree(below=program.name)
                assert strange(tree, program, mounted_tree(shadow), mounted_tree(source)) == []
                code, output = run(program.is_whole, there, source, host)
                assert code == 0, f"what {program.name} left is damaged: {output}"
                code, output = run(f"cd / && rm -rf '{there}'", there, source, host)
                assert code == 0, output
                code, output = run(program.script, there, source, host)
                assert code == 0, output
            _compare(program, shadow, there, source, host)
        assert not failed or settings == REFUSE, "\n".join(failed)
        host.wait_sent(90)
        with BucketClient.open(environment, embedded_supabase["SUPABASE_URL"]) as client:
            assert bucket_differences(client, host.tree()) == []
        host.daemon.stop()
        # Behind no proxy: what it is asked has no reason to fail.
        with Host(tmp_path / "other", environment, quick=False) as other:
            other.start()
            for program in programs:
                _compare(
                    program, tmp_path / "shadow" / program.name, other.path / program.name, source, other
                )
            other.daemon.stop()
        assert host.traces() == []
    assert sum(proxy.met.values()) > proxy.met["none"]


def _compare(program: Program, shadow: Path, there: Path, source: Path, host: Host) -> None:
    tree = host.tree(below=program.name)
    expected = comparable(mounted_tree(shadow), program)
    found = comparable(tree, program)
    assert sorted(found) == sorted(expected), program.name
    assert {path: found[path] for path in found if found[path] != expected[path]} == {}, program.name
    if program.check:
        answers = [run(program.check, directory, source, host) for directory in (shadow, there)]
        assert answers[0][0] == 0, answers[0]
        assert answers[1] == answers[0], program.name
