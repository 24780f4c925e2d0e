"""Metrics of the engine and of each process, computed when Prometheus scrapes them."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from functools import partial
from typing import Protocol

import orjson
from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from model_store.backend import BackendChoice
from model_store.device import Device
from model_store.manifest import Identity
from service.telemetry.engine_stats import EngineStats

PIDS = "pids.json"
"""Name of a file in the folder that the processes of the service share. The file contains a JSON
object: name of a process -> process id."""


class LoadedModel(Protocol):
    """The loaded model. `service.inference.service.LoadedModel` is one implementation."""

    @property
    def model(self) -> Identity: ...

    @property
    def device(self) -> Device: ...

    @property
    def backend(self) -> BackendChoice: ...


class EngineCollector(Collector):
    """Metrics of the engine and its queue."""

    def __init__(
        self, loaded: LoadedModel | None, draining: bool, stats: EngineStats | None
    ) -> None:
        """
        Args:
            loaded: The loaded model. None: no model is loaded.
            draining: Whether the server is shutting down.
            stats: The state of the engine. None: the engine does not respond.
        """
        self._loaded = loaded
        self._draining = draining
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        stats, loaded = self._stats, self._loaded
        progresses = stats is not None and not stats.stalled
        ready = loaded is not None and not self._draining and progresses
        yield GaugeMetricFamily("shoal_ready", "1 when /readyz returns 200, else 0.", ready)
        if stats is not None:
            yield from _engine_families(stats)
        if loaded is not None:
            family = GaugeMetricFamily(
                "shoal_model_info",
                "Always 1. The labels name the loaded model, its device and its backend.",
                labels=["model", "version", "device", "backend"],
            )
            model = loaded.model
            family.add_metric(
                [model.name, model.version, loaded.device.name, loaded.backend.name], 1
            )
            yield family


class ProcessesCollector(Collector):
    """The standard metrics `process_*` of each process of the service, with the label `process`."""

    def __init__(self, folder: str) -> None:
        """
        Args:
            folder: Path of the folder that the processes share. The supervisor writes `PIDS` there.
        """
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


def _engine_families(stats: EngineStats) -> Iterable[Metric]:
    yield GaugeMetricFamily("shoal_queue_length", "Images in the queue.", stats.queued)
    yield GaugeMetricFamily(
        "shoal_batches_in_flight", "Batches dispatched to the engine.", stats.in_flight
    )
    yield CounterMetricFamily(
        "shoal_engine_busy_seconds", "Seconds in which the engine had work.", stats.busy_seconds
    )
    yield GaugeMetricFamily(
        "shoal_batch_size_limit",
        "Current maximum batch size, which is lowered when the device runs out of memory.",
        stats.size_limit,
    )
    yield GaugeMetricFamily(
        "shoal_prediction_margin_ratio",
        "Learned safety margin, as a share of the predicted duration of a batch.",
        stats.margin,
    )
    expected = GaugeMetricFamily(
        "shoal_batch_expected_seconds",
        "Learned duration of a batch, by the size that it is padded to (bucket).",
        labels=["bucket"],
    )
    for bucket, seconds in stats.expected.items():
        expected.add_metric([bucket], seconds)
    yield expected
    if (memory := stats.gpu_memory) is not None:
        gpu = GaugeMetricFamily(
            "shoal_gpu_memory_bytes",
            "Memory of the GPU after the latest batch, by state. used: used by all processes.",
            labels=["state"],
        )
        gpu.add_metric(["used"], memory.total - memory.free)
        gpu.add_metric(["free"], memory.free)
        yield gpu
