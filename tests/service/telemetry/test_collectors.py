"""Tests the metrics that are computed at scrape time."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace

import orjson
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from benchmarks.processes import started
from model_store.backend import BackendChoice
from model_store.device import Device, GpuMemory
from model_store.manifest import Identity
from service.telemetry.collectors import PIDS, EngineCollector, ProcessesCollector
from service.telemetry.engine_stats import EngineStats
from tests.service.telemetry.test_metrics import parsed


@dataclass
class Loaded:
    """A model that serves."""

    model = Identity(name="fake", version="7")
    device = Device("gpu:1", "its test computation succeeded")
    backend = BackendChoice("mxnet", "as requested")


LOADED = Loaded()
STATS = EngineStats(
    healthy=True,
    stalled=False,
    queued=5,
    in_flight=2,
    busy_seconds=1.5,
    size_limit=8,
    margin=0.25,
    expected={"1": 0.01, "8": 0.02},
    gpu_memory=GpuMemory(free=3, total=10),
)


def scraped(collector: EngineCollector) -> dict[str, float]:
    """Name and labels of each sample -> its value, as Prometheus reads it."""
    registry = CollectorRegistry()
    registry.register(collector)
    return {
        f"{name.removeprefix('shoal_')}{','.join(v for _, v in sorted(labels))}": sample
        for (name, labels), sample in parsed(generate_latest(registry).decode()).items()
    }


@pytest.mark.parametrize(
    ("loaded", "draining", "stats", "ready"),
    [
        (LOADED, False, STATS, 1),
        (None, False, STATS, 0),
        (LOADED, True, STATS, 0),
        (LOADED, False, replace(STATS, stalled=True), 0),
        (LOADED, False, None, 0),
        (LOADED, False, replace(STATS, healthy=False), 1),
    ],
    ids=["ready", "no model", "draining", "stalled", "no response", "failing"],
)
def test_engine_collector_reports_readiness(
    loaded: Loaded | None, draining: bool, stats: EngineStats | None, ready: int
) -> None:
    """`shoal_ready` is 1 for a loaded model whose engine responds and makes progress, unless the
    server drains."""
    assert scraped(EngineCollector(loaded, draining, stats))["ready"] == ready


def test_engine_collector_reports_every_stat() -> None:
    """Each metric has the value of its stat. Used memory of the GPU is the total without the free
    part."""
    assert scraped(EngineCollector(LOADED, False, STATS)) == {
        "ready": 1,
        "queue_length": 5,
        "batches_in_flight": 2,
        "engine_busy_seconds_total": 1.5,
        "batch_size_limit": 8,
        "prediction_margin_ratio": 0.25,
        "batch_expected_seconds1": 0.01,
        "batch_expected_seconds8": 0.02,
        "gpu_memory_bytesused": 7,
        "gpu_memory_bytesfree": 3,
        "model_infomxnet,gpu:1,fake,7": 1,
    }


@pytest.mark.parametrize("loaded", [LOADED, None], ids=["loaded", "no model"])
def test_engine_collector_leaves_out_what_is_unknown(loaded: Loaded | None) -> None:
    """Without stats there are no metrics of the engine, and without a model none of the model."""
    names = {"ready"} if loaded is None else {"ready", "model_infomxnet,gpu:1,fake,7"}
    assert scraped(EngineCollector(loaded, False, None)).keys() == names


def test_processes_collector_labels_each_process(tmp_path: pathlib.Path) -> None:
    """Each process has its own samples, and each metric is described once."""
    with started([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        pids = {"supervisor": os.getpid(), "engine": child.pid}
        (tmp_path / PIDS).write_bytes(orjson.dumps(pids))
        registry = CollectorRegistry()
        registry.register(ProcessesCollector(str(tmp_path)))
        text = generate_latest(registry).decode()
        starts = {name: start_time(pid) for name, pid in pids.items()}
    for name, start in starts.items():
        line = f'process_start_time_seconds{{process="{name}"}} '
        assert float(text.partition(line)[2].split()[0]) == pytest.approx(start, abs=0.005)
    assert text.count("# TYPE process_resident_memory_bytes ") == 1


def test_processes_collector_follows_restarts(tmp_path: pathlib.Path) -> None:
    """Each scrape reads which processes run. A process that has ended has no samples."""
    collector = ProcessesCollector(str(tmp_path))
    for names in ["engine"], ["engine", "front-end-1"]:
        pids = dict.fromkeys(names, os.getpid()) | {"ended": 2**22 + 1}
        (tmp_path / PIDS).write_bytes(orjson.dumps(pids))
        assert processes(collector.collect()) == set(names)


def processes(metrics: Iterable[Metric]) -> set[str]:
    """Names of the processes that have samples."""
    return {sample.labels["process"] for metric in metrics for sample in metric.samples}


def start_time(pid: int) -> float:
    """When a process started, in seconds since 1970."""
    booted = float(pathlib.Path("/proc/stat").read_text().partition("\nbtime ")[2].split()[0])
    ticks = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return booted + int(ticks) / os.sysconf("SC_CLK_TCK")
