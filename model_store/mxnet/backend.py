"""Backend: makes the networks that the engine runs, on one device, with MXNet."""

from __future__ import annotations

import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from model_store import versions
from model_store.backend import Request
from model_store.device import Device, GpuMemory
from model_store.manifest import BackendName, Manifest, PrecisionName
from model_store.mxnet import amx
from model_store.mxnet.device import choose, gpu_memory
from model_store.mxnet.network import Network
from model_store.mxnet.runtime import is_for_cpu, is_gpu_build, load_mxnet

INSTALL = "install the extra 'shoal[cpu]' or, with an NVIDIA GPU, 'shoal[gpu]'"


class MXNetBackend:
    """Makes networks that MXNet runs on one device."""

    name: BackendName = "mxnet"
    normalizes = False

    def __init__(self, mx: Any, device: Device) -> None:
        """
        Args:
            mx: The module `mxnet`.
            device: Device that runs the networks.
        """
        self.device = device
        self._mx = mx
        self._amx = device.name == "cpu" and amx.enabled(os.environ)

    @property
    def few_buckets(self) -> bool:
        return self._amx

    def accelerator(self, precision: PrecisionName) -> str | None:
        return "AMX" if self._amx and precision == "int8" else None

    def networks(
        self,
        folder: pathlib.Path,
        model: Manifest,
        precision: PrecisionName,
        buckets: Sequence[int],
        count: int,
    ) -> list[Network]:
        path = folder / model.parameters.file
        arrays = versions.read_parameters(path, model.parameters)
        # MXNet cannot run one network on several threads, so each lane has its own copy.
        return [
            Network(self._mx, model, self.device, precision, buckets, arrays) for _ in range(count)
        ]

    def gpu_memory(self) -> GpuMemory | None:
        return gpu_memory(self._mx, self.device)


def is_installed() -> bool:
    """Whether MXNet is installed. MXNet is not imported."""
    return importlib.util.find_spec("mxnet") is not None


def may_reach_gpu() -> bool:
    """Whether the installed build can compute on a GPU. MXNet is not imported."""
    return is_gpu_build()


def why_not(model: Manifest) -> str | None:
    """Return the reason why MXNet cannot run a version; None if MXNet can run it."""
    return None


def start(request: Request) -> MXNetBackend:
    """Load MXNet and choose the device.

    This function must be called on the thread of the first lane. A lane is a thread that computes
    one batch at a time.

    Raises:
        BackendUnavailable, DeviceUnavailable, PrecisionUnavailable, ValueError.
    """
    # On a CPU, operators run in order: each operator runs on the thread that calls it, so lanes run
    # at the same time. On a GPU, running operators in order would make the thread wait after every
    # operator.
    in_order = is_for_cpu(request.device)
    mx = load_mxnet(request.threads, in_order, with_amx=in_order and amx.is_useful(request))
    return MXNetBackend(mx, choose(mx, request.device))
