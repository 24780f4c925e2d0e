"""Prepares the input of the GPU check: a version, a device and test images."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_store import manifest, params, versions
from model_store.batch import SIDE, Image
from model_store.device import Device, gpu_number
from model_store.manifest import Manifest, PrecisionName
from model_store.network import Network
from model_store.onnx import files, gpu
from model_store.onnx.cuda import Cuda
from model_store.onnx.device import choose
from model_store.onnx.gpu_session import Opener
from model_store.onnx.runtime import load_onnxruntime
from model_store.onnx.session import SessionNetwork, open_session

NO_GPU = "there is no GPU"
RECORD = 1 + 3 * SIDE * SIDE
"""Bytes of one image in a file of CIFAR-10: the label, then all red, green and blue pixels."""


@dataclass(frozen=True)
class Subject:
    """The version and the device that the GPU check tests."""

    ort: Any
    """The module `onnxruntime`."""
    cuda: Cuda
    device: Device
    folder: pathlib.Path
    """Folder of the version, which has ONNX files."""
    model: Manifest

    @property
    def gpu(self) -> int | None:
        """Number of the GPU, counted from 0. None: the CPU."""
        return None if self.device.name == "cpu" else gpu_number(self.device.name)

    @property
    def precisions(self) -> list[PrecisionName]:
        """Precisions that the device and the version offer."""
        wanted: list[PrecisionName] = ["fp32", "int8" if self.gpu is None else "fp16"]
        return [precision for precision in wanted if precision in self.model.onnx]

    def content(self, precision: PrecisionName) -> bytes:
        """Returns the content of an ONNX file."""
        described = self.model.onnx[precision]
        return versions.read_file(self.folder / described.file, described)

    def network(
        self,
        precision: PrecisionName,
        buckets: Sequence[int],
        graphs: bool = True,
        options: Mapping[str, str] | None = None,
    ) -> Network:
        """Returns a loaded network.

        Args:
            precision: Precision of the network.
            buckets: Batch sizes that it can run.
            graphs: Whether a GPU uses CUDA graphs.
            options: Options for ONNX Runtime's CUDA execution provider, in addition to the
                service's options. None: only the service's options.

        Raises:
            MemoryError: The GPU is out of memory.
        """
        content = self.content(precision)
        network: Network
        if self.gpu is None:
            network = SessionNetwork(open_session(self.ort, content, 1, precision))
        else:
            opener = Opener(self.ort, self.gpu, content, precision, graphs, options or {})
            network = gpu.network(opener, buckets)
            if graphs and not opener.graphs:
                raise RuntimeError(
                    "ONNX Runtime cannot create a session with CUDA graphs. The log contains the "
                    "reason."
                )
        for _ in network.load(beside=False):
            pass
        if self.gpu is not None and graphs and not opener.graphs:
            raise RuntimeError("a CUDA graph could not be recorded")
        return network


def prepare(folder: pathlib.Path, device: str, scratch: pathlib.Path) -> Subject:
    """Chooses the device, and makes ONNX files if the version has none.

    Args:
        folder: Folder of a version.
        device: auto, cpu, gpu or gpu:N.
        scratch: Folder for a copy of the version with ONNX files.

    Raises:
        DeviceUnavailable: The device is missing or cannot compute.
    """
    ort, cuda = load_onnxruntime(), Cuda()
    chosen = choose(ort, device, cuda)
    model = versions.read_manifest(folder)
    if not {"fp32", "fp16"} <= set(model.onnx):
        copy = scratch / model.name / model.version
        shutil.copytree(folder, copy)
        arrays = params.read_params(copy / model.parameters.file)
        described = model.onnx | files.write(copy, model, arrays)
        manifest.write(copy, model.model_copy(update={"onnx": described}))
        folder, model = copy, versions.read_manifest(copy)
    return Subject(ort, cuda, chosen, folder, model)


def blocks(count: int) -> Image:
    """Returns `count` images of colored squares: 2, 4, 8, 16 or 32 squares in a row."""
    random = np.random.default_rng(0)
    made = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for number in range(count):
        cell = SIDE // 2 ** (1 + number % 5)
        coarse = random.integers(0, 256, (SIDE // cell, SIDE // cell, 3), np.uint8)
        made[number] = coarse.repeat(cell, axis=0).repeat(cell, axis=1)
    return made


def cifar(path: pathlib.Path, count: int) -> tuple[Image, Image]:
    """Returns the first `count` images of a file of CIFAR-10's binary version, and their labels."""
    records = np.fromfile(path, np.uint8, count * RECORD).reshape(-1, RECORD)
    pixels = records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), records[:, 0]
