"""The Open Inference Protocol over HTTP: its paths, its answers and its errors."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.conftest import connected, png

INFER = "/v2/models/fake/infer"
HORSE, CAT = png(7), png(3)


def image(*images: bytes) -> dict[str, Any]:
    data = [base64.b64encode(image).decode() for image in images]
    return {"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": data}


def body(*images: bytes, **members: Any) -> dict[str, Any]:
    return {"inputs": [image(*images)]} | members


def in_binary(*images: bytes, **members: Any) -> dict[str, Any]:
    """A request with the images behind the JSON."""
    binary = b"".join(struct.pack("<I", len(data)) + data for data in images)
    tensor = image(*images)
    del tensor["data"]
    tensor["parameters"] = {"binary_data_size": len(binary)}
    text = json.dumps({"inputs": [tensor]} | members).encode()
    headers = {"inference-header-content-length": str(len(text))}
    return {"content": text + binary, "headers": headers}


def is_error(response: httpx.Response, status: int) -> str:
    """The sentence of an error in the protocol's shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    error: str = response.json()["error"]
    assert len(error) > 20 and error.endswith(".")
    return error


@pytest.mark.parametrize("in_json", [True, False])
async def test_requests_hold_no_more_than_their_body(
    settings: Settings, engine: FakeEngine, in_json: bool
) -> None:
    """While images are taken out of it, body and images together are as large as the body."""
    photo = os.urandom(4 * 2**20)
    size = 2**23
    content = {"content": json.dumps(body(photo)).encode()} if in_json else in_binary(photo)
    limits = {"max_upload_bytes": size, "max_upload_memory": size}
    async with connected(settings.model_copy(update=limits), engine) as client:
        tracemalloc.start()
        try:
            asked = asyncio.create_task(client.post(INFER, **content))
            held = 0
            while not asked.done():
                held = max(held, tracemalloc.get_traced_memory()[0])
                await asyncio.sleep(0)
        finally:
            tracemalloc.stop()
        assert "known type" in is_error(await asked, 400)
    assert held < 1.2 * len(content["content"])


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
async def test_the_server(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).json() == {
        "name": "shoal",
        "version": "0.2.0",
        "extensions": ["binary_tensor_data", "classification"],
    }


async def test_health(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v2/health/live")).json() == {"live": True}
    assert (await client.get("/v2/health/ready")).json() == {"ready": True}


@pytest.mark.parametrize("model", ["fake", "fake/versions/7"])
async def test_the_model(client: httpx.AsyncClient, model: str) -> None:
    ready = await client.get(f"/v2/models/{model}/ready")
    assert ready.json() == {"name": "fake", "ready": True}
    about = (await client.get(f"/v2/models/{model}")).json()
    assert (about["name"], about["versions"]) == ("fake", ["7"])
    assert {t["name"]: (t["datatype"], t["shape"]) for t in about["inputs"] + about["outputs"]} == {
        "image": ("BYTES", [-1]),
        "pixels": ("UINT8", [-1, 32, 32, 3]),
        "class": ("BYTES", [-1]),
        "probability": ("FP32", [-1]),
        "probabilities": ("FP32", [-1, 10]),
    }
    infer = await client.post(f"/v2/models/{model}/infer", json=body(HORSE))
    assert infer.json()["outputs"][0]["data"] == ["horse"]


@pytest.mark.parametrize(
    "model", ["other", "fake/versions/8", "other/versions/7", "fake/versions/"]
)
async def test_another_model(client: httpx.AsyncClient, model: str) -> None:
    """404, and which one is served, for every path below it."""
    for path in "", "/ready":
        is_error(await client.get(f"/v2/models/{model}{path}"), 404)
    is_error(await client.post(f"/v2/models/{model}/infer", json=body(HORSE)), 404)


async def test_json(client: httpx.AsyncClient) -> None:
    """Images in base64, answers in JSON, in the order of the images."""
    response = await client.post(INFER, json=body(HORSE, png(3, side=300), id="42"))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert "inference-header-content-length" not in response.headers
    answer = response.json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("fake", "7", "42")
    classes, probability, probabilities = answer["outputs"]
    assert classes["data"] == ["horse", "cat"]
    assert np.allclose(probability["data"], 0.91)
    assert probabilities["shape"] == [2, 10] and len(probabilities["data"]) == 20


async def test_binary(client: httpx.AsyncClient) -> None:
    """The header says where the JSON of the answer ends."""
    outputs = [{"name": "class", "parameters": {"binary_data": True}}]
    response = await client.post(INFER, **in_binary(HORSE, CAT, outputs=outputs))
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers["inference-header-content-length"])
    assert json.loads(response.content[:length])["outputs"][0]["parameters"] == {
        "binary_data_size": 16
    }
    assert response.content[length:] == b"\5\0\0\0horse\3\0\0\0cat"


async def test_pixels(client: httpx.AsyncClient) -> None:
    pixels = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    pixels[0, ..., 0], pixels[1, ..., 0] = 7, 3
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [2, 32, 32, 3]}
    response = await client.post(INFER, json={"inputs": [tensor | {"data": pixels.tolist()}]})
    assert response.json()["outputs"][0]["data"] == ["horse", "cat"]
    stages = [stage.split(";")[0] for stage in response.headers["server-timing"].split(", ")]
    assert stages == ["read", "queue", "infer"]


async def test_each_is_an_item_of_its_own(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await client.post(INFER, json=body(*[HORSE] * 12))
    assert engine.batches == [8, 4]


BAD = {
    "nothing": (400, {}),
    "no JSON": (400, {"content": b"hello"}),
    "an image": (400, {"content": HORSE}),
    "header of text": (
        400,
        in_binary(HORSE) | {"headers": {"inference-header-content-length": "x"}},
    ),
    "header of all": (
        400,
        in_binary(HORSE) | {"headers": {"inference-header-content-length": "9999"}},
    ),
    "no header": (400, in_binary(HORSE) | {"headers": {}}),
    "unknown input": (400, {"json": {"inputs": [image(HORSE) | {"name": "input0"}]}}),
    "no base64": (400, {"json": {"inputs": [image(HORSE) | {"data": ["?"]}]}}),
    "timeout of text": (400, {"json": body(HORSE, parameters={"timeout": "soon"})}),
    "timeout in the header": (
        400,
        {"json": body(HORSE), "headers": {"x-request-timeout": "soon"}},
    ),
    "no image in it": (400, {"json": body(b"hello")}),
    "cut short": (400, {"json": body(HORSE[:50])}),
    "an empty image": (422, {"json": body(b"")}),
    "TIFF": (415, {"json": body(b"II*\0" + bytes(100))}),
    "compressed": (415, {"json": body(HORSE), "headers": {"content-encoding": "gzip"}}),
    "too many images": (413, {"json": body(*[b"x"] * 65)}),
    "too many pixels": (413, {"json": body(png(7, side=1001))}),
    "too many bytes": (413, {"content": bytes(100_001)}),
}


@pytest.mark.parametrize(("status", "request_"), BAD.values(), ids=BAD)
async def test_bad_input(
    client: httpx.AsyncClient, engine: FakeEngine, status: int, request_: dict[str, Any]
) -> None:
    """Refused in the protocol's shape, and nothing is computed."""
    is_error(await client.post(INFER, **request_), status)
    assert engine.batches == []


async def test_which_image_is_bad(client: httpx.AsyncClient) -> None:
    """The protocol has one error a request; it says which of many is meant."""
    response = await client.post(INFER, json=body(HORSE, CAT, b"hello"))
    assert is_error(response, 400).endswith("This is image 2 of the request, counted from 0.")


@pytest.mark.parametrize(("method", "path"), [("GET", "/v2/nope"), ("POST", "/v2/models")])
async def test_elsewhere(client: httpx.AsyncClient, method: str, path: str) -> None:
    """What is not served is told in the protocol's shape, too; other paths keep theirs."""
    is_error(await client.request(method, path), 404)
    is_error(await client.get(INFER), 405)
    for near in "/v2x", "/v3":
        assert (await client.get(near)).json()["code"] == "not_found"


async def test_a_deadline(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """In microseconds; within the server's own, and at once where it cannot be met."""
    response = await client.post(INFER, json=body(HORSE, parameters={"timeout": 1}))
    assert response.status_code in (503, 504) and engine.batches == []
    engine.seconds = 0.3
    response = await client.post(INFER, json=body(HORSE, parameters={"timeout": 50_000}))
    assert "not answered before its deadline" in is_error(response, 504)
    assert response.elapsed.total_seconds() < 0.25
    response = await client.post(INFER, json=body(HORSE, parameters={"timeout": 10**15}))
    assert response.status_code == 200


async def test_all_or_nothing(engine: FakeEngine) -> None:
    """Where one of many is refused, none of them is computed in vain, and all may come again."""
    async with connected(Settings(max_queue_size=2), engine) as client:
        response = await client.post(INFER, json=body(*[HORSE] * 20))
        assert "queue of requests is full" in is_error(response, 503)
        assert int(response.headers["retry-after"]) >= 1
        assert sum(engine.batches) <= 2
        assert (await client.post(INFER, json=body(HORSE, CAT))).status_code == 200


async def test_the_engine_fails(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.error = RuntimeError("secret innards")
    response = await client.post(INFER, json=body(HORSE))
    assert "innards" not in is_error(response, 500)


async def test_the_unexpected(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw has the protocol's shape, too."""

    def fail(*_: object) -> None:
        raise RuntimeError("secret innards")

    monkeypatch.setattr("service.v2.routes.parse", fail)
    assert "innards" not in is_error(await client.post(INFER, json=body(HORSE)), 500)


async def test_not_ready(engine: FakeEngine, settings: Settings) -> None:
    """Alive, and nothing else; draining is not ready either."""
    async with connected(settings, engine) as client:
        service = client._transport.app.state.service  # type: ignore[attr-defined]
        loaded, service.engine.loaded = service.engine.loaded, None
        paths = "/v2/health/ready", "/v2/models/fake/ready", "/v2/models/fake"
        for path in paths:
            response = await client.get(path)
            assert "being loaded" in is_error(response, 503)
            assert response.headers["retry-after"] == "1"
        assert "being loaded" in is_error(await client.post(INFER, json=body(HORSE)), 503)
        assert (await client.get("/v2/health/live")).status_code == 200
        service.engine.loaded, service.draining = loaded, True
        for path in paths[:2]:
            assert "shutting down" in is_error(await client.get(path), 503)
        service.draining = False


async def test_not_live(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.error = RuntimeError("gone")
    for _ in range(10):
        await client.post(INFER, json=body(HORSE))
    is_error(await client.get("/v2/health/live"), 503)


async def test_uploads_share_a_budget(client: httpx.AsyncClient) -> None:
    """A body weighs its bytes until its images are decoded, and nothing afterwards."""
    more = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield bytes(90_000)
        await more.wait()

    waiting = [asyncio.create_task(client.post(INFER, content=slow())) for _ in range(2)]
    await asyncio.sleep(0.05)
    large = body(HORSE, HORSE + bytes(30_000))
    is_error(await client.post(INFER, json=large), 503)
    more.set()
    for response in await asyncio.gather(*waiting):
        is_error(response, 400)
    for _ in range(5):
        assert (await client.post(INFER, json=large)).status_code == 200


async def test_routes_in_the_metrics(client: httpx.AsyncClient) -> None:
    """By the route, not by what a client calls the model."""
    await client.post(INFER, json=body(HORSE))
    await client.post("/v2/models/nope/infer", json=body(HORSE))
    text = (await client.get("/metrics")).text
    route = 'route="/v2/models/{model}/infer"'
    assert f'shoal_request_duration_seconds_count{{{route},status="200"}} 1.0' in text
    assert f'shoal_request_duration_seconds_count{{{route},status="404"}} 1.0' in text
    assert 'shoal_refusals_total{code="unknown_model"} 1.0' in text and "nope" not in text
