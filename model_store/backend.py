"""Backend: the interface between the engine and a library that runs neural networks.

There are two backends, `model_store.mxnet` and `model_store.onnx` (ONNX Runtime). Neither backend
uses the other. Code that does not depend on the library is in the modules of `model_store`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from model_store.device import Device, GpuMemory
from model_store.manifest import BackendName, Manifest, PrecisionName
from model_store.network import Network


class BackendUnavailable(RuntimeError):
    """The backend cannot run the version. The message says why, and what to do."""


@dataclass(frozen=True)
class BackendChoice:
    """The backend that was chosen."""

    name: BackendName
    reason: str
    """Reason why the backend was chosen."""


@dataclass(frozen=True)
class Request:
    """The version that a user wants to run, and the options for running it."""

    model: Manifest
    """Manifest of the version that is loaded first."""
    device: str
    """auto, cpu, gpu or gpu:N."""
    threads: int
    """Number of CPU threads that run one batch."""
    precision: str
    """auto, fp32, int8 or fp16; see `precision.choose`."""
    max_batch_size: int
    """Maximum number of images in a batch on a CPU."""


class Backend(Protocol):
    """Makes networks that one library runs on one device."""

    name: BackendName
    device: Device
    """Device that runs the networks."""
    normalizes: bool
    """Whether the networks normalize pixels; see `batch.BatchFormat`."""

    @property
    def few_buckets(self) -> bool:
        """Whether to use fewer buckets (batch sizes), because each bucket takes much memory."""

    def accelerator(self, precision: PrecisionName) -> str | None:
        """Return the name of the accelerator that this precision uses. None: no accelerator."""

    def networks(
        self,
        folder: pathlib.Path,
        model: Manifest,
        precision: PrecisionName,
        buckets: Sequence[int],
        count: int,
    ) -> Sequence[Network]:
        """Read and verify a version's file, and return networks that are not loaded yet.

        This method is not called on the thread of a lane. Therefore, the method may also do slow
        work that does not require a lane's thread.

        Args:
            folder: Folder of the version.
            model: The version's manifest.
            precision: Precision that `precision.choose` returned for this version and device.
            buckets: Batch sizes that the networks must be able to run, in ascending order.
            count: Number of networks, one for each lane.

        Raises:
            BadModel, BadParams: The file is invalid, or is not the file that the manifest
                describes.
        """

    def gpu_memory(self) -> GpuMemory | None:
        """Return the memory of the GPU. None: there is no GPU, or its driver does not report it."""
