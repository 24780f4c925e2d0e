"""Sessions on a GPU, with a fake GPU."""

from __future__ import annotations

import logging
import re

import pytest

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

from model_store.manifest import BadModel
from model_store.onnx.gpu_session import OPTIONS, Opener
from tests.model_store.onnx.gpus import FALLBACK, FULL, LOST, FakeGpu, network, raises


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()


@pytest.fixture
def opener(gpu: FakeGpu) -> Opener:
    return Opener(gpu, 3, network(), "net.onnx", options={"gpu_mem_limit": "1"})


def test_open_fixes_the_batch_size_and_the_options(gpu: FakeGpu, opener: Opener) -> None:
    """TF32 is off, because results in fp32 must agree with those of a CPU."""
    session = opener.open(8)
    assert session.get_inputs()[0].shape == [8, 32, 32, 3]
    ((_, options),) = gpu.opened
    assert options == {
        "device_id": "3",
        "enable_cuda_graph": "1",
        "gpu_mem_limit": "1",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    assert OPTIONS["use_tf32"] == "0"


def test_open_uses_no_graph_if_a_node_is_not_on_the_gpu(
    gpu: FakeGpu, opener: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is logged once, and later sessions do not try again."""
    gpu.on_open = raises(FALLBACK, 1, 2, graph=True)
    with caplog.at_level(logging.WARNING):
        opener.open(1), opener.open(2)
    assert [options["enable_cuda_graph"] for _, options in gpu.opened] == ["0", "0"]
    (record,) = caplog.records
    assert re.match("net.onnx runs without CUDA graphs.* not been partitioned", record.message)
    assert not opener.graphs


def test_open_reports_a_network_that_cannot_run(gpu: FakeGpu, opener: Opener) -> None:
    """Neither with nor without a CUDA graph."""
    gpu.on_open = raises(RuntimeError("no kernel for Foo"), 1)
    with pytest.raises(BadModel, match=r"net\.onnx cannot be run by ONNX Runtime: no kernel"):
        opener.open(1)


def test_open_does_not_compute_on_the_cpu_instead(gpu: FakeGpu, opener: Opener) -> None:
    """If the library for CUDA cannot be loaded, ONNX Runtime raises no error."""
    gpu.loads = False
    with pytest.raises(BadModel, match="cannot load its library for CUDA"):
        opener.open(1)


@pytest.mark.parametrize("graph", [True, False])
def test_open_reports_that_memory_ran_out(gpu: FakeGpu, opener: Opener, graph: bool) -> None:
    """The batch size is named. A full GPU is no reason to give up CUDA graphs."""
    opener.graphs = graph
    gpu.on_open = raises(FULL, 4)
    with pytest.raises(MemoryError, match=r"not enough memory for a batch of 4 images: .* size 9"):
        opener.open(4)
    assert opener.graphs is graph


def test_open_reports_a_lost_gpu(gpu: FakeGpu, opener: Opener) -> None:
    """It is not reported as a lack of memory."""
    gpu.on_open = raises(LOST, 1)
    with pytest.raises(BadModel, match="unspecified launch failure"):
        opener.open(1)
