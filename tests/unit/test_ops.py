"""The doctor's reasoning that needs no server: what a key says, and what this machine allows."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from exaifs.mountpoint import may_mount
from exaifs.ops.checks import Status
from exaifs.ops.keys import objection, read_key
from exaifs.ops.local import allow_other, cache_directory, fuse_device, libraries

NOW = datetime(2026, 1, 1, tzinfo=UTC)
URL = "https://abcdefgh.supabase.co"


def token(**claims: Any) -> str:
    """Return something with the form of a JSON Web Token; its signature is not looked at."""
    parts = [{"alg": "HS256"}, claims, "signature"]
    return ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts
    )


@pytest.mark.parametrize(
    ("key", "url", "words"),
    [
        (token(role="anon"), URL, "anon key"),
        ("sb_publishable_x", URL, "publishable key"),
        (token(), URL, "without a role"),
        (token(role="authenticated"), URL, "authenticated"),
        (token(role="service_role", exp=1), URL, "expired on 1970-01-01"),
        (token(role="service_role", ref="other"), URL, "belongs to project other"),
    ],
)
def test_a_key_that_cannot_work_is_known_without_asking(key: str, url: str, words: str) -> None:
    """The objection names the reason and the next step, never the key."""
    found = objection(read_key(key), url, NOW)
    assert found is not None
    assert words in found[0]
    assert found[1].endswith(".")
    assert key not in " ".join(found)


@pytest.mark.parametrize(
    ("key", "url"),
    [
        (token(role="service_role"), URL),
        (token(role="service_role", ref="abcdefgh", exp=4102444800), URL),
        (token(role="service_role", ref="other"), "https://files.example.org"),
        ("sb_secret_x", URL),
        ("something.quite.else", URL),
        ("opaque", URL),
        (token(role="service_role", exp=10**30), URL),
    ],
)
def test_what_may_work_is_left_to_the_server(key: str, url: str) -> None:
    """No objection without proof; nonsense in a key is no crash."""
    assert objection(read_key(key), url, NOW) is None
    assert key not in read_key(key).text


def test_the_capability_to_mount_is_read_from_proc() -> None:
    """CAP_SYS_ADMIN is bit 21; a container's root often lacks it."""
    assert may_mount("Name:\tx\nCapEff:\t000001ffffffffff\n")
    assert not may_mount("Name:\tx\nCapEff:\t00000000a80425fb\n")
    assert may_mount("no such line")


def test_a_library_that_cannot_be_loaded_names_its_package() -> None:
    """Both that a mount needs are here; one that is not is named with Debian's package."""
    assert libraries().status is Status.OK
    missing = libraries({"no_such_module_anywhere": "libnothing1"})
    assert missing.status is Status.FAILED
    assert "libnothing1" in missing.fix


def test_a_missing_device_names_docker_and_modprobe(tmp_path: Path) -> None:
    """The fix serves hosts and containers."""
    check = fuse_device(tmp_path / "fuse")
    assert check.status is Status.FAILED
    assert "modprobe" in check.fix
    assert "--device" in check.fix


def test_a_cache_directory_is_tried_and_left_clean(tmp_path: Path) -> None:
    """One that does not exist yet is fine where it can be made; nothing is created by the check."""
    check = cache_directory(tmp_path / "a" / "b")
    assert check.status in {Status.OK, Status.WARNING}
    assert "will be created" in check.summary
    assert list(tmp_path.iterdir()) == []


def test_allow_other_is_read_from_fuse_conf(tmp_path: Path) -> None:
    """Root needs nothing; others need an active line."""
    conf = tmp_path / "fuse.conf"
    conf.write_text("user_allow_other\n")
    assert allow_other(conf).status is Status.OK
