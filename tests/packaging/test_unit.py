"""The systemd unit and its example settings."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exaifs.cli.root import EXIT_USAGE
from exaifs.config import Config, load
from tests.packaging.texts import SECRET, SETTINGS, UNIT, known_variables, setting, unit

UNMOUNT_S = 3.0

OWN_NAMESPACE = re.compile(
    r"Private(Mounts|Tmp|Devices|IPC|Network|Users)|Protect(System|Home|Proc|Kernel\w+|ControlGroups|Hostname)"
    r"|ProcSubset|DynamicUser|Root(Directory|Image)|(ReadWrite|ReadOnly|Inaccessible|Exec|NoExec)Paths"
    r"|Bind(ReadOnly)?Paths|TemporaryFileSystem|Mount(Images|Flags|APIVFS)|Extension(Images|Directories)"
    r"|LogNamespace|(Network|IPC)NamespacePath"
)
"""Settings after which systemd runs a service in a mount namespace of its own; see systemd.exec(5)."""


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("NO systemd-analyze HERE: the unit is not checked by systemd itself")
    copy = tmp_path / "exaifs@app-files.service"
    # Verifying demands that the program exists.
    text = UNIT.read_text(encoding="utf-8").replace("/opt/exaifs/bin/exaifs", sys.executable)
    copy.write_text(text, encoding="utf-8")
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_others_see_the_mount() -> None:
    """Nothing in the unit gives the service a mount namespace of its own."""
    assert [name for name, _value in unit() if OWN_NAMESPACE.fullmatch(name)] == []


def test_a_stop_drains_before_it_kills() -> None:
    """Only the daemon gets SIGTERM, and as much time as its drain and the unmount take."""
    default_s = Config.model_fields["drain_timeout_s"].default
    assert setting("Type") == "notify"
    assert setting("KillMode") == "mixed"
    assert float(setting("TimeoutStopSec")) > default_s + UNMOUNT_S


def test_a_crash_is_mended_and_a_wrong_setting_is_not() -> None:
    """The restart heals the mountpoint; nothing takes it away and leaves an empty directory."""
    assert setting("Restart") == "on-failure"
    assert str(EXIT_USAGE) in setting("RestartPreventExitStatus").split()
    assert [name for name, _value in unit() if name.startswith("ExecStop")] == []


def test_the_key_is_a_credential() -> None:
    """The key comes from a file that systemd hands over; it is in no variable and no argument."""
    name, _, source = setting("LoadCredential").partition(":")
    variables = dict(value.split("=", 1) for key, value in unit() if key == "Environment")
    assert source.startswith("/etc/exaifs/")
    assert variables["SUPABASE_SERVICE_ROLE_KEY_FILE"] == f"%d/{name}"
    assert variables.keys() <= known_variables()
    for path in (UNIT, SETTINGS):
        assert not SECRET.search(path.read_text(encoding="utf-8"))


def test_the_fuse_device_is_allowed() -> None:
    """A closed device policy needs the one device that mounting takes, and the capability for it."""
    assert setting("DevicePolicy") == "closed"
    assert setting("DeviceAllow") == "/dev/fuse rw"
    assert "CAP_SYS_ADMIN" in setting("CapabilityBoundingSet").split()
    assert "@mount" in setting("SystemCallFilter").split()


def test_the_example_settings_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable of the example, in use or commented out, is one that exaifs accepts as it stands."""
    text = SETTINGS.read_text(encoding="utf-8")
    example = dict(re.findall(r"^#?([A-Z][A-Z_]+)=(.*)$", text, re.MULTILINE))
    assert example.keys() <= known_variables()
    for name in known_variables():
        monkeypatch.delenv(name, raising=False)
    for name, value in example.items():
        monkeypatch.setenv(name, value)
    config = load()
    assert "PROJECT" in config.supabase_url
    assert config.drain_timeout_s == Config.model_fields["drain_timeout_s"].default
