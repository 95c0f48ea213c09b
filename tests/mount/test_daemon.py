"""Starting, stopping, crashing: the daemon as an operator meets it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from exaifs import mountpoint as mountpoints
from exaifs.processes import holders
from tests.mount.conftest import StoredBytes, exaifs, exaifs_mount
from tests.support.gate import Gate
from tests.support.mounts import AWAY, MountedDaemon, wait_until, within

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

MIB = 1 << 20


def test_a_crash_while_reading(mount: MountedDaemon, tmp_path: Path) -> None:
    """Kill -9 in the middle of a read: the mountpoint fails, the next mount heals it, nothing is lost."""
    source = tmp_path / "source"
    source.write_bytes(os.urandom(20 * MIB))
    mount.sh(f"cp {source} big", timeout_s=240)
    mount.stop()
    shutil.rmtree(tmp_path / "cache")
    mount.start()
    reader = within(120, lambda: os.open(mount.path / "big", os.O_RDONLY))
    assert len(within(120, lambda: os.read(reader, 4096))) == 4096
    mount.kill9()
    with pytest.raises(OSError, match=r"not connected|aborted"):
        within(120, lambda: [os.pread(reader, MIB, offset * MIB) for offset in range(20)])
    with pytest.raises(OSError, match="not connected"):
        os.close(reader)
    with pytest.raises(OSError, match="not connected"):
        within(120, lambda: list(mount.path.iterdir()))
    mount.start()
    assert "took away a mount left by a crash" in mount.events()
    assert mount.sh(f"cmp big {source} && echo same", timeout_s=240) == "same\n"


def test_a_crash_after_close_loses_nothing(mount: MountedDaemon, stored: StoredBytes) -> None:
    """What close() has acknowledged is there after kill -9 (promise 1)."""
    mount.sh("mkdir d; for i in $(seq 20); do echo $i > d/$i; done")
    mount.kill9()
    assert [stored(f"d/{i}") for i in range(1, 21)] == [f"{i}\n".encode() for i in range(1, 21)]
    mount.start()
    assert mount.sh("cat $(printf 'd/%s ' $(seq 20)) | tail -1; ls d | wc -l") == "20\n20\n"


def test_sigterm_drains(mount: MountedDaemon, stored: StoredBytes) -> None:
    """What is written but not closed yet is sent before the daemon ends."""
    mount.expected.add("unmounted while files were open")
    descriptor = within(120, lambda: os.open(mount.path / "open", os.O_CREAT | os.O_WRONLY))
    within(120, lambda: os.write(descriptor, b"not closed"))
    assert stored("open") != b"not closed"
    mount.signal(signal.SIGTERM)
    assert mount.wait() == 0
    assert mount.mount is None
    assert stored("open") == b"not closed"
    with pytest.raises(OSError, match="not connected"):
        os.close(descriptor)


def test_a_stop_in_the_middle_of_a_copy(mount: MountedDaemon, stored: StoredBytes, tmp_path: Path) -> None:
    """Every file whose cp succeeded before the end is on the server, whole."""
    mount.expected |= {
        "unmounted while files were open",
        "requests still unanswered at unmount are given up",
    }
    done = tmp_path / "done"
    done.touch()
    script = (
        f"for i in $(seq 500); do echo $i > {mount.path}/$i || break; echo $i >> {done}; done 2>/dev/null"
    )
    with subprocess.Popen(["bash", "-c", script], cwd="/") as writer:
        wait_until(lambda: done.read_text().count("\n") > 10, 120, "some files are written")
        mount.signal(signal.SIGTERM)
        assert mount.wait() == 0
        # Without the mount, bash writes below the mountpoint.
        writer.kill()
    acknowledged = [name for name in done.read_text().split() if not (mount.path / name).exists()]
    assert len(acknowledged) > 10
    assert [name for name in acknowledged if stored(name) != f"{name}\n".encode()] == []


def test_a_second_signal_is_quicker(gate: Gate, mount_environment: dict[str, str], tmp_path: Path) -> None:
    """With the server away a stop waits for the drain deadline; a second SIGTERM ends the wait."""
    mount_environment["EXAIFS_DRAIN_TIMEOUT_S"] = "120"
    with exaifs_mount(mount_environment, tmp_path) as mount:
        mount.expected |= AWAY | {"unmounted while files were open", "not sent yet"}
        descriptor = within(120, lambda: os.open(mount.path / "open", os.O_CREAT | os.O_WRONLY))
        within(120, lambda: os.write(descriptor, b"unsent"))
        gate.close()
        mount.signal(signal.SIGTERM)
        wait_until(lambda: "stopping: sending what was written" in mount.events(), 120, "the drain begins")
        mount.signal(signal.SIGTERM)
        started = time.monotonic()
        assert mount.wait() == 0
        assert time.monotonic() - started < 60
        with pytest.raises(OSError, match="not connected"):
            os.close(descriptor)


def test_a_stop_ends_in_time(gate: Gate, mount_environment: dict[str, str], tmp_path: Path) -> None:
    """A server that hangs and a file that is being closed cost the drain's time and little more.

    `docker stop` and systemd kill what takes longer. What is not sent then is sent by the next mount.
    """
    mount_environment["EXAIFS_DRAIN_TIMEOUT_S"] = "2"
    # What takes longer than it should, takes until the answer is given up.
    mount_environment["EXAIFS_REQUEST_TIMEOUT_S"] = mount_environment["EXAIFS_READ_TIMEOUT_S"] = "120"
    with exaifs_mount(mount_environment, tmp_path) as mount:
        mount.expected |= AWAY | {
            "unmounted while files were open",
            "requests still unanswered at unmount are given up",
            "adopted a file that was not sent",
            "not sent yet",
            "kept for later",
        }
        descriptor = within(120, lambda: os.open(mount.path / "open", os.O_CREAT | os.O_WRONLY))

        def close() -> None:
            with suppress(OSError):
                os.close(descriptor)

        within(120, lambda: os.write(descriptor, b"unsent"))
        busy = os.dup(descriptor)
        gate.hang()
        threading.Thread(target=close, daemon=True).start()
        started = time.monotonic()
        mount.signal(signal.SIGTERM)
        assert mount.wait() == 0
        assert time.monotonic() - started < 30
        assert mount.mount is None
        with pytest.raises(OSError, match="not connected"):
            os.close(busy)
        gate.open()
        mount.start()
        assert mount.sh("cat open") == "unsent"


def test_serving_without_a_server(gate: Gate, mount_environment: dict[str, str], tmp_path: Path) -> None:
    """What was seen is served when the server is away at mount; nothing known is a clear refusal."""
    mount_environment["EXAIFS_REQUEST_TIMEOUT_S"] = "10"
    gate.close()
    (tmp_path / "mnt").mkdir()
    code, output = exaifs(mount_environment, "mount", str(tmp_path / "mnt"))
    assert code == 3
    assert "cannot reach Supabase" in output
    assert "Nothing is cached yet" in output
    gate.open()
    with exaifs_mount(mount_environment, tmp_path) as mount:
        mount.sh("echo known > a; cat a; ls")
        mount.stop()
        gate.close()
        mount.expected |= AWAY
        mount.start()
        assert mount.sh("cat a; ls") == "known\na\n"
        mount.stop()
        code, output = exaifs(mount_environment, "mount", "--require-online", str(mount.path))
        assert (code, "--require-online is set" in output) == (3, True)
        gate.open()
        mount.start()


def test_background(mount_environment: dict[str, str], tmp_path: Path) -> None:
    """`mount --daemon` returns when the mount answers, `umount` when everything is sent."""
    path = tmp_path / "mnt"
    path.mkdir()
    code, output = exaifs(mount_environment, "mount", "--daemon", str(path))
    daemon = MountedDaemon([], path, environment={}, log_path=tmp_path / "cache" / "exaifs.log")
    try:
        assert code == 0, output
        assert daemon.sh("echo x > a; cat a") == "x\n"
        assert "mounted" in daemon.events()
        with within(120, (path / "a").open):
            code, output = exaifs(mount_environment, "umount", str(path))
            assert code == 4
            assert f"({os.getpid()})" in output
        code, output = exaifs(mount_environment, "umount", str(path))
        assert (code, daemon.mount) == (0, None), output
        assert holders(tmp_path / "cache") == []
    finally:
        if daemon.mount is not None:
            exaifs(mount_environment, "umount", "--lazy", str(path))
    daemon.check_log()
    code, output = exaifs(mount_environment, "umount", str(path))
    assert (code, "nothing is mounted" in output) == (4, True)


def test_background_start_that_fails(mount_environment: dict[str, str], tmp_path: Path) -> None:
    """An error on the way to the background is printed, and the exit code is that of the foreground."""
    code, output = exaifs(mount_environment, "mount", "--daemon", str(tmp_path / "missing"))
    assert code == 4
    assert "mkdir -p" in output


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"SUPABASE_SERVICE_ROLE_KEY": "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoieCJ9.d3Jvbmc"}, 3, "key"),
        ({"SUPABASE_SERVICE_ROLE_KEY": "sb_secret_wrong_wrong_wrong_wrong"}, 3, "key"),
        ({"SUPABASE_SERVICE_ROLE_KEY": ""}, 2, "SUPABASE_SERVICE_ROLE_KEY is not set"),
        ({"SUPABASE_URL": ""}, 2, "SUPABASE_URL is not set"),
        ({"SUPABASE_URL": "http://127.0.0.1:9"}, 3, "cannot reach Supabase"),
        ({"FILE_STORAGE_BUCKET": "no-such-bucket"}, 1, "no-such-bucket"),
        ({"FILE_CACHE_DIR": "/proc/nothing"}, 4, "cache directory"),
        ({"EXAIFS_UMASK": "99"}, 2, "EXAIFS_UMASK"),
    ],
)
def test_settings_that_will_not_do(
    mount_environment: dict[str, str], tmp_path: Path, change: dict[str, str], code: int, words: str
) -> None:
    """Each is one line that says what to do, a non-zero exit, nothing mounted, and no key shown."""
    path = tmp_path / "mnt"
    path.mkdir()
    mount_environment["EXAIFS_LOG_LEVEL"] = "error"
    found, output = exaifs({**mount_environment, **change}, "mount", str(path))
    assert (found, words in output) == (code, True), output
    assert "Traceback" not in output
    assert output.strip().count("\n") == 0, output
    key = change.get("SUPABASE_SERVICE_ROLE_KEY") or mount_environment["SUPABASE_SERVICE_ROLE_KEY"]
    assert key not in output
    assert MountedDaemon([], path, environment={}, log_path=tmp_path / "log").mount is None


def test_a_full_cache_disk(mount_environment: dict[str, str], tmp_path: Path) -> None:
    """A cache directory without room is refused before anything is mounted."""
    cache = tmp_path / "cache"
    for directory in (cache, tmp_path / "mnt"):
        directory.mkdir()
    small = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(cache)]
    if subprocess.run(small, check=False, capture_output=True).returncode != 0:
        pytest.skip("ONLY ROOT CAN MAKE A FULL DISK")
    try:
        code, output = exaifs(mount_environment, "mount", str(tmp_path / "mnt"))
    finally:
        mountpoints.detach(cache, lazy=True)
    assert (code, "is full (4 MiB free)" in output, "FILE_CACHE_DIR" in output) == (4, True, True), output


def test_another_host(mount: MountedDaemon, mount_environment: dict[str, str], tmp_path: Path) -> None:
    """Another host's new, changed and deleted files show up in time, kernel caches included (promise 4)."""
    other = {**mount_environment, "FILE_CACHE_DIR": str(tmp_path / "other-cache")}
    (tmp_path / "other").mkdir()
    with exaifs_mount(other, tmp_path / "other") as writer:
        writer.sh("echo one > a; echo one > b; mkdir d")
        wait_until(lambda: mount.sh("ls -A") == "a\nb\nd\n", 120, "new names")
        mount.sh("cat a b; stat a b d >/dev/null; stat c 2>/dev/null", check=False)
        writer.sh("echo two, longer > a; rm b; rmdir d; echo new > c")
        wait_until(lambda: mount.sh("cat a") == "two, longer\n", 120, "new content")
        wait_until(
            lambda: mount.sh("ls -A; cat c", check=False) == "a\nc\nnew\n", 120, "names are up to date"
        )


@pytest.mark.parametrize("allowed", [False, True])
def test_other_users(mount_environment: dict[str, str], *, allowed: bool) -> None:
    """Only --allow-other lets other users in, and then permission bits count as on any disk."""
    if os.geteuid() != 0:
        pytest.skip("ONLY ROOT CAN ACT AS ANOTHER USER")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        mount = exaifs_mount(mount_environment, place, *(["--allow-other"] if allowed else []))
        with mount:
            mount.sh("umask 022; echo public > public; (umask 077; echo secret > private)")
            as_nobody = f"setpriv --reuid 65534 --regid 65534 --clear-groups bash -c 'cat {mount.path}/$0'"
            found = [
                subprocess.run(
                    ["bash", "-c", f"{as_nobody} {file}"], capture_output=True, timeout=120, check=False
                ).stdout
                for file in ("public", "private")
            ]
    assert found == [b"public\n" if allowed else b"", b""]


def test_one_daemon_for_a_cache_directory(
    mount: MountedDaemon, mount_environment: dict[str, str], tmp_path: Path
) -> None:
    """A second mount of the same bucket and cache, or at the same place, is refused and says by whom."""
    (tmp_path / "other").mkdir()
    code, output = exaifs(mount_environment, "mount", str(tmp_path / "other"))
    assert (code, f"process {mount.pid}, mounted at {mount.path}" in output) == (4, True), output
    code, output = exaifs(mount_environment, "mount", str(mount.path))
    assert (code, f"already mounted at {mount.path} by process {mount.pid}" in output) == (4, True), output
    assert mount.sh("ls") == ""


def test_secrets_stay_inside(mount_environment: dict[str, str], tmp_path: Path) -> None:
    """The key is in the environment only: not on the command line, in the log at debug, or in the cache."""
    key = mount_environment["SUPABASE_SERVICE_ROLE_KEY"]
    mount_environment["EXAIFS_LOG_LEVEL"] = "debug"
    with exaifs_mount(mount_environment, tmp_path) as mount:
        mount.sh("echo x > a; cat a; ls -l; getfattr -d a; stat missing; true")
        assert key not in Path(f"/proc/{mount.pid}/cmdline").read_text()
        pieces = [key, *[piece for piece in key.split(".")[1:] if piece]]
        for path in [mount.log_path, *(tmp_path / "cache").rglob("*")]:
            with suppress(FileNotFoundError):  # some come and go while the daemon runs
                content = path.read_bytes() if path.is_file() else b""
                assert not any(piece.encode() in content for piece in pieces), f"the key is in {path}"


def test_the_service_manager_follows(mount_environment: dict[str, str], tmp_path: Path) -> None:
    """READY when the mount answers, STOPPING when it drains (Type=notify)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(120)
        mount_environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        with exaifs_mount(mount_environment, tmp_path):
            assert receiver.recv(4096).decode().splitlines()[0] == "READY=1"
        assert receiver.recv(4096).decode().splitlines()[0] == "STOPPING=1"


def test_python_warnings_are_errors_in_the_daemon(
    mount_environment: dict[str, str], tmp_path: Path
) -> None:
    """A whole run of the daemon raises no Python warning."""
    mount_environment["PYTHONWARNINGS"] = "error"
    with exaifs_mount(mount_environment, tmp_path) as mount:
        mount.sh("echo x > a; cat a; mkdir d; mv a d; rm -r d")


ELSEWHERE = "unsent files of another bucket or project are kept here; only a mount of that one sends them"


def test_unsent_files_are_not_forgotten_with_a_setting(
    gate: Gate, mount_environment: dict[str, str], stored: StoredBytes, tmp_path: Path
) -> None:
    """After a change of SUPABASE_URL nobody sends what was written before: the next mount says so."""
    with exaifs_mount(mount_environment, tmp_path) as mount:
        mount.expected |= AWAY
        mount.sh("ls")
        gate.close()
        mount.sh("echo unsent > a")
        mount.stop()
    other = {**mount_environment, "FILE_STORAGE_BUCKET": "user-files"}
    gate.open()
    with exaifs_mount(other, tmp_path) as mount:
        mount.expected |= AWAY | {ELSEWHERE}
        (told,) = [record for record in mount.records() if record.get("event") == ELSEWHERE]
        assert (told["waiting"], mount_environment["FILE_STORAGE_BUCKET"] in told["cache"]) == (1, True)
    with exaifs_mount(mount_environment, tmp_path) as mount:
        mount.expected |= AWAY | {ELSEWHERE, "adopted a file that was not sent"}
        mount.stop()
    assert stored("a") == b"unsent\n"
    with exaifs_mount(other, tmp_path) as mount:
        mount.expected |= AWAY | {ELSEWHERE, "adopted a file that was not sent"}
        assert mount.events().count(ELSEWHERE) == 1


def test_unsent_files_are_served_and_sent_without_an_index(
    gate: Gate, mount_environment: dict[str, str], stored: StoredBytes, tmp_path: Path
) -> None:
    """The index is gone and Supabase away: a mount that has something to send begins all the same."""
    with exaifs_mount(mount_environment, tmp_path) as mount:
        mount.expected |= AWAY | {"adopted a file that was not sent"}
        mount.sh("ls")
        gate.close()
        mount.sh("echo unsent > a")
        mount.kill9()
        for path in (tmp_path / "cache").glob("*/index.db*"):
            path.unlink()
        mount.start()
        assert mount.sh("cat a") == "unsent\n"
        gate.open()
        wait_until(lambda: stored("a") == b"unsent\n", 120, "the file is in Supabase")
        assert mount.sh("ls") == "a\n"
