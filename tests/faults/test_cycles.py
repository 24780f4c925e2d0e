"""What a request needed is freed with it. Garbage collections are rare, and a reference cycle could
keep an upload until the next one."""

from __future__ import annotations

import base64
from typing import Any

import grpc
import httpx
import pytest

from service.grpc.messages import ModelInferRequest
from tests.e2e.process import Server
from tests.faults.faulty import FAULTY, Fault, picture
from tests.service import synthetic

pytestmark = pytest.mark.slow
TIMES = 20
LEAST = 10
"""Objects of the smallest circle seen: a form's parser and the methods that it calls."""
GOOD = picture(Fault.NONE)
LARGE = synthetic.encode(synthetic.flat("RGB", 7, side=2000), "PNG")
"""Decoded on a thread of its own."""
SLOW = {"ENGINE_SECONDS": "0.03"}
"""Long enough for somebody to watch whether the client leaves."""


def tensor(*images: bytes) -> dict[str, Any]:
    """The JSON of an inference request."""
    data = [base64.b64encode(image).decode() for image in images]
    shape = {"name": "image", "datatype": "BYTES", "shape": [len(data)]}
    return {"inputs": [{**shape, "data": data}]}


BROKEN = LARGE[:-100]
REQUESTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "good": ("/predict", {"content": GOOD}, 200),
    "large": ("/predict", {"content": LARGE}, 200),
    "broken": ("/predict", {"content": BROKEN}, 400),
    "bomb": ("/predict", {"content": synthetic.bombs()["png text"]}, 400),
    "form": ("/predict", {"files": {"x": GOOD, "img": GOOD}}, 200),
    "no image": ("/predict", {"files": {"x": GOOD}}, 422),
    "batch": ("/predict/batch", {"files": [("img", GOOD), ("img", BROKEN)]}, 200),
    "inference": ("/v2/models/fake/infer", {"json": tensor(GOOD, GOOD)}, 200),
    "broken inference": ("/v2/models/fake/infer", {"json": tensor(GOOD, BROKEN)}, 400),
    "unknown model": ("/v2/models/other/infer", {"json": tensor(GOOD)}, 404),
}


@pytest.mark.parametrize(("path", "sent", "status"), REQUESTS.values(), ids=REQUESTS)
def test_requests_leave_no_reference_cycles(path: str, sent: dict[str, Any], status: int) -> None:
    """An HTTP request that ends, with an answer or an error of any kind, is freed at once."""
    headers = {"Content-Type": "image/png"} if "content" in sent else {}
    with Server(*FAULTY, **SLOW) as server:
        server.wait_until_ready()
        for _ in range(TIMES):
            answer = httpx.post(f"{server.url}{path}", headers=headers, timeout=30, **sent)
            assert answer.status_code == status
        server.stop()
        assert server.log_of("the loop")["kept_each_other"] < TIMES * LEAST


def infer(image: bytes, model: str = "fake") -> bytes:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
    contents = {"bytes_contents": [image]}
    request = ModelInferRequest(model_name=model, inputs=[{**tensor, "contents": contents}])
    data: bytes = request.SerializeToString()
    return data


INFER = "/inference.GRPCInferenceService/ModelInfer"
RPC = {"SHOAL_GRPC_PORT": "0", "SHOAL_MAX_UPLOAD_BYTES": "1000000"}
KEY = (("authorization", "Bearer a-key-of-sixteen-or-more"),)
NO_FIELD = b"\xff" * 1000
"""Is no protobuf message."""
CALLS = {
    "good": (infer(GOOD), KEY, "OK"),
    "not a message": (NO_FIELD, KEY, "INVALID_ARGUMENT"),
    "broken image": (infer(BROKEN), KEY, "INVALID_ARGUMENT"),
    "bomb": (infer(synthetic.bombs()["png text"]), KEY, "INVALID_ARGUMENT"),
    "unknown model": (infer(GOOD, "other"), KEY, "NOT_FOUND"),
    "too large": (bytes(1_000_001), KEY, "RESOURCE_EXHAUSTED"),
    "no key": (infer(GOOD), (), "UNAUTHENTICATED"),
}


@pytest.mark.parametrize(("message", "metadata", "status"), CALLS.values(), ids=CALLS)
def test_calls_leave_no_reference_cycles(message: bytes, metadata: Any, status: str) -> None:
    """A gRPC call that ends, with an answer or an error of any kind, is freed at once."""
    with Server(*FAULTY, **SLOW, **RPC, SHOAL_API_KEYS=KEY[0][1].split()[1]) as server:
        server.wait_until_ready()
        with grpc.insecure_channel(server.address("gRPC on")) as channel:
            call: Any = channel.unary_unary(INFER)
            for _ in range(TIMES):
                try:
                    call(message, metadata=metadata)
                    ended = "OK"
                except grpc.RpcError as error:
                    ended = error.code().name
                assert ended == status
        server.stop()
        assert server.log_of("the loop")["kept_each_other"] < TIMES * LEAST


async def test_canceled_calls_leave_no_reference_cycles() -> None:
    """A gRPC call that its client cancels is freed at once, in the queue and in a batch."""
    with Server(*FAULTY, **RPC, ENGINE_SECONDS="4") as server:
        server.wait_until_ready()
        with grpc.insecure_channel(server.address("gRPC on")) as channel:
            method: Any = channel.unary_unary(INFER)
            calls = [method.future(infer(GOOD)) for _ in range(TIMES)]
            await server.wait_until("shoal_batches_in_flight", 1)
            await server.wait_until("shoal_queue_length", TIMES - 1)
            for call in calls:
                call.cancel()
            await server.wait_until("shoal_cancellations_total", TIMES)
        server.stop()
        assert server.log_of("the loop")["kept_each_other"] < TIMES * LEAST
