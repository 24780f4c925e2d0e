"""Networks in MXNet: fp16, fusion, and messages about memory."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from model_store import manifest
from model_store.batch import BatchFormat
from model_store.device import Device
from model_store.mxnet import network
from model_store.mxnet.architectures import build
from model_store.mxnet.network import Network
from model_store.mxnet.runtime import load_mxnet
from model_store.params import read_params
from tests.model_store.test_manifest import GOOD

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MXNet's own
]
TOLERANCE = 1e-4


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "src/storage/./pooled_storage_manager.h:161: cudaMalloc retry failed: out of memory",
            True,
        ),
        ("CUDA: Check failed: e == cudaSuccess (2 vs. 0) : out of memory", True),
        ("Check failed: e == CUBLAS_STATUS_SUCCESS: cuBLAS: CUBLAS_STATUS_ALLOC_FAILED", True),
        ("cuDNN: Check failed: e == CUDNN_STATUS_SUCCESS: CUDNN_STATUS_ALLOC_FAILED", True),
        ("cpu_device_storage.h, line 74\nMXNetError: Failed to allocate CPU Memory", True),
        ("src/storage/./pooled_storage_manager.h:62: Memory allocation failed.", True),
        ("std::bad_alloc", True),
        ("CUDA: an illegal memory access was encountered", False),
        ("cudaMalloc failed: an illegal memory access was encountered", False),
        ("CUDA: no kernel image is available for execution on the device", False),
        ("Check failed: memory format of the weights", False),
    ],
)
def test_is_out_of_memory_knows_the_messages(message: str, expected: bool) -> None:
    """Messages of each library for which a smaller batch may succeed, and others that only mention
    memory."""
    assert network.is_out_of_memory(message) is expected


def test_network_in_fp16_is_built(model: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a machine without a GPU allows: cast, shared by the buckets, and computed up to the
    first kernel that exists only for GPUs."""
    mx = load_mxnet(1)
    described = manifest.read(model)
    device = Device("gpu:0", "for once")
    arrays = read_params(model / "net.params")
    monkeypatch.setattr(network, "context", lambda mx, device: mx.cpu())
    half = Network(mx, described, device, "fp16", [1, 2], arrays)
    for _ in half.load():
        pass
    with pytest.raises(mx.base.MXNetError, match="FP16 gemm on cpu not implemented"):
        half.compute(np.zeros((1, 3, 32, 32), np.float32))
    kinds = {name: np.dtype(p.dtype) for name, p in half._shared.collect_params().items()}
    assert kinds["net_conv0_weight"] == np.float16
    assert kinds["net_batchnorm0_gamma"] == np.float32


def test_network_does_not_fuse_what_mxnet_fuses_wrongly() -> None:
    """A `_v2` network returns correct results."""
    mx = load_mxnet(1)
    plain = build("cifar_resnet20_v2", 10)
    plain.initialize(mx.init.Xavier())
    inputs = np.random.default_rng(1).normal(size=(2, 3, 32, 32)).astype(np.float32)
    wanted = mx.nd.softmax(plain(mx.nd.array(inputs))).asnumpy()
    arrays = {n: p.data().asnumpy() for n, p in plain._collect_params_with_prefix().items()}
    described = {"name": "v2", "architecture": "cifar_resnet20_v2", "classes": list("abcdefghij")}
    model = manifest.Manifest.model_validate(GOOD | described)
    device = Device("cpu", "as requested")
    served = Network(mx, model, device, "fp32", [1, 2], arrays)
    for _ in served.load():
        pass
    rows = BatchFormat(model, [1, 2]).probabilities(served.compute(inputs))
    assert np.abs(rows - wanted).max() < TOLERANCE
