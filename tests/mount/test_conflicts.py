"""`exaifs conflicts` on real mounts: found, compared, and restored through the mount."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exaifs.cache.unsent.conflicts import (
    DIRECTORY,
    Conflict,
    Version,
    describe,
    list_conflicts,
    new_file,
    this_host,
)
from tests.mount.conftest import StoredBytes, exaifs, exaifs_mount
from tests.support.gate import Gate
from tests.support.mounts import AWAY, MountedDaemon, status_of, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.embedded]


def store_of(mount: MountedDaemon) -> Path:
    """Return where conflicts are kept, as the mount tells it."""
    return Path(status_of(mount)["mount"]["cache_directory"]) / DIRECTORY


def keep(store: Path, data: bytes, path: str | None) -> Conflict:
    """Keep bytes as the daemon does."""
    file = new_file(store)
    file.write_bytes(data)
    return describe(file, path=path, reason="another host wrote", kept=Version(len(data)))


def test_a_mount_is_enough(mount: MountedDaemon, mount_environment: dict[str, str]) -> None:
    """Given DIR no setting is needed; given the settings the mount is found; the status counts."""
    assert status_of(mount)["conflicts"] == {"waiting": 0, "seen": 0}
    conflict = keep(store_of(mount), b"mine\n", "a.txt")
    code, output = exaifs({}, "conflicts", str(mount.path))
    assert code == 0, output
    assert f"{conflict.id}  a.txt" in output
    code, output = exaifs(mount_environment, "conflicts", "--json")
    assert code == 0, output
    assert json.loads(output)["mountpoint"] == str(mount.path)
    assert status_of(mount)["conflicts"] == {"waiting": 1, "seen": 0}
    assert "conflicts 1 waiting" in exaifs({}, "status", str(mount.path))[1]
    assert exaifs({}, "conflicts", "discard", "-y", "--mount", str(mount.path), conflict.id)[0] == 0
    assert status_of(mount)["conflicts"]["waiting"] == 0


def test_restored_through_the_mount(
    mount: MountedDaemon, mount_environment: dict[str, str], stored: StoredBytes
) -> None:
    """The file has the kept bytes and is the same file; what it held is kept instead, and can come back."""
    mount.sh(
        "mkdir d; printf 'one\\ntwo\\n' > d/e.txt; setfattr -n user.note -v kept d/e.txt; chmod 640 d/e.txt"
    )
    identity = mount.sh("getfattr --only-values -n user.exai.file_id d/e.txt; stat -c ' %i %a' d/e.txt")
    store = store_of(mount)
    conflict = keep(store, b"one\nzwei\n", "d/e.txt")

    code, output = exaifs({}, "conflicts", "diff", "--mount", str(mount.path), conflict.id)
    assert code == 0, output
    assert "-two\n+zwei\n" in output
    assert mount.sh("sha256sum d/e.txt").split()[0] in output
    found = json.loads(exaifs(mount_environment, "conflicts", "diff", "--json", conflict.id)[1])
    assert (found["current_from"], found["identical"]) == ("mount", False)
    assert found["current"]["size_bytes"] == 8

    code, output = exaifs({}, "conflicts", "restore", "--mount", str(mount.path), conflict.id)
    assert code == 0, output
    assert mount.sh("cat d/e.txt") == "one\nzwei\n"
    assert stored("d/e.txt") == b"one\nzwei\n"
    assert (
        mount.sh("getfattr --only-values -n user.exai.file_id d/e.txt; stat -c ' %i %a' d/e.txt")
        == identity
    )
    assert mount.sh("getfattr --only-values -n user.note d/e.txt") == "kept"
    (previous,) = list_conflicts(store)
    assert previous.path == "d/e.txt"
    assert previous.id in output
    assert previous.winner is not None
    assert previous.winner.host == this_host()
    assert (store / f"{previous.id}.data").read_bytes() == b"one\ntwo\n"

    code, output = exaifs(mount_environment, "conflicts", "restore", previous.id)
    assert code == 0, output
    assert stored("d/e.txt") == b"one\ntwo\n"
    (back,) = list_conflicts(store)
    mount.sh("rm -r d")
    assert exaifs(mount_environment, "conflicts", "restore", back.id)[0] == 0
    assert mount.sh("cat d/e.txt") == "one\nzwei\n"
    same = keep(store, b"one\nzwei\n", "d/e.txt")
    code, output = exaifs(mount_environment, "conflicts", "restore", same.id)
    assert "has this content already" in output
    assert list_conflicts(store) == []
    mount.sh("echo file > now-a-file")
    in_the_way = keep(store, b"one\nzwei\n", "now-a-file/e.txt")
    code, output = exaifs(mount_environment, "conflicts", "restore", in_the_way.id)
    assert (code, "name another place with --to" in output) == (1, True), output
    assert mount.sh("cat now-a-file") == "file\n"


def test_a_place_in_a_mount_may_be_named(mount: MountedDaemon, stored: StoredBytes) -> None:
    """An unknown path needs --to; a file that is there becomes a conflict, a link is not followed."""
    store = store_of(mount)
    conflict = keep(store, b"mine", None)
    mount.sh("echo there > a; ln -s a link; mkdir d")
    base = ("conflicts", "restore", "--mount", str(mount.path))
    assert exaifs({}, *base, conflict.id)[0] == 1
    assert exaifs({}, *base, "--to", str(mount.path / "link"), conflict.id)[0] == 1
    assert exaifs({}, *base, "--to", str(mount.path / "d"), conflict.id)[0] == 1
    assert mount.sh("cat a") == "there\n"
    code, output = exaifs({}, *base, "--to", str(mount.path / "a"), conflict.id)
    assert code == 0, output
    assert stored("a") == b"mine"
    (previous,) = list_conflicts(store)
    assert previous.path == "a"
    assert (store / f"{previous.id}.data").read_bytes() == b"there\n"


def test_a_close_that_fails_discards_nothing(
    gate: Gate, mount_environment: dict[str, str], tmp_path: Path
) -> None:
    """The conflict is there until its bytes are safe; where the mount keeps a journal, that is enough."""
    refusing = {**mount_environment, "EXAIFS_OFFLINE_WRITES": "refuse", "EXAIFS_REQUEST_TIMEOUT_S": "10"}
    with exaifs_mount(refusing, tmp_path) as mount:
        mount.expected |= AWAY
        mount.sh("echo there > a; cat a")
        store = store_of(mount)
        conflict = keep(store, b"mine", "a")
        gate.close()
        code, output = exaifs({}, "conflicts", "restore", "--mount", str(mount.path), conflict.id)
        assert code == 1, output
        assert "Nothing was discarded" in output
        kept = {each.id: (store / f"{each.id}.data").read_bytes() for each in list_conflicts(store)}
        assert kept.pop(conflict.id) == b"mine"
        assert list(kept.values()) == [b"there\n"]
        gate.open()
        # Until the mount has asked again it goes on refusing.
        wait_until(lambda: status_of(mount)["state"] == "online", 120, "Supabase is back")
        code, output = exaifs({}, "conflicts", "restore", "--mount", str(mount.path), conflict.id)
        assert code == 0, output
        assert conflict.id not in {each.id for each in list_conflicts(store)}


def test_a_read_only_mount_refuses(
    mount_environment: dict[str, str], tmp_path: Path, stored: StoredBytes
) -> None:
    """Listing and comparing work; restoring says what to do instead."""
    with exaifs_mount({**mount_environment, "EXAIFS_READ_ONLY": "1"}, tmp_path) as mount:
        conflict = keep(store_of(mount), b"mine", "a")
        code, output = exaifs({}, "conflicts", "restore", "--mount", str(mount.path), conflict.id)
        assert code == 1
        assert "read-only" in output
        assert exaifs({}, "conflicts", "diff", "--mount", str(mount.path), conflict.id)[0] == 0
        assert len(list_conflicts(store_of(mount))) == 1
    assert stored("a") is None
