"""Metrics that are computed at scrape time: of the engine, and of each process."""

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
"""Name of a file in the folder that several processes share: a JSON object, name -> process id."""


class EngineCollector(Collector):
    """Metrics of the engine and its queue."""

    def __init__(
        self, model: LoadedModel | None, draining: bool, stats: EngineStats | None
    ) -> None:
        """
        Args:
            model: The model that serves. None: no model is loaded.
            draining: Whether the server is shutting down.
            stats: Stats of the engine. None: it did not report any.
        """
        self._model = model
        self._draining = draining
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        stats = self._stats
        running = stats is not None and not stats.stalled
        ready = self._model is not None and not self._draining and running
        yield GaugeMetricFamily("shoal_ready", "1 when /readyz answers 200, else 0.", ready)
        if stats is not None:
            yield from _engine_metrics(stats)
        if self._model is not None:
            info = GaugeMetricFamily(
                "shoal_model_info",
                "Always 1. The labels name the model that serves and its device.",
                labels=["model", "version", "device"],
            )
            manifest = self._model.model
            info.add_metric([manifest.name, manifest.version, self._model.device.name], 1)
            yield info


class ProcessesCollector(Collector):
    """The standard `process_*` metrics of each process of the service, with the label `process`."""

    def __init__(self, folder: str) -> None:
        """`folder`: the folder that the processes share. The supervisor writes `PIDS` there."""
        self._path = pathlib.Path(folder, PIDS)

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for process, pid in orjson.loads(self._path.read_bytes()).items():
            for metric in ProcessCollector(pid=partial(str, pid), registry=None).collect():
                empty = Metric(metric.name, metric.documentation, metric.type)
                family = families.setdefault(metric.name, empty)
                for sample in metric.samples:
                    family.add_sample(sample.name, {"process": process}, sample.value)
        return families.values()


def _engine_metrics(stats: EngineStats) -> Iterable[Metric]:
    yield GaugeMetricFamily("shoal_queue_length", "Items in the queue.", stats.queued)
    yield GaugeMetricFamily(
        "shoal_batches_in_flight", "Batches dispatched to the engine.", stats.in_flight
    )
    yield CounterMetricFamily(
        "shoal_engine_busy_seconds", "Seconds in which the engine had work.", stats.busy_seconds
    )
    yield GaugeMetricFamily(
        "shoal_batch_size_limit",
        "Current maximum batch size. Lower than the setting after the device ran out of memory.",
        stats.size_limit,
    )
    yield GaugeMetricFamily(
        "shoal_prediction_margin_ratio",
        "Learned safety margin, as a share of the predicted duration of a batch.",
        stats.margin,
    )
    expected = GaugeMetricFamily(
        "shoal_batch_expected_seconds",
        "Learned duration of a batch, by bucket.",
        labels=["bucket"],
    )
    for bucket, seconds in stats.expected.items():
        expected.add_metric([bucket], seconds)
    yield expected
    if (memory := stats.gpu_memory) is not None:
        gpu = GaugeMetricFamily(
            "shoal_gpu_memory_bytes",
            "Memory of the GPU after the latest batch, by state. used: by all processes.",
            labels=["state"],
        )
        gpu.add_metric(["used"], memory.total - memory.free)
        gpu.add_metric(["free"], memory.free)
        yield gpu
