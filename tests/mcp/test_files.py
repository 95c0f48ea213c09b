"""Files through the protocol, with its official client, over real stdio and real HTTP."""

from __future__ import annotations

import base64
import os
import re
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from mcp import MCPError
from mcp_types import (
    BlobResourceContents,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextResourceContents,
)

from exaifs.handler.handler import UnifiedFileHandler
from exaifs.mcp.bucket import MAX_PART_BYTES, MAX_RESOURCE_BYTES
from tests.mcp.conftest import Connect
from tests.mcp.served import Caller, Project, bytes_of, stdio_caller

pytestmark = [pytest.mark.embedded, pytest.mark.anyio]

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
NAMES = (
    "plain.txt",
    "spaces and 'quotes' \"both\".txt",
    "ümläut/日本語/🚀.md",
    "e\u0301 is not \u00e9",
    "50%2Fhalf?x=1#frag",
    "a\\b:c*d|e<f>g",
    "=41=C3",
    "line\nbreak\ttab",
    "\u2028\u2029\u0085",
    "~tilde/$HOME/-rf",
    "C:/windows/file:",
)


async def test_what_a_client_sees(connect_anyhow: Connect) -> None:
    """Ten tools with hints and schemas for both directions, one template, what the server is for."""
    async with connect_anyhow() as served:
        tools = {tool.name: tool for tool in (await served.client.list_tools()).tools}
        assert set(tools) == {
            "list_files",
            "search_files",
            "stat_file",
            "download_file",
            "get_signed_url",
            "list_providers",
            "upload_file",
            "delete_file",
            "get_provider_file_id",
            "forget_provider_file",
        }
        for tool in tools.values():
            assert tool.description
            assert not re.search(r"^[ \t]|[ \t]$", tool.description, re.MULTILINE)
            assert tool.input_schema["additionalProperties"] is False
            for name, argument in tool.input_schema["properties"].items():
                assert argument["description"], f"{tool.name}.{name}"
            assert tool.output_schema is not None
            assert tool.annotations is not None
        hints = {name: tool.annotations for name, tool in tools.items() if tool.annotations is not None}
        assert {name for name, hint in hints.items() if hint.read_only_hint} == {
            "list_files",
            "search_files",
            "stat_file",
            "download_file",
            "get_signed_url",
            "list_providers",
        }
        assert hints["delete_file"].destructive_hint
        asked = hints["get_provider_file_id"]
        assert (asked.idempotent_hint, asked.open_world_hint) == (True, True)
        templates = (await served.client.list_resource_templates()).resource_templates
        assert [template.uri_template for template in templates] == ["exaifs:///{+path}"]
        assert served.client.instructions is None or "bucket" in served.client.instructions


async def test_arguments_that_do_not_fit(project: Project) -> None:
    """A model is told which, and what there is; values, which may be a whole file, are not repeated."""
    async with stdio_caller(project) as served:
        await served.upload("a.txt", b"a")
        for tool, arguments, said in (
            (
                "list_files",
                {"path": "reports/"},
                "no argument 'path'; its arguments are prefix, cursor, limit",
            ),
            ("list_providers", {"x": 1}, "no argument 'x'; it takes no arguments"),
            ("list_files", {"limit": 0}, "limit should be greater than or equal to 1; its arguments are"),
            ("list_files", {"prefix": 5}, "prefix should be a valid string"),
            ("stat_file", {}, "path is needed; its arguments are path."),
            ("upload_file", {"path": "b", "text": 7, "overwrite": "SECRET"}, "overwrite should be"),
            ("upload_file", {"path": "b", "content": "SECRET"}, "its arguments are path, text, base64"),
        ):
            answer = await served.refused(tool, **arguments)
            assert said in answer
            assert "SECRET" not in answer
            assert "pydantic" not in answer
        assert [file["path"] for file in (await served.call("list_files"))["files"]] == ["a.txt"]


async def test_a_day_of_a_file(connect_anyhow: Connect, project: Project) -> None:
    """Stored, looked at, listed, found, read, replaced, deleted; others see the same file."""
    async with connect_anyhow() as served:
        made = await served.call("upload_file", path="/reports/q3.md", text="# Q3\n")
        assert (made["path"], made["outcome"], made["size_bytes"]) == ("reports/q3.md", "created", 5)
        assert made["mime_type"] == "text/markdown"
        again = await served.call("upload_file", path="reports/q3.md", text="# Q3\n")
        assert (again["outcome"], again["version"]) == ("unchanged", made["version"])
        known = await served.call("stat_file", path="reports/q3.md")
        assert {**known, "outcome": "created"} == made
        by_uri = await served.call("stat_file", path=made["uri"])
        assert by_uri == known
        listed = await served.call("list_files", prefix="reports/")
        assert [file["file_id"] for file in listed["files"]] == [made["file_id"]]
        assert (listed["next_cursor"], listed["left_out"]) == (None, 0)
        found = await served.call("search_files", query="Q3")
        assert [file["path"] for file in found["files"]] == ["reports/q3.md"]
        part = await served.call("download_file", path="reports/q3.md")
        assert (part["text"], part["encoding"], part["next_offset"]) == ("# Q3\n", "text", None)
        said = await served.refused("upload_file", path="reports/q3.md", text="other")
        assert "overwrite=true" in said
        assert await served.download("reports/q3.md") == b"# Q3\n"
        new = await served.call(
            "upload_file", path="reports/q3.md", text="other", overwrite=True, mime_type="text/plain"
        )
        assert (new["outcome"], new["file_id"], new["mime_type"]) == (
            "replaced",
            made["file_id"],
            "text/plain",
        )
        signed = await served.call("get_signed_url", path="reports/q3.md", seconds=60)
        async with httpx.AsyncClient(timeout=60, trust_env=False) as anybody:
            assert (await anybody.get(signed["url"])).content == b"other"
        async with handler(project) as files:
            assert (await files.download_file(made["file_id"]))[0] == b"other"
        deleted = await served.call("delete_file", path="reports/q3.md")
        assert deleted == {"path": "reports/q3.md", "file_id": made["file_id"]}
        assert "no file" in await served.refused("delete_file", path="reports/q3.md")
        assert (await served.call("list_files"))["files"] == []


def handler(project: Project) -> UnifiedFileHandler:
    """Open the same bucket from a program."""
    return UnifiedFileHandler(
        project.environment["SUPABASE_URL"],
        project.environment["SUPABASE_SERVICE_ROLE_KEY"],
        project.directory / "other-cache",
        project.environment["FILE_STORAGE_BUCKET"],
    )


async def test_any_name(connect: Connect) -> None:
    """Every name is stored, listed, looked at and read under the same path, and by its URI."""
    async with connect() as served:
        for number, name in enumerate(NAMES):
            await served.call("upload_file", path=name, text=f"content {number}")
        listed = {file["path"]: file["uri"] for file in (await served.call("list_files"))["files"]}
        assert set(listed) == set(NAMES)
        for number, name in enumerate(NAMES):
            assert (await served.call("stat_file", path=name))["path"] == name
            resource = await served.client.read_resource(listed[name])
            (content,) = resource.contents
            assert isinstance(content, TextResourceContents)
            assert content.text == f"content {number}"


async def test_download_equals_upload(connect: Connect) -> None:
    """For any bytes and any part size; as text only what is the same bytes again."""
    hard = [
        b"",
        b"\0",
        bytes(range(256)),
        b"\xef\xbb\xbfwith a mark",
        b"crlf\r\nand\rcr\n",
        "\u2028 \x85 \x1f 🚀".encode(),
        b'{"a": 1}',
        b"null",
        b"\xff\xfe",
        "é".encode("latin-1"),
        os.urandom(70_000),
        ("🚀é" * 3000).encode(),
    ]
    async with connect() as served:
        for number, data in enumerate(hard):
            for suffix in ("txt", "bin", "json"):
                path = f"hard/{number}.{suffix}"
                await served.upload(path, data)
                assert bytes_of(await served.call("download_file", path=path)) == data
                assert await served.download(path, 30_001) == data
        await served.call("upload_file", path="hard/text", text="null\r\n\0\u2028🚀")
        assert await served.download("hard/text", 3) == "null\r\n\0\u2028🚀".encode()


async def test_random_bytes(project: Project) -> None:
    """Download equals upload, whatever comes to a computer's mind."""
    async with stdio_caller(project) as served:
        for number, (data, length) in enumerate(samples()):
            await served.upload(f"random/{number}.txt", data)
            assert await served.download(f"random/{number}.txt", length) == data


def samples() -> list[tuple[bytes, int]]:
    """Return contents and part sizes."""
    found: list[tuple[bytes, int]] = []

    @settings(max_examples=40, database=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(st.binary(max_size=300), st.text(max_size=100).map(str.encode)), st.integers(7, 400))
    def collect(data: bytes, length: int) -> None:
        found.append((data, length))

    collect()
    return found


async def test_large_files(connect_anyhow: Connect) -> None:
    """Over 1 MiB the answer is a link; parts have at most 1 MiB; the resource has all bytes."""
    data = os.urandom(2 * MAX_PART_BYTES + 12_345)
    async with connect_anyhow() as served:
        made = await served.upload("big.bin", data)
        result = await served.result("download_file", path="big.bin")
        links = [block for block in result.content if isinstance(block, ResourceLink)]
        assert [(link.uri, link.size) for link in links] == [(made["uri"], len(data))]
        assert result.structured_content is not None
        answer = result.structured_content
        assert (answer["encoding"], answer["length"], answer["next_offset"]) == ("link", 0, 0)
        part = await served.call("download_file", path="big.bin", offset=0, length=10 * MAX_PART_BYTES)
        assert (part["length"], part["next_offset"]) == (MAX_PART_BYTES, MAX_PART_BYTES)
        assert await served.download("big.bin") == data
        (content,) = (await served.client.read_resource(links[0].uri)).contents
        assert isinstance(content, BlobResourceContents)
        assert (base64.b64decode(content.blob), content.mime_type) == (data, made["mime_type"])


async def test_a_file_that_no_resource_can_hold(project: Project) -> None:
    """What is too large to be read whole says how to read it; upload_file says what it takes."""
    project.put("huge.bin", os.urandom(MAX_RESOURCE_BYTES + 1), "application/octet-stream")
    async with stdio_caller(project) as served:
        with pytest.raises(MCPError, match="download_file"):
            await served.client.read_resource("exaifs:///huge.bin")
        part = await served.call("download_file", path="huge.bin", offset=MAX_RESOURCE_BYTES - 1)
        assert (part["length"], part["next_offset"]) == (2, None)
        too_much = base64.b64encode(bytes(MAX_RESOURCE_BYTES + 1)).decode()
        said = await served.refused("upload_file", path="x", base64=too_much)
        assert "16777216" in said


async def test_the_largest_upload(connect: Connect) -> None:
    """upload_file takes 16 MiB, over HTTP too."""
    data = os.urandom(MAX_RESOURCE_BYTES)
    async with connect() as served:
        made = await served.upload("largest.bin", data)
        assert made["size_bytes"] == MAX_RESOURCE_BYTES
        (content,) = (await served.client.read_resource(made["uri"])).contents
        assert isinstance(content, BlobResourceContents)
        assert base64.b64decode(content.blob) == data


async def test_what_a_model_is_shown(project: Project) -> None:
    """Images as images, other bytes in a block of their own, text as text of its own type."""
    async with stdio_caller(project) as served:
        await served.upload("dot.png", PNG)
        image = (await served.result("download_file", path="dot.png")).content[1]
        assert isinstance(image, ImageContent)
        assert (base64.b64decode(image.data), image.mime_type) == (PNG, "image/png")
        await served.upload("b.bin", b"\0\1\2")
        block = (await served.result("download_file", path="b.bin")).content[1]
        assert isinstance(block, EmbeddedResource)
        await served.call("upload_file", path="p.py", text="print()")
        (content,) = (await served.client.read_resource("exaifs:///p.py")).contents
        assert isinstance(content, TextResourceContents)
        assert "python" in (content.mime_type or "")


async def test_parts_of_a_file_that_is_replaced(project: Project) -> None:
    """Parts of two versions never come together: the version that is given back must still hold."""
    async with stdio_caller(project) as served:
        await served.upload("a.bin", bytes(1000))
        first = await served.call("download_file", path="a.bin", length=500)
        await served.upload("a.bin", bytes(999) + b"x", overwrite=True)
        said = await served.refused(
            "download_file", path="a.bin", offset=500, length=500, version=first["version"]
        )
        assert "begin again" in said
        said = await served.refused("download_file", path="a.bin", offset=1001)
        assert "1000 bytes" in said


async def test_pages(project: Project) -> None:
    """Cursors are opaque, good for the same question only, and together the pages have every file once."""
    async with stdio_caller(project) as served:
        paths = {f"d{number % 3}/f{number:02}.txt" for number in range(25)}
        for path in paths:
            await served.call("upload_file", path=path, text=path)
        for tool, question in (("list_files", {"prefix": "d"}), ("search_files", {"query": "F"})):
            assert await all_pages(served, tool, **question) == sorted(paths)
        page = await served.call("list_files", limit=4)
        assert "d0" not in page["next_cursor"]
        for wrong in (
            {"prefix": "d", "cursor": page["next_cursor"]},
            {"cursor": "nonsense"},
            {"cursor": page["next_cursor"][:-3]},
            {"cursor": "é"},
        ):
            assert "next_cursor" in await served.refused("list_files", **wrong)
        assert "not a cursor" in await served.refused("search_files", query="x", cursor=page["next_cursor"])
        assert await served.refused("list_files", limit=0)


async def all_pages(served: Caller, tool: str, **question: Any) -> list[str]:
    """Return the paths of all pages."""
    paths: list[str] = []
    cursor = ""
    while True:
        page = await served.call(tool, **question, cursor=cursor, limit=4)
        assert len(page["files"]) <= 4
        paths += [file["path"] for file in page["files"]]
        cursor = page["next_cursor"]
        if cursor is None:
            return sorted(paths)


async def test_conversations(project: Project) -> None:
    """With a continuation id files go to its directory, and belong to it."""
    async with stdio_caller(project) as served:
        made = await served.call("upload_file", path="notes/a.txt", text="x", continuation_id="c-42")
        assert made["path"] == "uploads/c-42/notes/a.txt"
        assert made["metadata"]["continuation_id"] == "c-42"
        same = await served.call(
            "upload_file", path="uploads/c-42/notes/a.txt", text="x", continuation_id="c-42"
        )
        assert (same["path"], same["outcome"]) == (made["path"], "unchanged")
        for wrong in ("../x", "a/b", "..", ".", "\0"):
            await served.refused("upload_file", path="a.txt", text="x", continuation_id=wrong)
    async with handler(project) as files:
        assert not await files.link_file_to_conversation(made["file_id"], "c-42")


async def test_what_other_clients_made(project: Project) -> None:
    """Keys that no path can name are counted, raw keys and names that are not UTF-8 can be read."""
    project.put("raw=41.txt", b"raw")
    project.put("caf=E9.txt", b"latin")
    async with stdio_caller(project) as served:
        page = await served.call("list_files")
        shown = {file["path"]: file["uri"] for file in page["files"]}
        assert shown == {
            "raw=41.txt": "exaifs:///raw%3D41.txt",
            "caf\ufffd.txt": "exaifs:///caf%E9.txt",
        }
        assert await served.download("raw=41.txt") == b"raw"
        assert await served.download(shown["caf\ufffd.txt"]) == b"latin"
        (content,) = (await served.client.read_resource(shown["caf\ufffd.txt"])).contents
        assert isinstance(content, TextResourceContents)
        assert content.text == "latin"


async def test_twenty_calls_at_once(connect: Connect) -> None:
    """Calls do not wait for one another, and none gets another's answer."""
    async with connect() as served:

        async def work(number: int) -> None:
            data = os.urandom(50_000) + bytes([number])
            path = f"many/{number}.bin"
            await served.upload(path, data)
            assert bytes_of(await served.call("download_file", path=path)) == data
            known = await served.call("stat_file", path=path)
            assert known["size_bytes"] == len(data)

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(work, number)
        assert len((await served.call("list_files", prefix="many/"))["files"]) == 20


async def test_one_writer_wins(project: Project) -> None:
    """Of many who store other content at the same free path, one does; the others are told."""
    async with stdio_caller(project) as served:
        results: list[bool] = []

        async def store(number: int) -> None:
            result = await served.result("upload_file", path="one.txt", text=str(number))
            results.append(not result.is_error)

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(store, number)
        assert results.count(True) == 1
