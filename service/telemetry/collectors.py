"""What is true when somebody looks, as families of Prometheus: read anew for each scrape."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from functools import partial

import orjson
from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.inference.serving import LoadedModel
from service.telemetry.engine_stats import EngineStats

PIDS = "pids.json"
"""In the folder of several processes: name -> process id."""


class EngineCollector(Collector):
    """Of the engine and its queue."""

    def __init__(
        self, ready: LoadedModel | None, draining: bool, figures: EngineStats | None
    ) -> None:
        self._ready = ready
        self._draining = draining
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        figures = self._figures
        moves = figures is not None and not figures.stalled
        ready = self._ready is not None and not self._draining and moves
        yield GaugeMetricFamily("shoal_ready", "1 while /readyz says so.", ready)
        if self._figures is not None:
            yield from _told(self._figures)
        if self._ready is not None:
            model = GaugeMetricFamily(
                "shoal_model_info",
                "1, with the model that answers and what it runs on.",
                labels=["model", "version", "device"],
            )
            told = self._ready.model
            model.add_metric([told.name, told.version, self._ready.device.name], 1)
            yield model


class ProcessesCollector(Collector):
    """What Prometheus' libraries tell of a process, of each of them, with the label `process`."""

    def __init__(self, folder: str) -> None:
        self._path = pathlib.Path(folder, PIDS)

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for process, pid in orjson.loads(self._path.read_bytes()).items():
            for found in ProcessCollector(pid=partial(str, pid), registry=None).collect():
                empty = Metric(found.name, found.documentation, found.type)
                family = families.setdefault(found.name, empty)
                for sample in found.samples:
                    family.add_sample(sample.name, {"process": process}, sample.value)
        return families.values()


def _told(figures: EngineStats) -> Iterable[Metric]:
    yield GaugeMetricFamily("shoal_queue_length", "Items that wait.", figures.queued)
    yield GaugeMetricFamily(
        "shoal_batches_in_flight", "Batches in the engine's hands.", figures.in_flight
    )
    yield CounterMetricFamily(
        "shoal_engine_busy_seconds", "Seconds the engine had work.", figures.busy_seconds
    )
    yield GaugeMetricFamily(
        "shoal_batch_size_limit",
        "The largest batch at the moment; less than set where memory ran out.",
        figures.size_limit,
    )
    yield GaugeMetricFamily(
        "shoal_prediction_margin_ratio",
        "Share of a predicted time that is kept in reserve, as learned so far.",
        figures.margin,
    )
    expected = GaugeMetricFamily(
        "shoal_batch_expected_seconds",
        "What a batch of a bucket is expected to take, as learned so far.",
        labels=["bucket"],
    )
    for bucket, seconds in figures.expected.items():
        expected.add_metric([bucket], seconds)
    yield expected
    if (memory := figures.gpu_memory) is not None:
        gpu = GaugeMetricFamily(
            "shoal_gpu_memory_bytes",
            "Of the whole GPU, as of the latest batch; used: by any process.",
            labels=["state"],
        )
        gpu.add_metric(["used"], memory.total - memory.free)
        gpu.add_metric(["free"], memory.free)
        yield gpu
