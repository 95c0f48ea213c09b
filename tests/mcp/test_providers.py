"""Provider file ids through the protocol: what uploads and what never does, progress, errors."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest
from mcp_types import TextContent

from tests.mcp.conftest import PROVIDER_BYTES, Connect
from tests.mcp.served import Caller, Project, stdio_caller
from tests.providers.emulator import KEY, Answer, Clock, Fault, ProviderServer, running
from tests.providers.world import CONTRACTS, Providers, arrived

pytestmark = [pytest.mark.embedded, pytest.mark.anyio]


async def test_an_id_is_made_once(connect_anyhow: Connect, openai: ProviderServer) -> None:
    """The first call sends the file, later ones and copies do not; forgotten, it is sent again."""
    async with connect_anyhow() as served:
        await served.upload("a.txt", b"content")
        (turned_on,) = (await served.call("list_providers"))["providers"]
        assert (turned_on["name"], turned_on["key"], turned_on["uploads"]) == ("openai", "set", "allowed")
        made = await served.call("get_provider_file_id", path="a.txt", provider="openai")
        assert openai.files[made["id"]].data == b"content"
        await served.upload("copy.txt", b"content")
        for path in ("a.txt", "copy.txt"):
            assert (await served.call("get_provider_file_id", path=path, provider="openai")) == made
        assert openai.counts["upload"] == 1
        checked = await served.call("get_provider_file_id", path="a.txt", provider="openai", refresh=True)
        assert (checked, openai.counts["retrieve"]) == (made, 1)
        assert (await served.call("stat_file", path="a.txt"))["provider_files"] == [made]
        forgotten = await served.call("forget_provider_file", path="a.txt", provider="openai")
        assert forgotten == {"path": "a.txt", "provider": "openai", "forgotten": True}
        again = await served.call("forget_provider_file", path="a.txt", provider="openai")
        assert again["forgotten"] is False
        assert (await served.call("stat_file", path="copy.txt"))["provider_files"] == []
        new = await served.call("get_provider_file_id", path="a.txt", provider="openai")
        assert new["id"] != made["id"]
        assert openai.counts["upload"] == 2


async def test_looking_never_uploads(connect: Connect, openai: ProviderServer) -> None:
    """stat_file, lists, downloads, resources, URLs: no request to a provider."""
    async with connect() as served:
        made = await served.upload("a.txt", b"content")
        await served.call("stat_file", path="a.txt")
        await served.call("list_files")
        await served.call("search_files", query="a")
        await served.call("download_file", path="a.txt")
        await served.call("get_signed_url", path="a.txt")
        await served.call("list_providers")
        await served.client.read_resource(made["uri"])
        await served.call("delete_file", path="a.txt")
        assert openai.requests == 0


async def test_progress_of_a_long_upload(connect_anyhow: Connect, openai: ProviderServer) -> None:
    """Bytes done of bytes in all, never less than before, before the upload is over."""
    data = os.urandom(PROVIDER_BYTES)
    told: list[tuple[float, float | None]] = []
    early = anyio.Event()

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        assert message is not None
        assert "bytes" in message
        told.append((progress, total))
        early.set()

    async with connect_anyhow() as served:
        await served.upload("big.bin", data)

        async def ask() -> None:
            arguments = {"path": "big.bin", "provider": "openai"}
            result = await served.client.call_tool(
                "get_provider_file_id", arguments, progress_callback=tell
            )
            assert not result.is_error, result

        with openai.hold():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                with anyio.fail_after(60):
                    await early.wait()
                assert not openai.files
                openai.gate.set()
        assert [file.data for file in openai.files.values()] == [data]
        assert {total for _, total in told} == {len(data)}
        assert told == sorted(set(told))
        assert told[-1][0] == len(data)


async def test_progress_of_storing(connect: Connect) -> None:
    """upload_file tells its bytes too."""
    told: list[float] = []

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        assert (total, message) == (3_000_000, "storing, in bytes")
        told.append(progress)

    async with connect() as served:
        arguments = {"path": "a.txt", "text": "x" * 3_000_000}
        result = await served.client.call_tool("upload_file", arguments, progress_callback=tell)
        assert not result.is_error
        assert told[-1] == 3_000_000
        assert told == sorted(set(told))


async def test_cancelling_while_it_is_sent(connect_anyhow: Connect, openai: ProviderServer) -> None:
    """Who cancels is not waited for; the upload goes on, and the next call gets its id."""
    async with connect_anyhow() as served:
        await served.upload("a.bin", os.urandom(100_000))
        with openai.hold():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancelled_call, served)
                await arrived(openai, 1)
                tasks.cancel_scope.cancel()
            assert (await served.call("stat_file", path="a.bin"))["provider_files"] == []
        made = await served.call("get_provider_file_id", path="a.bin", provider="openai")
        assert set(openai.files) == {made["id"]}
        assert openai.counts["upload"] == 1


async def cancelled_call(served: Caller) -> None:
    """Ask for an id until cancelled."""
    await served.client.call_tool("get_provider_file_id", {"path": "a.bin", "provider": "openai"})


async def test_twenty_ask_at_once(connect: Connect, openai: ProviderServer) -> None:
    """Twenty calls at once get the same id from one upload."""
    async with connect() as served:
        await served.upload("a.txt", b"content")
        ids: set[str] = set()

        async def ask() -> None:
            ids.add((await served.call("get_provider_file_id", path="a.txt", provider="openai"))["id"])

        with openai.hold():
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(ask)
                await arrived(openai, 1)
                openai.gate.set()
        assert ids == set(openai.files)
        assert openai.counts["upload"] == 1


async def test_an_upload_may_take_longer_than_a_mounts_readers_wait(
    project: Project, openai: ProviderServer, tmp_path: Path
) -> None:
    """A getxattr has a deadline, because nothing can interrupt it; a call can be cancelled, and waits."""
    providers = Providers(tmp_path, Clock())
    providers.limits(deadline_s=0.001)
    providers.add("openai", openai)
    async with stdio_caller(project) as served:
        await served.upload("a.txt", b"content")
        with openai.hold():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(expect_an_id, served)
                await arrived(openai, 1)
                openai.gate.set()


async def expect_an_id(served: Caller) -> None:
    """Ask, and get one."""
    await served.call("get_provider_file_id", path="a.txt", provider="openai")


async def test_errors_say_what_to_do(project: Project, openai: ProviderServer) -> None:
    """What a model can mend it is told; what only the operator can mend it tells the user."""
    async with stdio_caller(project) as served:

        async def refused(path: str, provider: str = "openai") -> str:
            said = await served.refused("get_provider_file_id", path=path, provider=provider)
            assert KEY not in said
            assert str(project.directory) not in said
            return said

        await served.upload("a.txt", b"content")
        said = await refused("a.txt", "kimi")
        assert "not turned on" in said
        assert "openai" in said
        assert "no file" in await refused("nothing.txt")
        project.put("big.bin", bytes(PROVIDER_BYTES + 1), "application/octet-stream")
        said = await refused("big.bin")
        assert str(PROVIDER_BYTES) in said
        assert "max_bytes" in said
        openai.fail("upload", Answer(402, {"error": {"type": "billing_error", "message": "pay first"}}))
        said = await refused("a.txt")
        assert "pay first" in said
        assert "Tell the user" in said
        await served.upload("b.txt", b"other")
        openai.fail("upload", Fault("reset"), times=10)
        assert "Try again" in await refused("b.txt")
        openai.heal()
        assert openai.counts["upload"] > 1


async def test_a_refused_key(project: Project, openai: ProviderServer) -> None:
    """The key is never shown, and the user is told whom to ask."""
    openai.keys = {"another"}
    async with stdio_caller(project) as served:
        await served.upload("a.txt", b"content")
        said = await served.refused("get_provider_file_id", path="a.txt", provider="openai")
        assert "refuses this server's API key" in said
        assert "another" not in said
        assert KEY not in said


async def test_a_missing_key(project: Project) -> None:
    """Neither the key's file nor its path is shown; nothing is sent."""
    (project.directory / "provider.key").unlink()
    async with stdio_caller(project) as served:
        (turned_on,) = (await served.call("list_providers"))["providers"]
        assert turned_on["key"] == "missing"
        assert str(project.directory) not in str(turned_on)
        await served.upload("a.txt", b"content")
        said = await served.refused("get_provider_file_id", path="a.txt", provider="openai")
        assert "no API key" in said
        assert str(project.directory) not in said


async def test_without_providers(project: Project) -> None:
    """Off until configured, and said so."""
    async with stdio_caller(project, more={"EXAIFS_PROVIDERS_FILE": ""}) as served:
        assert (await served.call("list_providers"))["providers"] == []
        await served.upload("a.txt", b"content")
        assert (await served.call("stat_file", path="a.txt"))["provider_files"] == []
        said = await served.refused("get_provider_file_id", path="a.txt", provider="openai")
        assert "EXAIFS_PROVIDERS" in said


async def test_addresses_and_expiry(project: Project, tmp_path: Path) -> None:
    """Gemini names files by address, and for 48 hours."""
    with running(ProviderServer(CONTRACTS["gemini"]())) as gemini:
        providers = Providers(tmp_path, Clock())
        providers.add("gemini", gemini)
        async with stdio_caller(project) as served:
            await served.upload("a.txt", b"content")
            result = await served.result("get_provider_file_id", path="a.txt", provider="gemini")
            assert not result.is_error, result
            made = result.structured_content
            assert made is not None
            assert made["uri"].startswith("http")
            assert made["expires_at"] is not None
            (block,) = result.content
            assert isinstance(block, TextContent)
            assert made["id"] in block.text
