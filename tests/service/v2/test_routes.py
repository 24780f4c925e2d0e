"""Tests the Open Inference Protocol over REST: its paths, responses and errors."""

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
from tests.service.telemetry.test_metrics import scrape, value

INFER = "/v2/models/fake/infer"
HORSE, CAT = png(7), png(3)


def image(*images: bytes) -> dict[str, Any]:
    data = [base64.b64encode(image).decode() for image in images]
    return {"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": data}


def body(*images: bytes, **members: Any) -> dict[str, Any]:
    return {"inputs": [image(*images)]} | members


def in_binary(*images: bytes, **members: Any) -> dict[str, Any]:
    """A request with the images as binary data after the JSON."""
    binary = b"".join(struct.pack("<I", len(data)) + data for data in images)
    tensor = image(*images)
    del tensor["data"]
    tensor["parameters"] = {"binary_data_size": len(binary)}
    text = json.dumps({"inputs": [tensor]} | members).encode()
    headers = {"inference-header-content-length": str(len(text))}
    return {"content": text + binary, "headers": headers}


def is_error(response: httpx.Response, status: int) -> str:
    """Check that the response is an error of the protocol, and return its text."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    error: str = response.json()["error"]
    assert len(error) > 20 and error.endswith(".")
    return error


@pytest.mark.parametrize("in_json", [True, False])
async def test_infer_needs_no_more_memory_than_the_body(
    settings: Settings, engine: FakeEngine, in_json: bool
) -> None:
    """While images are extracted, the body and the images together are as large as the body."""
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
async def test_server_metadata(client: httpx.AsyncClient, path: str) -> None:
    """The server reports its name, version and extensions, with or without a trailing slash."""
    assert (await client.get(path)).json() == {
        "name": "shoal",
        "version": "0.2.0",
        "extensions": ["binary_tensor_data", "classification"],
    }


async def test_health(client: httpx.AsyncClient) -> None:
    """A server with a loaded model is live and ready."""
    assert (await client.get("/v2/health/live")).json() == {"live": True}
    assert (await client.get("/v2/health/ready")).json() == {"ready": True}


@pytest.mark.parametrize("model", ["fake", "fake/versions/7"])
async def test_model_with_and_without_a_version(client: httpx.AsyncClient, model: str) -> None:
    """Readiness, metadata and inference are served for the model and for its version."""
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
async def test_unknown_models_and_versions(client: httpx.AsyncClient, model: str) -> None:
    """All paths of a model or version that is not served return 404."""
    for path in "", "/ready":
        is_error(await client.get(f"/v2/models/{model}{path}"), 404)
    is_error(await client.post(f"/v2/models/{model}/infer", json=body(HORSE)), 404)


async def test_infer_json(client: httpx.AsyncClient) -> None:
    """Images in base64 get JSON outputs in the order of the images."""
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


async def test_infer_binary(client: httpx.AsyncClient) -> None:
    """A header gives the length of the JSON, which binary outputs follow."""
    outputs = [{"name": "class", "parameters": {"binary_data": True}}]
    response = await client.post(INFER, **in_binary(HORSE, CAT, outputs=outputs))
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers["inference-header-content-length"])
    assert json.loads(response.content[:length])["outputs"][0]["parameters"] == {
        "binary_data_size": 16
    }
    assert response.content[length:] == b"\5\0\0\0horse\3\0\0\0cat"


async def test_infer_pixels(client: httpx.AsyncClient) -> None:
    """Pixels are inferred without a decode stage."""
    pixels = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    pixels[0, ..., 0], pixels[1, ..., 0] = 7, 3
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [2, 32, 32, 3]}
    response = await client.post(INFER, json={"inputs": [tensor | {"data": pixels.tolist()}]})
    assert response.json()["outputs"][0]["data"] == ["horse", "cat"]
    stages = [stage.split(";")[0] for stage in response.headers["server-timing"].split(", ")]
    assert stages == ["read", "queue", "infer"]


async def test_infer_batches_single_images(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """Each image of a request is an item of its own in the batcher."""
    await client.post(INFER, json=body(*[HORSE] * 12))
    assert engine.batches == [8, 4]


BAD = {
    "empty body": (400, {}),
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
    "not an image": (400, {"json": body(b"hello")}),
    "cut short": (400, {"json": body(HORSE[:50])}),
    "an empty image": (422, {"json": body(b"")}),
    "TIFF": (415, {"json": body(b"II*\0" + bytes(100))}),
    "compressed": (415, {"json": body(HORSE), "headers": {"content-encoding": "gzip"}}),
    "too many images": (413, {"json": body(*[b"x"] * 65)}),
    "too many pixels": (413, {"json": body(png(7, side=1001))}),
    "too many bytes": (413, {"content": bytes(100_001)}),
}


@pytest.mark.parametrize(("status", "request_"), BAD.values(), ids=BAD)
async def test_infer_rejects_bad_requests(
    client: httpx.AsyncClient, engine: FakeEngine, status: int, request_: dict[str, Any]
) -> None:
    """A bad request gets an error of the protocol, and nothing is inferred."""
    is_error(await client.post(INFER, **request_), status)
    assert engine.batches == []


async def test_error_names_the_bad_image(client: httpx.AsyncClient) -> None:
    """The error of a request with several images gives the position of the bad one."""
    response = await client.post(INFER, json=body(HORSE, CAT, b"hello"))
    assert is_error(response, 400).endswith("This is image 2 of the request, counted from 0.")


@pytest.mark.parametrize(("method", "path"), [("GET", "/v2/nope"), ("POST", "/v2/models")])
async def test_errors_of_unknown_paths(client: httpx.AsyncClient, method: str, path: str) -> None:
    """Unknown paths below /v2 get an error of the protocol; other paths get problem details."""
    is_error(await client.request(method, path), 404)
    is_error(await client.get(INFER), 405)
    for near in "/v2x", "/v3":
        assert (await client.get(near)).json()["code"] == "not_found"


async def test_timeout(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """The timeout in microseconds holds, is rejected early if it cannot be met, and is capped."""
    response = await client.post(INFER, json=body(HORSE, parameters={"timeout": 1}))
    assert response.status_code in (503, 504) and engine.batches == []
    engine.seconds = 0.3
    response = await client.post(INFER, json=body(HORSE, parameters={"timeout": 50_000}))
    assert "did not finish before its deadline" in is_error(response, 504)
    assert response.elapsed.total_seconds() < 0.25
    response = await client.post(INFER, json=body(HORSE, parameters={"timeout": 10**15}))
    assert response.status_code == 200


async def test_infer_answers_all_images_or_none(engine: FakeEngine) -> None:
    """If one image does not fit into the queue, the whole request is rejected."""
    async with connected(Settings(max_queue_size=2), engine) as client:
        response = await client.post(INFER, json=body(*[HORSE] * 20))
        assert "queue of requests is full" in is_error(response, 503)
        assert int(response.headers["retry-after"]) >= 1
        assert sum(engine.batches) <= 2
        assert (await client.post(INFER, json=body(HORSE, CAT))).status_code == 200


async def test_engine_failure(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """A failure of the engine is a 500 without internal details."""
    engine.error = RuntimeError("secret innards")
    response = await client.post(INFER, json=body(HORSE))
    assert "innards" not in is_error(response, 500)


async def test_unexpected_error(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unexpected exceptions get an error of the protocol, too."""

    def fail(*_: object) -> None:
        raise RuntimeError("secret innards")

    monkeypatch.setattr("service.v2.routes.parse", fail)
    assert "innards" not in is_error(await client.post(INFER, json=body(HORSE)), 500)


async def test_not_ready(engine: FakeEngine, settings: Settings) -> None:
    """While the model is loaded or the server drains, it is live but not ready."""
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
    """A server whose engine fails on every batch is not live."""
    engine.error = RuntimeError("gone")
    for _ in range(10):
        await client.post(INFER, json=body(HORSE))
    is_error(await client.get("/v2/health/live"), 503)


async def test_uploads_share_a_budget(client: httpx.AsyncClient) -> None:
    """A body counts toward the upload memory until its images have been decoded."""
    more = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield bytes(90_000)
        await more.wait()

    waiting = [asyncio.create_task(client.post(INFER, content=slow())) for _ in range(2)]
    while value(await scrape(client), "upload_memory_bytes") < 180_000:  # noqa: ASYNC110  # no event
        await asyncio.sleep(0.001)
    large = body(HORSE, HORSE + bytes(30_000))
    is_error(await client.post(INFER, json=large), 503)
    more.set()
    for response in await asyncio.gather(*waiting):
        is_error(response, 400)
    for _ in range(5):
        assert (await client.post(INFER, json=large)).status_code == 200


async def test_metrics_are_labeled_by_route(client: httpx.AsyncClient) -> None:
    """The label is the route, not the name of the model that the client sent."""
    await client.post(INFER, json=body(HORSE))
    await client.post("/v2/models/nope/infer", json=body(HORSE))
    text = (await client.get("/metrics")).text
    route = 'route="/v2/models/{model}/infer"'
    assert f'shoal_request_duration_seconds_count{{{route},status="200"}} 1.0' in text
    assert f'shoal_request_duration_seconds_count{{{route},status="404"}} 1.0' in text
    assert 'shoal_refusals_total{code="unknown_model"} 1.0' in text and "nope" not in text
