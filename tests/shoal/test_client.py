"""Both clients, against the application itself and against transports that do as they are told."""

from __future__ import annotations

import asyncio
import io
import pathlib
from collections.abc import Callable

import httpx
import pytest
from pydantic import SecretStr

from service.app import create_app
from service.settings import Settings
from shoal.client import AsyncClient, Client
from shoal.errors import TimedOut, Unauthorized, Unreachable
from shoal.local import URL, served
from tests.batching.virtual_time import virtual_time
from tests.fakes import FakeEngine
from tests.service.conftest import png
from tests.shoal.test_prediction import HORSE

KEY = "a-key-of-sixteen-or-more"
Handler = Callable[[httpx.Request], httpx.Response]


def busy(times: int, seen: list[httpx.Request]) -> Handler:
    """Refuses so often, and then answers; what was sent is in `seen`."""

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if len(seen) <= times:
            told = {"status": 503, "code": "queue_full", "title": "T", "detail": "D"}
            return httpx.Response(503, json=told, headers={"Retry-After": "2"}, request=request)
        return httpx.Response(200, json=HORSE, request=request)

    return handle


async def test_an_image_and_several(engine: FakeEngine) -> None:
    """From the real service: a class for an image, a problem for what is none, in order."""
    async with (
        served(create_app(Settings(), engine.load)) as transport,
        AsyncClient(URL, transport=transport) as client,
    ):
        one = await client.predict(png(7))
        first, second, third = await client.predict_batch([png(1), b"no image", png(2)])
    assert (one.class_, one.model, one.version) == ("horse", "fake", "7")
    assert set(one.timing) == {"read", "decode", "queue", "infer"} and one.request_id
    assert not isinstance(first, Exception) and first.class_ == "automobile"
    assert isinstance(second, Exception) and second.code == "bad_image"
    assert not isinstance(third, Exception) and third.class_ == "bird"


async def test_keys(engine: FakeEngine) -> None:
    """The key is sent; without it, or with another, the service says no."""
    settings = Settings(api_keys=SecretStr(KEY))
    async with served(create_app(settings, engine.load)) as transport:
        async with AsyncClient(URL, KEY, transport=transport) as client:
            assert (await client.predict(png(7))).class_ == "horse"
        for key in (None, "another-key-of-sixteen"):
            client = AsyncClient(URL, key, transport=transport)
            with pytest.raises(Unauthorized) as caught:
                await client.predict(png(7))
            assert caught.value.code == "unauthorized"


@virtual_time
async def test_a_busy_service_is_asked_again() -> None:
    """When it says, and each time it is told how long we go on waiting."""
    seen: list[httpx.Request] = []
    client = AsyncClient(URL, timeout=30, transport=httpx.MockTransport(busy(2, seen)))
    assert (await client.predict(b"horse")).class_ == "horse"
    told = [float(request.headers["X-Request-Timeout"]) for request in seen]
    assert told[0] == 30
    assert 2 <= told[0] - told[1] <= 2.6 and 2 <= told[1] - told[2] <= 2.6
    assert all(b"horse" in request.content for request in seen)


@virtual_time
async def test_a_server_that_never_answers() -> None:
    """Is waited for as long as allowed, all in all."""

    class Silent(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await asyncio.sleep(3600)
            raise AssertionError

    began = asyncio.get_running_loop().time()
    with pytest.raises(TimedOut, match="5 seconds"):
        await AsyncClient(URL, timeout=5, transport=Silent()).predict(b"horse")
    assert asyncio.get_running_loop().time() - began == 5


def test_without_a_loop(tmp_path: pathlib.Path) -> None:
    """`Client` sends paths, bytes and files alike."""
    seen: list[httpx.Request] = []
    (tmp_path / "horse.png").write_bytes(b"horse")
    images = (b"horse", tmp_path / "horse.png", str(tmp_path / "horse.png"), io.BytesIO(b"horse"))
    with Client(f"{URL}/below", KEY, transport=httpx.MockTransport(busy(0, seen))) as client:
        assert {client.predict(image).class_ for image in images} == {"horse"}
    for request in seen:
        assert request.url == f"{URL}/below/predict"
        assert b'name="img"' in request.content and b"\r\n\r\nhorse\r\n" in request.content
        assert request.headers["X-API-Key"] == KEY


def test_a_connection_that_had_gone_stale() -> None:
    """Is replaced without a word, and the image sent again."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if len(seen) == 1:
            raise httpx.RemoteProtocolError("Server disconnected", request=request)
        return httpx.Response(200, json=HORSE, request=request)

    with Client(URL, transport=httpx.MockTransport(handle)) as client:
        assert client.predict(b"horse").class_ == "horse"
    assert len(seen) == 2


def test_nobody_is_there() -> None:
    """The message names the URL and what to look at."""
    with pytest.raises(Unreachable, match=r"http://127.0.0.1:9/predict.*running"):
        Client("http://127.0.0.1:9").predict(b"horse")


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "localhost:8000", "ftp://shoal", "http://"])
def test_no_url(url: str) -> None:
    """Is told before anything is sent."""
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        Client(url)


def test_no_file() -> None:
    """What is not there is the caller's own error."""
    with pytest.raises(FileNotFoundError):
        Client(URL).predict("nowhere.png")
