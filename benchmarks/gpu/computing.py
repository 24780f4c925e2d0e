"""Measures the network and the engine alone: answers, latency, throughput and memory."""

from __future__ import annotations

import asyncio
import pathlib
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from benchmarks.gpu.subject import NO_GPU, Subject
from model_store.batch import Image, buckets, noise
from model_store.engine import LaneEngine, load_engine
from model_store.manifest import PrecisionName
from model_store.network import Network
from model_store.onnx.files import probabilities

BATCH = 64
MAX_DIFFERENCE = 1e-4
"""Maximum difference of a probability in fp32 to that of the CPU."""
VARIANTS: dict[str, dict[str, str]] = {
    "as served": {},
    "prefer_nhwc": {"prefer_nhwc": "1"},
    "fuse_conv_bias": {"fuse_conv_bias": "1"},
    "exhaustive search": {"cudnn_conv_algo_search": "EXHAUSTIVE"},
}
"""Options of ONNX Runtime that are compared with those of the service."""


@asynccontextmanager
async def engine(subject: Subject, precision: PrecisionName) -> AsyncIterator[LaneEngine]:
    """Runs the engine during the block."""
    async with load_engine(
        subject.folder,
        subject.device.name,
        max_batch_size=BATCH,
        precision=precision,
        lanes=None,
        backend="onnxruntime",
    ) as loaded:
        yield loaded


def answers(subject: Subject, images: Image, labels: Image | None) -> dict[str, Any]:
    """Compares the engine's probabilities with those of the CPU in fp32.

    Args:
        subject: What is checked.
        images: uint8 (n, 32, 32, 3).
        labels: Index of the class of each image. None: the accuracy is not measured.
    """
    expected = probabilities(subject.content("fp32"), subject.model, images)

    async def computed(precision: PrecisionName) -> Any:
        async with engine(subject, precision) as loaded:
            starts = range(0, len(images), BATCH)
            parts = [await loaded.infer(list(images[start : start + BATCH])) for start in starts]
        return np.array([row for part in parts for row in part])

    results: dict[str, Any] = {}
    for precision in subject.precisions:
        rows = asyncio.run(computed(precision))
        difference = float(np.abs(rows - expected).max())
        same = int((rows.argmax(axis=1) == expected.argmax(axis=1)).sum())
        results[precision] = {"images": len(images), "same_class": same, "difference": difference}
        if labels is not None:
            results[precision]["accuracy"] = float((rows.argmax(axis=1) == labels).mean())
        if precision == "fp32":
            results[precision]["ok"] = same == len(images) and difference <= MAX_DIFFERENCE
    return results


def latency(subject: Subject, seconds: float) -> dict[str, Any]:
    """Measures batches of each size, on a GPU with and without CUDA graphs.

    Args:
        subject: What is measured.
        seconds: Length of each measurement.
    """
    results: dict[str, Any] = {}
    for precision in subject.precisions:
        for graphs in [True, False] if subject.gpu is not None else [False]:
            name = f"{precision}, graphs" if graphs else precision
            try:
                network = subject.network(precision, buckets(BATCH), graphs)
            except Exception as error:  # noqa: BLE001  # the other networks are measured
                results[name] = {"error": str(error)}
                continue
            results[name] = {str(size): _timed(network, size, seconds) for size in buckets(BATCH)}
            network.close()
    return results


def variants(subject: Subject, seconds: float) -> dict[str, Any]:
    """Measures other options of ONNX Runtime with batches of 1 and 64, in the lowest precision."""
    if subject.gpu is None:
        return {"skipped": NO_GPU}
    results: dict[str, Any] = {}
    for name, options in VARIANTS.items():
        began = time.perf_counter()
        try:
            network = subject.network(subject.precisions[-1], [1, BATCH], options=options)
        except Exception as error:  # noqa: BLE001  # ONNX Runtime may refuse an option
            results[name] = {"refused": str(error)}
            continue
        loaded = time.perf_counter() - began
        measured = {str(size): _timed(network, size, seconds) for size in (1, BATCH)}
        results[name] = {"load_seconds": loaded, **measured}
        network.close()
    return results


def throughput(subject: Subject, seconds: float) -> dict[str, Any]:
    """Measures the engine with full batches, and the memory that it takes."""

    async def measure(precision: PrecisionName) -> dict[str, Any]:
        before, began = _free(subject), time.perf_counter()
        async with engine(subject, precision) as loaded:
            ready = time.perf_counter() - began
            taken = None if before is None else before - (_free(subject) or 0)
            images, computed = list(noise(BATCH)), 0
            end = time.perf_counter() + seconds

            async def batches() -> None:
                nonlocal computed
                while time.perf_counter() < end:
                    await loaded.infer(images)
                    computed += BATCH

            began = time.perf_counter()
            await asyncio.gather(*(batches() for _ in range(loaded.max_in_flight)))
            rate = computed / (time.perf_counter() - began)
        return {
            "images_per_second": rate,
            "load_seconds": ready,
            "gpu_bytes": taken,
            "resident_bytes": _resident(),
        }

    return {precision: asyncio.run(measure(precision)) for precision in subject.precisions}


def _timed(network: Network, size: int, seconds: float) -> dict[str, float]:
    """Returns the median and the 99th percentile of the time of a batch, in microseconds."""
    images = noise(size)
    for _ in range(5):
        network.compute(images)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        began = time.perf_counter()
        network.compute(images)
        times.append(1e6 * (time.perf_counter() - began))
    median = statistics.median(times)
    tail = float(np.percentile(times, 99))
    return {"median_us": median, "p99_us": tail, "images_per_second": 1e6 * size / median}


def _free(subject: Subject) -> int | None:
    """Returns the free memory of the GPU in bytes. None: there is no GPU."""
    return None if subject.gpu is None else subject.cuda.driver.memory(subject.gpu).free


def _resident() -> int:
    """Returns the memory of this process in bytes."""
    rows = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(row.split()[1]) for row in rows if row.startswith("VmRSS:"))
