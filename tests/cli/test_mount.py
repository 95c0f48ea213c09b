"""`exaifs mount` and `umount` from the outside: background, flags, and every way a mount can be refused."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import BareSupabase, Stranger
from tests.cli.support import Result, exaifs
from tests.support.mounts import wait_until
from tests.support.ports import own_port

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="/dev/fuse is missing here"),
]

SECRET_KEY = "sb_secret_0123456789abcdefghij"


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    """An empty directory, which is no mountpoint afterwards either."""
    path = tmp_path / "files"
    path.mkdir()
    yield path
    assert not os.path.ismount(path)


@contextmanager
def mounted(env: dict[str, str], mountpoint: Path, *flags: str) -> Iterator[Path]:
    """Mount in the background while the block runs; ended with `umount` whatever happens."""
    result = exaifs("mount", "--daemon", str(mountpoint), *flags, env=env)
    assert result.code == 0, result
    try:
        yield mountpoint
    finally:
        ended = exaifs("umount", str(mountpoint), env=env)
        if ended.code != 0:
            exaifs("umount", "--lazy", str(mountpoint), env=env)
    assert ended.code == 0, ended


def refused(env: dict[str, str], mountpoint: Path, tmp_path: Path, *flags: str) -> Result:
    """Try to mount, which must fail on one line and leave nothing mounted."""
    cache = () if "--cache-dir" in flags else ("--cache-dir", str(tmp_path / "cache"))
    result = exaifs("mount", str(mountpoint), *cache, *flags, env=env)
    assert result.code != 0, result
    assert result.stderr.splitlines()[-1].startswith("exaifs: "), result
    assert "Traceback" not in result.output
    assert not os.path.ismount(mountpoint)
    return result


@pytest.mark.embedded
def test_in_the_background_until_umount(
    fresh_bucket: dict[str, str], mountpoint: Path, tmp_path: Path
) -> None:
    """`mount --daemon` returns when the mount answers; `umount` when everything is uploaded."""
    env = {**fresh_bucket, "FILE_CACHE_DIR": str(tmp_path / "cache")}
    with mounted(env, mountpoint):
        (mountpoint / "note.txt").write_text("hello")
    with mounted(env, mountpoint, "--cache-dir", str(tmp_path / "another")):
        assert (mountpoint / "note.txt").read_text() == "hello"
    log = (tmp_path / "cache" / "exaifs.log").read_text()
    assert fresh_bucket["SUPABASE_SERVICE_ROLE_KEY"] not in log
    assert "\x1b" not in log


@pytest.mark.embedded
def test_flags_reach_the_mount(fresh_bucket: dict[str, str], mountpoint: Path, tmp_path: Path) -> None:
    """--read-only refuses, --uid, --gid and --umask show on what records none; flags win."""
    env = {**fresh_bucket, "EXAIFS_UID": "7", "FILE_CACHE_DIR": str(tmp_path / "cache")}
    flags = ("--read-only", "--uid", "1234", "--gid", "2345", "--umask", "027")
    with mounted(env, mountpoint, *flags):
        status = mountpoint.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (1234, 2345, 0o750)
        with pytest.raises(OSError, match="Read-only file system"):
            (mountpoint / "x").write_text("x")


@pytest.mark.embedded
def test_a_second_mount_at_the_same_place_is_refused(
    fresh_bucket: dict[str, str], mountpoint: Path, tmp_path: Path
) -> None:
    """The first one goes on; the line says how to end it."""
    env = {**fresh_bucket, "FILE_CACHE_DIR": str(tmp_path / "cache")}
    with mounted(env, mountpoint):
        result = exaifs("mount", str(mountpoint), env=env)
        assert result.code == 4
        assert f"exaifs umount {mountpoint}" in result.complaint
        (mountpoint / "still.txt").write_text("works")


def test_a_mountpoint_that_is_in_the_way_is_exit_code_4(tmp_path: Path) -> None:
    """Missing, a file, not empty: each says so before anything is asked of Supabase."""
    env = {"SUPABASE_URL": f"http://127.0.0.1:{own_port()}", "SUPABASE_SERVICE_ROLE_KEY": SECRET_KEY}
    file = tmp_path / "file"
    file.write_text("x")
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious.txt").write_text("x")
    for path, words in (
        (tmp_path / "missing", "mkdir"),
        (file, "is not a directory"),
        (full, "--nonempty"),
    ):
        result = refused(env, path, tmp_path)
        assert result.code == 4, result
        assert str(path) in result.complaint
        assert words in result.complaint


def test_a_cache_directory_that_cannot_be_made_is_exit_code_4(mountpoint: Path, tmp_path: Path) -> None:
    """The directory and the variable are named."""
    env = {"SUPABASE_URL": f"http://127.0.0.1:{own_port()}", "SUPABASE_SERVICE_ROLE_KEY": SECRET_KEY}
    (tmp_path / "file").write_text("x")
    for background in ((), ("--daemon",)):
        result = refused(
            env, mountpoint, tmp_path, "--cache-dir", str(tmp_path / "file" / "x"), *background
        )
        assert result.code == 4, result
        assert str(tmp_path / "file") in result.stderr


@pytest.mark.parametrize("background", [(), ("--daemon",)])
def test_nothing_to_serve_without_a_server_is_exit_code_3(
    mountpoint: Path, tmp_path: Path, background: tuple[str, ...]
) -> None:
    """An empty cache and nobody at the URL: refused, in the background as in the foreground."""
    url = f"http://127.0.0.1:{own_port()}"
    env = {"SUPABASE_URL": url, "SUPABASE_SERVICE_ROLE_KEY": SECRET_KEY, "EXAIFS_REQUEST_TIMEOUT_S": "2"}
    result = refused(env, mountpoint, tmp_path, *background)
    assert result.code == 3, result
    assert url in result.stderr


@pytest.mark.embedded
def test_a_wrong_key_is_exit_code_3(bare_supabase: BareSupabase, mountpoint: Path, tmp_path: Path) -> None:
    """An anon key and a foreign one are refused; the mount never shows an empty directory."""
    for env in (
        bare_supabase.key(role="service_role", secret="a secret of another project, also long enough"),
        bare_supabase.key(role="service_role", exp=1_000_000_000),
    ):
        result = refused(env, mountpoint, tmp_path)
        assert result.code == 3, result
        assert "SUPABASE_SERVICE_ROLE_KEY" in result.stderr


@pytest.mark.embedded
def test_an_expired_key_is_an_outage_until_a_mount_with_a_new_one(
    fresh_bucket: dict[str, str], stranger: Stranger, mountpoint: Path, tmp_path: Path
) -> None:
    """A host restarted meanwhile serves what it knows and keeps what is written; nothing known: refused."""
    expired = threading.Event()
    url = stranger.expiring(fresh_bucket["SUPABASE_URL"], expired)
    env = {**fresh_bucket, "SUPABASE_URL": url, "FILE_CACHE_DIR": str(tmp_path / "cache")}
    with mounted(env, mountpoint):
        (mountpoint / "note.txt").write_text("known")
    expired.set()
    with mounted(env, mountpoint):
        assert (mountpoint / "note.txt").read_text() == "known"
        (mountpoint / "later.txt").write_text("kept")
        wait_until(
            lambda: "key has expired" in exaifs("status", str(mountpoint), env=env).output,
            120,
            "it is told",
        )
    assert refused(env, mountpoint, tmp_path, "--require-online").code == 3
    assert refused(env, mountpoint, tmp_path, "--cache-dir", str(tmp_path / "empty")).code == 3
    expired.clear()
    with mounted(env, mountpoint):
        assert exaifs("sync", str(mountpoint), env=env).code == 0
        assert (mountpoint / "later.txt").read_text() == "kept"


@pytest.mark.embedded
def test_an_anon_key_is_refused(
    embedded_supabase: dict[str, str], mountpoint: Path, tmp_path: Path
) -> None:
    """It could list the bucket, as empty."""
    env = {**embedded_supabase, "SUPABASE_SERVICE_ROLE_KEY": "sb_publishable_0123456789abcdefghij"}
    assert refused(env, mountpoint, tmp_path).code == 3


@pytest.mark.embedded
def test_a_missing_schema_or_bucket_says_init(
    bare_supabase: BareSupabase, embedded_supabase: dict[str, str], mountpoint: Path, tmp_path: Path
) -> None:
    """Both are mended by `exaifs init`, and the line says so."""
    schema = refused(bare_supabase.key(role="service_role"), mountpoint, tmp_path)
    assert schema.code == 1
    assert "exaifs init" in schema.stderr
    bucket = refused(embedded_supabase, mountpoint, tmp_path, "--bucket", "no-such-bucket")
    assert bucket.code == 1
    assert "no-such-bucket" in bucket.stderr
    assert "exaifs init" in bucket.stderr


def test_a_web_page_is_not_mounted(stranger: Stranger, mountpoint: Path, tmp_path: Path) -> None:
    """A proxy's login page under the URL is no Supabase."""
    env = {
        "SUPABASE_URL": stranger.answering(200, "text/html", b"<h1>Log in</h1>"),
        "SUPABASE_SERVICE_ROLE_KEY": SECRET_KEY,
        "EXAIFS_REQUEST_TIMEOUT_S": "2",
    }
    assert refused(env, mountpoint, tmp_path).code == 3
