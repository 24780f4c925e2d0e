"""Backend: makes the networks that the engine runs, on one device, with ONNX Runtime."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from model_store import versions
from model_store.backend import Request
from model_store.device import Device, GpuMemory, gpu_number
from model_store.manifest import BackendName, Manifest, PrecisionName
from model_store.network import Network
from model_store.onnx import files, gpu, openvino, writer
from model_store.onnx.cuda import Cuda
from model_store.onnx.device import choose
from model_store.onnx.driver import DriverError
from model_store.onnx.gpu_session import Opener
from model_store.onnx.runtime import INSTALL, is_gpu_build, is_installed, load_onnxruntime
from model_store.onnx.session import SessionNetwork, open_session

__all__ = ["INSTALL", "OnnxBackend", "is_installed", "may_reach_gpu", "start", "why_not"]


class OnnxBackend:
    """Makes networks that ONNX Runtime runs on one device."""

    name: BackendName = "onnxruntime"
    normalizes = True
    few_buckets = False

    def __init__(self, ort: Any, device: Device, threads: int, cuda: Cuda) -> None:
        """
        Args:
            ort: The module `onnxruntime`.
            device: Device that runs the networks.
            threads: Number of CPU threads that run one batch.
            cuda: NVIDIA's driver and libraries.
        """
        self.device = device
        self._cuda = cuda
        self._gpu = None if device.name == "cpu" else gpu_number(device.name)
        """Number of the GPU, counted from 0. None: the CPU."""
        self._ort = ort
        self._threads = threads

    def accelerator(self, precision: PrecisionName) -> str | None:
        return "OpenVINO" if openvino.is_useful(precision, self.device.name) else None

    def networks(
        self,
        folder: pathlib.Path,
        model: Manifest,
        precision: PrecisionName,
        buckets: Sequence[int],
        count: int,
    ) -> Sequence[Network]:
        path, content = _read(folder, model, precision)
        if self._gpu is not None:
            # The engine has one lane on a GPU, so one network is enough.
            return [gpu.network(Opener(self._ort, self._gpu, content, str(path)), buckets)]
        if openvino.is_useful(precision, self.device.name):
            return openvino.networks(content, str(path), buckets, self._threads, count)
        session = open_session(self._ort, content, self._threads, str(path))
        return [SessionNetwork(session) for _ in range(count)]

    def gpu_memory(self) -> GpuMemory | None:
        if self._gpu is None:
            return None
        try:
            return self._cuda.driver.memory(self._gpu)
        except DriverError:
            return None


def may_reach_gpu() -> bool:
    """Whether the installed build can compute on a GPU. ONNX Runtime is not imported."""
    return is_gpu_build()


def why_not(model: Manifest) -> str | None:
    """Return the reason why ONNX Runtime cannot run a version. None: it can run the version."""
    if "fp32" in model.onnx or files.can_write():
        return None
    return (
        "cannot run this version, because the version has no ONNX file. Install the extra "
        "'shoal[export]' to create the file whenever the version is loaded"
    )


def start(request: Request) -> OnnxBackend:
    """Load ONNX Runtime and choose the device.

    Raises:
        BackendUnavailable, DeviceUnavailable, ValueError.
    """
    ort = load_onnxruntime()
    cuda = Cuda()
    return OnnxBackend(ort, choose(ort, request.device, cuda), request.threads, cuda)


def _read(
    folder: pathlib.Path, model: Manifest, precision: PrecisionName
) -> tuple[pathlib.Path, bytes]:
    """Return the path and the content of a version's ONNX file.

    Versions that were added before this backend existed have no ONNX file. For such a version, a
    file in fp32 is created from the parameters and is not written to the store. Raises BadModel,
    BadParams.
    """
    if described := model.onnx.get(precision):
        return folder / described.file, files.read(folder, described)
    path = folder / model.parameters.file
    return path, writer.fp32(model, versions.read_parameters(path, model.parameters))
