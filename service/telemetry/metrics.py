"""What Prometheus is told, read at `/metrics`: of this process, or of all that share a folder.

Names follow https://prometheus.io/docs/practices/naming/: base units, `_total` for what only grows.
What happened is counted as it ends: requests, their stages and refusals by whoever answers them,
batches and what an engine tells by whoever computes them. What has a value at any moment (how many
wait, what a batch takes) is asked for when somebody looks. No label takes a value from a client.

Where there are several processes each counts in files of its own in their folder, and any of them
adds up what all have counted, also those that are gone. That is prometheus_client's own way, which
it takes where PROMETHEUS_MULTIPROC_DIR is set before it is imported.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections import defaultdict
from collections.abc import Mapping
from functools import partial

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from batching import BatchReport
from service.telemetry.collectors import ProcessesCollector
from service.telemetry.histogram import Histogram

MEDIA_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
FINE_SECONDS = (0.0001, 0.00025, 0.0005, *SECONDS)
SIZES = tuple(float(1 << power) for power in range(11))
RATIOS = (0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 5.0, 10.0)


class Metrics:
    """Counts what happens; `text` is what there is to tell."""

    def __init__(self, folder: str | None = None) -> None:
        """`folder`: of all processes, and the value of PROMETHEUS_MULTIPROC_DIR."""
        self._folder = folder
        if folder is not None:  # nobody forks: no need to ask who we are each time we count
            ours = partial(int, os.getpid())
            values.ValueClass = values.MultiProcessValue(ours)  # type: ignore[no-untyped-call]  # theirs
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
        # Of several processes: the sum over those that live.
        gauge = partial(Gauge, registry=registry, multiprocess_mode="livesum")
        self._in_flight = gauge("shoal_requests_in_flight", "Requests that are not answered yet.")
        self._held = gauge("shoal_upload_memory_bytes", "Held by uploads.")
        self._waiting = gauge("shoal_decode_queue_length", "Images that wait for a decoder.")
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
        self._loads = Counter(
            "shoal_model_loads",
            "How often another version was to be loaded: loaded, or failed.",
            ["outcome"],
            registry=registry,
        )
        self._kills = Counter(
            "shoal_decoder_kills",
            "Decoder processes that ended before their time: cpu_time, killed for taking too much "
            "of it; crash, by themselves; lost, killed from outside.",
            ["reason"],
            registry=registry,
        )
        for reason in ("cpu_time", "crash", "lost"):
            self._kills.labels(reason)
        for outcome in ("loaded", "failed"):
            self._loads.labels(outcome)
        self._answered = self._items.labels("answered")
        self._failed = self._items.labels("failed")
        self._gone = self._items.labels("gone")
        self._begun = 0
        self._ended: list[tuple[str, str, float, Mapping[str, float]]] = []
        self._counts_soon = False
        # Looking a child up costs more than counting does.
        self._request = functools.cache(self._requests.labels)
        self._stage = functools.cache(self._stages.labels)
        self._bucket = functools.cache(self._buckets.labels)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

    def note(self, held: int, waiting: int) -> None:
        """Bytes that uploads hold, and images that wait for a decoder, at the moment."""
        self._held.set(held)
        self._waiting.set(waiting)

    def begin_request(self) -> None:
        """The head of a request is there. Within an event loop."""
        self._begun += 1
        self._count_soon()

    def end_request(
        self, route: str, status: str, seconds: float, stages: Mapping[str, float], code: str | None
    ) -> None:
        """It was answered, or its client left. Within an event loop."""
        self._ended.append((route, status, seconds, stages))
        self._count_soon()
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

    def count_load(self, outcome: str) -> None:
        """Another version was to be loaded: `loaded`, or `failed`."""
        self._loads.labels(outcome).inc()

    def count_decoder_kill(self, reason: str) -> None:
        """A decoder process ended before its time: `cpu_time` or `crash`."""
        self._kills.labels(reason).inc()

    def text(self, now: Collector | None = None) -> bytes:
        """Everything, in Prometheus' text format 0.0.4; `now` is what is true at the moment."""
        self._count_gathered()
        parts: list[Collector] = [self._registry]
        if self._folder is not None:
            parts = [_all_counted_in(self._folder), ProcessesCollector(self._folder)]
        return b"".join(map(generate_latest, [*parts, now] if now is not None else parts))

    def _count_soon(self) -> None:
        if not self._counts_soon:
            self._counts_soon = True
            asyncio.get_running_loop().call_soon(self._count_gathered)

    def _count_gathered(self) -> None:
        """The requests that have begun and ended in a turn of the event loop: under load they are
        many, and all at once cost little more than one."""
        self._counts_soon = False
        ended, self._ended = self._ended, []
        requests = defaultdict[tuple[str, str], list[float]](list)
        stages = defaultdict[str, list[float]](list)
        for route, status, seconds, durations in ended:
            requests[route, status].append(seconds)
            for stage, duration in durations.items():
                stages[stage].append(duration)
        for labels, times in requests.items():
            self._request(*labels).observe_all(times)
        for stage, times in stages.items():
            self._stage(stage).observe_all(times)
        begun, self._begun = self._begun, 0
        self._in_flight.inc(begun - len(ended))


def _all_counted_in(folder: str) -> Collector:
    collector: Collector = MultiProcessCollector(None, folder)  # type: ignore[no-untyped-call]  # theirs
    return collector
