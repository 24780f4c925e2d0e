"""Tests the Open Inference Protocol over REST with NVIDIA's client, against a real process."""

from __future__ import annotations

import asyncio
import base64
import io
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tritonclient.http import (
    InferenceServerClient,
    InferenceServerException,
    InferInput,
    InferRequestedOutput,
)

from model_store import versions
from model_store.params import read_params
from tests.e2e.process import SCRIPTED, Hold, Server
from tests.reference import probabilities
from tests.service.conftest import png

pytestmark = pytest.mark.slow
HORSE, CAT = png(7), png(3)


def connect(server: Server, **options: Any) -> InferenceServerClient:
    return InferenceServerClient(server.url.removeprefix("http://"), **options)


@pytest.fixture(scope="module")
def client() -> Iterator[InferenceServerClient]:
    with Server(*SCRIPTED) as server:
        server.wait_until_ready()
        yield connect(server, concurrency=4)


def images(*encoded: bytes, binary: bool = True) -> InferInput:
    """An input with images as binary data, or as base64 in JSON."""
    tensor = InferInput("image", [len(encoded)], "BYTES")
    elements = encoded if binary else [base64.b64encode(image) for image in encoded]
    return tensor.set_data_from_numpy(np.array(elements, dtype=object), binary_data=binary)


def array(data: Any, datatype: str, binary: bool = True) -> InferInput:
    tensor = InferInput("pixels", list(data.shape), datatype)
    return tensor.set_data_from_numpy(data, binary_data=binary)


def test_health(client: InferenceServerClient) -> None:
    """The server and its model are live and ready; other models and versions are not."""
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("fake") and client.is_model_ready("fake", "7")
    assert not client.is_model_ready("fake", "8") and not client.is_model_ready("other")


def test_metadata(client: InferenceServerClient) -> None:
    """Server and model metadata name the extensions and the inputs."""
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification"]
    about = client.get_model_metadata("fake", "7")
    assert (about["name"], about["versions"]) == ("fake", ["7"])
    assert [tensor["name"] for tensor in about["inputs"]] == ["image", "pixels"]


@pytest.mark.parametrize("binary", [True, False])
def test_infer_images(client: InferenceServerClient, binary: bool) -> None:
    """Two images get all outputs, in JSON and in binary."""
    names = "class", "probability", "probabilities"
    requested = [InferRequestedOutput(name, binary_data=binary) for name in names]
    result = client.infer("fake", [images(HORSE, CAT, binary=binary)], outputs=requested)
    classes = (
        [b"horse", b"cat"] if binary else ["horse", "cat"]
    )  # the types that the client returns
    assert list(result.as_numpy("class")) == classes
    assert np.allclose(result.as_numpy("probability"), 0.91)
    assert result.as_numpy("probabilities").shape == (2, 10)
    assert result.as_numpy("probabilities").dtype == np.float32


def test_infer_with_the_defaults_of_the_client(client: InferenceServerClient) -> None:
    """A binary request with id and version gets all outputs."""
    result = client.infer("fake", [images(HORSE)], model_version="7", request_id="42")
    answer = result.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("42", "fake", "7")
    assert list(result.as_numpy("class")) == [b"horse"]


def test_infer_64_images(client: InferenceServerClient) -> None:
    """The results have the order of the images, large images included."""
    sent = [png(red, side=400 if red % 5 == 0 else 32) for red in range(64)]
    result = client.infer("fake", [images(*sent)])
    assert list(result.as_numpy("probabilities").argmax(axis=1)) == [red % 10 for red in range(64)]


@pytest.mark.parametrize("binary", [True, False])
def test_infer_with_classification(client: InferenceServerClient, binary: bool) -> None:
    """`class_count` returns that number of most probable classes."""
    requested = InferRequestedOutput("probabilities", binary_data=binary, class_count=2)
    result = client.infer("fake", [images(HORSE, CAT)], outputs=[requested])
    found = [
        [str(c, "utf-8") if binary else c for c in row] for row in result.as_numpy("probabilities")
    ]
    assert found == [
        ["0.910000:7:horse", "0.010000:0:airplane"],
        ["0.910000:3:cat", "0.010000:0:airplane"],
    ]


def test_infer_10_requests_concurrently(client: InferenceServerClient) -> None:
    """Each of 10 concurrent requests gets its own result."""
    requests = [client.async_infer("fake", [images(png(red))]) for red in range(10)]
    results = [request.get_result(timeout=10) for request in requests]
    assert [r.as_numpy("probabilities").argmax() for r in results] == list(range(10))


@pytest.mark.parametrize(
    ("model", "version", "tensor", "status", "expected"),
    [
        ("other", "", images(HORSE), "404", "serves only version"),
        ("fake", "8", images(HORSE), "404", "serves only version"),
        ("fake", "", images(b"hello"), "400", "known type"),
        ("fake", "", images(HORSE, b"hello"), "400", "image 1"),
        ("fake", "", images(*[HORSE] * 65), "413", "64 are allowed"),
        ("fake", "", array(np.zeros((1, 16, 16, 3), np.uint8), "UINT8"), "400", "no input"),
        ("fake", "", array(np.zeros((1, 3, 32, 32), np.float32), "FP32"), "400", "8-bit"),
        ("fake", "", InferInput("image", [1], "BYTES").set_shared_memory("x", 9), "400", "Shared"),
    ],
)
def test_errors(
    client: InferenceServerClient,
    model: str,
    version: str,
    tensor: InferInput,
    status: str,
    expected: str,
) -> None:
    """The exception of the client has the status and the detail of the problem."""
    with pytest.raises(InferenceServerException, match=expected) as caught:
        client.infer(model, [tensor], model_version=version)
    assert caught.value.status() == status


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(client: InferenceServerClient, algorithm: str) -> None:
    """Compressed requests are rejected. A request for a compressed answer is ignored."""
    with pytest.raises(InferenceServerException, match="Compressed bodies"):
        client.infer("fake", [images(HORSE)], request_compression_algorithm=algorithm)
    result = client.infer("fake", [images(HORSE)], response_compression_algorithm=algorithm)
    assert list(result.as_numpy("class")) == [b"horse"]


def test_timeouts() -> None:
    """The parameter `timeout` ends a request, or rejects it early if it cannot be met."""
    with Server(*SCRIPTED, ENGINE_SECONDS="1.5", ENGINE_WARM_UP_SECONDS="0.01") as server:
        server.wait_until_ready()
        client = connect(server)
        started = time.monotonic()
        with pytest.raises(InferenceServerException, match="before its deadline") as late:
            client.infer("fake", [images(HORSE)], timeout=100_000)
        assert late.value.status() == "504" and time.monotonic() - started < 1.4
        with pytest.raises(InferenceServerException) as refused:
            client.infer("fake", [images(HORSE)], timeout=1)
        assert refused.value.status() in ("503", "504")
        assert list(client.infer("fake", [images(HORSE)]).as_numpy("class")) == [b"horse"]


def test_not_ready() -> None:
    """While the model is loaded, the server is live but not ready."""
    with Server(*SCRIPTED, ENGINE_LOAD_SECONDS="30") as server:
        client = connect(server)
        assert client.is_server_live()
        assert not client.is_server_ready() and not client.is_model_ready("fake")
        with pytest.raises(InferenceServerException, match="being loaded"):
            client.infer("fake", [images(HORSE)])


async def test_canceled_requests_are_not_inferred(hold: Hold) -> None:
    """The images of a request or form whose client disconnects leave the queue."""
    with Server(*SCRIPTED, ENGINE_HELD=str(hold), SHOAL_REQUEST_TIMEOUT="60") as server:
        server.wait_until_ready()
        forms = [("img", HORSE)] * 20
        data = [base64.b64encode(HORSE).decode()] * 20
        request = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [20], "data": data}]}
        async with httpx.AsyncClient(timeout=30) as client:
            first = asyncio.create_task(client.post(f"{server.url}/predict", files={"img": HORSE}))
            await server.wait_until("shoal_batches_in_flight", 1)
            leaving = [
                asyncio.create_task(client.post(f"{server.url}/predict/batch", files=forms)),
                asyncio.create_task(
                    client.post(f"{server.url}/v2/models/fake/infer", json=request)
                ),
            ]
            await server.wait_until("shoal_queue_length", 40)
            for task in leaving:
                task.cancel()
            await server.wait_until("shoal_queue_length", 0)
            hold.end()
            assert (await first).status_code == 200
        assert server.stop() == 0
        assert sum(server.batches()) == 1
        left = [record["path"] for record in server.log() if record.get("code") == "client_left"]
    assert sorted(left) == ["/predict/batch", "/v2/models/fake/infer"]


async def test_canceled_requests_are_not_decoded() -> None:
    """Large images of a client that has disconnected are not decoded any further."""
    large = png(7, side=4000)
    data = [base64.b64encode(large).decode()] * 30
    request = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [30], "data": data}]}
    settings = {"SHOAL_DECODE_PROCESSES": "1", "SHOAL_REQUEST_TIMEOUT": "60"}
    with Server(*SCRIPTED, **settings) as server:
        server.wait_until_ready()
        async with httpx.AsyncClient() as client:
            for url, sent in (
                (f"{server.url}/predict/batch", {"files": [("img", large)] * 30}),
                (f"{server.url}/v2/models/fake/infer", {"json": request}),
            ):
                with pytest.raises(httpx.ReadTimeout):
                    await client.post(url, timeout=httpx.Timeout(10, read=0.3), **sent)
                while (record := server.wait_for_log("request"))["path"] == "/readyz":
                    pass
                assert record["code"] == "client_left"
        assert server.batches() == []


async def test_large_bodies_do_not_delay_other_requests() -> None:
    """Requests are answered within 0.25 s while bodies of 10 MiB are parsed. One attempt of five
    must succeed, because other work on the machine may delay some."""
    rest = b"," * 9_000_000
    bodies = [
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["%s"]}]}'
        % base64.b64encode(bytes(7_000_000)),
        b'{"inputs": [' + rest,
        b'{"inputs": [' + b'"",' * 3_000_000,
        b"[" * 10_000_000,
    ]
    with Server(*SCRIPTED) as server:
        server.wait_until_ready()
        async with httpx.AsyncClient(timeout=30) as client:
            url = f"{server.url}/v2/models/fake/infer"
            for _ in range(5):
                sending = [asyncio.create_task(client.post(url, content=body)) for body in bodies]
                slowest = 0.0
                while not all(task.done() for task in sending):
                    started = time.monotonic()
                    assert (await client.get(f"{server.url}/healthz")).status_code == 200
                    slowest = max(slowest, time.monotonic() - started)
                assert [task.result().status_code for task in sending] == [400] * 4
                if slowest < 0.25:
                    break
    assert slowest < 0.25


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("form", ["image", "UINT8", "FP32"])
def test_infer_with_the_real_model(
    real: Server, model: pathlib.Path, form: str, binary: bool
) -> None:
    """For each form of input, the result agrees with NumPy's."""
    pixels = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    pixels[0] = 128
    norm = versions.read_manifest(model).normalisation
    mean, std = np.array(norm.mean, np.float32), np.array(norm.std, np.float32)
    normalized = (pixels.astype(np.float32) / 255 - mean) / std
    tensor = {
        "image": lambda: images(*map(bitmap, pixels), binary=binary),
        "UINT8": lambda: array(pixels, "UINT8", binary),
        "FP32": lambda: array(normalized.transpose(0, 3, 1, 2).astype("<f4"), "FP32", binary),
    }[form]()
    result = connect(real).infer(model.parent.name, [tensor], model_version=model.name)
    expected = probabilities(read_params(model / "net.params"), pixels)
    assert np.abs(result.as_numpy("probabilities") - expected).max() < 1e-4
    assert np.allclose(result.as_numpy("probability"), expected.max(axis=1), atol=1e-4)


def bitmap(pixels: Any) -> bytes:
    """Encode pixels as BMP, which is lossless."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "BMP")
    return out.getvalue()
