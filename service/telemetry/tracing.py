"""Traces requests, and sends the spans to an OpenTelemetry collector.

OpenTelemetry's own environment variables, such as OTEL_EXPORTER_OTLP_ENDPOINT, turn tracing on.
Without these variables, the service does not trace. Tracing needs the extra `otel`.

Each request has a span. FastAPI creates the span of an HTTP request, and `request_span` creates the
span of a gRPC request. If the headers contain `traceparent` (W3C Trace Context), the span is a
child of the caller's span. The span of a request has children for the stages: `read` and, for each
image, `decode`, `queue` and `infer`. A child span is created when its stage ends. Its start and end
times are measured even when tracing is off.

A batch contains images of several requests, so its span is the root of a separate trace. This span
has a link to each request, and each `infer` span has a link to the span of its batch. A batch is
sampled if at least one of its requests is sampled.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode

from batching.batch_run import Infer
from model_store.engine import Image
from service.telemetry.logs import log

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
EXPORTERS = {
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
}
FLUSH_SECONDS = 5.0
"""Maximum number of seconds that the shutdown waits for the collector to accept the last spans."""

Out = TypeVar("Out")


@dataclass(slots=True, eq=False)
class TracedImage:
    """The spans of an image that is in the queue or in a batch."""

    request: SpanContext
    """Span of the image's request."""
    batch: SpanContext | None = None
    """Span of the image's batch. None: the batch has not started, or is not sampled."""


class Tracing:
    """Creates the spans of requests, stages and batches."""

    def __init__(self, processor: SpanProcessor) -> None:
        """
        Args:
            processor: Span processor that receives the spans.
        """
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "shoal"}))
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        batches = TracerProvider(resource=resource, sampler=ALWAYS_ON, shutdown_on_exit=False)
        for provider in (self.provider, batches):
            provider.add_span_processor(processor)
        self._processor = processor
        self._requests = self.provider.get_tracer("shoal")
        self._batches = batches.get_tracer("shoal")
        self._images: dict[int, TracedImage] = {}

    @contextmanager
    def request_span(
        self, name: str, headers: Mapping[str, str], attributes: Mapping[str, str]
    ) -> Iterator[Span]:
        """Make the span of a request the current span within the context.

        Args:
            name: Name of the span.
            headers: Headers of the request. `traceparent` names the parent span.
            attributes: Attributes of the span.
        """
        with self._requests.start_as_current_span(
            name,
            propagate.extract(headers),
            SpanKind.SERVER,
            attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span

    def stage(
        self,
        name: str,
        began: float,
        ended: float,
        batch: SpanContext | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Create the span of a completed stage of the current request.

        Args:
            name: Name of the stage.
            began: Time when the stage began, from `time.perf_counter`, in seconds.
            ended: Time when the stage ended, from the same clock.
            batch: Span of the batch to link to. None: no link.
            error: Exception that ended the stage. None: the stage succeeded.
        """
        links = [Link(batch)] if batch else None
        span = self._requests.start_span(name, links=links, start_time=_wall(began))
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        span.end(_wall(ended))

    @contextmanager
    def waiting(self, image: Image) -> Iterator[TracedImage]:
        """Track which batch `image` joins, until the context exits.

        The yielded object has the span of the batch as soon as the batch starts.
        """
        traced = self._images[id(image)] = TracedImage(trace.get_current_span().get_span_context())
        try:
            yield traced
        finally:
            del self._images[id(image)]

    def batches(self, infer: Infer[Image, Out]) -> Infer[Image, Out]:
        """Wrap `infer` so that each batch with a sampled request has a span."""

        async def traced(images: Sequence[Image]) -> Sequence[Out | Exception]:
            known = (self._images.get(id(image)) for image in images)
            sampled = [image for image in known if image and image.request.trace_flags.sampled]
            if not sampled:
                return await infer(images)
            requests = {image.request.span_id: image.request for image in sampled}
            with self._batches.start_as_current_span(
                "batch",
                Context(),  # the root of a trace
                attributes={"shoal.batch.size": len(images)},
                links=[Link(request) for request in requests.values()],
            ) as span:
                for image in sampled:
                    image.batch = span.get_span_context()
                return await infer(images)

        return traced

    async def close(self) -> None:
        """Send the remaining spans. Waits at most `FLUSH_SECONDS`."""
        # Runs in a daemon thread, because a pool thread would block process exit until the
        # collector responds.
        thread = threading.Thread(target=self._processor.shutdown, daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, FLUSH_SECONDS)
        if thread.is_alive():
            log.warning("the OpenTelemetry collector does not respond; the last spans are lost")


class TraceId(logging.Filter):
    """Adds the ids of the current trace and span to each log record."""

    def filter(self, record: logging.LogRecord) -> bool:
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            record.fields = {
                **getattr(record, "fields", {}),
                "trace_id": trace.format_trace_id(context.trace_id),
                "span_id": trace.format_span_id(context.span_id),
            }
        return True


def from_environment(environment: Mapping[str, str]) -> Tracing | None:
    """Create a `Tracing` as OpenTelemetry's environment variables configure it.

    Returns None if these variables do not turn tracing on. If spans cannot be sent, logs a warning
    and also returns None, because predictions must not depend on tracing.
    """
    if not enabled(environment):
        return None
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), None)
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = importlib.import_module(EXPORTERS[protocol or "http/protobuf"])
    except KeyError:
        log.warning(
            "tracing is off: the OpenTelemetry protocol %r is not one of %s",
            protocol,
            ", ".join(EXPORTERS),
        )
        return None
    except ImportError as error:
        log.warning(
            "tracing is off: %s. Run pip install 'shoal[otel]'. The protocol grpc also needs "
            "opentelemetry-exporter-otlp-proto-grpc",
            error,
        )
        return None
    for handler in logging.getLogger().handlers:
        handler.addFilter(TraceId())
    return Tracing(BatchSpanProcessor(exporter.OTLPSpanExporter()))


def enabled(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's environment variables turn tracing on."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if exporter := environment.get("OTEL_TRACES_EXPORTER", ""):
        return exporter == "otlp"
    return any(environment.get(name) for name in ENDPOINTS)


def _wall(moment: float) -> int:
    """Convert a time from `time.perf_counter` to nanoseconds since 1970."""
    return time.time_ns() - round((time.perf_counter() - moment) * 1e9)
