"""Backend: makes the networks that the engine runs, on one device, with ONNX Runtime."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from model_store import versions
from model_store.backend import Request
from model_store.device import Device, GpuMemory
from model_store.manifest import BackendName, Manifest, PrecisionName
from model_store.onnx.device import choose
from model_store.onnx.network import Network, open_session
from model_store.onnx.runtime import INSTALL, is_gpu_build, is_installed, load_onnxruntime
from model_store.precision import Precision

__all__ = ["INSTALL", "OnnxBackend", "is_installed", "may_reach_gpu", "start", "why_not"]


class OnnxBackend:
    """Makes networks that ONNX Runtime runs on one device."""

    name: BackendName = "onnxruntime"
    normalizes = True
    few_buckets = False

    def __init__(self, ort: Any, device: Device, threads: int) -> None:
        """
        Args:
            ort: The module `onnxruntime`.
            device: Device that runs the networks.
            threads: Number of CPU threads that run one batch.
        """
        self.device = device
        self._ort = ort
        self._threads = threads

    def accelerator(self, precision: PrecisionName) -> str | None:
        return None

    def prepare(self, folder: pathlib.Path, model: Manifest, precision: PrecisionName) -> Any:
        described = model.onnx[precision]
        content = versions.read_file(folder / described.file, described)
        return open_session(self._ort, content, self._threads, str(folder / described.file))

    def networks(
        self,
        model: Manifest,
        precision: Precision,
        buckets: Sequence[int],
        content: Any,
        count: int,
    ) -> list[Network]:
        return [Network(content) for _ in range(count)]

    def gpu_memory(self) -> GpuMemory | None:
        return None


def may_reach_gpu() -> bool:
    """Whether the installed build can compute on a GPU. ONNX Runtime is not imported."""
    return is_gpu_build()


def why_not(model: Manifest) -> str | None:
    """Return the reason why ONNX Runtime cannot run a version; None if it can."""
    return None if "fp32" in model.onnx else "cannot run this version, which has no ONNX file"


def start(request: Request) -> OnnxBackend:
    """Load ONNX Runtime and choose the device.

    Raises:
        BackendUnavailable, DeviceUnavailable, ValueError.
    """
    ort = load_onnxruntime()
    return OnnxBackend(ort, choose(ort, request.device), request.threads)
