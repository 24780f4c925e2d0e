"""Tests gRPC with NVIDIA's client and with raw frames, against a real process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import (
    InferenceServerClient,
    InferInput,
    InferRequestedOutput,
    service_pb2,
    service_pb2_grpc,
)
from tritonclient.grpc.aio import InferenceServerClient as AsyncClient
from tritonclient.utils import InferenceServerException

from model_store import versions
from model_store.params import read_params
from service.grpc.http2_frames import (
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEADERS,
    PREFACE,
    SETTINGS,
    FrameHeads,
    field,
    frame,
)
from tests.e2e.process import ROOT, SCRIPTED, Hold, Server
from tests.e2e.test_inference import bitmap
from tests.reference import probabilities
from tests.service.conftest import png

pytestmark = pytest.mark.slow
HORSE, CAT = png(7), png(3)
KEY = "a-key-of-sixteen-or-more"
RPC = {"SHOAL_GRPC_PORT": "0"}
CALL = {
    ":method": "POST",
    ":scheme": "http",
    ":authority": "shoal",
    "te": "trailers",
    "content-type": "application/grpc",
}
"""The headers of a call without its path."""


def connect(server: Server) -> InferenceServerClient:
    return InferenceServerClient(server.address("gRPC on"))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(*SCRIPTED, **RPC, SHOAL_MAX_IMAGE_PIXELS="1000000") as server:
        server.wait_until_ready()
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> InferenceServerClient:
    return connect(server)


def images(*encoded: bytes) -> InferInput:
    tensor = InferInput("image", [len(encoded)], "BYTES")
    return tensor.set_data_from_numpy(np.array(encoded, dtype=object))


def array(data: Any, datatype: str) -> InferInput:
    return InferInput("pixels", list(data.shape), datatype).set_data_from_numpy(data)


def test_health(client: InferenceServerClient) -> None:
    """The server and its model are live and ready; another version is an error."""
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("fake") and client.is_model_ready("fake", "7")
    with pytest.raises(InferenceServerException, match="serves only"):
        client.is_model_ready("fake", "8")


def test_metadata(client: InferenceServerClient) -> None:
    """Server and model metadata name the extensions, inputs and outputs."""
    assert client.get_server_metadata().extensions == ["binary_tensor_data", "classification"]
    about = client.get_model_metadata("fake", "7")
    assert (about.name, list(about.versions)) == ("fake", ["7"])
    assert [(t.name, t.datatype, list(t.shape)) for t in about.inputs] == [
        ("image", "BYTES", [-1]),
        ("pixels", "UINT8", [-1, 32, 32, 3]),
    ]
    assert [tensor.name for tensor in about.outputs] == ["class", "probability", "probabilities"]


def test_infer_with_the_defaults_of_the_client(client: InferenceServerClient) -> None:
    """A request with id and version gets all outputs."""
    result = client.infer("fake", [images(HORSE, CAT)], model_version="7", request_id="42")
    answer = result.get_response()
    assert (answer.id, answer.model_name, answer.model_version) == ("42", "fake", "7")
    assert list(result.as_numpy("class")) == [b"horse", b"cat"]
    assert np.allclose(result.as_numpy("probability"), 0.91)
    assert result.as_numpy("probabilities").shape == (2, 10)


def test_infer_64_images(client: InferenceServerClient) -> None:
    """The results have the order of the images, large images included."""
    sent = [png(red, side=400 if red % 5 == 0 else 32) for red in range(64)]
    requested = [InferRequestedOutput("probabilities")]
    result = client.infer("fake", [images(*sent)], outputs=requested)
    assert list(result.as_numpy("probabilities").argmax(axis=1)) == [red % 10 for red in range(64)]
    assert result.as_numpy("class") is None, "it was not requested"


def test_infer_with_classification(client: InferenceServerClient) -> None:
    """`class_count` returns that number of most probable classes."""
    requested = InferRequestedOutput("probabilities", class_count=2)
    result = client.infer("fake", [images(HORSE, CAT)], outputs=[requested])
    assert [list(row) for row in result.as_numpy("probabilities")] == [
        [b"0.910000:7:horse", b"0.010000:0:airplane"],
        [b"0.910000:3:cat", b"0.010000:0:airplane"],
    ]


async def test_infer_100_calls_concurrently(server: Server) -> None:
    """Each of 100 concurrent calls gets its own result."""
    async with AsyncClient(server.address("gRPC on")) as client:
        calls = [client.infer("fake", [images(png(red))]) for red in range(100)]
        results = await asyncio.gather(*calls)
    assert [r.as_numpy("probabilities").argmax() for r in results] == [n % 10 for n in range(100)]


@pytest.mark.parametrize(
    ("model", "version", "tensor", "status", "expected"),
    [
        ("other", "", images(HORSE), "NOT_FOUND", "serves only"),
        ("fake", "8", images(HORSE), "NOT_FOUND", "serves only"),
        ("fake", "", images(b"hello"), "INVALID_ARGUMENT", "known type"),
        ("fake", "", images(HORSE, b"hello"), "INVALID_ARGUMENT", "image 1"),
        ("fake", "", images(b""), "INVALID_ARGUMENT", "it has 0 bytes"),
        ("fake", "", images(b"II*\0" + bytes(100)), "INVALID_ARGUMENT", "TIFF"),
        ("fake", "", images(*[HORSE] * 65), "RESOURCE_EXHAUSTED", "64 are allowed"),
        ("fake", "", images(png(7, side=1001)), "RESOURCE_EXHAUSTED", "pixels"),
        ("fake", "", images(bytes(11 * 2**20)), "RESOURCE_EXHAUSTED", "larger than max"),
        ("fake", "", array(np.zeros((1, 9, 9, 3), np.uint8), "UINT8"), "INVALID_ARGUMENT", "no in"),
        ("fake", "", array(np.zeros((1, 3, 32, 32), np.float32), "FP32"), "INVALID_ARGUMENT", "8-"),
        (
            "fake",
            "",
            InferInput("image", [1], "BYTES").set_shared_memory("x", 9),
            "INVALID_ARGUMENT",
            "Shared",
        ),
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
    assert caught.value.status() == f"StatusCode.{status}"


def trailing_of(error: Any) -> dict[str, str]:
    return dict(error.trailing_metadata())


def test_unsupported_features(client: InferenceServerClient) -> None:
    """Compression, streams and other methods of Triton get UNIMPLEMENTED."""
    with pytest.raises(InferenceServerException, match="gzip") as compressed:
        client.infer("fake", [images(HORSE)], compression_algorithm="gzip")
    with pytest.raises(InferenceServerException) as unknown:
        client.get_model_config("fake")
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client.start_stream(lambda result, error: results.put(error))
    with contextlib.suppress(
        InferenceServerException
    ):  # if the client gets the error before it sends
        client.async_stream_infer("fake", [images(HORSE)])
    streamed = results.get(timeout=10)
    client.stop_stream()
    assert "ModelInfer" in str(streamed)
    for error in compressed.value, unknown.value, streamed:
        assert error.status() == "StatusCode.UNIMPLEMENTED"


def test_trailing_metadata(server: Server) -> None:
    """A response has its request id and stage times, and an error has its code."""
    with grpc.insecure_channel(server.address("gRPC on")) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="fake", raw_input_contents=[])
        tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(HORSE)
        answer, call = stub.ModelInfer.with_call(request, metadata=[("x-request-id", "42")])
        trailing = dict(call.trailing_metadata())
        assert list(answer.outputs[0].contents.bytes_contents) == [b"horse"], (
            "typed like the request"
        )
        assert trailing["x-request-id"] == "42"
        stages = [stage.split(";")[0] for stage in trailing["server-timing"].split(", ")]
        assert stages == ["read", "decode", "queue", "infer"]
        request.model_name = "other"
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request)
        assert trailing_of(refused.value)["problem-code"] == "unknown_model"


def test_grpc_shares_metrics_and_log_with_http(
    server: Server, client: InferenceServerClient
) -> None:
    """Calls are in the metrics and in the log, with their gRPC status."""
    client.infer("fake", [images(HORSE)])
    with pytest.raises(InferenceServerException, match="serves only"):
        client.infer("other", [images(HORSE)])
    text = httpx.get(f"{server.url}/metrics").text
    route = 'route="/inference.GRPCInferenceService/ModelInfer"'
    assert f'shoal_request_duration_seconds_count{{{route},status="OK"}}' in text
    assert f'shoal_request_duration_seconds_count{{{route},status="NOT_FOUND"}}' in text
    assert 'shoal_refusals_total{code="unknown_model"}' in text
    records = [r for r in server.log() if r.get("path") == route[7:-1] and r["status"] == "OK"]
    assert records[-1]["client"] == "127.0.0.1" and "infer_seconds" in records[-1]


def test_deadlines() -> None:
    """The client's deadline and the parameter `timeout` end a call, or reject it early."""
    engine = {"ENGINE_SECONDS": "1.5", "ENGINE_WARM_UP_SECONDS": "0.01"}
    with Server(*SCRIPTED, **RPC, **engine) as server:
        server.wait_until_ready()
        client = connect(server)
        for deadline in {"client_timeout": 0.1}, {"timeout": 100_000}, {"timeout": 1}:
            started = time.monotonic()
            with pytest.raises(InferenceServerException) as late:
                client.infer("fake", [images(HORSE)], **deadline)
            assert late.value.status() in (
                "StatusCode.DEADLINE_EXCEEDED",
                "StatusCode.UNAVAILABLE",  # once the duration of a batch is known
            )
            assert time.monotonic() - started < 1.4
        assert server.batches() == [1]
        assert list(client.infer("fake", [images(HORSE)]).as_numpy("class")) == [b"horse"]


def test_not_ready() -> None:
    """While the model is loaded, the server is live but not ready, and says when to retry."""
    with Server(*SCRIPTED, **RPC, ENGINE_LOAD_SECONDS="30") as server:
        client = connect(server)
        assert client.is_server_live()
        assert not client.is_server_ready() and not client.is_model_ready("fake")
        with grpc.insecure_channel(server.address("gRPC on")) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError, match="being loaded") as refused:
                stub.ModelInfer(service_pb2.ModelInferRequest(model_name="fake"))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        trailing = trailing_of(refused.value)
        assert (trailing["retry-after"], trailing["grpc-retry-pushback-ms"]) == ("1", "1000")


def test_api_keys() -> None:
    """Inference requires an API key; probes do not."""
    with Server(*SCRIPTED, **RPC, SHOAL_API_KEYS=KEY) as server:
        server.wait_until_ready()
        client = connect(server)
        assert client.is_server_ready() and client.is_model_ready("fake")
        for headers in {}, {"x-api-key": KEY + "?"}, {"authorization": "Bearer"}:
            with pytest.raises(InferenceServerException, match="requires an API key") as refused:
                client.infer("fake", [images(HORSE)], headers=headers)
            assert refused.value.status() == "StatusCode.UNAUTHENTICATED"
        for headers in {"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}:
            client.infer("fake", [images(HORSE)], headers=headers)


async def test_canceled_calls_are_not_inferred(hold: Hold) -> None:
    """The images of a call that the client cancels leave the queue."""
    with Server(*SCRIPTED, **RPC, ENGINE_HELD=str(hold), SHOAL_REQUEST_TIMEOUT="60") as server:
        server.wait_until_ready()
        async with AsyncClient(server.address("gRPC on")) as client:
            first = asyncio.create_task(client.infer("fake", [images(HORSE)]))
            await server.wait_until("shoal_batches_in_flight", 1)
            leaving = asyncio.create_task(client.infer("fake", [images(*[HORSE] * 20)]))
            await server.wait_until("shoal_queue_length", 20)
            leaving.cancel()
            await server.wait_until("shoal_queue_length", 0)
            hold.end()
            await first
        assert server.stop() == 0
        assert sum(server.batches()) == 1
        left = [r["status"] for r in server.log() if r.get("code") == "client_left"]
    assert left == ["CANCELLED"]


async def test_stop_answers_accepted_calls(hold: Hold) -> None:
    """Calls in flight at SIGTERM are answered, and the process exits with 0."""
    with Server(*SCRIPTED, **RPC, ENGINE_HELD=str(hold), SHOAL_REQUEST_TIMEOUT="60") as server:
        server.wait_until_ready()
        async with AsyncClient(server.address("gRPC on")) as client:
            calls = [
                asyncio.create_task(client.infer("fake", [images(png(red))])) for red in range(20)
            ]
            await server.wait_until("shoal_batches_in_flight", 1)
            await server.wait_until("shoal_queue_length", lambda: 20 - sum(server.batches()))
            server.send(signal.SIGTERM)
            await asyncio.sleep(0.2)
            hold.end()
            status = await asyncio.to_thread(server.wait)
            results = await asyncio.gather(*calls)
    assert status == 0
    assert [r.as_numpy("probabilities").argmax() for r in results] == [n % 10 for n in range(20)]


async def test_stop_waits_for_images_in_decoders() -> None:
    """Calls whose images are still being decoded are answered; a new call is rejected."""
    large, settings = (
        png(7, side=4000),
        {"SHOAL_DECODE_PROCESSES": "1", "SHOAL_REQUEST_TIMEOUT": "60"},
    )
    with Server(*SCRIPTED, **RPC, **settings) as server:
        server.wait_until_ready()
        async with AsyncClient(server.address("gRPC on")) as client:
            calls = [asyncio.create_task(client.infer("fake", [images(large)])) for _ in range(4)]
            await server.wait_until("shoal_decode_queue_length", 3)
            stopping = asyncio.create_task(asyncio.to_thread(server.stop))
            results = await asyncio.gather(*calls)
            with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
                await client.infer("fake", [images(HORSE)])
            assert await stopping == 0
    assert [list(result.as_numpy("class")) for result in results] == [[b"horse"]] * 4


async def test_messages_share_the_upload_memory() -> None:
    """Messages of 216 MiB in all take no more memory than the setting allows."""
    settings = {"SHOAL_MAX_UPLOAD_MEMORY": str(30 * 2**20), "ENGINE_SECONDS": "0.2"}
    with Server(*SCRIPTED, **RPC, **settings, SHOAL_REQUEST_TIMEOUT="60") as server:
        server.wait_until_ready()
        before = resident(server.pid)
        large = HORSE + bytes(9 * 2**20)
        peak = 0
        async with AsyncClient(server.address("gRPC on")) as client:
            calls = asyncio.gather(
                *(client.infer("fake", [images(large)]) for _ in range(24)), return_exceptions=True
            )
            while not calls.done():
                peak = max(peak, resident(server.pid))
                await asyncio.sleep(0.01)
        refused = [str(r) for r in calls.result() if isinstance(r, BaseException)]
        assert len(refused) < 24 and all("SHOAL_MAX_UPLOAD_MEMORY" in text for text in refused)
    assert peak - before < 150 * 2**20, "of 216 MiB that were sent"


def resident(pid: int) -> int:
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


def begin(name: str, stream: int) -> bytes:
    """The headers of a call, without its message."""
    fields = CALL | {":path": f"/inference.GRPCInferenceService/{name}"}
    block = b"".join(field(*item) for item in fields.items())
    return frame(HEADERS, END_HEADERS, stream, block)


@contextlib.contextmanager
def raw(server: Server, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """Open `count` connections to the gRPC port. Each sends its preface, settings and `sent`."""
    host, _, port = server.address("gRPC on").rpartition(":")
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            one = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            one.sendall(PREFACE + frame(SETTINGS, 0, 0) + sent)
            found.append(one)
        yield found


def received(one: socket.socket) -> list[tuple[int, int, int]]:
    """The heads of all frames that have arrived."""
    one.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        return list(FrameHeads().feed(one.recv(2**20)))
    return []


@pytest.mark.parametrize("name", ["ModelInfer", "ModelReady"])
async def test_idle_streams_do_not_delay_calls(name: str) -> None:
    """Calls are answered while the maximum number of idle streams waits."""
    with Server(*SCRIPTED, **RPC) as server:
        server.wait_until_ready()
        streams = b"".join(begin(name, number) for number in range(1, 201, 2))
        with raw(server, 10, streams) as connections:
            await server.wait_until(
                "shoal_requests_in_flight", 1001
            )  # one of them is the request for metrics
            for _ in range(5):
                client = connect(server)  # a new connection
                assert client.is_model_ready("fake")
                assert list(client.infer("fake", [images(HORSE)]).as_numpy("class")) == [b"horse"]
            assert not [
                kind for one in connections for kind, *_ in received(one) if kind == HEADERS
            ]


async def test_too_many_idle_streams_are_canceled() -> None:
    """The oldest idle streams end with UNAVAILABLE, and other calls are answered."""
    with Server(*SCRIPTED, **RPC, SHOAL_MAX_QUEUE_SIZE="100") as server:
        server.wait_until_ready()
        streams = b"".join(begin("ModelInfer", number) for number in range(1, 201, 2))
        with raw(server, 10, streams):
            await server.wait_until('shoal_refusals_total{code="too_many_messages"}', 900)
            client = connect(server)
            assert list(client.infer("fake", [images(HORSE)]).as_numpy("class")) == [b"horse"]
            ended = [r["status"] for r in server.log() if r.get("code") == "too_many_messages"]
    assert set(ended) == {"UNAVAILABLE"}


async def test_idle_connections_make_room() -> None:
    """More idle connections than allowed do not keep out a new one, nor take file descriptors."""
    with Server(*SCRIPTED, **RPC, SHOAL_MAX_CONNECTIONS="32") as server:
        server.wait_until_ready()
        host, _, port = server.address("gRPC on").rpartition(":")
        with raw(server, 200), contextlib.ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            client = connect(server)
            assert list(client.infer("fake", [images(HORSE)]).as_numpy("class")) == [b"horse"]
            assert len(os.listdir(f"/proc/{server.pid}/fd")) < 200


def test_a_client_cannot_name_a_stream(server: Server, client: InferenceServerClient) -> None:
    """A stream name that the client sends has no effect."""
    client.infer("fake", [images(HORSE)], headers={"shoal-stream": "4711"})


@pytest.mark.parametrize("length", [47, 14, 13, 1, 127])
def test_a_client_cannot_hide_the_name_of_its_stream(server: Server, length: int) -> None:
    """A header block that would make the server's header a part of the client's last header ends
    the connection."""
    names = field("shoal-stream", "1") + field("shoal-stream", "0" * 32)
    block = begin("ServerMetadata", 1)[HEAD:] + names + b"\0\1z" + bytes((length,))
    with raw(server, 1, frame(HEADERS, END_HEADERS | END_STREAM, 1, block)) as (one,):
        data = b""
        while b"a header block ends within a field" not in data:
            received_now = one.recv(65_536)
            assert received_now, data
            data += received_now


@pytest.mark.parametrize("number", [2, 0])
def test_streams_with_even_numbers_end_the_connection(server: Server, number: int) -> None:
    """Even stream numbers end the connection, since gRPC's server would ignore them."""
    with raw(server, 1, 1000 * frame(HEADERS, END_HEADERS | END_STREAM, number)) as (one,):
        data = b""
        with contextlib.suppress(ConnectionError):  # unread data resets the connection
            while received_now := one.recv(65_536):
                data += received_now
    assert not data or b"the number must be odd" in data


@pytest.mark.parametrize("extra", [b"\0\3x-a\2\xff\xfe", b"\0\5:path\2/\x83"])
def test_headers_that_are_not_ascii_end_the_connection(server: Server, extra: bytes) -> None:
    """The client gets the reason, and calls of other clients are answered."""
    block = begin("ServerMetadata", 1)[HEAD:] + extra
    with raw(server, 1, frame(HEADERS, END_HEADERS | END_STREAM, 1, block)) as (one,):
        data = b""
        while b"not printable ASCII" not in data:
            received_now = one.recv(65_536)
            assert received_now, data
            data += received_now
    assert connect(server).is_server_live()


def test_end_of_the_grpc_server_stops_the_process(tmp_path: pathlib.Path) -> None:
    """If gRPC's server ends by itself, the process logs why and exits with a status for a restart.
    The relays keep such frames out, so the test sends them to gRPC's own socket."""
    if tuple(map(int, grpc.__version__.split(".")[:2])) < (1, 84):
        pytest.skip("before 1.84, this call does not end gRPC's server")
    block = b"".join(field(*item) for item in CALL.items()) + b"\0\5:path\2/\x83"
    with Server(*SCRIPTED, **RPC, TMPDIR=str(tmp_path)) as server:
        server.wait_until_ready()
        (path,) = tmp_path.glob("shoal-*/grpc")
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(str(path))
            one.sendall(PREFACE + frame(SETTINGS, 0, 0))
            one.sendall(frame(HEADERS, END_HEADERS | END_STREAM, 1, block))
            server.wait_for_log("gRPC's server has ended")
            assert server.wait() == 1
        assert [line["level"] for line in server.log()].count("critical") == 1


def test_disconnects_are_not_logged_as_errors() -> None:
    """Disconnects during a response cause no error in the log."""
    with Server(*SCRIPTED, **RPC) as server:
        server.wait_until_ready()
        block = begin("ServerMetadata", 1)[HEAD:]
        sent = b"".join(
            frame(HEADERS, END_HEADERS | END_STREAM, number, block) for number in range(1, 101, 2)
        )
        for _ in range(30):
            with raw(server, 1, sent) as (one,):
                one.recv(1)
        client = connect(server)
        client.infer("fake", [images(HORSE)])
        server.stop()
        assert server.errors() == ""
        assert {line["level"] for line in server.log()} <= {"info", "warning"}


def test_pings_of_idle_clients_are_answered(server: Server) -> None:
    """Pings are answered, and do not close the connection."""
    with raw(server, 1, 20 * frame(0x6, 0, 0, bytes(8))) as (one,):
        heads, kinds = FrameHeads(), list[int]()
        while kinds.count(0x6) < 20:
            data = one.recv(65_536)
            assert data, kinds
            kinds += [kind for kind, *_ in heads.feed(data)]


def test_grpc_port_in_use() -> None:
    """The log names the port, and the exit status is the one for the HTTP port."""
    with Server(*SCRIPTED, **RPC) as server:
        port = server.address("gRPC on").rpartition(":")[2]
        run = subprocess.run(
            [sys.executable, *SCRIPTED],
            cwd=ROOT,
            env={"SHOAL_PORT": "0", "SHOAL_GRPC_PORT": port},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert run.returncode == 3
    assert f"gRPC cannot listen on 127.0.0.1:{port}" in run.stdout


@pytest.mark.parametrize("form", ["image", "UINT8", "FP32"])
def test_infer_with_the_real_model(model: pathlib.Path, real: Server, form: str) -> None:
    """For each form of input, the result agrees with NumPy's."""
    pixels = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    norm = versions.read_manifest(model).normalisation
    mean, std = np.array(norm.mean, np.float32), np.array(norm.std, np.float32)
    normalized = (pixels.astype(np.float32) / 255 - mean) / std
    tensor = {
        "image": lambda: images(*map(bitmap, pixels)),
        "UINT8": lambda: array(pixels, "UINT8"),
        "FP32": lambda: array(normalized.transpose(0, 3, 1, 2).astype("<f4"), "FP32"),
    }[form]()
    result = connect(real).infer(model.parent.name, [tensor], model_version=model.name)
    expected = probabilities(read_params(model / "net.params"), pixels)
    assert np.abs(result.as_numpy("probabilities") - expected).max() < 1e-4
