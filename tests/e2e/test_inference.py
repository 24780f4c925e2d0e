"""The Open Inference Protocol as NVIDIA's own client speaks it, unchanged, to a real process."""

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
    """As bytes behind the JSON, or as strings in base64 within."""
    tensor = InferInput("image", [len(encoded)], "BYTES")
    elements = encoded if binary else [base64.b64encode(image) for image in encoded]
    return tensor.set_data_from_numpy(np.array(elements, dtype=object), binary_data=binary)


def array(data: Any, datatype: str, binary: bool = True) -> InferInput:
    tensor = InferInput("pixels", list(data.shape), datatype)
    return tensor.set_data_from_numpy(data, binary_data=binary)


def test_health(client: InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("fake") and client.is_model_ready("fake", "7")
    assert not client.is_model_ready("fake", "8") and not client.is_model_ready("other")


def test_metadata(client: InferenceServerClient) -> None:
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification"]
    about = client.get_model_metadata("fake", "7")
    assert (about["name"], about["versions"]) == ("fake", ["7"])
    assert [tensor["name"] for tensor in about["inputs"]] == ["image", "pixels"]


@pytest.mark.parametrize("binary", [True, False])
def test_images(client: InferenceServerClient, binary: bool) -> None:
    """In and out, in JSON and in binary, in a batch."""
    names = "class", "probability", "probabilities"
    wanted = [InferRequestedOutput(name, binary_data=binary) for name in names]
    result = client.infer("fake", [images(HORSE, CAT, binary=binary)], outputs=wanted)
    classes = [b"horse", b"cat"] if binary else ["horse", "cat"]  # as the client has them
    assert list(result.as_numpy("class")) == classes
    assert np.allclose(result.as_numpy("probability"), 0.91)
    assert result.as_numpy("probabilities").shape == (2, 10)
    assert result.as_numpy("probabilities").dtype == np.float32


def test_as_the_client_does_by_itself(client: InferenceServerClient) -> None:
    """Everything binary, all outputs, an id and a version."""
    result = client.infer("fake", [images(HORSE)], model_version="7", request_id="42")
    answer = result.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("42", "fake", "7")
    assert list(result.as_numpy("class")) == [b"horse"]


def test_a_batch_of_64(client: InferenceServerClient) -> None:
    """In order, large ones included."""
    sent = [png(red, side=400 if red % 5 == 0 else 32) for red in range(64)]
    result = client.infer("fake", [images(*sent)])
    assert list(result.as_numpy("probabilities").argmax(axis=1)) == [red % 10 for red in range(64)]


@pytest.mark.parametrize("binary", [True, False])
def test_classification(client: InferenceServerClient, binary: bool) -> None:
    wanted = InferRequestedOutput("probabilities", binary_data=binary, class_count=2)
    result = client.infer("fake", [images(HORSE, CAT)], outputs=[wanted])
    found = [
        [str(c, "utf-8") if binary else c for c in row] for row in result.as_numpy("probabilities")
    ]
    assert found == [
        ["0.910000:7:horse", "0.010000:0:airplane"],
        ["0.910000:3:cat", "0.010000:0:airplane"],
    ]


def test_many_at_once(client: InferenceServerClient) -> None:
    requests = [client.async_infer("fake", [images(png(red))]) for red in range(10)]
    results = [request.get_result(timeout=10) for request in requests]
    assert [r.as_numpy("probabilities").argmax() for r in results] == list(range(10))


@pytest.mark.parametrize(
    ("model", "version", "tensor", "status", "told"),
    [
        ("other", "", images(HORSE), "404", "no other"),
        ("fake", "8", images(HORSE), "404", "no other"),
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
    told: str,
) -> None:
    """The client raises its own exception, with our status and sentence."""
    with pytest.raises(InferenceServerException, match=told) as caught:
        client.infer(model, [tensor], model_version=version)
    assert caught.value.status() == status


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(client: InferenceServerClient, algorithm: str) -> None:
    """Of requests is refused in words; of answers is asked for in vain, which HTTP allows."""
    with pytest.raises(InferenceServerException, match="Compressed bodies"):
        client.infer("fake", [images(HORSE)], request_compression_algorithm=algorithm)
    result = client.infer("fake", [images(HORSE)], response_compression_algorithm=algorithm)
    assert list(result.as_numpy("class")) == [b"horse"]


def test_timeouts() -> None:
    """`timeout` is the deadline: refused at once where it cannot be met, else kept."""
    with Server(*SCRIPTED, ENGINE_SECONDS="1.5", ENGINE_WARM_UP_SECONDS="0.01") as server:
        server.wait_until_ready()
        client = connect(server)
        started = time.monotonic()
        with pytest.raises(InferenceServerException, match="did not come in time") as late:
            client.infer("fake", [images(HORSE)], timeout=100_000)
        assert late.value.status() == "504" and time.monotonic() - started < 1.4
        with pytest.raises(InferenceServerException) as refused:
            client.infer("fake", [images(HORSE)], timeout=1)
        assert refused.value.status() in ("503", "504")
        assert list(client.infer("fake", [images(HORSE)]).as_numpy("class")) == [b"horse"]


def test_not_ready() -> None:
    """While the model is loaded: live, and nothing else."""
    with Server(*SCRIPTED, ENGINE_LOAD_SECONDS="30") as server:
        client = connect(server)
        assert client.is_server_live()
        assert not client.is_server_ready() and not client.is_model_ready("fake")
        with pytest.raises(InferenceServerException, match="being loaded"):
            client.infer("fake", [images(HORSE)])


async def test_who_leaves_is_not_computed(hold: Hold) -> None:
    """Neither the images of a request, nor those of a form."""
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


async def test_who_leaves_is_not_decoded() -> None:
    """Large images of somebody who has left are forgotten, and the connection with them."""
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


async def test_others_are_answered_meanwhile() -> None:
    """A body of 10 MiB, whatever is in it, keeps nobody else waiting. Other work on the machine may
    spoil a try, not five."""
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
def test_the_real_network(real: Server, model: pathlib.Path, form: str, binary: bool) -> None:
    """Whatever form the pixels come in, NumPy agrees with the answer."""
    pixels = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    pixels[0] = 128
    norm = versions.read_manifest(model).normalisation
    mean, std = np.array(norm.mean, np.float32), np.array(norm.std, np.float32)
    normalised = (pixels.astype(np.float32) / 255 - mean) / std
    tensor = {
        "image": lambda: images(*map(bitmap, pixels), binary=binary),
        "UINT8": lambda: array(pixels, "UINT8", binary),
        "FP32": lambda: array(normalised.transpose(0, 3, 1, 2).astype("<f4"), "FP32", binary),
    }[form]()
    result = connect(real).infer(model.parent.name, [tensor], model_version=model.name)
    expected = probabilities(read_params(model / "net.params"), pixels)
    assert np.abs(result.as_numpy("probabilities") - expected).max() < 1e-4
    assert np.allclose(result.as_numpy("probability"), expected.max(axis=1), atol=1e-4)


def bitmap(pixels: Any) -> bytes:
    """A BMP: nothing but the pixels behind a header."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "BMP")
    return out.getvalue()
