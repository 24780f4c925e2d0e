"""Traces: where a request's time went, told to an OpenTelemetry collector.

The environment says whether and where, by OpenTelemetry's own variables such as
OTEL_EXPORTER_OTLP_ENDPOINT; without them nothing here runs. Wants the extra `otel`.

A request is a span, child of the caller's where its headers bring a `traceparent` (W3C): FastAPI
makes it over HTTP, `requested` over gRPC. Below it are `read`, and for each image `decode`, `queue`
and `infer`, made after the fact from the times that were taken anyway. A batch belongs to many
requests: it is a trace of its own, with a link to each request, and each `infer` has one to it.
A batch is sampled where one of its requests is.
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
"""How long a stop waits for a collector that does not answer."""

Out = TypeVar("Out")


@dataclass(slots=True, eq=False)
class Seat:
    """An image that waits for the engine: whose it is, and the batch it was computed in."""

    request: SpanContext
    batch: SpanContext | None = None


class Tracing:
    """Makes spans and hands them to `processor`."""

    def __init__(self, processor: SpanProcessor) -> None:
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
        self._seats: dict[int, Seat] = {}

    @contextmanager
    def requested(
        self, name: str, headers: Mapping[str, str], attributes: Mapping[str, str]
    ) -> Iterator[Span]:
        """Within, the current span is a request's; `headers` may name its parent."""
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
        """Of the current request; times are `time.perf_counter`'s."""
        links = [Link(batch)] if batch else None
        span = self._requests.start_span(name, links=links, start_time=_wall(began))
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        span.end(_wall(ended))

    @contextmanager
    def seated(self, image: Image) -> Iterator[Seat]:
        """While `image` waits within, the batch that it is part of gets known."""
        seat = self._seats[id(image)] = Seat(trace.get_current_span().get_span_context())
        try:
            yield seat
        finally:
            del self._seats[id(image)]

    def batches(self, infer: Infer[Image, Out]) -> Infer[Image, Out]:
        """`infer`, with a span a batch."""

        async def traced(images: Sequence[Image]) -> Sequence[Out | Exception]:
            found = (self._seats.get(id(image)) for image in images)
            seats = [seat for seat in found if seat and seat.request.trace_flags.sampled]
            if not seats:
                return await infer(images)
            requests = {seat.request.span_id: seat.request for seat in seats}
            with self._batches.start_as_current_span(
                "batch",
                Context(),  # the root of a trace
                attributes={"shoal.batch.size": len(images)},
                links=[Link(request) for request in requests.values()],
            ) as span:
                for seat in seats:
                    seat.batch = span.get_span_context()
                return await infer(images)

        return traced

    async def close(self) -> None:
        """Send what has not been sent."""
        # Not a thread of a pool: the process would wait for it at its end.
        thread = threading.Thread(target=self._processor.shutdown, daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, FLUSH_SECONDS)
        if thread.is_alive():
            log.warning("the collector of traces does not answer; the last spans are lost")


class TraceId(logging.Filter):
    """Notes in each record the trace that it belongs to, if any."""

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
    """Where the environment asks for traces and they can be sent; else None, with a word in the
    log if they cannot: it is not worth the predictions."""
    if not wanted(environment):
        return None
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), None)
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = importlib.import_module(EXPORTERS[protocol or "http/protobuf"])
    except KeyError:
        log.warning(
            "no traces: OpenTelemetry's protocol %r is not one of %s",
            protocol,
            ", ".join(EXPORTERS),
        )
        return None
    except ImportError as error:
        log.warning(
            "no traces: the environment asks for them and %s. They want pip install 'shoal[otel]', "
            "and over gRPC also opentelemetry-exporter-otlp-proto-grpc",
            error,
        )
        return None
    for handler in logging.getLogger().handlers:
        handler.addFilter(TraceId())
    return Tracing(BatchSpanProcessor(exporter.OTLPSpanExporter()))


def wanted(environment: Mapping[str, str]) -> bool:
    """Does the environment ask for traces?"""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if exporter := environment.get("OTEL_TRACES_EXPORTER", ""):
        return exporter == "otlp"
    return any(environment.get(name) for name in ENDPOINTS)


def _wall(moment: float) -> int:
    """Nanoseconds since 1970 of a moment of `time.perf_counter`."""
    return time.time_ns() - round((time.perf_counter() - moment) * 1e9)
