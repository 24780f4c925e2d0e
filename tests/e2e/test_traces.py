"""Traces, as an OpenTelemetry collector gets them from a real process."""

from __future__ import annotations

import itertools
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.e2e.collector import Collector
from tests.e2e.process import PATIENCE, SCRIPTED, Server
from tests.service.conftest import png

pytestmark = pytest.mark.slow
HORSE = png(7)
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
ERROR = 2
ENGINE = 0.05


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def server(collector: Collector) -> Iterator[Server]:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "SHOAL_GRPC_PORT": "0",
        "ENGINE_SECONDS": str(ENGINE),
    }
    with Server(*SCRIPTED, **environment) as server:
        server.wait_until_ready()
        yield server


def attributes(span: Any) -> dict[str, Any]:
    return {
        found.key: found.value.string_value or found.value.int_value for found in span.attributes
    }


def seconds(span: Any) -> float:
    took: float = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    return took


def test_trace_follows_a_request_to_its_batch(collector: Collector, server: Server) -> None:
    """The trace leads from the client's span through the stages to the batch, and back."""
    before = time.time_ns()
    response = httpx.post(
        f"{server.url}/predict", files={"img": HORSE}, headers={"traceparent": TRACEPARENT}
    )
    assert response.status_code == 200
    (batch,) = collector.wait_for("batch", 1)
    (request,) = collector.wait_for("POST /predict", 1)
    assert collector.services == {"shoal"}
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes(request)["http.response.status_code"] == 200

    stages = [collector.named(name)[0] for name in ("read", "decode", "queue", "infer")]
    for stage in stages:
        assert stage.trace_id == request.trace_id and stage.parent_span_id == request.span_id
        assert before < request.start_time_unix_nano <= stage.start_time_unix_nano
        assert stage.end_time_unix_nano <= request.end_time_unix_nano
    for earlier, later in itertools.pairwise(stages):
        assert earlier.end_time_unix_nano <= later.start_time_unix_nano + 50_000

    infer = stages[-1]
    # The event loop's timers count whole milliseconds: one may end that much early.
    assert ENGINE - 0.001 <= seconds(infer) < seconds(request)
    assert not batch.parent_span_id and batch.trace_id != request.trace_id
    assert attributes(batch) == {"shoal.batch.size": 1}
    assert [(link.trace_id, link.span_id) for link in batch.links] == [
        (request.trace_id, request.span_id)
    ]
    assert [(link.trace_id, link.span_id) for link in infer.links] == [
        (batch.trace_id, batch.span_id)
    ]
    said = [record for record in server.log() if record.get("path") == "/predict"]
    assert [record["trace_id"] for record in said] == [TRACE]


def test_traces_of_a_batch_are_linked(collector: Collector, server: Server) -> None:
    """Requests that were computed together link to one batch, and it links to each of them."""
    known = len(collector.named("POST /predict"))
    with ThreadPoolExecutor(9) as pool:
        for future in [
            pool.submit(httpx.post, f"{server.url}/predict", files={"img": HORSE}) for _ in range(9)
        ]:
            assert future.result().status_code == 200
    requests = collector.wait_for("POST /predict", known + 9)[known:]
    batches = {batch.span_id: batch for batch in collector.named("batch")}
    assert max(attributes(batch)["shoal.batch.size"] for batch in batches.values()) > 1
    infers = {span.parent_span_id: span for span in collector.named("infer")}
    for request in requests:
        (link,) = infers[request.span_id].links
        assert request.span_id in {back.span_id for back in batches[link.span_id].links}


def test_trace_marks_the_stage_that_failed(collector: Collector, server: Server) -> None:
    """The span of the stage that failed has the error."""
    headers = {"traceparent": TRACEPARENT.replace(TRACE, "1" * 32)}
    answer = httpx.post(f"{server.url}/predict", files={"img": b"hello"}, headers=headers)
    assert answer.status_code == 400
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = [span for span in collector.named("decode") if span.trace_id.hex() == "1" * 32]
        if found:
            break
        time.sleep(0.02)
    assert [(span.status.code, span.status.message) for span in found] == [(ERROR, "BadImage")]


def test_trace_follows_a_grpc_call(collector: Collector, server: Server) -> None:
    """A gRPC call has the spans of an HTTP request."""
    with grpc.insecure_channel(server.address("gRPC on")) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="fake")
        tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(HORSE)
        parent = TRACEPARENT.replace(TRACE, "2" * 32)
        stub.ModelInfer(request, metadata=[("traceparent", parent)])
        stub.ServerReady(service_pb2.ServerReadyRequest())
    (span,) = collector.wait_for("inference.GRPCInferenceService/ModelInfer", 1)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == ("2" * 32, PARENT)
    below = {s.name for s in collector.spans if s.parent_span_id == span.span_id}
    assert below == {"read", "decode", "queue", "infer"}


def test_requests_that_are_not_sampled_have_no_spans(collector: Collector, server: Server) -> None:
    """If the client does not sample, neither the request nor its batch has a span."""

    def spans(trace: str) -> list[str]:
        return [span.name for span in collector.spans if span.trace_id.hex() == trace]

    for trace, sampled in ("3" * 32, "00"), ("4" * 32, "01"):
        headers = {"traceparent": f"00-{trace}-{PARENT}-{sampled}"}
        httpx.post(f"{server.url}/predict", files={"img": HORSE}, headers=headers)
    end = time.monotonic() + PATIENCE
    while "POST /predict" not in spans("4" * 32) and time.monotonic() < end:
        time.sleep(0.02)
    assert sorted(spans("4" * 32)) == ["POST /predict", "decode", "infer", "queue", "read"]
    assert spans("3" * 32) == []
    assert all(batch.links for batch in collector.named("batch"))


def test_probes_are_not_traced(collector: Collector, server: Server) -> None:
    """Probes and scrapes have no spans."""
    assert not [span for span in collector.spans if re.search("readyz|Ready", span.name)]


def test_last_spans_are_sent_at_shutdown() -> None:
    """Spans of the last requests are exported before the process ends."""
    with Collector() as collector:
        settings = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.endpoint}/v1/traces",
            "OTEL_SERVICE_NAME": "ours",
            "OTEL_BSP_SCHEDULE_DELAY": "600000",
        }
        with Server(*SCRIPTED, **settings) as server:
            server.wait_until_ready()
            httpx.post(f"{server.url}/predict", files={"img": HORSE})
            assert not collector.spans
            assert server.stop() == 0
    assert len(collector.spans) == 6 and collector.services == {"ours"}


def test_silent_collector_delays_nothing() -> None:
    """A collector that does not answer delays neither requests nor the shutdown."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Server(*SCRIPTED, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint) as server:
            server.wait_until_ready()
            for _ in range(3):
                answer = httpx.post(f"{server.url}/predict", files={"img": HORSE}, timeout=8)
                assert answer.status_code == 200
            started = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - started < 30
        assert any("does not respond" in record["message"] for record in server.log())
