"""Whether traces are sent, by OpenTelemetry's variables; tests/e2e has what is sent."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from service.settings import Settings
from service.telemetry.tracing import TraceId, Tracing, from_environment
from tests.fakes import FakeEngine
from tests.service.conftest import connected, png
from tests.waiting import until

HERE = "http://127.0.0.1:1"
CALLER = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}


@pytest.fixture(autouse=True)
def filters() -> Iterator[None]:
    """As they were, afterwards."""
    handlers = logging.getLogger().handlers
    before = [list(handler.filters) for handler in handlers]
    yield
    for handler, filters in zip(handlers, before, strict=False):
        handler.filters = filters


class Kept(SpanProcessor):
    """Keeps what has ended."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "shoal"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": HERE},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": HERE, "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": HERE, "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_tracing_is_off_by_default(
    environment: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Without OpenTelemetry's variables, or with those that disable it, there is no tracing."""
    assert from_environment(environment) is None
    assert not caplog.records


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": HERE},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": HERE},
        {"OTEL_TRACES_EXPORTER": "otlp"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": HERE, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
    ],
)
async def test_tracing_is_on_with_an_endpoint(environment: dict[str, str]) -> None:
    """With an endpoint, there is tracing."""
    tracing = from_environment(environment)
    assert tracing is not None
    await tracing.close()


def test_tracing_is_off_with_an_unknown_protocol(caplog: pytest.LogCaptureFixture) -> None:
    """An unknown protocol is logged as a warning, and the process continues without tracing."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": HERE, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}
    assert from_environment(environment) is None
    assert "'http/json' is not one of http/protobuf, grpc" in caplog.text


def test_tracing_is_off_without_its_packages(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing packages are logged as a warning."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    assert from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": HERE}) is None
    assert "pip install 'shoal[otel]'" in caplog.text


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    """What an application made with it tells."""
    kept = Kept()
    monkeypatch.setattr("service.app.from_environment", lambda environment: Tracing(kept))
    return kept


async def test_each_image_has_its_own_spans(
    kept: Kept, engine: FakeEngine, settings: Settings
) -> None:
    """Each image has decode, queue and infer spans; a batch links once to each request."""
    async with connected(settings, engine) as client:
        await client.post("/predict/batch", files=[("img", png(red)) for red in range(3)])
    (batch,) = kept.named("batch")
    (request,) = kept.named("POST /predict/batch")
    assert [len(kept.named(stage)) for stage in ("read", "decode", "queue", "infer")] == [
        1,
        3,
        3,
        3,
    ]
    assert [link.context.span_id for link in batch.links] == [request.context.span_id]


async def test_batch_span_has_no_parent() -> None:
    """A batch is the root of a trace, even if the batcher runs in the context of a request."""
    kept, image = Kept(), np.zeros((32, 32, 3), np.uint8)
    tracing = Tracing(kept)
    with tracing.request_span("load", {}, {}), tracing.waiting(image):
        await tracing.batches(FakeEngine().infer)([image])
    (batch,) = kept.named("batch")
    (load,) = kept.named("load")
    assert batch.parent is None and batch.context.trace_id != load.context.trace_id


async def test_timed_out_request_ends_its_spans(
    kept: Kept, engine: FakeEngine, settings: Settings
) -> None:
    """The span of the stage that timed out has the error, and nothing of the request is kept."""
    engine.seconds = 0.5
    engine.warm_up_seconds = {8: [0.001] * 3}
    async with connected(settings, engine) as client:
        late = {"x-request-timeout": "0.2"}
        answer = await client.post("/predict", files={"img": png(7)}, headers=late | CALLER)
        assert answer.status_code == 504
        (queue,) = kept.named("queue")
        assert queue.status.description == "TimeoutError"
        tracing: Tracing = client._transport.app.state.service.tracing  # type: ignore[attr-defined]
        assert not tracing._images
        await until(lambda: kept.named("batch"))


async def test_failed_stage_has_an_error(
    kept: Kept, engine: FakeEngine, settings: Settings
) -> None:
    """The span of a stage that fails has the error."""
    engine.error = RuntimeError("broken")
    async with connected(settings, engine) as client:
        assert (await client.post("/predict", files={"img": png(7)})).status_code == 500
    (batch,) = kept.named("batch")
    assert not batch.status.is_ok and batch.events[0].name == "exception"


async def test_log_lines_name_their_trace(
    kept: Kept,
    engine: FakeEngine,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Log lines of a request have its trace ID, and others have none."""
    caplog.handler.addFilter(TraceId())
    caplog.set_level("INFO")
    async with connected(settings, engine) as client:
        await client.post("/predict", files={"img": png(7)}, headers=CALLER)
    by_message = {record.message: getattr(record, "fields", {}) for record in caplog.records}
    assert by_message["request"]["trace_id"] == "1" * 32
    assert "trace_id" not in by_message["ready"]


async def test_log_lines_have_no_trace_without_tracing(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Without tracing, log lines have no trace ID."""
    caplog.set_level("INFO")
    await client.post("/predict", files={"img": png(7)}, headers=CALLER)
    assert "trace_id" not in str([getattr(record, "fields", {}) for record in caplog.records])
