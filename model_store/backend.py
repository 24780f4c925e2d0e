"""Backend: MXNet on one device, as the engine uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model_store.device import Device, GpuMemory, choose, gpu_memory
from model_store.manifest import Manifest
from model_store.network import Network
from model_store.precision import Precision
from model_store.runtime import is_for_cpu, load_mxnet


class Backend:
    """Makes networks for one device."""

    def __init__(self, mx: Any, device: Device) -> None:
        """
        Args:
            mx: The module `mxnet`.
            device: Where the networks compute.
        """
        self.device = device
        self._mx = mx

    def network(self, model: Manifest, precision: Precision, buckets: Sequence[int]) -> Network:
        """A network that is not loaded yet. Arguments as in `Network`."""
        return Network(self._mx, model, self.device, precision, buckets)

    def gpu_memory(self) -> GpuMemory | None:
        """Memory of the device; None for a CPU, or if the driver does not report it."""
        return gpu_memory(self._mx, self.device)


def start_backend(device: str, threads: int, with_amx: bool) -> Backend:
    """Load MXNet and choose the device. Call it on the thread of the first lane.

    Args:
        device: As in `device.choose`.
        threads: CPU threads that compute one operator.
        with_amx: Whether to use AMX if the CPU has it.

    Raises:
        MXNetUnavailable, DeviceUnavailable, ValueError.
    """
    # In order, an operator is computed on the thread that calls it, so lanes compute at the same
    # time. On a GPU the thread would wait after every operator.
    mx = load_mxnet(threads, is_for_cpu(device), with_amx)
    return Backend(mx, choose(mx, device))
