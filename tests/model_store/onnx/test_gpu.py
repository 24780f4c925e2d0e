"""Networks on a GPU, with a fake GPU."""

from __future__ import annotations

import logging

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

from model_store.onnx import gpu
from model_store.onnx.gpu import GpuNetwork
from model_store.onnx.gpu_session import Opener
from tests.model_store.onnx.gpus import FALLBACK, FULL, LOST, FakeGpu, images, network, raises

BUCKETS = [1, 2, 4]


@pytest.fixture
def fake() -> FakeGpu:
    return FakeGpu()


@pytest.fixture
def unloaded(fake: FakeGpu) -> GpuNetwork:
    return gpu.network(Opener(fake, 3, network(), "net.onnx"), BUCKETS)


def load(unloaded: GpuNetwork) -> GpuNetwork:
    for _ in unloaded.load():
        pass
    return unloaded


def test_compute_runs_the_session_of_the_batch_size(fake: FakeGpu, unloaded: GpuNetwork) -> None:
    """The results are those of the batch, also after batches of other sizes."""
    loaded = load(unloaded)
    assert [bucket for bucket, _ in fake.opened] == BUCKETS
    for bucket in [4, 1, 2, 4]:
        batch = images(bucket)
        logits = loaded.compute(batch)
        assert logits.dtype == np.float32 and logits.shape == (bucket, 3)
        assert np.allclose(logits, batch.mean(axis=(1, 2)), atol=1e-3)


def test_compute_returns_results_that_later_batches_do_not_change(unloaded: GpuNetwork) -> None:
    """The buffers are reused, and the results are copies."""
    loaded = load(unloaded)
    first = loaded.compute(np.full((2, 32, 32, 3), 7, np.uint8))
    loaded.compute(np.full((2, 32, 32, 3), 200, np.uint8))
    assert np.allclose(first, 7)


def test_load_makes_the_buffers_once(fake: FakeGpu, unloaded: GpuNetwork) -> None:
    """Pixels are uint8 on the GPU that was chosen. One step for each batch size."""
    assert sum(1 for _ in unloaded.load()) == len(BUCKETS)
    unloaded.compute(images(4))
    inputs = [([bucket, 32, 32, 3], np.uint8, "cuda", 3) for bucket in BUCKETS]
    logits = [([bucket, 3], np.float32, "cuda", 3) for bucket in BUCKETS]
    assert fake.buffers == [one for pair in zip(inputs, logits, strict=True) for one in pair]


def test_load_records_the_graphs(fake: FakeGpu, unloaded: GpuNetwork) -> None:
    """The first run of a session records its CUDA graph. It happens in `load`."""
    ran: list[tuple[int, bool]] = []
    fake.on_run = lambda bucket, graph: ran.append((bucket, graph))
    load(unloaded)
    assert ran == [(bucket, True) for bucket in BUCKETS]


def test_load_uses_no_graph_that_cannot_be_recorded(
    fake: FakeGpu, unloaded: GpuNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is logged once. The network runs all batch sizes without graphs."""
    fake.on_run = raises(RuntimeError("CUDA failure 901: capture ; GPU=0"), *BUCKETS, graph=True)
    with caplog.at_level(logging.WARNING):
        load(unloaded)
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "CUDA failure 901: capture"
    ]
    batch = images(4)
    assert np.allclose(unloaded.compute(batch), batch.mean(axis=(1, 2)), atol=1e-3)


def test_network_runs_without_graphs_from_the_start(fake: FakeGpu) -> None:
    """If ONNX Runtime refuses them when it opens a session."""
    fake.on_open = raises(FALLBACK, *BUCKETS, graph=True)
    loaded = load(gpu.network(Opener(fake, 0, network(), "net.onnx"), BUCKETS))
    assert loaded.compute(images(2)).shape == (2, 3)


def test_load_raises_memory_error_for_the_batch_size(fake: FakeGpu, unloaded: GpuNetwork) -> None:
    """If the GPU has no memory for the first run of a batch size."""
    fake.on_run = raises(FULL, 4)
    with pytest.raises(MemoryError, match="batch of 4 images"):
        load(unloaded)


def test_compute_recovers_after_memory_ran_out(fake: FakeGpu, unloaded: GpuNetwork) -> None:
    """MemoryError for the batch that does not fit. Smaller batches work, and later it fits."""
    loaded = load(unloaded)
    fake.on_run = raises(FULL, 4)
    with pytest.raises(MemoryError, match="batch of 4 images"):
        loaded.compute(images(4))
    assert loaded.compute(images(2)).shape == (2, 3)
    fake.on_run = raises(FULL)
    assert loaded.compute(images(4)).shape == (4, 3)


def test_compute_raises_the_error_of_a_lost_gpu(fake: FakeGpu, unloaded: GpuNetwork) -> None:
    """It is not a lack of memory, so the batcher counts a failed batch."""
    loaded = load(unloaded)
    fake.on_run = raises(LOST, *BUCKETS)
    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        loaded.compute(images(1))


def test_close_frees_the_sessions(fake: FakeGpu, unloaded: GpuNetwork) -> None:
    """Of a network that was loaded, and of one whose load was canceled."""
    steps = unloaded.load()
    next(steps)
    steps.close()
    unloaded.close()
    with pytest.raises(KeyError):
        unloaded.compute(images(1))
