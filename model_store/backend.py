"""Backend: makes the networks that the engine computes, on one device, with MXNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model_store.device import Device, GpuMemory, choose, gpu_memory
from model_store.manifest import Manifest
from model_store.network import Network
from model_store.precision import Precision
from model_store.runtime import is_for_cpu, load_mxnet


class Backend:
    """Makes networks that MXNet computes on one device."""

    def __init__(self, mx: Any, device: Device) -> None:
        """
        Args:
            mx: The module `mxnet`.
            device: Device that computes the networks.
        """
        self.device = device
        self._mx = mx

    def network(self, model: Manifest, precision: Precision, buckets: Sequence[int]) -> Network:
        """Return a network that is not loaded yet. Arguments are as in `Network`."""
        return Network(self._mx, model, self.device, precision, buckets)

    def gpu_memory(self) -> GpuMemory | None:
        """Return the memory of the GPU. None: there is no GPU, or its driver does not report it."""
        return gpu_memory(self._mx, self.device)


def start_backend(device: str, threads: int, with_amx: bool) -> Backend:
    """Load MXNet and choose the device.

    This function must be called on the thread of the first lane. A lane is a thread that computes
    one batch at a time.

    Args:
        device: As in `device.choose`.
        threads: Number of CPU threads that compute one operator.
        with_amx: Whether to use AMX, Intel's matrix unit, if the CPU has it.

    Raises:
        MXNetUnavailable, DeviceUnavailable, ValueError.
    """
    # On a CPU, operators run in order: each operator is computed on the thread that calls it, so
    # lanes compute at the same time. On a GPU, the thread would have to wait after every operator.
    mx = load_mxnet(threads, is_for_cpu(device), with_amx)
    return Backend(mx, choose(mx, device))
