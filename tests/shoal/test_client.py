"""Both clients, against the application and against scripted transports."""

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
from shoal.local import URL, running
from tests.batching.virtual_time import virtual_time
from tests.fakes import FakeEngine
from tests.service.conftest import png
from tests.shoal.test_prediction import HORSE

KEY = "a-key-of-sixteen-or-more"
Handler = Callable[[httpx.Request], httpx.Response]


def busy(times: int, seen: list[httpx.Request]) -> Handler:
    """Rejects the first `times` requests, answers the others, and appends all of them to `seen`."""

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if len(seen) <= times:
            problem = {"status": 503, "code": "queue_full", "title": "T", "detail": "D"}
            return httpx.Response(503, json=problem, headers={"Retry-After": "2"}, request=request)
        return httpx.Response(200, json=HORSE, request=request)

    return handle


async def test_async_client_classifies_one_image_and_several(engine: FakeEngine) -> None:
    """Images get a class and other files an error, in their order, from the real service."""
    async with (
        running(create_app(Settings(), engine.load)) as transport,
        AsyncClient(URL, transport=transport) as client,
    ):
        one = await client.predict(png(7))
        first, second, third = await client.predict_batch([png(1), b"no image", png(2)])
    assert (one.class_, one.model, one.version) == ("horse", "fake", "7")
    assert set(one.timing) == {"read", "decode", "queue", "infer"} and one.request_id
    assert not isinstance(first, Exception) and first.class_ == "automobile"
    assert isinstance(second, Exception) and second.code == "bad_image"
    assert not isinstance(third, Exception) and third.class_ == "bird"


async def test_async_client_sends_its_key(engine: FakeEngine) -> None:
    """Requests have the key; without one, or with a wrong one, they raise Unauthorized."""
    settings = Settings(api_keys=SecretStr(KEY))
    async with running(create_app(settings, engine.load)) as transport:
        async with AsyncClient(URL, KEY, transport=transport) as client:
            assert (await client.predict(png(7))).class_ == "horse"
        for key in (None, "another-key-of-sixteen"):
            client = AsyncClient(URL, key, transport=transport)
            with pytest.raises(Unauthorized) as caught:
                await client.predict(png(7))
            assert caught.value.code == "unauthorized"


@virtual_time
async def test_async_client_retries_when_the_service_is_busy() -> None:
    """Retries follow Retry-After, and each states the remaining time."""
    seen: list[httpx.Request] = []
    client = AsyncClient(URL, timeout=30, transport=httpx.MockTransport(busy(2, seen)))
    assert (await client.predict(b"horse")).class_ == "horse"
    timeouts = [float(request.headers["X-Request-Timeout"]) for request in seen]
    assert timeouts[0] == 30
    assert 2 <= timeouts[0] - timeouts[1] <= 2.6
    assert 2 <= timeouts[1] - timeouts[2] <= 2.6
    assert all(b"horse" in request.content for request in seen)


@virtual_time
async def test_async_client_times_out() -> None:
    """A server that never answers raises TimedOut after the timeout."""

    class Silent(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await asyncio.sleep(3600)
            raise AssertionError

    began = asyncio.get_running_loop().time()
    with pytest.raises(TimedOut, match="5 seconds"):
        await AsyncClient(URL, timeout=5, transport=Silent()).predict(b"horse")
    assert asyncio.get_running_loop().time() - began == 5


def test_client_accepts_bytes_paths_and_files(tmp_path: pathlib.Path) -> None:
    """`Client` sends the same request for bytes, a path and an open file."""
    seen: list[httpx.Request] = []
    (tmp_path / "horse.png").write_bytes(b"horse")
    images = (b"horse", tmp_path / "horse.png", str(tmp_path / "horse.png"), io.BytesIO(b"horse"))
    with Client(f"{URL}/below", KEY, transport=httpx.MockTransport(busy(0, seen))) as client:
        assert {client.predict(image).class_ for image in images} == {"horse"}
    for request in seen:
        assert request.url == f"{URL}/below/predict"
        assert b'name="img"' in request.content and b"\r\n\r\nhorse\r\n" in request.content
        assert request.headers["X-API-Key"] == KEY


def test_client_retries_after_a_broken_connection() -> None:
    """A connection that the server has closed is replaced, and the image is sent again."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if len(seen) == 1:
            raise httpx.RemoteProtocolError("Server disconnected", request=request)
        return httpx.Response(200, json=HORSE, request=request)

    with Client(URL, transport=httpx.MockTransport(handle)) as client:
        assert client.predict(b"horse").class_ == "horse"
    assert len(seen) == 2


def test_client_names_the_url_when_no_server_answers() -> None:
    """The message of Unreachable names the URL and asks whether the server runs."""
    with pytest.raises(Unreachable, match=r"http://127.0.0.1:9/predict.*running"):
        Client("http://127.0.0.1:9").predict(b"horse")


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "localhost:8000", "ftp://shoal", "http://"])
def test_client_rejects_other_urls(url: str) -> None:
    """A URL that is not one of a server raises ValueError in the constructor."""
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        Client(url)


def test_client_raises_file_not_found() -> None:
    """A missing file raises FileNotFoundError."""
    with pytest.raises(FileNotFoundError):
        Client(URL).predict("nowhere.png")
