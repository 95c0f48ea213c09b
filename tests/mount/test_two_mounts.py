"""Two mounts of one bucket: what one host does, the other sees, through all the kernel's caches."""

from __future__ import annotations

import errno
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.mount.conftest import exaifs_mount
from tests.support.counting import CountingGate
from tests.support.gate import Gate
from tests.support.mounts import AWAY, MountedDaemon, wait_until, within

pytestmark = [pytest.mark.mount, pytest.mark.embedded]

POLLS = 3
"""A host asks for news once a second (`EXAIFS_FRESHNESS_S`). The first question after a change has the
answer: when the third one begins, it must have been shown, kernel caches included. Seconds are printed, not
asserted: on a busy machine they are not the file system's."""

_DEADLINE_S = 120.0


def mounted(environment: Mapping[str, str], directory: Path, *flags: str) -> MountedDaemon:
    """Return a host of its own: mountpoint, cache directory and log in `directory`."""
    directory.mkdir()
    return exaifs_mount({**environment, "FILE_CACHE_DIR": str(directory / "cache")}, directory, *flags)


class Pair:
    """Two hosts. `seen` measures how long news take from one to the other.

    Args:
        one: makes most changes.
        two: sees them.
        gates: before Supabase, one a host; none where nobody asks for news.
    """

    def __init__(self, one: MountedDaemon, two: MountedDaemon, *gates: CountingGate) -> None:
        self.one = one
        self.two = two
        self.delays_s: list[float] = []
        self._gates = gates

    def do(self, script: str) -> None:
        """Run a script on the first host."""
        self.one.sh(script)

    def seen(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until the other host shows what was changed before; it may not ask for news in vain."""
        for gate in self._gates:
            gate.reset()
        begun = time.monotonic()
        within(2 * _DEADLINE_S, lambda: _until(condition, what, self._polls if self._gates else None))
        self.delays_s.append(time.monotonic() - begun)

    def _polls(self) -> int:
        """Return how often each host has begun to ask for news since the last change, at least."""
        return min(gate.traffic.requests.count("exaifs_changes") for gate in self._gates)

    def report(self) -> None:
        """Print the delays."""
        ordered = sorted(self.delays_s)
        median = ordered[len(ordered) // 2]
        sys.stdout.write(
            f"seen after {median:.2f} s (median), {ordered[-1]:.2f} s (longest of {len(ordered)})\n"
        )


def _until(condition: Callable[[], bool], what: str, polls: Callable[[], int] | None = None) -> None:
    """Look until it is so; what is not seen although it was asked for is an error."""
    end = time.monotonic() + _DEADLINE_S
    while True:
        # Counted before the look: only what was answered before can be held against it.
        asked = 0 if polls is None else polls()
        if condition():
            return
        assert asked < POLLS, f"not seen although asked for: {what}"
        assert time.monotonic() < end, f"not seen: {what}"
        time.sleep(0.01)


@pytest.fixture
def pair(fresh_bucket: dict[str, str], tmp_path: Path) -> Iterator[Pair]:
    """Two hosts on an empty bucket of the embedded Supabase."""
    environment = {**fresh_bucket, "EXAIFS_LOG_FORMAT": "json"}
    url = fresh_bucket["SUPABASE_URL"]
    with (
        CountingGate(url) as first,
        CountingGate(url) as second,
        mounted({**environment, "SUPABASE_URL": first.url}, tmp_path / "one") as one,
        mounted({**environment, "SUPABASE_URL": second.url}, tmp_path / "two") as two,
    ):
        yield Pair(one, two, first, second)


def _fails(call: Callable[[], object], code: int) -> bool:
    try:
        call()
    except OSError as exc:
        if exc.errno != code:
            raise
        return True
    return False


def _names(path: Path) -> set[str]:
    return set(os.listdir(path))  # noqa: PTH208 - readdir(3), nothing more


def test_every_change_is_seen(pair: Pair) -> None:
    """Whatever one mount changes, the other shows within 1 s and a poll (promise 4)."""
    root = pair.two.path
    pair.do("mkdir d; printf one > d/a; printf x > d/gone; printf y > d/old")
    pair.seen(lambda: (root / "d").exists() and _names(root / "d") == {"a", "gone", "old"}, "create")
    # From here on the second host's kernel knows every name and attribute, and the pages.
    assert within(120, (root / "d/a").read_bytes) == b"one"
    for name in ("d", "d/a", "d/gone", "d/old"):
        within(120, (root / name).stat)

    pair.do("printf two-longer > d/a")
    pair.seen(lambda: (root / "d/a").read_bytes() == b"two-longer", "overwrite")
    pair.do("printf TWO-LONGER > d/a")
    pair.seen(lambda: (root / "d/a").read_bytes() == b"TWO-LONGER", "overwrite with the same size")
    pair.do("mv d/old d/new")
    pair.seen(lambda: _names(root / "d") == {"a", "gone", "new"}, "rename")
    assert within(120, (root / "d/new").read_bytes) == b"y"
    assert within(120, lambda: _fails((root / "d/old").stat, errno.ENOENT))
    pair.do("rm d/gone")
    pair.seen(lambda: _fails((root / "d/gone").stat, errno.ENOENT), "delete")
    pair.do("chmod 600 d/new; chown 12:34 d/new; touch -d @1000000000 d/new")
    pair.seen(
        lambda: (
            ((found := (root / "d/new").stat()).st_mode & 0o777, found.st_uid, found.st_gid, found.st_mtime)
            == (0o600, 12, 34, 1e9)
        ),
        "attributes",
    )
    pair.do("setfattr -n user.note -v seen d/new")
    pair.seen(lambda: "user.note" in os.listxattr(root / "d/new"), "extended attribute")
    pair.do("mkdir d/sub; mkdir d/sub/sub; chmod 700 d/sub")
    pair.seen(
        lambda: (root / "d/sub/sub").is_dir() and (root / "d/sub").stat().st_mode & 0o77 == 0, "mkdir"
    )
    pair.do("rmdir d/sub/sub d/sub")
    pair.seen(lambda: _names(root / "d") == {"a", "new"}, "rmdir")
    pair.do("mv d renamed")
    pair.seen(lambda: _names(root) == {"renamed"} and _names(root / "renamed") == {"a", "new"}, "rename")
    assert within(120, (root / "renamed/a").read_bytes) == b"TWO-LONGER"
    pair.do("ln -s a renamed/link; rm -r renamed/new")
    pair.seen(lambda: _names(root / "renamed") == {"a", "link"}, "symbolic link")
    assert within(120, (root / "renamed/link").readlink) == Path("a")
    pair.report()


def test_a_program_that_holds_the_file(pair: Pair) -> None:
    """Open handles and maps keep the version they have; who opens anew gets the new one (promise 2)."""
    path = pair.two.path / "f"
    old, new = b"a" * 300_000, b"b" * 300_000
    within(120, lambda: (pair.one.path / "f").write_bytes(old))
    pair.seen(lambda: path.exists() and path.read_bytes() == old, "create")
    with ExitStack() as stack:
        half = stack.enter_context(within(120, lambda: path.open("rb")))
        assert within(120, lambda: half.read(1000)) == old[:1000]
        mapped_file = stack.enter_context(within(120, lambda: path.open("rb")))
        mapped = stack.enter_context(mmap.mmap(mapped_file.fileno(), 0, access=mmap.ACCESS_READ))
        assert within(120, lambda: mapped[150_000]) == ord("a")
        listing = stack.enter_context(os.scandir(pair.two.path))
        assert next(listing).name == "f"

        within(120, lambda: (pair.one.path / "f").write_bytes(new))
        pair.seen(lambda: path.read_bytes() == new, "overwrite under open files")
        assert within(120, half.read) == old[1000:]
        assert within(120, lambda: mapped[:]) == old
        pair.do("rm f")
        pair.seen(lambda: _fails(path.stat, errno.ENOENT), "delete under open files")
        assert within(120, lambda: os.pread(half.fileno(), 10, 0)) == old[:10]
        assert within(120, lambda: os.fstat(half.fileno()).st_size) == len(old)
    pair.report()


def test_both_change_what_the_other_made(pair: Pair) -> None:
    """News go both ways, also about the same file again and again: both end with the last."""
    paths = [pair.one.path / "f", pair.two.path / "f"]
    for number in range(6):
        writer, reader = paths[number % 2], paths[1 - number % 2]
        text = f"{number:03}".encode()
        within(120, lambda writer=writer, text=text: writer.write_bytes(text))  # type: ignore[misc]  # bound
        pair.seen(
            lambda reader=reader, text=text: reader.exists() and reader.read_bytes() == text,  # type: ignore[misc]  # bound
            f"version {number}",
        )
    pair.report()


def test_another_client_writes(pair: Pair, fresh_bucket: dict[str, str]) -> None:
    """A client that knows nothing of exaifs, as the dashboard: seen by both."""
    key, bucket = fresh_bucket["SUPABASE_SERVICE_ROLE_KEY"], fresh_bucket["FILE_STORAGE_BUCKET"]
    pair.do("printf x > mine")
    pair.seen(lambda: _names(pair.two.path) == {"mine"}, "create")
    headers = {"apikey": key, "Authorization": f"Bearer {key}"}
    with httpx.Client(headers=headers, timeout=120, trust_env=False) as client:
        url = f"{fresh_bucket['SUPABASE_URL']}/storage/v1/object/{bucket}"
        client.post(
            f"{url}/a/b/theirs.txt", content=b"hello", headers={"content-type": "text/plain"}
        ).raise_for_status()
        for mount in (pair.one, pair.two):
            path = mount.path / "a/b/theirs.txt"
            pair.seen(lambda path=path: path.exists() and path.read_bytes() == b"hello", "upload")  # type: ignore[misc]  # bound
        client.request("DELETE", url, json={"prefixes": ["a/b/theirs.txt"]}).raise_for_status()
        for mount in (pair.one, pair.two):
            pair.seen(lambda mount=mount: _names(mount.path) == {"mine"}, "delete")  # type: ignore[misc]  # bound
    pair.report()


def test_without_the_change_feed(fresh_bucket: dict[str, str], tmp_path: Path) -> None:
    """A bucket the trigger does not follow: listings age out, the log says so; then it recovers."""
    bucket = f"{fresh_bucket['FILE_STORAGE_BUCKET']}-unfollowed"
    key = fresh_bucket["SUPABASE_SERVICE_ROLE_KEY"]
    with httpx.Client(
        base_url=fresh_bucket["SUPABASE_URL"],
        headers={"apikey": key, "Authorization": f"Bearer {key}"},
        timeout=120,
        trust_env=False,
    ) as client:
        client.post("/storage/v1/bucket", json={"id": bucket, "name": bucket}).raise_for_status()
        environment = {**fresh_bucket, "FILE_STORAGE_BUCKET": bucket, "EXAIFS_LOG_FORMAT": "json"}
        with (
            mounted(environment, tmp_path / "one") as one,
            mounted(environment, tmp_path / "two") as two,
        ):
            pair = Pair(one, two)
            one.expected.add("no change feed; directories are listed again as they age")
            two.expected |= one.expected
            path = two.path / "f"
            for text in (b"one", b"two"):
                within(120, lambda text=text: (one.path / "f").write_bytes(text))  # type: ignore[misc]  # bound
                pair.seen(lambda text=text: path.exists() and path.read_bytes() == text, "change")  # type: ignore[misc]  # bound
            lost = "no change feed; directories are listed again as they age"
            wait_until(lambda: lost in two.events(), 120, "the log says so")
            assert two.events().count(lost) == 1
            assert "change feed is live" not in two.events()
            client.post("/rest/v1/rpc/exaifs_register_bucket", json={"p_bucket": bucket}).raise_for_status()
            wait_until(lambda: "change feed is live" in two.events(), 120, "the feed")
            pair.do("rm f; printf x > g")
            pair.seen(lambda: _names(two.path) == {"g"}, "change")


def test_the_server_goes_away_and_comes_back(fresh_bucket: dict[str, str], tmp_path: Path) -> None:
    """While Supabase is away what is known is served; what happened meanwhile appears afterwards."""
    environment = {**fresh_bucket, "EXAIFS_LOG_FORMAT": "json"}
    with Gate(fresh_bucket["SUPABASE_URL"]) as gate, mounted(environment, tmp_path / "one") as one:
        gated = {**environment, "SUPABASE_URL": gate.url}
        with mounted(gated, tmp_path / "two") as two:
            pair = Pair(one, two)
            pair.do("mkdir d; printf one > d/a")
            pair.seen(lambda: (two.path / "d/a").exists() and _names(two.path / "d") == {"a"}, "create")
            assert within(120, (two.path / "d/a").read_bytes) == b"one"
            two.expected |= AWAY
            gate.close()
            pair.do("printf two > d/a; printf new > d/b")
            lost = "Supabase is away; serving what is known"
            wait_until(lambda: lost in two.events(), 120, "the host notices")
            assert within(120, lambda: _names(two.path / "d")) == {"a"}
            assert within(120, (two.path / "d/a").read_bytes) == b"one"
            gate.open()
            # The feed asks again after at most 10 s, a directory after 5.
            pair.seen(lambda: _names(two.path / "d") == {"a", "b"}, "back")
            pair.seen(lambda: (two.path / "d/a").read_bytes() == b"two", "back")
