"""The Open Inference Protocol over gRPC as NVIDIA's own client speaks it, to a real process."""

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
from service.grpc.frames import (
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEADERS,
    PREFACE,
    SETTINGS,
    Heads,
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
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("fake") and client.is_model_ready("fake", "7")
    with pytest.raises(InferenceServerException, match="no other"):
        client.is_model_ready("fake", "8")


def test_metadata(client: InferenceServerClient) -> None:
    assert client.get_server_metadata().extensions == ["binary_tensor_data", "classification"]
    about = client.get_model_metadata("fake", "7")
    assert (about.name, list(about.versions)) == ("fake", ["7"])
    assert [(t.name, t.datatype, list(t.shape)) for t in about.inputs] == [
        ("image", "BYTES", [-1]),
        ("pixels", "UINT8", [-1, 32, 32, 3]),
    ]
    assert [tensor.name for tensor in about.outputs] == ["class", "probability", "probabilities"]


def test_as_the_client_does_by_itself(client: InferenceServerClient) -> None:
    """All outputs, an id and a version."""
    result = client.infer("fake", [images(HORSE, CAT)], model_version="7", request_id="42")
    answer = result.get_response()
    assert (answer.id, answer.model_name, answer.model_version) == ("42", "fake", "7")
    assert list(result.as_numpy("class")) == [b"horse", b"cat"]
    assert np.allclose(result.as_numpy("probability"), 0.91)
    assert result.as_numpy("probabilities").shape == (2, 10)


def test_a_batch_of_64(client: InferenceServerClient) -> None:
    """In order, large ones included."""
    sent = [png(red, side=400 if red % 5 == 0 else 32) for red in range(64)]
    wanted = [InferRequestedOutput("probabilities")]
    result = client.infer("fake", [images(*sent)], outputs=wanted)
    assert list(result.as_numpy("probabilities").argmax(axis=1)) == [red % 10 for red in range(64)]
    assert result.as_numpy("class") is None, "not asked for"


def test_classification(client: InferenceServerClient) -> None:
    wanted = InferRequestedOutput("probabilities", class_count=2)
    result = client.infer("fake", [images(HORSE, CAT)], outputs=[wanted])
    assert [list(row) for row in result.as_numpy("probabilities")] == [
        [b"0.910000:7:horse", b"0.010000:0:airplane"],
        [b"0.910000:3:cat", b"0.010000:0:airplane"],
    ]


async def test_many_at_once(server: Server) -> None:
    """More than there are places to take messages in."""
    async with AsyncClient(server.address("gRPC on")) as client:
        calls = [client.infer("fake", [images(png(red))]) for red in range(100)]
        results = await asyncio.gather(*calls)
    assert [r.as_numpy("probabilities").argmax() for r in results] == [n % 10 for n in range(100)]


@pytest.mark.parametrize(
    ("model", "version", "tensor", "status", "told"),
    [
        ("other", "", images(HORSE), "NOT_FOUND", "no other"),
        ("fake", "8", images(HORSE), "NOT_FOUND", "no other"),
        ("fake", "", images(b"hello"), "INVALID_ARGUMENT", "known type"),
        ("fake", "", images(HORSE, b"hello"), "INVALID_ARGUMENT", "image 1"),
        ("fake", "", images(b""), "INVALID_ARGUMENT", "no bytes"),
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
    told: str,
) -> None:
    """The client raises its own exception, with our status and sentence."""
    with pytest.raises(InferenceServerException, match=told) as caught:
        client.infer(model, [tensor], model_version=version)
    assert caught.value.status() == f"StatusCode.{status}"


def trailing_of(error: Any) -> dict[str, str]:
    return dict(error.trailing_metadata())


def test_what_is_not_served(client: InferenceServerClient) -> None:
    """Compression, streams, and the rest of Triton's methods: UNIMPLEMENTED, in words."""
    with pytest.raises(InferenceServerException, match="gzip") as compressed:
        client.infer("fake", [images(HORSE)], compression_algorithm="gzip")
    with pytest.raises(InferenceServerException) as unknown:
        client.get_model_config("fake")
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client.start_stream(lambda result, error: told.put(error))
    with contextlib.suppress(InferenceServerException):  # where it has heard before it sends
        client.async_stream_infer("fake", [images(HORSE)])
    streamed = told.get(timeout=10)
    client.stop_stream()
    assert "ModelInfer" in str(streamed)
    for error in compressed.value, unknown.value, streamed:
        assert error.status() == "StatusCode.UNIMPLEMENTED"


def test_what_comes_with_an_answer(server: Server) -> None:
    """The id that was sent, the times of its stages; with an error its code."""
    with grpc.insecure_channel(server.address("gRPC on")) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="fake", raw_input_contents=[])
        tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(HORSE)
        answer, call = stub.ModelInfer.with_call(request, metadata=[("x-request-id", "42")])
        trailing = dict(call.trailing_metadata())
        assert list(answer.outputs[0].contents.bytes_contents) == [b"horse"], "as it was sent"
        assert trailing["x-request-id"] == "42"
        stages = [stage.split(";")[0] for stage in trailing["server-timing"].split(", ")]
        assert stages == ["read", "decode", "queue", "infer"]
        request.model_name = "other"
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request)
        assert trailing_of(refused.value)["problem-code"] == "unknown_model"


def test_the_same_way_as_http(server: Server, client: InferenceServerClient) -> None:
    """One batcher, one set of metrics, one log."""
    client.infer("fake", [images(HORSE)])
    text = httpx.get(f"{server.url}/metrics").text
    route = 'route="/inference.GRPCInferenceService/ModelInfer"'
    assert f'shoal_request_duration_seconds_count{{{route},status="OK"}}' in text
    assert f'shoal_request_duration_seconds_count{{{route},status="NOT_FOUND"}}' in text
    assert 'shoal_refusals_total{code="unsupported_method"} 1.0' in text
    told = [r for r in server.log() if r.get("path") == route[7:-1] and r["status"] == "OK"]
    assert told[-1]["client"] == "127.0.0.1" and "infer_seconds" in told[-1]


def test_deadlines() -> None:
    """The client's own, and `timeout`: refused at once where it cannot be met, else kept."""
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
                "StatusCode.UNAVAILABLE",  # once it is known what the engine takes
            )
            assert time.monotonic() - started < 1.4
        assert server.batches() == [1]
        assert list(client.infer("fake", [images(HORSE)]).as_numpy("class")) == [b"horse"]


def test_not_ready() -> None:
    """While the model is loaded: live, and nothing else, with the time to come again."""
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


def test_keys() -> None:
    """Predictions are for who sends a key; probes are for all."""
    with Server(*SCRIPTED, **RPC, SHOAL_API_KEYS=KEY) as server:
        server.wait_until_ready()
        client = connect(server)
        assert client.is_server_ready() and client.is_model_ready("fake")
        for headers in {}, {"x-api-key": KEY + "?"}, {"authorization": "Bearer"}:
            with pytest.raises(InferenceServerException, match="has a key") as refused:
                client.infer("fake", [images(HORSE)], headers=headers)
            assert refused.value.status() == "StatusCode.UNAUTHENTICATED"
        for headers in {"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}:
            client.infer("fake", [images(HORSE)], headers=headers)


async def test_who_leaves_is_not_computed(hold: Hold) -> None:
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


async def test_stop_loses_nothing(hold: Hold) -> None:
    """RPCs in flight when the signal arrives are answered; the process ends with 0."""
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


async def test_a_stop_waits_for_what_is_decoded() -> None:
    """A call that has not come to the batcher yet is under way, too; a new one is refused."""
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


async def test_messages_share_the_memory_for_uploads() -> None:
    """Who sends slowly, or much at once, gets no more memory than the settings say."""
    settings = {"SHOAL_MAX_UPLOAD_MEMORY": str(30 * 2**20), "ENGINE_SECONDS": "0.2"}
    with Server(*SCRIPTED, **RPC, **settings, SHOAL_REQUEST_TIMEOUT="60") as server:
        server.wait_until_ready()
        before = resident(server.pid)
        large = HORSE + bytes(9 * 2**20)
        most = 0
        async with AsyncClient(server.address("gRPC on")) as client:
            calls = asyncio.gather(
                *(client.infer("fake", [images(large)]) for _ in range(24)), return_exceptions=True
            )
            while not calls.done():
                most = max(most, resident(server.pid))
                await asyncio.sleep(0.01)
        refused = [str(r) for r in calls.result() if isinstance(r, BaseException)]
        assert len(refused) < 24 and all("queue is full" in told for told in refused)
    assert most - before < 150 * 2**20, "of 216 MiB that were sent"


def resident(pid: int) -> int:
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


def begin(name: str, stream: int) -> bytes:
    """The headers of a call whose message does not come."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/inference.GRPCInferenceService/{name}",
        ":authority": "shoal",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(field(*item) for item in fields.items())
    return frame(HEADERS, END_HEADERS, stream, block)


@contextlib.contextmanager
def raw(server: Server, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many connections to gRPC's port, each of which sends its preface, settings and `sent`."""
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
        return list(Heads().feed(one.recv(2**20)))
    return []


@pytest.mark.parametrize("name", ["ModelInfer", "ModelReady"])
async def test_idle_streams_keep_no_call_waiting(name: str) -> None:
    """As many as there may be: calls beside them are answered while all of them still wait."""
    with Server(*SCRIPTED, **RPC) as server:
        server.wait_until_ready()
        streams = b"".join(begin(name, number) for number in range(1, 201, 2))
        with raw(server, 10, streams) as connections:
            await server.wait_until("shoal_requests_in_flight", 1001)  # and that for metrics
            for _ in range(5):
                client = connect(server)  # a new connection each
                assert client.is_model_ready("fake")
                assert list(client.infer("fake", [images(HORSE)]).as_numpy("class")) == [b"horse"]
            assert not [
                kind for one in connections for kind, *_ in received(one) if kind == HEADERS
            ]


async def test_more_idle_streams_than_there_may_be() -> None:
    """The oldest end with UNAVAILABLE, and calls beside them are answered."""
    with Server(*SCRIPTED, **RPC, SHOAL_MAX_QUEUE_SIZE="100") as server:
        server.wait_until_ready()
        streams = b"".join(begin("ModelInfer", number) for number in range(1, 201, 2))
        with raw(server, 10, streams):
            await server.wait_until('shoal_refusals_total{code="queue_full"}', 900)
            client = connect(server)
            assert list(client.infer("fake", [images(HORSE)]).as_numpy("class")) == [b"horse"]
            ended = [r["status"] for r in server.log() if r.get("code") == "queue_full"]
    assert set(ended) == {"UNAVAILABLE"}


async def test_idle_connections_make_room() -> None:
    """More than there may be, some of which never finish their preface; none takes descriptors."""
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
    """The header by which calls find their stream is the server's, also where a client sends it."""
    client.infer("fake", [images(HORSE)], headers={"shoal-stream": "4711"})


@pytest.mark.parametrize("length", [47, 14, 13, 1, 127])
def test_a_client_cannot_hide_the_name_of_its_stream(server: Server, length: int) -> None:
    """A header that ends before its value makes the server's header a part of it: the call or the
    connection ends, and never with the stream that the client names."""
    names = field("shoal-stream", "1") + field("shoal-stream", "0" * 32)
    block = begin("ServerMetadata", 1)[HEAD:] + names + b"\0\1z" + bytes((length,))
    with raw(server, 1, frame(HEADERS, END_HEADERS | END_STREAM, 1, block)) as (one,):
        data = b""
        while b"Failed parsing" not in data and b"The client has ended the call" not in data:
            news = one.recv(65_536)
            assert news, data
            data += news


@pytest.mark.parametrize("number", [2, 0])
def test_streams_that_a_client_may_not_open(server: Server, number: int) -> None:
    """They end the connection, since gRPC's server would ignore them forever."""
    with raw(server, 1, 1000 * frame(HEADERS, END_HEADERS | END_STREAM, number)) as (one,):
        data = b""
        with contextlib.suppress(ConnectionError):  # what was not read resets the connection
            while news := one.recv(65_536):
                data += news
    assert not data or b"its numbers are odd" in data


@pytest.mark.parametrize("fault", ["leaves", "header"])
def test_faults_of_clients_are_not_logged_as_errors(fault: str) -> None:
    """Where a client leaves while it is answered, and where its header is not UTF-8."""
    extra = b"\0\3x-a\2\xff\xfe" if fault == "header" else b""
    with Server(*SCRIPTED, **RPC) as server:
        server.wait_until_ready()
        block = begin("ServerMetadata", 1)[HEAD:] + extra
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


def test_pings_of_idle_clients(server: Server) -> None:
    """They are answered, and no connection is closed for them."""
    with raw(server, 1, 20 * frame(0x6, 0, 0, bytes(8))) as (one,):
        heads, kinds = Heads(), list[int]()
        while kinds.count(0x6) < 20:
            data = one.recv(65_536)
            assert data, kinds
            kinds += [kind for kind, *_ in heads.feed(data)]


def test_a_port_in_use() -> None:
    """The log says which, and the process ends as it does for HTTP's port."""
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
def test_the_real_network(model: pathlib.Path, real: Server, form: str) -> None:
    """Whatever form the pixels come in, NumPy agrees with the answer."""
    pixels = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    norm = versions.read_manifest(model).normalisation
    mean, std = np.array(norm.mean, np.float32), np.array(norm.std, np.float32)
    normalised = (pixels.astype(np.float32) / 255 - mean) / std
    tensor = {
        "image": lambda: images(*map(bitmap, pixels)),
        "UINT8": lambda: array(pixels, "UINT8"),
        "FP32": lambda: array(normalised.transpose(0, 3, 1, 2).astype("<f4"), "FP32"),
    }[form]()
    result = connect(real).infer(model.parent.name, [tensor], model_version=model.name)
    expected = probabilities(read_params(model / "net.params"), pixels)
    assert np.abs(result.as_numpy("probabilities") - expected).max() < 1e-4
