"""The tests' own proxy does what its faults say, so that what a campaign shows is exaifs."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import get_args

import httpx
import pytest

from tests.support.mounts import wait_until
from tests.support.nonsense import NonsenseServer, nonsense_server, reply
from tests.support.proxy import Fault, Moment, Proxy, Weather

BODY = bytes(range(256))


@pytest.fixture
def server() -> Iterator[NonsenseServer]:
    """Holds one object."""
    with nonsense_server() as server:
        server.on("GET /file", reply(200, BODY, {"etag": '"1"'}))
        server.on("PUT /file", reply(201, {"done": True}))
        yield server


@pytest.fixture
def proxy(server: NonsenseServer) -> Iterator[Proxy]:
    """In good weather."""
    with Proxy(server.url, seed=1) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[httpx.Client]:
    """Waits for what comes; where nothing does, a test says for how long."""
    with httpx.Client(base_url=proxy.url, timeout=60, trust_env=False) as client:
        yield client


def certain(fault: Fault) -> Weather:
    """Every request meets it."""
    return Weather({fault: 1.0})


def put_and_give_up(proxy: Proxy, moment: Moment) -> None:
    """Upload, have no answer until a moment is told, and hang up."""
    told: list[Moment] = []
    proxy.watch = lambda moment, _exchange: told.append(moment)
    client = HTTPConnection(proxy.url.removeprefix("http://"), timeout=60)
    with closing(client):
        client.request("PUT", "/file", body=BODY)
        wait_until(lambda: moment in told, 60, f"an upload is {moment}")
        assert select.select([client.sock], [], [], 0.2)[0] == [], "no answer"
    proxy.watch = None


def test_good_weather_changes_nothing(proxy: Proxy, client: httpx.Client, server: NonsenseServer) -> None:
    """Bodies, headers and status pass in both directions, several on one connection."""
    for _again in range(3):
        answer = client.get("/file?v=1")
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (200, BODY, '"1"')
    assert client.put("/file", content=BODY).json() == {"done": True}
    assert [request.body for request in server.seen("PUT")] == [BODY]
    assert server.seen("GET")[0].target == "/file?v=1"
    assert proxy.met == {"none": 4}


@pytest.mark.parametrize("fault", [fault for fault in get_args(Fault) if "corrupt" not in fault])
def test_faults_of_an_upload(
    fault: Fault, proxy: Proxy, client: httpx.Client, server: NonsenseServer
) -> None:
    """The server heard as often as the fault says, and the client learns no more than it says."""
    heard = {"lose": 1, "reset": 1, "truncate": 1, "twice": 2, "500 done": 1, "hole done": 1}
    statuses = {"429": 429, "429 later": 429, "500": 500, "500 done": 500, "503": 503, "html": 200}
    proxy.weather = certain(fault)
    if fault in statuses:
        assert client.put("/file", content=BODY).status_code == statuses[fault]
    elif fault == "twice":
        assert client.put("/file", content=BODY).json() == {"done": True}
    elif fault in {"hole", "hole done"}:
        put_and_give_up(proxy, "done" if fault == "hole done" else "arrived")
    else:
        with pytest.raises(httpx.TransportError):
            client.put("/file", content=BODY)
    whole = [request for request in server.seen("PUT") if request.body == BODY]
    assert len(whole) == heard.get(fault, 0)
    assert proxy.met == {fault: 1}
    proxy.clear()
    assert client.put("/file", content=BODY).is_success


def test_a_corrupted_download(proxy: Proxy, client: httpx.Client) -> None:
    """One bit is another, in whole objects only, or in parts, too; uploads are left alone."""
    proxy.weather = certain("corrupt")
    got = client.get("/file").content
    assert sum((a ^ b).bit_count() for a, b in zip(got, BODY, strict=True)) == 1
    assert client.get("/file", headers={"range": "bytes=0-255"}).content == BODY
    assert client.put("/file", content=BODY).is_success
    proxy.weather = certain("corrupt part")
    got = client.get("/file", headers={"range": "bytes=0-255"}).content
    assert sum((a ^ b).bit_count() for a, b in zip(got, BODY, strict=True)) == 1
    assert client.put("/file", content=BODY).is_success


def test_away_and_back(proxy: Proxy, client: httpx.Client) -> None:
    """Refusing and hanging do as they say, at once, and end at once."""
    for _again in range(3):
        proxy.refuse()
        with pytest.raises(httpx.TransportError):
            client.get("/file")
        proxy.serve()
        assert client.get("/file").content == BODY
        proxy.hang()
        with pytest.raises(httpx.TimeoutException):
            client.get("/file", timeout=0.5)
        proxy.serve()
        assert client.get("/file").content == BODY


def test_what_a_client_gave_up_does_not_happen_later(
    proxy: Proxy, client: httpx.Client, server: NonsenseServer
) -> None:
    """A request that waits in the proxy goes with its connection."""
    proxy.hang()
    put_and_give_up(proxy, "arrived")
    proxy.serve()
    assert client.get("/file").content == BODY
    assert server.seen("PUT") == []


def test_moments_are_told(proxy: Proxy, client: httpx.Client) -> None:
    """A test can act when a request has arrived, is done, and is answered."""
    seen: list[tuple[str, str, bool]] = []
    proxy.watch = lambda moment, exchange: seen.append((moment, exchange.method, exchange.changes))
    client.put("/file", content=b"x")
    wait_until(lambda: len(seen) == 3, 60, "the last moment, which comes after the answer")
    assert seen == [("arrived", "PUT", True), ("done", "PUT", True), ("answered", "PUT", True)]
