"""The providers' own SDKs against our servers: what they accept, a server of theirs would say.

Two of them run under asyncio only, and so do their tests. That of Z.ai and bigmodel has no event loop.
"""

from __future__ import annotations

import io
import os
from typing import Any

import anthropic
import openai
import pytest
import zai
from google import genai
from mistralai.client import Mistral
from mistralai.client.errors import SDKError
from zai.core import APIAuthenticationError, APIRequestFailedError

from tests.providers.conftest import Start
from tests.providers.emulator import KEY
from tests.providers.world import CONTRACTS

pytestmark = [
    pytest.mark.anyio,
    # The SDKs' own: they are not ours to mend.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

DATA = os.urandom(20_000)


asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])
"""For an SDK that cannot run under another event loop."""


@pytest.mark.parametrize("name", ["openai", "kimi", "deepseek"])
async def test_openai(name: str, start: Start) -> None:
    """The SDK of OpenAI, which is also the one for Kimi: upload, retrieve, list, delete, errors."""
    server = start(CONTRACTS[name]())
    prefix = "" if name == "deepseek" else "/v1"
    # The names of other providers' purposes are none of its types.
    purpose: Any = {"openai": "user_data", "kimi": "file-extract", "deepseek": "user_data"}[name]
    nonsense: Any = "nonsense"
    async with openai.AsyncOpenAI(base_url=server.url + prefix, api_key=KEY, max_retries=0) as client:
        made = await client.files.create(file=("a.txt", DATA), purpose=purpose)
        assert server.files[made.id].data == DATA
        assert (made.filename, made.bytes, made.purpose) == ("a.txt", len(DATA), purpose)
        assert (await client.files.retrieve(made.id)).id == made.id
        # Only the first page: where the list has none, as Kimi's, this SDK would go on for ever.
        assert [file.id for file in (await client.files.list()).data] == [made.id]
        assert (await client.files.delete(made.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(made.id)
        with pytest.raises(openai.BadRequestError):
            await client.files.create(file=("a.txt", DATA), purpose=nonsense)
    async with openai.AsyncOpenAI(base_url=server.url + prefix, api_key="x", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.files.create(file=("a.txt", DATA), purpose=purpose)


async def test_openai_pages(start: Start) -> None:
    """The SDK reads a list that has several pages, as our adapter does."""
    server = start(CONTRACTS["openai"]())
    for number in range(5):
        server.add("file-", filename=f"{number}", data=b"x", purpose="user_data", mime_type="a/b")
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        found = [file.id async for file in await client.files.list(limit=2)]
    assert found == list(server.files)


async def test_anthropic(start: Start) -> None:
    """The SDK of Anthropic: upload, retrieve, list, delete, errors."""
    server = start(CONTRACTS["anthropic"]())
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key=KEY, max_retries=0) as client:
        files = client.files
        made = await files.upload(file=("a.txt", io.BytesIO(DATA), "text/plain"))
        assert server.files[made.id].data == DATA
        assert (made.filename, made.size_bytes, made.mime_type) == ("a.txt", len(DATA), "text/plain")
        assert (await files.retrieve_metadata(made.id)).id == made.id
        assert [file.id async for file in files.list()] == [made.id]
        await files.delete(made.id)
        with pytest.raises(anthropic.NotFoundError):
            await files.delete(made.id)
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="x", max_retries=0) as client:
        with pytest.raises(anthropic.AuthenticationError):
            await client.files.upload(file=("a.txt", DATA))


@asyncio_only
async def test_gemini(start: Start) -> None:
    """The SDK of Gemini: upload in two requests, state, delete, errors."""
    server = start(CONTRACTS["gemini"]())
    client = genai.Client(
        api_key=KEY, vertexai=False, http_options=genai.types.HttpOptions(base_url=server.url)
    )
    made = await client.aio.files.upload(
        file=io.BytesIO(DATA), config={"mime_type": "text/plain", "display_name": "a.txt"}
    )
    assert made.name is not None
    assert server.files[made.name].data == DATA
    assert made.state == genai.types.FileState.PROCESSING
    assert (await client.aio.files.get(name=made.name)).state == genai.types.FileState.ACTIVE
    assert [file.name async for file in await client.aio.files.list()] == [made.name]
    await client.aio.files.delete(name=made.name)
    with pytest.raises(genai.errors.ClientError) as caught:
        await client.aio.files.get(name=made.name)
    assert caught.value.code == 403
    await client.aio.aclose()


@asyncio_only
async def test_mistral(start: Start) -> None:
    """The SDK of Mistral: upload, retrieve, list, delete."""
    server = start(CONTRACTS["mistral"]())
    async with Mistral(api_key=KEY, server_url=server.url) as client:
        made = await client.files.upload_async(
            file={"file_name": "a.txt", "content": DATA, "content_type": "text/plain"}, purpose="ocr"
        )
        assert server.files[made.id].data == DATA
        assert (await client.files.retrieve_async(file_id=made.id)).id == made.id
        assert [file.id for file in (await client.files.list_async()).data] == [made.id]
        assert (await client.files.delete_async(file_id=made.id)).deleted
        with pytest.raises(SDKError) as caught:
            await client.files.retrieve_async(file_id=made.id)
        assert caught.value.status_code == 404


def test_glm(start: Start) -> None:
    """The SDK of Z.ai: an upload is all there is; errors carry the business code."""
    server = start(CONTRACTS["glm"]())
    with zai.ZaiClient(base_url=f"{server.url}/api/paas/v4", api_key=KEY, max_retries=0) as client:
        made = client.files.create(file=("a.txt", DATA), purpose="agent")
        assert server.files[made.id].data == DATA
        assert (made.filename, made.bytes, made.purpose) == ("a.txt", len(DATA), "agent")
        with pytest.raises(APIRequestFailedError, match="1214"):
            client.files.create(file=("a.txt", DATA), purpose="batch")
    with (
        zai.ZaiClient(base_url=f"{server.url}/api/paas/v4", api_key="x", max_retries=0) as client,
        pytest.raises(APIAuthenticationError, match="1002"),
    ):
        client.files.create(file=("a.txt", DATA), purpose="agent")


def test_glm_cn(start: Start) -> None:
    """The same SDK for bigmodel: upload, list in pages, delete."""
    server = start(CONTRACTS["glm-cn"]())
    with zai.ZhipuAiClient(base_url=f"{server.url}/api/paas/v4", api_key=KEY, max_retries=0) as client:
        for number in range(3):
            made = client.files.create(file=(f"{number}.txt", DATA), purpose="agent")
            assert server.files[made.id].data == DATA
        first = client.files.list(purpose="agent", limit=2)
        second = client.files.list(purpose="agent", limit=2, after=first.data[-1].id)
        assert [file.id for file in (*first.data, *second.data)] == list(server.files)
        assert (first.has_more, second.has_more) == (True, False)
        with pytest.raises(APIRequestFailedError, match="1214"):
            client.files.list()
        assert client.files.delete(made.id).deleted
    assert made.id not in server.files
