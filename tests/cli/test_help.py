"""Help, versions and mistakes on the command line."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pty
import re
import subprocess
import sys

import pytest

from tests.cli.support import clean_environment, exaifs

COMMANDS = (
    "mount",
    "umount",
    "sync",
    "status",
    "conflicts",
    "fsck",
    "dev",
    "init",
    "provider",
    "gc",
    "mcp",
    "doctor",
    "version",
)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_explains_itself(command: str, flag: str) -> None:
    """Help shows how to call the command and at least one example that starts with `exaifs`."""
    result = exaifs(command, flag)
    assert result.code == 0, result
    assert f"Usage: exaifs {command}" in result.stdout
    examples = result.stdout.partition("Examples:")[2]
    assert re.search(rf"^ .*exaifs {command}", examples, re.MULTILINE), result
    assert result.stderr == ""


def test_the_general_help_names_commands_settings_and_exit_codes() -> None:
    """`exaifs --help` is enough to start with."""
    result = exaifs("--help")
    assert result.code == 0
    for word in (*COMMANDS, "SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "Exit codes", "doctor"):
        assert word in result.stdout
    for code in ("0", "1", "2", "3", "4"):
        assert re.search(rf"^ +{code} +\S", result.stdout, re.MULTILINE), result


@pytest.mark.parametrize("group", ["conflicts", "provider"])
def test_the_members_of_a_group_are_explained_in_whole_sentences(group: str) -> None:
    """No line of the list of members breaks off."""
    members = exaifs(group, "--help").stdout.partition("Commands:")[2].partition("Examples:")[0]
    assert members.count(".\n") >= 4
    assert "..." not in members


def test_without_a_command_the_help_is_shown_as_a_mistake() -> None:
    """A bare `exaifs` does nothing: the help goes to stderr, the exit code is that of wrong usage."""
    result = exaifs()
    assert result.code == 2
    assert "Usage: exaifs" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("mnt",),
        ("mount",),
        ("mount", "a", "b"),
        ("doctor", "--no-such-flag"),
        ("mount", "--log-level", "loud", "x"),
        ("mount", "--umask", "99", "x"),
        ("dev", "--port", "99999"),
        ("init", "--state-dir", "x"),
        ("umount", "--timeout", "soon", "x"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: tuple[str, ...]) -> None:
    """Mistakes are explained on one line that says where help is, or what the value must be."""
    result = exaifs(*arguments)
    assert result.code == 2
    assert result.stdout == ""
    assert "--help" in result.complaint or "must be" in result.complaint


def test_unmount_is_umount() -> None:
    """The other spelling is the same command."""
    text = exaifs("umount", "--help").stdout
    assert exaifs("unmount", "--help").stdout == text.replace(
        "Usage: exaifs umount", "Usage: exaifs unmount"
    )


def test_version_as_text_and_as_json() -> None:
    """Both name the installed version; JSON also the schema's number."""
    version = importlib.metadata.version("exaifs")
    assert exaifs("--version").stdout == f"exaifs {version}\n"
    assert re.search(rf"^exaifs +{re.escape(version)}$", exaifs("version").stdout, re.MULTILINE)
    found = exaifs("version", "--json").json
    assert found["exaifs"] == version
    assert found["schema"] >= 1


def test_output_into_a_file_is_plain() -> None:
    """Without a terminal there is no colour, whatever the environment says of terminals."""
    for env in ({}, {"NO_COLOR": "1"}, {"TERM": "xterm-256color"}):
        assert "\x1b" not in exaifs("doctor", env=env).output


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_colour_unless_it_is_not_wanted(env: dict[str, str], *, coloured: bool) -> None:
    """Colours appear on a terminal only, and never with NO_COLOR."""
    ours, theirs = pty.openpty()
    shown = b""
    with (
        open(ours, "rb", buffering=0) as screen,  # noqa: PTH123 - a descriptor, not a path
        subprocess.Popen(
            [sys.executable, "-m", "exaifs", "doctor"],
            env=clean_environment({"TERM": "xterm-256color", **env}),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        ) as process,
    ):
        os.close(theirs)
        # EIO is a terminal's end of file.
        with contextlib.suppress(OSError):
            while chunk := screen.read(4096):
                shown += chunk
        process.wait(120)
    assert b"0/6 passed" in shown
    assert bool(re.search(rb"\x1b\[[0-9;]*3[0-7]m", shown)) is coloured
