"""Prometheus metrics of this process or of all processes of the service, served at `/metrics`.

Names follow https://prometheus.io/docs/practices/naming/: base units, and `_total` for counters.
When a request ends, the process that handled the request counts the request, its stages, and the
code of its error. The process that runs a batch counts the batch. Current values, such as the queue
length, are read when Prometheus scrapes the metrics (`collectors`). Clients cannot choose label
values.

A service with several processes uses the multiprocess mode of prometheus_client. Each process
writes its counts to files in a shared folder. Each process can return the totals of all processes,
including processes that have ended. This mode requires that PROMETHEUS_MULTIPROC_DIR is set before
prometheus_client is imported.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from functools import partial

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from batching import BatchReport
from service.telemetry.collectors import ProcessesCollector

MEDIA_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
FINE_SECONDS = (0.0001, 0.00025, 0.0005, *SECONDS)
SIZES = tuple(float(1 << power) for power in range(11))
RATIOS = (0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 5.0, 10.0)


class Metrics:
    """Counts requests, batches and images, and writes them in Prometheus' text format."""

    def __init__(self, folder: str | None = None) -> None:
        """
        Args:
            folder: Path of the folder that several processes share, which is also the value of
                PROMETHEUS_MULTIPROC_DIR. None: this is the only process.
        """
        self._folder = folder
        self._registry = registry = CollectorRegistry()
        requests = Histogram(
            "shoal_request_duration_seconds",
            "Seconds from the headers of a request to the end of its response, by status. "
            "499 (HTTP) or CANCELLED (gRPC): the client disconnected.",
            ["route", "status"],
            buckets=SECONDS,
            registry=registry,
        )
        stages = Histogram(
            "shoal_stage_duration_seconds",
            "Seconds in each stage of a prediction. read, decode, queue and infer: time of the "
            "slowest image of a request. assemble: time to build the input array of a batch.",
            ["stage"],
            buckets=FINE_SECONDS,
            registry=registry,
        )
        self._refusals = Counter(
            "shoal_refusals",
            "Requests, or images of /predict/batch, that got an error response, by code.",
            ["code"],
            registry=registry,
        )
        self._cancellations = Counter(
            "shoal_cancellations",
            "Requests that were canceled because the client disconnected before the response.",
            registry=registry,
        )
        # With several processes, a gauge is the sum over the running processes.
        gauge = partial(Gauge, registry=registry, multiprocess_mode="livesum")
        self._in_flight = gauge("shoal_requests_in_flight", "Requests in progress.")
        self._upload_bytes = gauge("shoal_upload_memory_bytes", "Memory held by uploads.")
        self._waiting_images = gauge("shoal_decode_queue_length", "Images waiting for a decoder.")
        self._batch_size = Histogram(
            "shoal_batch_size", "Images per batch.", buckets=SIZES, registry=registry
        )
        batches = Counter(
            "shoal_batches",
            "Batches, by the size that they were padded to.",
            ["bucket"],
            registry=registry,
        )
        self._padding = Counter(
            "shoal_padding_items", "Rows of padding in batches.", registry=registry
        )
        self._batch_seconds = Histogram(
            "shoal_batch_duration_seconds",
            "Seconds from the dispatch of a batch to the result of its last image.",
            buckets=FINE_SECONDS,
            registry=registry,
        )
        self._overrun = Histogram(
            "shoal_batch_actual_to_predicted_ratio",
            "Duration of a batch divided by its predicted duration.",
            buckets=RATIOS,
            registry=registry,
        )
        items = Counter(
            "shoal_items",
            "Images of batches, by outcome: answered, failed, or gone (canceled before the end).",
            ["outcome"],
            registry=registry,
        )
        self._retries = Counter(
            "shoal_batch_retries",
            "Additional calls of the engine to find the images that make a batch fail.",
            registry=registry,
        )
        self._out_of_memory = Counter(
            "shoal_batches_out_of_memory",
            "Batches for which the device did not have enough memory.",
            registry=registry,
        )
        self._loads = Counter(
            "shoal_model_loads",
            "Attempts to load another version, by outcome: loaded or failed.",
            ["outcome"],
            registry=registry,
        )
        self._kills = Counter(
            "shoal_decoder_kills",
            "Decoder processes that ended while decoding, by reason. cpu_time: killed because of "
            "the limit on CPU time. crash: ended by itself. lost: killed from outside.",
            ["reason"],
            registry=registry,
        )
        for reason in ("cpu_time", "crash", "lost"):
            self._kills.labels(reason)
        for outcome in ("loaded", "failed"):
            self._loads.labels(outcome)
        self._answered = items.labels("answered")
        self._failed = items.labels("failed")
        self._gone = items.labels("gone")
        # These functions are cached, because finding the counter of a label costs more than
        # counting.
        self._request = functools.cache(requests.labels)
        self._stage = functools.cache(stages.labels)
        self._batches = functools.cache(batches.labels)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

    def record_state(self, upload_bytes: int, waiting_images: int) -> None:
        """Set the gauges of this process to the current values.

        Args:
            upload_bytes: Number of bytes of memory that uploads hold.
            waiting_images: Number of images that wait for a decoder process.
        """
        self._upload_bytes.set(upload_bytes)
        self._waiting_images.set(waiting_images)

    def begin_request(self) -> None:
        """Count a request in progress. Callers call this method when the headers have arrived."""
        self._in_flight.inc()

    def end_request(
        self, route: str, status: str, seconds: float, stages: Mapping[str, float], code: str | None
    ) -> None:
        """Count a request that has ended, with a response or because the client disconnected.

        Args:
            route: Pattern of the route, not the path that the client sent.
            status: HTTP status, or name of the gRPC status.
            seconds: Duration of the request, in seconds.
            stages: Stage -> duration, in seconds.
            code: Code of the problem that the client received. None: the request succeeded.
        """
        self._in_flight.dec()
        self._request(route, status).observe(seconds)
        for stage, duration in stages.items():
            self._stage(stage).observe(duration)
        if code == "client_left":
            self._cancellations.inc()
        elif code is not None:
            self.count_refusal(code)

    def count_refusal(self, code: str) -> None:
        """Count a request, or one of its images, that got the error `code`."""
        self._refusals.labels(code).inc()

    def count_batch(self, report: BatchReport) -> None:
        """Count a batch that has ended."""
        self._batch_size.observe(report.size)
        self._batches(report.bucket).inc()
        self._padding.inc(report.bucket - report.size)
        self._batch_seconds.observe(report.infer_seconds)
        self._overrun.observe(report.infer_seconds / report.predicted_seconds)
        self._answered.inc(report.answered)
        self._failed.inc(report.failed)
        self._gone.inc(report.gone)
        self._retries.inc(report.retries)
        self._out_of_memory.inc(report.out_of_memory)

    def count_assembly(self, seconds: float) -> None:
        """Record the time to build the input array of a batch, in seconds."""
        self._stage("assemble").observe(seconds)

    def count_load(self, outcome: str) -> None:
        """Count an attempt to load another version. `outcome` is `loaded` or `failed`."""
        self._loads.labels(outcome).inc()

    def count_decoder_kill(self, reason: str) -> None:
        """Count a decoder process that ended while decoding. `reason`: cpu_time, crash or lost."""
        self._kills.labels(reason).inc()

    def text(self, now: Collector | None = None) -> bytes:
        """Return all metrics in Prometheus' text format 0.0.4.

        Args:
            now: Collector of current values. None: the text has no current values.
        """
        parts: list[Collector] = [self._registry]
        if self._folder is not None:
            parts = [_all_processes(self._folder), ProcessesCollector(self._folder)]
        return b"".join(map(generate_latest, [*parts, now] if now is not None else parts))


def _all_processes(folder: str) -> Collector:
    collector: Collector = MultiProcessCollector(None, folder)  # type: ignore[no-untyped-call]  # not typed
    return collector
