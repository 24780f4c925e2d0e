"""What Prometheus is told: one registry an application, read at `/metrics`.

Names follow https://prometheus.io/docs/practices/naming/: base units, `_total` for what only grows.
What happened is counted as it ends: requests, their stages and refusals by whoever answers them,
batches and what an engine tells by whoever computes them. What has a value at any moment (how many
wait, what a batch takes) is asked for when somebody looks. No label takes a value from a client.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

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
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from batching import BatchReport
from service.repository import Repository
from service.serving import Ready, Serving

MEDIA_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
FINE_SECONDS = (0.0001, 0.00025, 0.0005, *SECONDS)
SIZES = tuple(float(1 << power) for power in range(11))
RATIOS = (0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 5.0, 10.0)


class Metrics:
    """Counts what happens; `text` is what there is to tell."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Histogram(
            "shoal_request_duration_seconds",
            "From a request's head to the end of its answer, by HTTP's status or gRPC's; "
            "499 or CANCELLED: the client left.",
            ["route", "status"],
            buckets=SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "shoal_stage_duration_seconds",
            "Where a prediction's time went: read, decode, queue, infer, of its slowest image. "
            "assemble: of a batch, the images made one array.",
            ["stage"],
            buckets=FINE_SECONDS,
            registry=registry,
        )
        self._refusals = Counter(
            "shoal_refusals",
            "Requests, or images of /predict/batch, answered by a problem, by its code.",
            ["code"],
            registry=registry,
        )
        self._cancellations = Counter(
            "shoal_cancellations", "Requests whose client left first.", registry=registry
        )
        self._in_flight = Gauge(
            "shoal_requests_in_flight", "Requests that are not answered yet.", registry=registry
        )
        self._batch_size = Histogram(
            "shoal_batch_size", "Items computed together.", buckets=SIZES, registry=registry
        )
        self._buckets = Counter(
            "shoal_batches",
            "Batches, by the size that the engine padded them to.",
            ["bucket"],
            registry=registry,
        )
        self._padding = Counter(
            "shoal_padding_items", "Places in batches that were computed empty.", registry=registry
        )
        self._batch_seconds = Histogram(
            "shoal_batch_duration_seconds",
            "From a batch's hand-over to its last outcome.",
            buckets=FINE_SECONDS,
            registry=registry,
        )
        self._overrun = Histogram(
            "shoal_batch_actual_to_predicted_ratio",
            "A batch's duration by the one that was predicted.",
            buckets=RATIOS,
            registry=registry,
        )
        self._items = Counter(
            "shoal_items",
            "Items of batches: answered, failed, or gone before the end.",
            ["outcome"],
            registry=registry,
        )
        self._retries = Counter(
            "shoal_batch_retries",
            "Further calls of the engine to isolate a fault.",
            registry=registry,
        )
        self._out_of_memory = Counter(
            "shoal_batches_out_of_memory", "Batches that did not fit the device.", registry=registry
        )
        self._answered = self._items.labels("answered")
        self._failed = self._items.labels("failed")
        self._gone = self._items.labels("gone")
        # Looking a child up costs more than counting does.
        self._request = functools.cache(self._requests.labels)
        self._stage = functools.cache(self._stages.labels)
        self._bucket = functools.cache(self._buckets.labels)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

    def watch(self, serving: Serving, repository: Repository) -> None:
        """Ask these for what has a value at any moment."""
        self._registry.register(_Now(serving, repository))

    def begin_request(self) -> None:
        """The head of a request is there."""
        self._in_flight.inc()

    def end_request(
        self, route: str, status: str, seconds: float, stages: Mapping[str, float], code: str | None
    ) -> None:
        """It was answered, or its client left."""
        self._in_flight.dec()
        self._request(route, status).observe(seconds)
        for stage, duration in stages.items():
            self._stage(stage).observe(duration)
        if code == "client_left":
            self._cancellations.inc()
        elif code is not None:
            self.count_refusal(code)

    def count_refusal(self, code: str) -> None:
        """A request was answered by a problem, or an image among others."""
        self._refusals.labels(code).inc()

    def count_batch(self, report: BatchReport) -> None:
        """A batch has ended."""
        self._batch_size.observe(report.size)
        self._bucket(report.bucket).inc()
        self._padding.inc(report.bucket - report.size)
        self._batch_seconds.observe(report.infer_seconds)
        self._overrun.observe(report.infer_seconds / report.predicted_seconds)
        self._answered.inc(report.answered)
        self._failed.inc(report.failed)
        self._gone.inc(report.gone)
        self._retries.inc(report.retries)
        self._out_of_memory.inc(report.out_of_memory)

    def count_assembly(self, seconds: float) -> None:
        """A batch's images were made the array that the engine computes."""
        self._stage("assemble").observe(seconds)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)


class _Now(Collector):
    """Read from the running parts, each time anew."""

    def __init__(self, serving: Serving, repository: Repository) -> None:
        self._serving = serving
        self._repository = repository

    def collect(self) -> Iterable[Metric]:
        started = self._serving.started
        ready = started is not None and not self._serving.draining
        yield GaugeMetricFamily("shoal_ready", "1 while /readyz says so.", ready)
        loads = CounterMetricFamily(
            "shoal_model_loads",
            "How often another version was to be loaded: loaded, or failed.",
            labels=["outcome"],
        )
        for outcome, count in self._repository.loads.items():
            loads.add_metric([outcome], count)
        yield loads
        yield GaugeMetricFamily(
            "shoal_upload_memory_bytes", "Held by uploads.", self._serving.uploads.held
        )
        yield GaugeMetricFamily(
            "shoal_decode_queue_length",
            "Images that wait for a decoder.",
            self._serving.decoders.waiting,
        )
        if started is not None:
            yield from _of_batcher(started)
        if (memory := self._serving.gpu_memory) is not None:
            gpu = GaugeMetricFamily(
                "shoal_gpu_memory_bytes",
                "Of the whole GPU, as of the latest batch; used: by any process.",
                labels=["state"],
            )
            gpu.add_metric(["used"], memory.total - memory.free)
            gpu.add_metric(["free"], memory.free)
            yield gpu


def _of_batcher(started: Ready) -> Iterable[Metric]:
    batcher = started.batcher
    yield GaugeMetricFamily("shoal_queue_length", "Items that wait.", batcher.queued)
    yield GaugeMetricFamily(
        "shoal_batches_in_flight", "Batches in the engine's hands.", batcher.in_flight
    )
    yield CounterMetricFamily(
        "shoal_engine_busy_seconds", "Seconds the engine had work.", batcher.busy_seconds
    )
    yield GaugeMetricFamily(
        "shoal_batch_size_limit",
        "The largest batch at the moment; less than set where memory ran out.",
        batcher.size_limit,
    )
    yield GaugeMetricFamily(
        "shoal_prediction_margin_ratio",
        "Share of a predicted time that is kept in reserve, as learned so far.",
        batcher.margin,
    )
    expected = GaugeMetricFamily(
        "shoal_batch_expected_seconds",
        "What a batch of a bucket is expected to take, as learned so far.",
        labels=["bucket"],
    )
    for bucket, seconds in started.latency.as_dict().items():
        expected.add_metric([str(bucket)], seconds)
    yield expected
    model = GaugeMetricFamily(
        "shoal_model_info",
        "1, with the model that answers and what it runs on.",
        labels=["model", "version", "device"],
    )
    told = started.model
    model.add_metric([told.name, told.version, started.device.name], 1)
    yield model
