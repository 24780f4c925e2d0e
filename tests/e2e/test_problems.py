"""Every row of the table of errors, over real HTTP, from a real process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.process import SCRIPTED, Server
from tests.service.conftest import png

pytestmark = pytest.mark.slow
HORSE = png(7)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    limits = {"SHOAL_MAX_UPLOAD_BYTES": "100000", "SHOAL_MAX_IMAGE_PIXELS": "1000000"}
    with Server(*SCRIPTED, **limits, SHOAL_UPLOAD_TIMEOUT="0.5") as server:
        server.wait_until_ready()
        yield server


def is_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert set(body) == {"type", "title", "status", "detail", "code", "request_id"}
    assert body["request_id"] == response.headers["x-request-id"]
    return body


@pytest.mark.parametrize(
    ("status", "code", "upload"),
    [
        (422, "missing_image", b""),
        (400, "bad_image", b"hello"),
        (400, "bad_image", HORSE[: len(HORSE) // 2]),
        (415, "unsupported_image_type", b"II*\0" + bytes(100)),
        (413, "body_too_large", bytes(200_000)),
        (413, "image_too_large", png(7, side=1001)),
    ],
)
def test_bad_input_gets_its_problem(server: Server, status: int, code: str, upload: bytes) -> None:
    """Each kind of bad input gets the status and code of its row in the table of errors."""
    is_problem(httpx.post(f"{server.url}/predict", files={"img": upload}), status, code)


def test_missing_image_gets_its_problem(server: Server) -> None:
    """A request without an image gets 422 `missing_image`."""
    is_problem(httpx.post(f"{server.url}/predict"), 422, "missing_image")


def test_body_of_unknown_length_is_rejected_at_the_limit(server: Server) -> None:
    """A chunked body is rejected as soon as it exceeds the limit."""

    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield bytes(10_000)

    headers = {"content-type": "image/png"}
    response = httpx.post(f"{server.url}/predict", content=endless(), headers=headers)
    is_problem(response, 413, "body_too_large")


def test_slow_upload_is_cut_off(server: Server) -> None:
    """An upload that does not arrive in time gets 408, and the connection ends."""
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 80)) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: shoal\r\nContent-Type: image/png\r\n"
            b"Content-Length: 1000\r\n\r\nsome"
        )
        connection.settimeout(10)
        answer = b""
        while received := connection.recv(65536):
            answer += received
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"code":"upload_timeout"' in answer
    assert b"connection: close" in answer.lower()


def test_engine_failure_gets_its_problem() -> None:
    """A failure of the engine gets 500 `engine_failed`."""
    with Server(*SCRIPTED, ENGINE_ERROR="secret innards") as server:
        server.wait_until_ready()
        response = httpx.post(f"{server.url}/predict", files={"img": HORSE})
        is_problem(response, 500, "engine_failed")
        assert "innards" not in response.text


async def at_once(server: Server, count: int) -> list[httpx.Response]:
    async with httpx.AsyncClient(timeout=30) as client:
        posts = [client.post(f"{server.url}/predict", files={"img": HORSE}) for _ in range(count)]
        return await asyncio.gather(*posts)


async def test_unreachable_deadline_is_rejected_immediately() -> None:
    """A request that cannot be answered in time is rejected with Retry-After."""
    slow = {"ENGINE_SECONDS": "1", "SHOAL_REQUEST_TIMEOUT": "2.9"}
    with Server(*SCRIPTED, **slow) as server:
        server.wait_until_ready()
        responses = await at_once(server, 32)
    refused = [response for response in responses if response.status_code != 200]
    assert 0 < len(refused) < 32
    for response in refused:
        is_problem(response, 503, "deadline_unreachable")
        assert int(response.headers["retry-after"]) >= 1


async def test_exceeded_deadline_gets_504_in_time() -> None:
    """If the engine takes longer than predicted, the request gets 504 at its deadline."""
    sudden = {"ENGINE_SECONDS": "20", "ENGINE_WARM_UP_SECONDS": "0.01"}
    with Server(*SCRIPTED, **sudden, SHOAL_REQUEST_TIMEOUT="0.5") as server:
        server.wait_until_ready()
        (response,) = await at_once(server, 1)
    is_problem(response, 504, "deadline_exceeded")
    assert response.elapsed.total_seconds() < 15


async def test_full_queue_rejects_immediately() -> None:
    """Requests beyond the queue are rejected with Retry-After."""
    with Server(*SCRIPTED, ENGINE_SECONDS="0.5", SHOAL_MAX_QUEUE_SIZE="2") as server:
        server.wait_until_ready()
        responses = await at_once(server, 16)
    refused = [response for response in responses if response.status_code != 200]
    assert 0 < len(refused) < 16
    for response in refused:
        is_problem(response, 503, "queue_full")
        assert int(response.headers["retry-after"]) >= 1


def test_loading_server_is_live_but_not_ready() -> None:
    """While the model loads, `/readyz` and requests get 503 with Retry-After."""
    with Server(*SCRIPTED, ENGINE_LOAD_SECONDS="30") as server:
        alive = httpx.get(f"{server.url}/healthz")
        ready = httpx.get(f"{server.url}/readyz")
        predict = httpx.post(f"{server.url}/predict", files={"img": HORSE})
    assert alive.status_code == 200
    for response in (ready, predict):
        is_problem(response, 503, "not_ready")
        assert response.headers["retry-after"] == "1"


async def test_draining_server_is_not_ready_but_answers() -> None:
    """After SIGTERM `/readyz` gets 503; requests are answered and connections closed."""
    with Server(*SCRIPTED, SHOAL_DRAIN_DELAY="2") as server:
        server.wait_until_ready()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{server.url}/readyz")).status_code == 200
            stopped = asyncio.create_task(asyncio.to_thread(server.stop))
            while (ready := await client.get(f"{server.url}/readyz")).status_code == 200:
                pass
            predict = await client.post(f"{server.url}/predict", files={"img": HORSE})
        assert await stopped == 0
    is_problem(ready, 503, "draining")
    assert ready.headers["connection"] == "close"
    assert predict.status_code == 200 and predict.headers["connection"] == "close"
