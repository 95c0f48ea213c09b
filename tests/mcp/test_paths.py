"""No path leaves the bucket, whoever decoded it before."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, strategies as st
from mcp import MCPError

from exaifs.errors import ExaifsError, InvalidArgument, NameTooLong
from exaifs.mcp.paths import (
    after_of,
    cursor_of,
    path_of_argument,
    path_of_uri,
    prefix_of_argument,
    shown,
    uri_of,
)
from exaifs.mcp.texts import text_of, text_piece
from tests.mcp.conftest import Connect
from tests.mcp.served import Project, stdio_caller

BAD_PATHS = (
    "",
    "/",
    "//etc/passwd",
    "..",
    ".",
    "../x",
    "a/../x",
    "a/..",
    "a/./x",
    "a//x",
    "a/",
    "/../etc/passwd",
    "nul\0byte",
    ".exaifs/status.json",
    "half \ud800 pair",
    "\udc41",
    "exaifs://host/a",
    "exaifs:a",
    "file:///etc/passwd",
    "x" * 256,
    "/".join(["x" * 200] * 6),
)
BAD_URIS = (
    "exaifs:///",
    "exaifs:///..",
    "exaifs:///a/%2e%2e/x",
    "exaifs:///%2e%2e%2fetc%2fpasswd",
    "exaifs:///a/%2E/x",
    "exaifs:///a%2F%2Fx",
    "exaifs:///a%00b",
    "exaifs:///a/../x",
    "exaifs:///%2Fetc%2F..%2Fpasswd",
    "exaifs:///.exaifs/status.json",
    "exaifs:///%2eexaifs/x",
)
OTHER_URIS = ("file:///etc/passwd", "exaifs://host/a", "https://example.com/", "exaifs:/a")


@pytest.mark.parametrize("path", BAD_PATHS)
def test_bad_paths_are_refused(path: str) -> None:
    """Dot segments, empty ones, NUL, half pairs, names that are too long: refused, never cleaned up."""
    with pytest.raises((InvalidArgument, NameTooLong)):
        path_of_argument(path)


@pytest.mark.parametrize("uri", [*BAD_URIS, *OTHER_URIS])
def test_bad_uris_are_refused(uri: str) -> None:
    """A URI is decoded once, then it is a path like any other."""
    with pytest.raises(InvalidArgument):
        path_of_uri(uri)


def test_what_is_a_name_stays_one() -> None:
    """A slash at the start means the bucket; what is decoded is not decoded again."""
    assert path_of_argument("/etc/passwd") == "etc/passwd"
    assert path_of_argument("a/%2e%2e/x") == "a/%2e%2e/x"
    assert path_of_argument("exaifs:///a%252e/x") == "a%2e/x"
    assert path_of_uri("exaifs:///a%2Fb") == "a/b"
    assert path_of_uri("exaifs:///a?b#c") == "a?b#c"
    assert path_of_argument("..a/...") == "..a/..."
    assert path_of_argument("C:\\x") == "C:\\x"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_a_uri_names_its_path(path: str) -> None:
    """Whatever is accepted as a path is the same path by its URI, and safe to show."""
    try:
        plain = path_of_argument(path)
    except ExaifsError:
        return
    assert path_of_uri(uri_of(plain)) == plain
    assert not {"", ".", ".."} & set(plain.split("/"))
    assert shown(plain) == plain


@given(st.binary(min_size=1, max_size=40))
def test_names_that_are_not_utf8_have_uris(raw: bytes) -> None:
    """Their paths are shown with replacement characters, their URIs are exact."""
    name = os.fsdecode(raw)
    if "/" in name or "\0" in name or name in {".", "..", ".exaifs"}:
        return
    assert path_of_uri(uri_of(name)) == name
    shown(name).encode()


def test_prefixes() -> None:
    """A prefix may end anywhere, but not leave the bucket."""
    assert prefix_of_argument("") == ""
    assert prefix_of_argument("/") == ""
    assert prefix_of_argument("/a/b") == "a/b"
    assert prefix_of_argument("a/") == "a/"
    assert prefix_of_argument("exaifs:///a%20b/") == "a b/"
    for bad in (
        ".",
        "..",
        "../",
        "a/../",
        "a//",
        "//a",
        "./a",
        "\0",
        "\ud800",
        "exaifs://h/",
        "exaifs:///%00",
    ):
        with pytest.raises(InvalidArgument):
            prefix_of_argument(bad)


def test_cursors_belong_to_their_question() -> None:
    """A cursor of another list, and what is none, are refused."""
    assert cursor_of("q", None) is None
    assert after_of("q", "") is None
    for after in ("", "a/b", "=C3=A9", "x" * 900):
        cursor = cursor_of("q", after)
        assert cursor is not None
        assert after_of("q", cursor) == after
        with pytest.raises(InvalidArgument):
            after_of("other", cursor)
    for bad in ("é", "x", "bnVsbA", "W10", "WzEsMl0", "eyJhIjoxfQ"):
        with pytest.raises(InvalidArgument):
            after_of("q", bad)


@given(st.binary(max_size=60), st.sampled_from(["text/plain", "application/octet-stream", "image/png"]))
def test_text_is_the_same_bytes(data: bytes, mime_type: str) -> None:
    """What is shown as text encodes to the bytes it was; a piece leaves a cut character for the next."""
    text = text_of(data, mime_type)
    assert text is None or text.encode() == data
    piece = text_piece(data, mime_type, is_end=False)
    assert piece is None or (piece[0].encode() == data[: piece[1]] and (piece[1] or not data))
    assert mime_type != "image/png" or text is None


def test_a_piece_of_text_ends_with_a_character() -> None:
    """A model never sees half of one, where that can be."""
    data = "aé".encode()
    assert text_piece(data[:2], "text/plain", is_end=False) == ("a", 1)
    assert text_piece(data[:2], "text/plain", is_end=True) is None
    assert text_piece(data[2:], "text/plain", is_end=True) is None


@pytest.mark.embedded
@pytest.mark.anyio
async def test_attacks_over_the_wire(connect: Connect, project: Project) -> None:
    """Every tool and the resource refuse them, with a sentence; nothing is stored, no host file is read."""
    async with connect() as served:
        await served.call("upload_file", path="a/x", text="content")
        for path in (path for path in BAD_PATHS if path.isprintable() or "\0" in path):
            for tool in ("stat_file", "download_file", "delete_file", "get_signed_url"):
                said = await served.refused(tool, path=path)
                assert str(project.directory) not in said
            await served.refused("upload_file", path=path, text="x", overwrite=True)
            await served.refused("get_provider_file_id", path=path, provider="openai")
        for uri in (*BAD_URIS, *OTHER_URIS):
            with pytest.raises(MCPError) as caught:
                await served.client.read_resource(uri)
            assert str(project.directory) not in str(caught.value)
        for name in ("/etc/passwd", "etc/passwd", "exaifs:////etc/passwd"):
            assert "no file" in await served.refused("download_file", path=name)
        (content,) = (await served.client.read_resource("exaifs:///a%2Fx")).contents
        assert "content" in str(content)
        assert [file["path"] for file in (await served.call("list_files"))["files"]] == ["a/x"]


@pytest.mark.embedded
@pytest.mark.anyio
async def test_a_wrong_path_leads_to_the_right_one(project: Project) -> None:
    """Likest names come first, whatever their case; of a path through a mount, the end is found."""
    async with stdio_caller(project) as served:
        for path in ("reports/Q3.pdf", "reports/q4.pdf", "b.txt", "a.txt"):
            await served.call("upload_file", path=path, text="x")
        assert "In the bucket's root: 'a.txt'" in await served.refused("stat_file", path="A.TXT")
        assert "In 'reports/': 'Q3.pdf', 'q4.pdf'" in await served.refused(
            "stat_file", path="reports/q3.pdf"
        )
        said = await served.refused("stat_file", path="/app/files/reports/q4.pdf")
        assert "no file 'app/files/reports/q4.pdf', but 'reports/q4.pdf'" in said


@pytest.mark.embedded
@pytest.mark.anyio
async def test_the_marker_of_a_directory_is_no_file(project: Project) -> None:
    """What keeps an empty directory is neither named nor counted where a path is wrong."""
    project.put("empty/.emptyFolderPlaceholder", b"")
    project.put("reports/.emptyFolderPlaceholder", b"")
    async with stdio_caller(project) as served:
        await served.call("upload_file", path="reports/q3.pdf", text="x")
        said = await served.refused("stat_file", path="reports/none")
        assert "In 'reports/': 'q3.pdf'. list_files" in said
        said = await served.refused("stat_file", path="empty/none")
        assert "In the bucket's root: 'empty/', and 1 others. list_files" in said
        assert "is a directory" in await served.refused("stat_file", path="empty")


@pytest.mark.embedded
@pytest.mark.anyio
async def test_a_file_never_hides_others(project: Project) -> None:
    """Not where a directory is, nor below a file."""
    async with stdio_caller(project) as served:
        await served.call("upload_file", path="a/b/c.txt", text="x")
        assert "is a directory" in await served.refused("upload_file", path="a/b", text="x")
        assert "is a file" in await served.refused("upload_file", path="a/b/c.txt/d", text="x")
        assert "is a directory" in await served.refused("stat_file", path="a/b")
