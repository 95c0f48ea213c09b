"""Provider file ids through a real mount: what uploads, and what must never upload."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.mount.conftest import exaifs, exaifs_mount
from tests.providers.emulator import KEY, Answer, Clock, ProviderServer, running
from tests.providers.world import CONTRACTS, Providers
from tests.support.mounts import MountedDaemon, wait_until, within

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

NAME = "user.exai.provider.kimi"


@pytest.fixture
def kimi() -> Iterator[ProviderServer]:
    """A provider."""
    with running(ProviderServer(CONTRACTS["kimi"]())) as server:
        yield server


@pytest.fixture
def provider_mount(
    kimi: ProviderServer, mount_environment: dict[str, str], tmp_path: Path
) -> Iterator[MountedDaemon]:
    """A mount with that provider turned on."""
    providers = Providers(tmp_path, Clock())
    providers.add("kimi", kimi)
    environment = {**mount_environment, "EXAIFS_PROVIDERS_FILE": str(providers.path)}
    daemon = exaifs_mount(environment, tmp_path)
    with daemon:
        yield daemon
    assert KEY not in daemon.log()


def get(mount: MountedDaemon, name: str, attribute: str = NAME) -> str:
    """Read an attribute, as tools do."""
    return within(120, lambda: os.getxattr(mount.path / name, attribute)).decode()


def names(mount: MountedDaemon, name: str) -> list[str]:
    """List attributes."""
    return within(120, lambda: os.listxattr(mount.path / name))


@contextmanager
def writing(path: str, more: str) -> Iterator[None]:
    """Have another program write, and close at the end: ours would be closed by whatever it starts."""
    script = (
        "import sys; f = open(sys.argv[1], 'a'); f.write(sys.argv[2]); f.flush(); print('written'); input()"
    )
    command = [sys.executable, "-uc", script, path, more]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert within(120, program.stdout.readline) == "written\n"
        yield
        program.communicate("\n", timeout=120)


def test_getfattr_prints_an_id(provider_mount: MountedDaemon, kimi: ProviderServer) -> None:
    """The command of the README: one upload, the id without a newline, the same from then on."""
    provider_mount.sh("printf content > a.txt")
    command = f"getfattr -n {NAME} --only-values a.txt"
    printed = provider_mount.sh(command)
    assert printed in kimi.files
    assert kimi.files[printed].data == b"content"
    requests = kimi.requests
    assert provider_mount.sh(command) == printed
    assert NAME in names(provider_mount, "a.txt")
    assert (kimi.requests, kimi.counts["upload"]) == (requests, 1)
    sent = [record for record in provider_mount.records() if record["event"].startswith("sending a file")]
    assert [(record["size_bytes"], record["provider"]) for record in sent] == [(7, "kimi")]


def test_twenty_programs_one_upload(provider_mount: MountedDaemon, kimi: ProviderServer) -> None:
    """Twenty processes that ask at once get the same id from one upload."""
    provider_mount.sh("printf content > a.txt")
    script = f"import os; print(os.getxattr({str(provider_mount.path / 'a.txt')!r}, {NAME!r}).decode())"
    with kimi.hold():
        readers = [
            subprocess.Popen([sys.executable, "-I", "-S", "-c", script], stdout=subprocess.PIPE, text=True)
            for _ in range(20)
        ]
        wait_until(lambda: kimi.counts["upload"] == 1, 120, "an upload arrives")
    printed = {reader.communicate(timeout=120)[0].strip() for reader in readers}
    assert printed == set(kimi.files)
    assert kimi.counts["upload"] == 1


def test_what_only_looks_never_uploads(
    provider_mount: MountedDaemon, kimi: ProviderServer, tmp_path: Path
) -> None:
    """`ls -l`, `getfattr -d`, `cp -a`, `rsync -X`, `tar --xattrs`, `find`: no request to a provider."""
    programs = ["ls -lR .", "getfattr -d -m - -R .", "find . -type f", f"cp -a dir {tmp_path}/copy"]
    if shutil.which("rsync"):
        programs.append(f"rsync -aX dir/ {tmp_path}/synced/")
    if shutil.which("tar"):
        programs.append(f"tar --xattrs --xattrs-include='*' -cf {tmp_path}/all.tar dir")
    provider_mount.sh("mkdir dir; for i in 1 2 3; do echo $i > dir/$i.txt; done; cp -a dir inside")
    for program in programs:
        # The local file system may refuse attributes; whether it does is not the subject.
        provider_mount.sh(f"{program} 2>&1", check=program.startswith(("ls", "getfattr", "find")))
    assert kimi.requests == 0
    get(provider_mount, "dir/1.txt")
    assert kimi.counts["upload"] == 1
    for program in programs:
        provider_mount.sh(f"{program} 2>&1", check=program.startswith(("ls", "getfattr", "find")))
    provider_mount.sh("cp -a dir/1.txt dir/kept.txt; cp -a dir inside-too")
    assert kimi.requests == 1
    assert get(provider_mount, "dir/kept.txt") == get(provider_mount, "dir/1.txt")
    assert kimi.requests == 1


def test_an_id_follows_the_content(provider_mount: MountedDaemon, kimi: ProviderServer) -> None:
    """Renamed and copied files keep theirs, changed files lose it, at once and for listings too."""
    provider_mount.sh("printf content > a.txt")
    first = get(provider_mount, "a.txt")
    provider_mount.sh("mv a.txt b.txt; cp b.txt c.txt; printf content > d.txt")
    for name in ("b.txt", "c.txt", "d.txt"):
        assert NAME in names(provider_mount, name)
        assert get(provider_mount, name) == first
    provider_mount.sh("printf more >> b.txt")
    assert NAME not in names(provider_mount, "b.txt")
    second = get(provider_mount, "b.txt")
    assert kimi.files[second].data == b"contentmore"
    provider_mount.sh("cp c.txt .c.tmp; mv .c.tmp c.txt; cp c.txt e.txt; rm c.txt d.txt")
    assert get(provider_mount, "e.txt") == first
    assert kimi.counts == {"upload": 2}


def test_ids_outlive_the_mount(provider_mount: MountedDaemon, kimi: ProviderServer) -> None:
    """After a restart the id is there without any request to the provider."""
    provider_mount.sh("printf content > a.txt")
    first = get(provider_mount, "a.txt")
    provider_mount.restart()
    assert NAME in names(provider_mount, "a.txt")
    assert get(provider_mount, "a.txt") == first
    assert kimi.requests == 1


def test_commands_take_paths_of_the_mount(
    provider_mount: MountedDaemon, kimi: ProviderServer, mount_environment: dict[str, str], tmp_path: Path
) -> None:
    """`exaifs provider` finds a file by its path in the bucket, and by where it is on this host."""
    provider_mount.sh("mkdir dir; printf content > dir/a.txt")
    file_id = get(provider_mount, "dir/a.txt")
    environment = {**mount_environment, "EXAIFS_PROVIDERS_FILE": str(tmp_path / "providers.toml")}
    for path in (
        "dir/a.txt",
        f"{provider_mount.path}/dir/a.txt",
        f"{provider_mount.path}/dir/../dir/a.txt",
    ):
        assert exaifs(environment, "provider", "id", "kimi", path) == (0, f"{file_id}\n")
    for path in (str(provider_mount.path), f"{provider_mount.path}/none", "../none", "/etc/passwd"):
        code, said = exaifs(environment, "provider", "id", "kimi", path)
        assert (code, said.startswith("exaifs: there is no file")) == (1, True)
    path = f"{provider_mount.path}/dir/a.txt"
    with writing(path, "and what the bucket does not have"):
        code, said = exaifs(environment, "provider", "id", "kimi", path)
        assert (code, "is not sent as it is now" in said) == (1, True)
    assert exaifs(environment, "provider", "id", "kimi", path) == (
        0,
        get(provider_mount, "dir/a.txt") + "\n",
    )
    assert kimi.counts["upload"] == 2


def test_setfattr_registers_and_forgets(provider_mount: MountedDaemon, kimi: ProviderServer) -> None:
    """An operator tells an id that was made elsewhere; `-x` forgets it; other names of ours refuse."""
    made = kimi.add("", filename="f", data=b"content", purpose="file-extract", mime_type="text/plain")
    provider_mount.sh("printf content > a.txt")
    provider_mount.sh(f"setfattr -n {NAME} -v {made.id} a.txt")
    assert get(provider_mount, "a.txt") == made.id
    assert kimi.counts["upload"] == 0
    provider_mount.sh(f"setfattr -x {NAME} a.txt")
    assert NAME not in names(provider_mount, "a.txt")
    assert "No such attribute" in provider_mount.sh(f"setfattr -x {NAME} a.txt", check=False)
    for name in (f"{NAME}.uri", "user.exai.provider.other", "user.exai.url"):
        assert "not supported" in provider_mount.sh(f"setfattr -n {name} -v x a.txt", check=False)


def test_a_changed_copy_does_not_bring_its_old_id(
    provider_mount: MountedDaemon, kimi: ProviderServer, tmp_path: Path
) -> None:
    """Copied out with attributes, changed and copied back: the id of the old bytes stays behind."""
    provider_mount.sh("printf content > a.txt")
    first = get(provider_mount, "a.txt")
    for name in ("changed", "same"):
        provider_mount.sh(f"cp -a a.txt {tmp_path}/{name}")
        assert os.getxattr(tmp_path / name, NAME).decode() == first
    with (tmp_path / "changed").open("a") as file:
        file.write(" that changed")
    for name in ("changed", "same"):
        within(120, partial(shutil.copy2, tmp_path / name, provider_mount.path / name))
    assert get(provider_mount, "same") == first
    assert NAME not in names(provider_mount, "changed")
    assert kimi.files[get(provider_mount, "changed")].data == b"content that changed"
    assert "Invalid argument" in provider_mount.sh(f"setfattr -n {NAME} -v {first} changed", check=False)


def test_errors_have_their_errno(provider_mount: MountedDaemon, kimi: ProviderServer) -> None:
    """What a provider refuses is an errno and a text; other attributes go on working."""
    provider_mount.expected.add("no file id from the provider")
    provider_mount.sh("printf content > a.txt; mkdir dir; : > empty.txt")
    kimi.fail("upload", Answer(402, {"error": {"type": "billing_error", "message": "pay first"}}))
    for _ in range(2):
        assert "Disk quota exceeded" in provider_mount.sh(f"getfattr -n {NAME} a.txt", check=False)
    assert kimi.counts["upload"] == 1
    assert "pay first" in get(provider_mount, "a.txt", f"{NAME}.error")
    assert "Invalid argument" in provider_mount.sh(f"getfattr -n {NAME} empty.txt", check=False)
    for name, attribute in (
        ("dir", NAME),
        ("a.txt", "user.exai.provider.other"),
        ("a.txt", f"{NAME}."),
        ("a.txt", f"{NAME}.expires"),
        ("dir", "user.exai.url"),
    ):
        printed = provider_mount.sh(f"getfattr -n {attribute} {name}", check=False)
        assert "No such attribute" in printed
    assert get(provider_mount, "a.txt", "user.exai.state") == "clean"


def test_only_the_owner_sends(
    kimi: ProviderServer, mount_environment: dict[str, str], tmp_path: Path
) -> None:
    """A mount that several users share: who does not own it sends nothing."""
    if os.getuid() != 0:
        pytest.skip("only root can read as somebody else")
    providers = Providers(tmp_path, Clock())
    providers.add("kimi", kimi)
    environment = {**mount_environment, "EXAIFS_PROVIDERS_FILE": str(providers.path)}
    with exaifs_mount(environment, tmp_path, "--allow-other") as mount:
        mount.expected.add("no file id from the provider")
        mount.sh("printf content > a.txt")
        script = f"os.setuid(1234); os.getxattr('a.txt', {NAME!r})"
        as_other = subprocess.run(
            [sys.executable, "-I", "-S", "-c", f"import os; {script}"],
            cwd=mount.path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "PermissionError: [Errno 1]" in as_other.stderr
        assert kimi.requests == 0
        get(mount, "a.txt")
        assert kimi.counts["upload"] == 1


def test_a_signed_url(provider_mount: MountedDaemon) -> None:
    """The URL gives the bytes to whoever has it, and is never listed."""
    provider_mount.sh("printf content > a.txt")
    url = get(provider_mount, "a.txt", "user.exai.url")
    assert httpx.get(url, timeout=120, trust_env=False).content == b"content"
    assert provider_mount.sh("getfattr -n user.exai.url --only-values a.txt") == url
    assert "user.exai.url" not in names(provider_mount, "a.txt")


def test_a_file_that_is_being_written(provider_mount: MountedDaemon, kimi: ProviderServer) -> None:
    """Bytes that are not in the bucket yet have no id: try again after closing."""
    path = provider_mount.path / "a.txt"

    def attempt() -> None:
        with path.open("w") as file:
            file.write("half")
            file.flush()
            with pytest.raises(BlockingIOError):
                os.getxattr(path, NAME)
        assert os.getxattr(path, NAME).decode() in kimi.files
        with path.open() as file:
            path.unlink()
            with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):  # it will never have one
                os.getxattr(file.fileno(), NAME)

    within(120, attempt)


def test_off_until_configured(mount: MountedDaemon) -> None:
    """Without settings there are no such attributes, whatever keys the environment holds."""
    mount.sh("printf content > a.txt")
    assert "No such attribute" in mount.sh(f"getfattr -n {NAME} a.txt", check=False)
    assert "not supported" in mount.sh(f"setfattr -n {NAME} -v x a.txt", check=False)
