"""Ids for contents: one upload whoever asks, valid for the bytes, shared, refreshed, never doubled."""

from __future__ import annotations

import errno
import json
import os
from functools import partial
from http import HTTPStatus
from typing import Any

import anyio
import pytest

from exaifs.errors import ExaifsError, InvalidArgument, NoAttribute, NotSupported, Unreachable
from exaifs.providers.errors import FileChanged, ProviderError, ProviderTimeout
from tests.providers.conftest import Start
from tests.providers.emulator import KEY, Answer, Clock, Fault, ProviderServer
from tests.providers.world import CONTRACTS, Host, Providers, arrived
from tests.support.double import DoubleServer
from tests.support.world import write

pytestmark = pytest.mark.anyio

DATA = b"the content"
DAY_S = 86400


@pytest.fixture
def supabase() -> DoubleServer:
    """Rows and objects, in memory."""
    return DoubleServer()


@pytest.fixture
def kimi(start: Start, providers: Providers) -> ProviderServer:
    """A provider without expiry, turned on."""
    server = start(CONTRACTS["kimi"]())
    providers.add("kimi", server)
    return server


@pytest.fixture
def gemini(start: Start, providers: Providers) -> ProviderServer:
    """A provider whose files live 48 hours, turned on."""
    contract = CONTRACTS["gemini"]()
    contract.polls = 0  # type: ignore[attr-defined]  # of this contract's class
    server = start(contract)
    providers.add("gemini", server)
    return server


async def errno_of(host: Host, key: str, name: str = "kimi", **more: Any) -> str:
    """Return the errno that a reader gets."""
    with pytest.raises(ExaifsError) as caught:
        await host.id(key, name, **more)
    assert KEY not in str(caught.value)
    return errno.errorcode[caught.value.errno]


# one upload


async def test_first_use_uploads_and_the_row_keeps_it(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer, clock: Clock
) -> None:
    """The first read uploads; every later one, on any host, asks nobody outside."""
    async with providers.host(supabase.remote()) as one, providers.host(supabase.remote()) as two:
        record = await one.put("a.txt", DATA)
        assert await one.listed("a.txt") == {}
        first = await one.id("a.txt")
        assert kimi.files[first].data == DATA
        assert kimi.requests == 1
        before = supabase.counts.copy()
        file = await one.file("a.txt")
        assert (await two.service.value(file, "kimi"))[0].decode() == first
        assert supabase.counts["find_provider_ids"] == before["find_provider_ids"]
        assert kimi.requests == 1
        stored = file.provider_file_ids["kimi"]
        assert (stored["sha256"], stored["purpose"], stored["size"]) == (record.sha256, "file-extract", 11)
        assert stored["account"]
        assert stored["account"] not in KEY
        assert await one.listed("a.txt") == {"kimi": first.encode()}
        assert clock.now > 0


async def test_twenty_readers_one_upload(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """However many ask at once, the file is sent once."""
    ids: list[str] = []
    async with providers.host(supabase.remote()) as host, anyio.create_task_group() as tasks:
        await host.put("a.txt", DATA)

        async def read() -> None:
            ids.append(await host.id("a.txt"))

        for _ in range(20):
            tasks.start_soon(read)
    assert len(ids) == 20
    assert len(set(ids)) == 1
    assert kimi.counts["upload"] == 1


async def test_same_content_one_upload(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """Files with the same bytes share an id, read at once or later, also after a copy and a rename."""
    ids: list[str] = []
    remote = supabase.remote()
    async with providers.host(remote) as host:
        await host.put("a.txt", DATA)
        await host.put("b.txt", DATA)

        async def read(key: str) -> None:
            ids.append(await host.id(key))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, "a.txt")
            tasks.start_soon(read, "b.txt")
        await remote.objects.copy("a.txt", "copy.txt")
        await remote.objects.move("b.txt", "renamed.txt")
        for key in ("copy.txt", "renamed.txt"):
            await read(key)
            assert (await host.listed(key))["kimi"].decode() == ids[0]
    assert len(set(ids)) == 1
    assert kimi.counts["upload"] == 1


async def test_changed_content_drops_the_id(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """Other bytes: the old id is not served any more, at once."""
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        old = await host.id("a.txt")
        await host.put("a.txt", b"other")
        assert await host.listed("a.txt") == {}
        new = await host.id("a.txt")
    assert kimi.files[new].data == b"other"
    assert old in kimi.files  # a running chat may use it; `exaifs provider prune` deletes it


async def test_purposes_and_accounts_are_apart(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """An id is good for its account only, and images are uploaded under a purpose of their own."""
    async with providers.host(supabase.remote()) as host:
        await host.put("a.png", DATA, "image/png")
        first = await host.id("a.png")
        assert kimi.files[first].purpose == "image"
        kimi.keys.add("another-key")
        providers.key_path.write_text("another-key")
        assert await host.listed("a.png") == {}
        second = await host.id("a.png")
        assert second != first
        providers.key_path.write_text(KEY)
        assert await host.id("a.png") == first  # two accounts do not upload in turns
        assert kimi.counts["upload"] == 2


async def test_another_clients_file(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """A file without a hash is hashed on the way; its row then has hash and id."""
    supabase.bucket.put("theirs.txt", DATA)
    async with providers.host(supabase.remote()) as host:
        first = await host.id("theirs.txt")
        assert (await host.file("theirs.txt")).sha256 is not None
        await host.put("ours.txt", DATA)
        assert await host.id("ours.txt") == first
    assert kimi.counts["upload"] == 1


async def test_two_hosts_race(kimi: ProviderServer, providers: Providers, supabase: DoubleServer) -> None:
    """Both upload before either could know: one id wins on both, the other upload is deleted."""
    ids: list[str] = []
    async with providers.host(supabase.remote()) as one, providers.host(supabase.remote()) as two:
        await one.put("a.txt", DATA)
        await one.put("b.txt", DATA)

        async def read(host: Host, key: str) -> None:
            ids.append(await host.id(key))

        async with anyio.create_task_group() as tasks:
            with kimi.hold():
                tasks.start_soon(read, one, "a.txt")
                tasks.start_soon(read, two, "b.txt")
                await arrived(kimi, 2)
        assert len(set(ids)) == 1
        assert list(kimi.files) == [ids[0]]
        assert await one.listed("a.txt") or await one.listed("b.txt")
    assert [key[2] for key in supabase.providers.uploads] == [ids[0]]


async def test_concurrency_is_limited(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """Not more than so many uploads run at once at one provider."""
    async with providers.host(supabase.remote()) as host:
        for number in range(5):
            await host.put(f"{number}.txt", b"%d" % number)
        async with anyio.create_task_group() as tasks:
            with kimi.hold():
                for number in range(5):
                    tasks.start_soon(host.id, f"{number}.txt")
                await arrived(kimi, 2)
                await anyio.wait_all_tasks_blocked()
                assert kimi.counts["upload"] == 2
    assert kimi.counts["upload"] == 5


# time


async def test_deadline(kimi: ProviderServer, providers: Providers, supabase: DoubleServer) -> None:
    """A reader waits so long, and is told so; the upload goes on, and the next read has the id."""
    providers.limits(deadline_s=0.3)
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        with kimi.hold():
            with pytest.raises(ProviderTimeout) as caught:
                await host.id("a.txt")
            assert "it goes on" in json.loads(await host.read("a.txt", "kimi.error"))["message"]
        assert caught.value.errno == errno.ETIMEDOUT
        with anyio.fail_after(60):
            while not await host.listed("a.txt"):  # noqa: ASYNC110 - as another host sees it
                await anyio.sleep(0.01)
        await host.id("a.txt")
        with pytest.raises(NoAttribute):
            await host.read("a.txt", "kimi.error")
    assert kimi.counts["upload"] == 1


async def test_refreshed_before_it_expires(
    gemini: ProviderServer, providers: Providers, supabase: DoubleServer, clock: Clock
) -> None:
    """An hour before the end there is a new id; while none can be had, the old one is given out."""
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        first = await host.id("a.txt", "gemini")
        assert (await host.read("a.txt", "gemini.uri")).endswith(first)
        assert (await host.read("a.txt", "gemini.expires")).endswith("Z")
        assert set(await host.listed("a.txt")) == {"gemini", "gemini.uri", "gemini.expires"}
        clock.now += 47 * 3600 - 1
        assert await host.id("a.txt", "gemini") == first
        clock.now += 2
        assert await host.listed("a.txt") == {}
        gemini.fail("start", Answer(500, {}), 10)
        assert await host.id("a.txt", "gemini") == first
        gemini.heal()
        clock.now += 31
        second = await host.id("a.txt", "gemini")
        assert second != first
        clock.now += 49 * 3600
        assert await host.id("a.txt", "gemini") not in {first, second}


async def test_checked_once_a_day(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer, clock: Clock
) -> None:
    """An id is verified when that is long ago; one that is gone is uploaded again, once."""
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        await host.put("b.txt", DATA)
        first = await host.id("a.txt")
        await host.id("b.txt")
        clock.now += DAY_S + 1
        assert await host.listed("a.txt") == {}  # reading it now asks the provider
        assert await host.id("a.txt") == first
        assert kimi.counts["retrieve"] == 1
        assert await host.id("a.txt") == first
        assert kimi.counts["retrieve"] == 1
        kimi.files.clear()
        assert await host.id("a.txt") == first
        clock.now += DAY_S + 1
        second = await host.id("a.txt")
        assert second != first
        assert await host.id("b.txt") == second
    assert kimi.counts["upload"] == 2


async def test_outage_keeps_good_ids(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer, clock: Clock
) -> None:
    """A provider that cannot be asked does not turn a stored id into an error, nor into an upload."""
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        first = await host.id("a.txt")
        clock.now += DAY_S + 1
        kimi.fail("any", Answer(503, "<html>down</html>"), 100)
        assert await host.id("a.txt") == first
        requests = kimi.requests
        assert await host.id("a.txt") == first
        assert kimi.requests == requests  # not asked again at every read
        kimi.heal()
        clock.now += 301
        assert await host.id("a.txt") == first
    assert kimi.counts["upload"] == 1


async def test_supabase_away_when_a_check_is_due(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer, clock: Clock
) -> None:
    """An id that the row has is checked at the provider and given out, whether or not Supabase answers."""
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        first = await host.id("a.txt")
        file = await host.file("a.txt")
        clock.now += DAY_S + 1
        supabase.inject("find_provider_ids", Unreachable("away"), times=9)
        supabase.inject("set_provider_id", Unreachable("away"), times=9)
        for _ in range(3):
            assert await host.service.value(file, "kimi") == (first.encode(), None)
        assert kimi.counts == {"upload": 1, "retrieve": 1}  # not asked again and again


async def test_supabase_away_when_an_id_ends_soon(
    gemini: ProviderServer, providers: Providers, supabase: DoubleServer, clock: Clock
) -> None:
    """What is still good is given out, though it should be made anew; what is over is not."""
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        first = await host.id("a.txt", "gemini")
        file = await host.file("a.txt")
        supabase.inject("find_provider_ids", Unreachable("away"), times=9)
        clock.now += 47.5 * 3600
        assert await host.service.value(file, "gemini") == (first.encode(), None)
        clock.now += 3600
        with pytest.raises(Unreachable):
            await host.service.value(file, "gemini")
    assert gemini.counts["upload"] == 1


async def test_refresh_on_demand(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """Asked not to trust the row, the provider is asked."""
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        first = await host.id("a.txt")
        await host.service.value(await host.file("a.txt"), "kimi", refresh=True)
        assert kimi.counts["retrieve"] == 1
        kimi.files.clear()
        value, record = await host.service.value(await host.file("a.txt"), "kimi", refresh=True)
        assert value.decode() != first
        assert record is not None


# failures


async def test_failures_are_remembered(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer, clock: Clock
) -> None:
    """Programs ask twice: what failed is not sent again for half a minute. `.error` says why."""
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        with pytest.raises(NoAttribute):
            await host.read("a.txt", "kimi.error")
        kimi.fail("upload", Answer(400, {"error": {"type": "content_filter", "message": "no" * 900}}))
        for _ in range(3):
            assert await errno_of(host, "a.txt") == "EPERM"
        assert kimi.counts["upload"] == 1
        error = json.loads(await host.read("a.txt", "kimi.error"))
        assert (error["status"], error["code"], error["errno"]) == (400, "content_filter", "EPERM")
        assert len(error["message"].encode()) <= 512
        assert error["when"].endswith("Z")
        clock.now += 31
        await host.id("a.txt")
        with pytest.raises(NoAttribute):
            await host.read("a.txt", "kimi.error")


async def test_revoked_key(kimi: ProviderServer, providers: Providers, supabase: DoubleServer) -> None:
    """A refused key stops all uploads with it; a new key works at once, without a restart."""
    kimi.keys = {"new-key"}
    async with providers.host(supabase.remote()) as host:
        for number in range(3):
            await host.put(f"{number}.txt", b"%d" % number)
            assert await errno_of(host, f"{number}.txt") == "EKEYREJECTED"
        assert kimi.counts["upload"] == 1
        providers.key_path.write_text("new-key")
        await host.id("0.txt")
        await host.id("2.txt")
        await host.put("3.txt", b"3")
        await host.id("3.txt")


async def test_a_new_key_of_a_labelled_account(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """The refusal was of the old key: a new one is tried at once, whatever the account is called."""
    providers.add("kimi", kimi, account="team")
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        await host.put("b.txt", b"b")
        providers.key_path.write_text("revoked")
        assert await errno_of(host, "a.txt") == "EKEYREJECTED"
        assert await errno_of(host, "b.txt") == "EKEYREJECTED"
        assert kimi.requests == 1
        providers.key_path.write_text(KEY)
        assert await host.id("b.txt") in kimi.files


async def test_no_key(kimi: ProviderServer, providers: Providers, supabase: DoubleServer) -> None:
    """Configured without a key: ENOKEY for what is not stored, and nothing is sent."""
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        await host.put("b.txt", b"other")
        first = await host.id("a.txt")
        providers.key_path.write_text("")
        assert await errno_of(host, "b.txt") == "ENOKEY"
        assert json.loads(await host.read("b.txt", "kimi.error"))["errno"] == "ENOKEY"
        assert await host.id("a.txt") == first
        providers.key_path.unlink()
        assert await errno_of(host, "b.txt") == "ENOKEY"
    assert kimi.requests == 1


async def test_refused_before_anything_is_sent(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """Too large, empty, or a type that is not taken: known beforehand."""
    providers.add("kimi", kimi, max_bytes=100, max_bytes_by_mime={"image/*": 10}, extensions=["txt", "png"])
    async with providers.host(supabase.remote()) as host:
        await host.put("large.txt", bytes(101))
        await host.put("large.png", bytes(11), "image/png")
        await host.put("empty.txt", b"")
        await host.put("program.exe", b"MZ")
        assert await errno_of(host, "large.txt") == "EFBIG"
        assert await errno_of(host, "large.png") == "EFBIG"
        assert await errno_of(host, "empty.txt") == "EINVAL"
        assert await errno_of(host, "program.exe") == "EINVAL"
        await host.put("fits.txt", bytes(100))
        await host.id("fits.txt")
    assert kimi.requests == 1


async def test_a_refusal_is_the_files_own(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """A name that is not taken says nothing of the same bytes under another, nor of an id they have."""
    providers.add("kimi", kimi, extensions=["txt"])
    async with providers.host(supabase.remote()) as host:
        await host.put("a.md", DATA)
        await host.put("a.txt", DATA)
        assert await errno_of(host, "a.md") == "EINVAL"
        assert "not md" in json.loads(await host.read("a.md", "kimi.error"))["message"]
        first = await host.id("a.txt")
        with pytest.raises(NoAttribute):
            await host.read("a.txt", "kimi.error")
        assert await host.id("a.md") == first
    assert kimi.requests == 1


async def test_a_refusal_does_not_wait_for_nor_disturb_a_twin(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """Both are asked for at once: the one whose name is taken gets an id, whoever came first."""
    providers.add("kimi", kimi, extensions=["txt"])
    outcomes: dict[str, str] = {}
    async with providers.host(supabase.remote()) as host, anyio.create_task_group() as tasks:
        await host.put("a.md", DATA)
        await host.put("a.txt", DATA)

        async def read(key: str) -> None:
            try:
                outcomes[key] = await host.id(key)
            except ProviderError as exc:
                outcomes[key] = errno.errorcode[exc.errno]

        tasks.start_soon(read, "a.md")
        tasks.start_soon(read, "a.txt")
    assert outcomes["a.txt"] in kimi.files
    assert outcomes["a.md"] in {"EINVAL", outcomes["a.txt"]}


async def test_an_id_made_elsewhere_outlives_our_limits(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer, clock: Clock
) -> None:
    """A file that we would not send may have an id all the same; it is checked, not refused by its size."""
    providers.add("kimi", kimi, max_bytes=5)
    made = kimi.add("", filename="f", data=DATA, purpose="file-extract", mime_type="text/plain")
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        assert await errno_of(host, "a.txt") == "EFBIG"
        await host.service.register(await host.file("a.txt"), "kimi", made.id.encode())
        for _ in range(3):
            clock.now += DAY_S + 1
            assert await host.id("a.txt") == made.id
        assert kimi.counts == {"retrieve": 3}
        del kimi.files[made.id]
        clock.now += DAY_S + 1
        assert await errno_of(host, "a.txt") == "EFBIG"
    assert not kimi.counts["upload"]


async def test_a_refused_file_is_not_fetched(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """Too large for the provider, without a hash: nobody reads it to find that out."""
    providers.add("kimi", kimi, max_bytes=5)
    supabase.bucket.put("theirs.txt", DATA)
    async with providers.host(supabase.remote()) as host:
        assert await errno_of(host, "theirs.txt") == "EFBIG"
    assert not supabase.counts["get"]
    assert not supabase.counts["find_provider_ids"]


async def test_asked_for_in_two_ways(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """One trusts what is stored and one does not, one knows the hash and one does not: one upload."""
    ids: list[str] = []
    supabase.bucket.put("theirs.txt", DATA)
    async with providers.host(supabase.remote()) as host, anyio.create_task_group() as tasks:
        await host.put("a.txt", DATA)

        async def read(key: str, *, refresh: bool) -> None:
            value, _ = await host.service.value(await host.file(key), "kimi", refresh=refresh)
            ids.append(value.decode())

        for key in ("a.txt", "theirs.txt"):
            for refresh in (False, True):
                tasks.start_soon(partial(read, key, refresh=refresh))
    assert len(ids) == 4
    assert len(set(ids)) == 1
    assert kimi.counts["upload"] == 1


async def test_slowed_down(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer, clock: Clock
) -> None:
    """429 is tried again inside the deadline; past it, EAGAIN, and the wish for a pause is kept."""
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        kimi.fail("upload", Answer(429, {"error": {"type": "rate"}}, {"retry-after": "0"}))
        await host.id("a.txt")
        assert kimi.counts["upload"] == 2
        await host.put("b.txt", b"b")
        kimi.fail("upload", Answer(429, {"error": {"type": "rate"}}, {"retry-after": "60"}))
        assert await errno_of(host, "b.txt") == "EAGAIN"
        clock.now += 59
        assert await errno_of(host, "b.txt") == "EAGAIN"
        assert kimi.counts["upload"] == 3
        clock.now += 2
        await host.id("b.txt")


async def test_lost_answer(kimi: ProviderServer, providers: Providers, supabase: DoubleServer) -> None:
    """The answer is lost after the file was stored: it is found, not sent again."""
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        kimi.fail("upload", Fault("lose"))
        found = await host.id("a.txt")
        assert list(kimi.files) == [found]
        await host.put("b.txt", b"b")
        kimi.fail("upload", Fault("reset"))
        await host.id("b.txt")  # surely not stored: sent again
    assert (len(kimi.files), kimi.counts["upload"]) == (2, 3)


async def test_lost_answer_that_cannot_be_settled(
    start: Start, providers: Providers, supabase: DoubleServer
) -> None:
    """Where the provider cannot say, nothing is sent twice by itself."""
    glm = start(CONTRACTS["glm"]())
    providers.add("glm", glm)
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        glm.fail("upload", Fault("lose"))
        assert await errno_of(host, "a.txt", "glm") == "EHOSTUNREACH"
        assert await errno_of(host, "a.txt", "glm") == "EHOSTUNREACH"
    assert glm.counts["upload"] == 1


async def test_html_from_the_edge(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """413 as a page of a gateway is EFBIG, too, and says what that means."""
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        kimi.fail("upload", Answer(413, "<html><h1>Request Entity Too Large</h1></html>"))
        assert await errno_of(host, "a.txt") == "EFBIG"
        said = json.loads(await host.read("a.txt", "kimi.error"))
        assert said["message"] == f"kimi: 413 {HTTPStatus(413).phrase}"


async def test_changed_while_it_was_sent(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """Other bytes or no file when the upload ends: no id for anybody, and the upload is deleted."""
    remote = supabase.remote()
    async with providers.host(remote) as host:
        old = await host.put("a.txt", DATA)
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                with pytest.raises(FileChanged):
                    await host.service.value(old, "kimi")

            with kimi.hold():
                tasks.start_soon(read)
                await arrived(kimi, 1)
                await write(remote, "a.txt", b"other")
        assert kimi.files == {}
        assert await host.listed("a.txt") == {}
        await host.put("b.txt", DATA)
        assert await host.id("b.txt") in kimi.files  # the provider did not fail: nobody has to wait


async def test_supabase_away_after_the_upload(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """An id that could not be noted is given out all the same, kept, and noted later."""
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        supabase.inject("set_provider_id", Unreachable("away"))
        first = await host.id("a.txt")
        assert await host.listed("a.txt") == {}
        assert await host.id("a.txt") == first
        assert await host.listed("a.txt") == {"kimi": first.encode()}
    assert kimi.counts["upload"] == 1


# who may, and what else is stored


async def test_what_is_known_of_an_id_that_no_row_has(
    gemini: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """Requests to Gemini name a file by its address: that is told, also while only this process has it."""
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        file = await host.file("a.txt")
        supabase.inject("set_provider_id", Unreachable("away"))
        found, record = await host.service.id_of(file, "gemini")
        assert record is None
        assert found.uri is not None
        assert found.expires_at is not None
        assert await host.read("a.txt", "gemini.uri") == found.uri
        with pytest.raises(NoAttribute):
            await host.read("a.txt", "gemini.error")
    assert gemini.counts["upload"] == 1


async def test_only_the_owner_sends(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """Others read what is stored; whether they may send is configured."""
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        assert await errno_of(host, "a.txt", is_owner=False) == "EPERM"
        first = await host.id("a.txt")
        assert await host.id("a.txt", is_owner=False) == first
    providers.add("kimi", kimi, upload="never")
    async with providers.host(supabase.remote()) as host:
        await host.put("b.txt", b"b")
        assert await errno_of(host, "b.txt") == "ENODATA"
        assert await host.id("a.txt") == first
    providers.add("kimi", kimi, upload="any")
    async with providers.host(supabase.remote()) as host:
        await host.id("b.txt", is_owner=False)


async def test_unknown_names(kimi: ProviderServer, providers: Providers, supabase: DoubleServer) -> None:
    """What is not configured does not exist."""
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        for name in ("openai", "kimi.", "kimi.x", "", "kimi.uri", "kimi.expires"):
            with pytest.raises(NoAttribute):
                await host.read("a.txt", name)
    assert kimi.requests == 0


async def test_registered_ids(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer, clock: Clock
) -> None:
    """An operator's id counts and is listed at once, is checked after an hour, and may be forgotten."""
    made = kimi.add("", filename="f", data=DATA, purpose="file-extract", mime_type="text/plain")
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        record = await host.service.register(await host.file("a.txt"), "kimi", made.id.encode() + b"\n")
        assert record is not None
        assert record.provider_file_ids["kimi"]["origin"] == "registered"
        assert await host.listed("a.txt") == {"kimi": made.id.encode()}
        assert await host.id("a.txt") == made.id
        assert kimi.requests == 0
        clock.now += 3601
        assert await host.listed("a.txt") == {}
        assert await host.id("a.txt") == made.id
        assert kimi.counts == {"retrieve": 1}
        await host.service.forget(await host.file("a.txt"), "kimi")
        assert await host.listed("a.txt") == {}
        with pytest.raises(NoAttribute):
            await host.service.forget(await host.file("a.txt"), "kimi")
        assert await host.id("a.txt") != made.id
        for name, value, error in (
            ("kimi.uri", b"x", NotSupported),
            ("openai", b"x", NotSupported),
            ("kimi", b"", InvalidArgument),
            ("kimi", "ä".encode(), InvalidArgument),
            ("kimi", bytes(2000), InvalidArgument),
        ):
            with pytest.raises(error):
                await host.service.register(await host.file("a.txt"), name, value)
    assert made.id not in [key[2] for key in supabase.providers.uploads]


async def test_plain_ids_of_an_earlier_design(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """A string in the row is an id: checked once, then kept as a record; dead ones are replaced."""
    made = kimi.add("", filename="f", data=DATA, purpose="file-extract", mime_type="text/plain")
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        await host.put("b.txt", b"b")
        supabase.bucket.rows["a.txt"].provider_file_ids = {"kimi": made.id, "other": "x"}
        supabase.bucket.rows["b.txt"].provider_file_ids = {"kimi": "dead"}
        assert await host.id("a.txt") == made.id
        assert await host.listed("a.txt") == {"kimi": made.id.encode()}
        assert (await host.file("a.txt")).provider_file_ids["other"] == "x"
        assert await host.id("b.txt") != "dead"
        assert kimi.counts["upload"] == 1
        # It is the id of the account that has it: with another one's key it is none.
        kimi.keys.add("other-key")
        providers.key_path.write_text("other-key")
        assert await host.listed("a.txt") == {}
        assert await host.id("a.txt") != made.id


async def test_plain_ids_that_are_none(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """What cannot be an id is replaced, by one upload; an operator replaces any."""
    made = kimi.add("", filename="f", data=DATA, purpose="file-extract", mime_type="text/plain")
    async with providers.host(supabase.remote()) as host:
        await host.put("a.txt", DATA)
        supabase.bucket.rows["a.txt"].provider_file_ids = {"kimi": "line\nbreak"}
        first = await host.id("a.txt")
        assert await host.id("a.txt") == first
        await host.put("b.txt", b"b")
        supabase.bucket.rows["b.txt"].provider_file_ids = {"kimi": "old"}
        await host.service.register(await host.file("b.txt"), "kimi", made.id.encode())
        assert await host.id("b.txt") == made.id
    assert kimi.counts["upload"] == 1


async def test_a_service_that_ends(
    kimi: ProviderServer, providers: Providers, supabase: DoubleServer
) -> None:
    """Ending the service ends what it does; nobody hangs."""
    providers.limits(deadline_s=0.2)
    with kimi.hold():
        with anyio.fail_after(60):
            async with providers.host(supabase.remote()) as host:
                await host.put("a.txt", os.urandom(100))
                with pytest.raises(ProviderError):
                    await host.id("a.txt")
