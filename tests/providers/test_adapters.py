"""Each adapter against an honest server of its provider: what is sent, and what every failure becomes."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import AsyncIterator

import anyio
import pytest

from exaifs.errors import IntegrityError
from exaifs.model import ObjectRecord
from exaifs.providers.errors import ProviderError, ProviderProtocolError, ProviderUnreachable
from exaifs.providers.interface import ProviderFiles, Sending
from exaifs.providers.sending import filename_of, sending_of
from exaifs.remote.bodies import BytesBody
from tests.providers.conftest import Start
from tests.providers.emulator import KEY, Answer, Clock, Fault
from tests.providers.world import CONTRACTS, Providers

pytestmark = pytest.mark.anyio

DATA = os.urandom(3000)


@pytest.fixture
def anyio_backend() -> str:
    """Under trio, as in a mount; what one event loop could do otherwise, the round trip shows."""
    return "trio"


def sending(
    data: bytes = DATA, key: str = "d/report.txt", purpose: str = "", mime_type: str = "text/plain"
) -> Sending:
    """Describe an upload."""
    file = ObjectRecord(key=key, version="v", size_bytes=len(data), mime_type=mime_type)
    return sending_of(file, hashlib.sha256(data).hexdigest(), purpose, BytesBody(data))


def sending_to(providers: Providers, name: str, data: bytes = DATA) -> Sending:
    """Describe an upload with the purpose of the settings."""
    return sending(data, purpose=providers.config.provider[name].purpose_of("text/plain"))


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("name", CONTRACTS)
async def test_round_trip(name: str, start: Start, providers: Providers) -> None:
    """The bytes arrive as they are, each upload is a file of its own, and deleting is repeatable."""
    server = start(CONTRACTS[name]())
    providers.add(name, server)
    wanted = sending_to(providers, name)
    can_ask = providers.config.provider[name].check != "none"
    async with providers.adapter(name) as adapter:
        first, second = await adapter.upload(wanted), await adapter.upload(sending_to(providers, name))
        assert first.id != second.id
        stored = server.files[first.id]
        assert (stored.data, stored.mime_type, stored.filename) == (DATA, "text/plain", wanted.filename)
        assert await adapter.check(first.id, wanted.purpose) == ("alive" if can_ask else "unknown")
        await adapter.delete(first.id)
        await adapter.delete(first.id)
        assert list(server.files) == [second.id]
        assert await adapter.check(first.id, wanted.purpose) == ("gone" if can_ask else "unknown")


@pytest.mark.parametrize("name", ["openai", "kimi", "glm-cn", "mistral", "anthropic", "gemini"])
async def test_finds_what_an_upload_left(name: str, start: Start, providers: Providers) -> None:
    """After a lost answer the file is found by what only this content is called."""
    server = start(CONTRACTS[name]())
    providers.add(name, server)
    server.fail("upload", Fault("lose"))
    wanted = sending_to(providers, name)
    async with providers.adapter(name) as adapter:
        assert await adapter.find(wanted) is None
        with pytest.raises(ProviderUnreachable) as caught:
            await adapter.upload(wanted)
        assert caught.value.may_have_landed
        found = await adapter.find(wanted)
        assert found is not None
        assert list(server.files) == [found.id]
        if name != "gemini":
            assert await adapter.find(sending(b"other", purpose=wanted.purpose)) is None


async def test_lists_are_read_to_the_end(start: Start, providers: Providers) -> None:
    """A file on a later page is found, whatever the pages are called."""
    for name in ("glm-cn", "mistral", "openai"):
        server = start(CONTRACTS[name]())
        providers.add(name, server, check="list")
        purpose = providers.config.provider[name].purpose
        for number in range(230):
            last = server.add("f", filename=f"{number}", data=b"x", purpose=purpose, mime_type="a/b")
        async with providers.adapter(name) as adapter:
            assert await adapter.check(last.id, purpose) == "alive"
            assert await adapter.check("missing", purpose) == "gone"
            assert server.counts["list"] == 6


async def test_expiry(start: Start, providers: Providers, clock: Clock) -> None:
    """The provider's own word on when a file ends is read, and asked for where that is configured."""
    for name in ("openai", "anthropic", "gemini"):
        server = start(CONTRACTS[name]())
        settings = {} if name == "gemini" else {"expires_after_s": 7200}
        providers.add(name, server, **settings)
        async with providers.adapter(name) as adapter:
            file = await adapter.upload(sending_to(providers, name))
            assert file.expires_at == clock.now + (48 * 3600 if name == "gemini" else 7200)
            clock.now += 49 * 3600
            assert await adapter.check(file.id, "") == "gone"


async def test_gemini_has_an_address(start: Start, providers: Providers) -> None:
    """Requests to Gemini name a file by its address; the upload ends when it is processed."""
    contract = CONTRACTS["gemini"]()
    server = start(contract)
    providers.add("gemini", server)
    async with providers.adapter("gemini") as adapter:
        file = await adapter.upload(sending())
    assert file.uri == f"{server.url}/v1beta/{file.id}"
    assert server.files[file.id].polls_left == 0
    assert server.counts["retrieve"] == 1


async def test_kimi_that_takes_its_time(start: Start, providers: Providers) -> None:
    """An id is given out when the provider has read the file."""
    contract = CONTRACTS["kimi"]()
    contract.polls = 1  # type: ignore[attr-defined]  # of this contract's class
    server = start(contract)
    providers.add("kimi", server)
    async with providers.adapter("kimi") as adapter:
        await adapter.upload(sending(purpose="file-extract"))
    assert server.counts["retrieve"] == 1


def _error(**fields: object) -> dict[str, object]:
    return {"error": {"message": "m", **fields}}


ANSWERS = [
    ("kimi", Answer(401, _error(type="invalid_authentication_error")), errno.EKEYREJECTED),
    ("openai", Answer(429, _error(type="insufficient_quota", code="insufficient_quota")), errno.EDQUOT),
    ("openai", Answer(429, _error(type="requests", code="rate_limit_exceeded")), errno.EAGAIN),
    ("openai", Answer(403, _error(type="x")), errno.EPERM),
    ("openai", Answer(413, "<html><h1>413 Request Entity Too Large</h1></html>"), errno.EFBIG),
    ("openai", Answer(422, {"detail": [{"msg": "no"}]}), errno.EINVAL),
    ("openai", Answer(404, "<html>nginx</html>"), errno.EPROTO),
    ("openai", Answer(302, "", {"location": "http://127.0.0.1:1/"}), errno.EPROTO),
    ("openai", Answer(200, "<html>Log in</html>"), errno.EPROTO),
    ("openai", Answer(200, {"object": "file"}), errno.EPROTO),
    ("openai", Answer(200, {"id": "x" * 2000}), errno.EPROTO),
    ("openai", Answer(200, {"id": "new\nline"}), errno.EPROTO),
    ("openai", Answer(500, _error(type="server_error")), errno.EREMOTEIO),
    ("kimi", Answer(400, _error(type="content_filter")), errno.EPERM),
    ("kimi", Answer(429, _error(type="exceeded_current_quota_error")), errno.EDQUOT),
    ("glm", Answer(429, {"code": 1113, "message": "balance"}), errno.EDQUOT),
    ("glm", Answer(429, {"error": {"code": "1113", "message": "balance"}}), errno.EDQUOT),
    ("glm", Answer(429, _error(code="1302")), errno.EAGAIN),
    ("glm", Answer(429, _error(code="1121")), errno.EPERM),
    ("glm", Answer(400, _error(code="1301")), errno.EPERM),
    ("glm", Answer(401, _error(code="1002")), errno.EKEYREJECTED),
    ("glm", Answer(434, _error(code="434")), errno.EPERM),
    ("glm", Answer(435, _error(code="435")), errno.EFBIG),
    ("glm", Answer(200, {"code": 1113, "message": "balance"}), errno.EDQUOT),
    (
        "anthropic",
        Answer(402, {"type": "error", "error": {"type": "billing_error", "message": "m"}}),
        errno.EDQUOT,
    ),
    (
        "anthropic",
        Answer(403, {"type": "error", "error": {"type": "storage_quota_exceeded", "message": "m"}}),
        errno.EDQUOT,
    ),
    (
        "anthropic",
        Answer(
            400,
            {
                "type": "error",
                "error": {
                    "type": "invalid_request_error",
                    "message": "m",
                    "details": {"error_code": "storage_quota_exceeded"},
                },
            },
        ),
        errno.EDQUOT,
    ),
    ("anthropic", Answer(529, {"type": "error", "error": {"type": "overloaded_error"}}), errno.EREMOTEIO),
    ("anthropic", Answer(413, "<html>cloud</html>"), errno.EFBIG),
]


@pytest.mark.parametrize("name", ["openai", "kimi", "glm", "anthropic"])
async def test_every_answer_has_one_errno(name: str, start: Start, providers: Providers) -> None:
    """What a provider says becomes the errno of the table."""
    server = start(CONTRACTS[name]())
    providers.add(name, server)
    table = [(answer, expected) for provider, answer, expected in ANSWERS if provider == name]
    async with providers.adapter(name) as adapter:
        for answer, expected in table:
            server.fail("upload", answer)
            error = await _failing(adapter, sending_to(providers, name))
            assert errno.errorcode[error.errno] == errno.errorcode[expected], answer
            assert error.to_json()["errno"] == errno.errorcode[expected]
    assert table


async def _failing(adapter: ProviderFiles, wanted: Sending) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await adapter.upload(wanted)
    return caught.value


@pytest.mark.parametrize("name", CONTRACTS)
async def test_a_wrong_key(name: str, start: Start, providers: Providers) -> None:
    """A key that the provider refuses is EKEYREJECTED everywhere, and is not repeated in the message."""
    server = start(CONTRACTS[name]())
    server.keys = {"another"}
    providers.add(name, server)
    async with providers.adapter(name) as adapter:
        error = await _failing(adapter, sending_to(providers, name))
    assert error.errno == errno.EKEYREJECTED
    assert KEY not in str(error)
    assert KEY not in repr(error.to_json())


@pytest.mark.parametrize("name", ["openai", "kimi", "glm", "mistral", "anthropic"])
async def test_too_large_for_the_server(name: str, start: Start, providers: Providers) -> None:
    """A limit that only the server knows is EFBIG, in every provider's own words."""
    contract = CONTRACTS[name]()
    contract.max_bytes = 100  # type: ignore[attr-defined]  # all of these have one
    providers.add(name, start(contract))
    async with providers.adapter(name) as adapter:
        assert (await _failing(adapter, sending_to(providers, name))).errno == errno.EFBIG


async def test_full_accounts(start: Start, providers: Providers) -> None:
    """No room for files, by number or bytes, is EDQUOT."""
    few = CONTRACTS["kimi"]()
    few.max_files = 1  # type: ignore[attr-defined]  # of this contract's class
    small = CONTRACTS["anthropic"]()
    small.max_total_bytes = 4000  # type: ignore[attr-defined]  # of this contract's class
    for name, contract in (("kimi", few), ("anthropic", small)):
        providers.add(name, start(contract))
        async with providers.adapter(name) as adapter:
            await adapter.upload(sending_to(providers, name))
            assert (await _failing(adapter, sending_to(providers, name))).errno == errno.EDQUOT


async def test_broken_connections(start: Start, providers: Providers) -> None:
    """Refused, reset, cut or lost: EHOSTUNREACH, and it is known whether the file may be there."""
    server = start(CONTRACTS["openai"]())
    providers.add("openai", server)
    for fault, may_have_landed in ((Fault("reset"), True), (Fault("lose"), True)):
        server.fail("upload", fault)
        async with providers.adapter("openai") as adapter:
            error = await _failing(adapter, sending_to(providers, "openai"))
            assert (error.errno, error.may_have_landed) == (errno.EHOSTUNREACH, may_have_landed)
    server.fail("upload", Fault("truncate"))
    async with providers.adapter("openai") as adapter:
        error = await _failing(adapter, sending_to(providers, "openai"))
        assert (error.errno, error.may_have_landed) == (errno.EPROTO, True)
    providers.add("openai", "http://127.0.0.1:1")
    async with providers.adapter("openai") as adapter:
        error = await _failing(adapter, sending_to(providers, "openai"))
        assert (error.errno, error.may_have_landed) == (errno.EHOSTUNREACH, False)
    providers.add("openai", server.url.replace("http:", "https:"))
    async with providers.adapter("openai") as adapter:
        error = await _failing(adapter, sending_to(providers, "openai"))
        assert (error.errno, error.may_have_landed) == (errno.EHOSTUNREACH, False)
        assert "SSL" in str(error)  # why, not only that


class _Breaking:
    """A body whose source fails half-way."""

    size_bytes = 1_000_000

    def chunks(self) -> AsyncIterator[bytes]:
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        yield bytes(1000)
        await anyio.lowlevel.checkpoint()
        raise IntegrityError("the bucket's bytes are wrong")


async def test_a_source_that_fails(start: Start, providers: Providers) -> None:
    """When the bytes cannot be read, that is the error, and the provider stores nothing."""
    server = start(CONTRACTS["openai"]())
    providers.add("openai", server)
    wanted = Sending(_Breaking(), "name.txt", "text/plain", "user_data", "0" * 24)
    async with providers.adapter("openai") as adapter:
        with pytest.raises(IntegrityError):
            await adapter.upload(wanted)
    assert server.files == {}


async def test_an_upload_address_of_somebody_else(start: Start, providers: Providers) -> None:
    """Key and content go to the provider only, whatever address it names."""
    server = start(CONTRACTS["gemini"]())
    providers.add("gemini", server)
    server.fail("start", Answer(200, {}, {"x-goog-upload-url": "http://elsewhere.invalid/upload"}))
    async with providers.adapter("gemini") as adapter:
        with pytest.raises(ProviderProtocolError):
            await adapter.upload(sending())


def test_names_for_providers() -> None:
    """Names keep their extension, get a part of the hash, and lose what a provider refuses."""
    digest = "0123456789abcdef" * 4
    assert filename_of("a/b/report.pdf", digest) == "report-01234567.pdf"
    assert filename_of("README", digest) == "README-01234567"
    assert filename_of('a:b|c?"<>*\\.txt', digest) == "a_b_c______-01234567.txt"
    assert filename_of("=C3=A4.txt", digest) == "ä-01234567.txt"
    assert len(filename_of("x" * 400 + ".pdf", digest)) < 255
    assert len(filename_of("x" * 150 + "." + "y" * 104, digest)) < 255


@pytest.mark.parametrize("name", ["kimi", "gemini"])
@pytest.mark.parametrize("mime_type", ["", "text", "text/plän", "text/plain\r\nx-other: yes"])
async def test_a_type_that_is_none(name: str, mime_type: str, start: Start, providers: Providers) -> None:
    """Rows say what other clients wrote into them; what no header can carry is sent as any bytes."""
    server = start(CONTRACTS[name]())
    providers.add(name, server)
    async with providers.adapter(name) as adapter:
        await adapter.upload(sending(purpose="file-extract", mime_type=mime_type))
    [file] = server.files.values()
    assert (file.data, file.mime_type) == (DATA, "application/octet-stream")


async def test_names_arrive(start: Start, providers: Providers) -> None:
    """Names in any script arrive as they are."""
    server = start(CONTRACTS["openai"]())
    providers.add("openai", server)
    async with providers.adapter("openai") as adapter:
        await adapter.upload(sending(key="=E6=96=87=E6=A1=A3 =C3=A4.txt", purpose="user_data"))
    [file] = server.files.values()
    assert file.filename.startswith("文档 ä-")
