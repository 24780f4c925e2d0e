"""What is true when somebody looks, as families of Prometheus: read anew for each scrape."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from functools import partial
from typing import Protocol

import orjson
from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from model_store.device import Device
from model_store.manifest import Identity
from service.telemetry.engine_stats import EngineStats

PIDS = "pids.json"
"""In the folder of several processes: name -> process id."""


class LoadedModel(Protocol):
    """What is needed of the model that serves."""

    @property
    def model(self) -> Identity: ...

    @property
    def device(self) -> Device: ...


class EngineCollector(Collector):
    """Metrics of the engine and its queue."""

    def __init__(
        self, loaded: LoadedModel | None, draining: bool, stats: EngineStats | None
    ) -> None:
        """
        Args:
            loaded: The model that serves, if one does.
            draining: Whether the server is shutting down.
            stats: The state of the engine, if it responds.
        """
        self._loaded = loaded
        self._draining = draining
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        stats, loaded = self._stats, self._loaded
        progresses = stats is not None and not stats.stalled
        ready = loaded is not None and not self._draining and progresses
        yield GaugeMetricFamily("shoal_ready", "1 while /readyz answers 200.", ready)
        if stats is not None:
            yield from _engine_families(stats)
        if loaded is not None:
            family = GaugeMetricFamily(
                "shoal_model_info",
                "1, with the model that serves and the device that it runs on.",
                labels=["model", "version", "device"],
            )
            family.add_metric([loaded.model.name, loaded.model.version, loaded.device.name], 1)
            yield family


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


def _engine_families(stats: EngineStats) -> Iterable[Metric]:
    yield GaugeMetricFamily("shoal_queue_length", "Items that wait.", stats.queued)
    yield GaugeMetricFamily(
        "shoal_batches_in_flight", "Batches in the engine's hands.", stats.in_flight
    )
    yield CounterMetricFamily(
        "shoal_engine_busy_seconds", "Seconds the engine had work.", stats.busy_seconds
    )
    yield GaugeMetricFamily(
        "shoal_batch_size_limit",
        "The largest batch at the moment; less than set where memory ran out.",
        stats.size_limit,
    )
    yield GaugeMetricFamily(
        "shoal_prediction_margin_ratio",
        "Share of a predicted time that is kept in reserve, as learned so far.",
        stats.margin,
    )
    expected = GaugeMetricFamily(
        "shoal_batch_expected_seconds",
        "What a batch of a bucket is expected to take, as learned so far.",
        labels=["bucket"],
    )
    for bucket, seconds in stats.expected.items():
        expected.add_metric([bucket], seconds)
    yield expected
    if (memory := stats.gpu_memory) is not None:
        gpu = GaugeMetricFamily(
            "shoal_gpu_memory_bytes",
            "Of the whole GPU, as of the latest batch; used: by any process.",
            labels=["state"],
        )
        gpu.add_metric(["used"], memory.total - memory.free)
        gpu.add_metric(["free"], memory.free)
        yield gpu
