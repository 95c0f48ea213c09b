"""The class that programs use, on the embedded Supabase; and what it says where there is none."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import pytest

import exaifs
from exaifs import FilePage, UnifiedFileHandler, file_id_for
from exaifs.errors import (
    BucketMissing,
    ConfigError,
    ExaifsError,
    FileTooLarge,
    IsADirectory,
    NotFound,
    ReadOnly,
    Unauthorized,
    Unreachable,
)
from tests.handler.conftest import Write
from tests.providers.emulator import KEY, Clock, ProviderServer, running
from tests.providers.world import CONTRACTS, Providers
from tests.support.counting import CountingGate

pytestmark = pytest.mark.anyio

Make = Callable[[], UnifiedFileHandler]
DATA = random.Random(1).randbytes(2_500_000)
"""Of no type that libmagic knows; one in a thousand of other bytes is a sound or an image to it."""


# on the embedded Supabase


@pytest.mark.embedded
async def test_from_end_to_end(make_handler: Make, local: Write, tmp_path: Path) -> None:
    """Everything once, on a server, under both event loops."""
    path = local("größe 1.bin", DATA)
    async with make_handler() as handler:
        assert handler.is_enabled
        told: list[int] = []
        file_id = await handler.upload_file(
            path, {"continuation_id": "c 1", "tags": ["é"]}, progress=lambda done, _total: told.append(done)
        )
        assert told[-1] == len(DATA)
        info = await handler.stat(file_id)
        assert info == await handler.stat("uploads/c 1/größe 1.bin")
        assert info.metadata == {"continuation_id": "c 1", "file_type": "user_upload", "tags": ["é"]}
        copy_id = await handler.upload_file(path, {"path": "copies/"})
        assert copy_id != file_id
        assert (await handler.stat(copy_id)).sha256 == info.sha256
        assert await handler.cleanup_cache(0, 0) == {
            "expired": 1,
            "evicted": 0,
            "idle": 0,
            "freed_bytes": len(DATA),
            "kept": 0,
            "kept_bytes": 0,
        }
        assert await handler.download_file(file_id) == (DATA, info.to_dict())
        await handler.download_to(copy_id, tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == DATA
        page = await handler.list_files(limit=1)
        assert [file.path for file in page.files] == ["copies/größe 1.bin"]
        page = await handler.list_files(limit=1, cursor=page.cursor)
        assert page.files == (info,)
        assert page.cursor is None
        assert info.sha256 is not None
        for query in ("GRÖSSE 1".replace("SS", "ß"), "application/", info.sha256[:10]):
            assert {file.file_id for file in (await handler.search_files(query)).files} == {
                file_id,
                copy_id,
            }
        assert await handler.link_file_to_conversation(copy_id, "c 2")
        assert not await handler.link_file_to_conversation(file_id, "c 1")
        await handler.delete_file(copy_id)
        with pytest.raises(NotFound):
            await handler.stat(copy_id)


@pytest.fixture
def gate(fresh_bucket: dict[str, str]) -> Iterator[CountingGate]:
    """The embedded server, counted."""
    with CountingGate(fresh_bucket["SUPABASE_URL"]) as gate:
        yield gate


@pytest.mark.embedded
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_leaves_the_host(
    fresh_bucket: dict[str, str], gate: CountingGate, tmp_path: Path, local: Write, unconfigured: None
) -> None:
    """Twenty uploads of one content send it once; a repeated one sends nothing, by whichever handler."""
    assert unconfigured is None
    path = local("a.bin", DATA[:500_000])

    def make() -> UnifiedFileHandler:
        key = fresh_bucket["SUPABASE_SERVICE_ROLE_KEY"]
        return UnifiedFileHandler(gate.url, key, tmp_path / "cache", fresh_bucket["FILE_STORAGE_BUCKET"])

    async with make() as one, make() as two:
        ids: set[str] = set()

        async def upload(handler: UnifiedFileHandler) -> None:
            ids.add(await handler.upload_file(path, {"continuation_id": "c"}))

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(upload, one)
        assert len(ids) == 1
        assert gate.reset().requests.count("a.bin") == 1
        await upload(two)
        await two.upload_file(path, {"path": "elsewhere"})
        assert len(ids) == 1
        assert gate.reset().sent_bytes < 50_000
        assert await two.download_file(ids.pop())
        assert gate.traffic.received_bytes < 50_000


@pytest.mark.embedded
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_opened_by_hand(make_handler: Make, local: Write) -> None:
    """`open` and `aclose` do what the context manager does; each once."""
    handler = make_handler()
    assert await handler.open() is handler
    try:
        with pytest.raises(ExaifsError, match="already"):
            await handler.open()
        await handler.upload_file(local("a", b"x"))
    finally:
        await handler.aclose()
    await handler.aclose()
    with pytest.raises(ExaifsError, match="was closed"):
        await handler.stat("x")
    async with handler:
        assert len((await handler.list_files()).files) == 1


@pytest.mark.embedded
def test_nothing_is_printed(fresh_bucket: dict[str, str], kimi: ProviderServer, tmp_path: Path) -> None:
    """A library logs by `logging`, without keys; standard output is the program's."""
    providers = Providers(tmp_path, Clock())
    providers.add("kimi", kimi)
    script = (
        "import asyncio, logging, exaifs, structlog\n"
        "async def main():\n"
        "    async with exaifs.UnifiedFileHandler() as handler:\n"
        "        file_id = await handler.upload_file(__file__)\n"
        "        await handler.get_provider_file_id(file_id, 'kimi')\n"
        "        structlog.get_logger('exaifs.x').warning('careful', key=open('provider.key').read())\n"
        "        try: 1 / 0\n"
        "        except ZeroDivisionError: structlog.get_logger('exaifs.x').exception('a bug')\n"
        "asyncio.run(main())\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "asyncio.run(main())\n"
    )
    (tmp_path / "program.py").write_text(script)
    ended = subprocess.run(
        [sys.executable, "program.py"],
        env={
            **os.environ,
            **fresh_bucket,
            "FILE_CACHE_DIR": str(tmp_path / "cache"),
            "EXAIFS_PROVIDERS_FILE": str(providers.path),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert ended.stdout == ""
    quiet, _, loud = ended.stderr.partition("INFO:")
    assert quiet.startswith("careful  key='[redacted]\\n'\na bug\nTraceback")
    assert "WARNING:exaifs.x:careful" in loud
    assert KEY not in ended.stderr
    assert fresh_bucket["SUPABASE_SERVICE_ROLE_KEY"] not in ended.stderr


@pytest.mark.embedded
async def test_opened_by_nobody(make_handler: Make, local: Write) -> None:
    """The first calls open it, once, and trouble with that is theirs; it can be closed."""
    handler = make_handler()
    files: list[FilePage] = []

    async def look() -> None:
        files.append(await handler.list_files())

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(look)
    assert [page.files for page in files] == [()] * 5
    file_id = await handler.upload_file(local("a", b"x"))
    async with handler:
        assert (await handler.download_file(file_id))[0] == b"x"
    with pytest.raises(ExaifsError, match="was closed"):
        await handler.list_files()
    broken = UnifiedFileHandler("http://127.0.0.1:9", "key", "/proc/nowhere")
    for _ in range(2):
        with pytest.raises(ConfigError, match="cache directory"):
            await broken.list_files()
    await broken.aclose()


@pytest.mark.embedded
async def test_opened_and_closed_by_other_tasks(make_handler: Make) -> None:
    """As test fixtures and the start and stop hooks of web frameworks do."""
    handler = make_handler()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler.open)
    assert (await handler.list_files()).files == ()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler.aclose)
    with pytest.raises(ExaifsError, match="was closed"):
        await handler.list_files()
    async with handler:
        assert (await handler.list_files()).files == ()


@pytest.mark.embedded
async def test_closed_while_calls_are_under_way(make_handler: Make, local: Write) -> None:
    """They end with an error of ours that says so."""
    handler = await make_handler().open()
    path, answers = local("a", os.urandom(20_000_000)), []

    async def call(work: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(ExaifsError) as caught:
            await work()
        answers.append(str(caught.value))

    begun = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, lambda: handler.upload_file(path, progress=lambda *_: begun.set()))
        await begun.wait()
        await handler.aclose()
    assert answers == ["the handler was closed before this was done"]


@pytest.mark.embedded
@pytest.mark.parametrize("loop", ["asyncio.run(main())", "trio.run(main)"])
def test_a_handler_that_nobody_closes(loop: str, fresh_bucket: dict[str, str], tmp_path: Path) -> None:
    """It ends with its event loop, without a word, and can be opened in the next one."""
    script = (
        "import asyncio, trio, exaifs\n"
        "handler = exaifs.UnifiedFileHandler()\n"
        "async def main():\n"
        "    await handler.open()\n"
        "    await handler.list_files()\n"
        f"{loop}\n"
        f"{loop}\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, **fresh_bucket, "FILE_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.embedded
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_refused(
    fresh_bucket: dict[str, str], make_handler: Make, tmp_path: Path, local: Write
) -> None:
    """A wrong key or bucket, a server that is not there, and a file too large are errors that say so."""
    url, key = fresh_bucket["SUPABASE_URL"], fresh_bucket["SUPABASE_SERVICE_ROLE_KEY"]
    path = local("a", b"x")
    async with UnifiedFileHandler(url, key[:-3] + "xxx", tmp_path / "other") as handler:
        with pytest.raises(Unauthorized):
            await handler.upload_file(path)
    async with UnifiedFileHandler("http://127.0.0.1:9", key, tmp_path / "other") as handler:
        with pytest.raises(Unreachable):
            await handler.list_files()
    async with UnifiedFileHandler(url, key, tmp_path / "other", "no-such-bucket") as handler:
        for attempt in (
            handler.upload_file(path),
            handler.list_files(),
            handler.search_files("a"),
            handler.stat("a"),
            handler.download_file("a"),
        ):
            with pytest.raises(BucketMissing, match="no-such-bucket"):
                await attempt
    with path.open("r+b") as file:
        file.truncate((50 << 20) + 1)
    async with make_handler() as handler:
        with pytest.raises(FileTooLarge):
            await handler.upload_file(path)


@pytest.mark.embedded
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_read_only(
    make_handler: Make, monkeypatch: pytest.MonkeyPatch, local: Write, tmp_path: Path
) -> None:
    """EXAIFS_READ_ONLY holds here as for a mount: files are read, and nothing is changed."""
    async with make_handler() as handler:
        file_id = await handler.upload_file(local("a", b"x"))
    monkeypatch.setenv("EXAIFS_READ_ONLY", "true")
    async with make_handler() as handler:
        for attempt in (
            handler.upload_file(tmp_path / "local" / "a"),
            handler.delete_file(file_id),
            handler.link_file_to_conversation(file_id, "c1"),
        ):
            with pytest.raises(ReadOnly, match="EXAIFS_READ_ONLY"):
                await attempt
        assert (await handler.download_file(file_id))[0] == b"x"


@pytest.fixture
def kimi() -> Iterator[ProviderServer]:
    """A provider."""
    with running(ProviderServer(CONTRACTS["kimi"](), Clock())) as server:
        yield server


@pytest.mark.embedded
async def test_provider_ids(
    make_handler: Make,
    local: Write,
    tmp_path: Path,
    kimi: ProviderServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten that ask at once share one upload; two files with the same bytes as well."""
    providers = Providers(tmp_path, Clock())
    providers.add("kimi", kimi)
    monkeypatch.setenv("EXAIFS_PROVIDERS_FILE", str(providers.path))
    ids: set[str] = set()
    async with make_handler() as handler:
        file_ids = [
            await handler.upload_file(local("a.txt", b"some text"), {"path": p}) for p in ("a", "b")
        ]

        async def ask(file_id: str) -> None:
            ids.add(await handler.get_provider_file_id(file_id, "kimi"))

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(ask, file_ids[number % 2])
        assert (len(ids), kimi.counts["upload"]) == (1, 1)
        with pytest.raises(ConfigError, match="openai"):
            await handler.get_provider_file_id(file_ids[0], "openai")


@pytest.mark.embedded
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_reference(make_handler: Make, local: Write) -> None:
    """A path becomes a file id, once; the conversation is linked."""
    path = local("a.txt", b"text")
    async with make_handler() as handler:
        first = await file_id_for(path, "c1", handler=handler)
        assert (first.path, first.is_remote) == (path, True)
        assert await file_id_for(str(path), "c1", handler=handler) == first
        assert first.file_id is not None
        assert (await handler.stat(first.file_id)).path == "uploads/c1/a.txt"
        other = await file_id_for(path, handler=handler)
        assert other.file_id not in {None, first.file_id}
        with pytest.raises(FileNotFoundError):
            await file_id_for(path.with_name("none"), handler=handler)


# without a server


async def test_not_configured(unconfigured: None, local: Write) -> None:
    """Disabled, not broken: every method says which variable is missing, the helper falls back."""
    assert unconfigured is None
    path = local("a", b"x")
    async with UnifiedFileHandler() as handler:
        assert not handler.is_enabled
        for attempt in (
            lambda: handler.upload_file(path),
            lambda: handler.download_file("x"),
            lambda: handler.download_to("x", path),
            lambda: handler.delete_file("x"),
            lambda: handler.stat("x"),
            handler.list_files,
            lambda: handler.search_files("x"),
            lambda: handler.link_file_to_conversation("x", "c"),
            lambda: handler.get_provider_file_id("x", "kimi"),
            handler.cleanup_cache,
        ):
            with pytest.raises(ConfigError, match="SUPABASE_URL is not set"):
                await attempt()
    reference = await file_id_for(path, "c1")
    assert (reference.path, reference.file_id, reference.is_remote) == (path, None, False)
    with pytest.raises(FileNotFoundError):
        await file_id_for(path.with_name("none"))
    for directory in (path.parent, ""):
        with pytest.raises(IsADirectory):
            await file_id_for(directory)


def test_arguments(unconfigured: None) -> None:
    """A wrong argument is named as it was given; keys are not shown."""
    assert unconfigured is None
    with pytest.raises(ConfigError, match=r"^supabase_url: must look like"):
        UnifiedFileHandler(supabase_url="nonsense")
    with pytest.raises(ConfigError, match=r"^bucket_name: "):
        UnifiedFileHandler(bucket_name="a/b")
    with pytest.raises(ConfigError, match=r"^max_memory_cache_size: "):
        UnifiedFileHandler(max_memory_cache_size=-1)
    assert UnifiedFileHandler("https://x.supabase.co", "secret").is_enabled
    assert not UnifiedFileHandler("https://x.supabase.co").is_enabled


def test_importing_is_cheap() -> None:
    """`import exaifs` loads nothing else; the API is there when it is asked for, and only that."""
    script = (
        "import sys, exaifs; assert not {'httpx', 'supabase', 'anyio', 'pydantic'} & set(sys.modules);"
        "from exaifs import UnifiedFileHandler; assert 'pyfuse3' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    for name in exaifs.__all__:
        assert getattr(exaifs, name)
    with pytest.raises(AttributeError, match="nothing"):
        getattr(exaifs, "nothing")  # noqa: B009 - a name that mypy would refuse
