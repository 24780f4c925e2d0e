"""A snapshot of the state of the engine, which runs batches, and of its queue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model_store.device import GpuMemory


@dataclass(frozen=True, slots=True)
class EngineStats:
    """State of the engine and its queue at one moment."""

    healthy: bool
    """Whether the engine works. False: the engine failed on every recent batch and needs a new
    process."""
    stalled: bool
    """Whether the current batch takes much longer than predicted. False again when the batch
    ends."""
    queued: int
    """Number of images in the queue."""
    in_flight: int
    """Number of batches that the engine has received and not completed."""
    busy_seconds: float
    """Total time in which the engine had work, in seconds."""
    size_limit: int
    """Current maximum batch size, which is lowered when the device runs out of memory."""
    margin: float
    """Learned safety margin, as a share of the predicted duration of a batch."""
    expected: Mapping[str, float]
    """Learned duration of a batch in seconds, by bucket (the size that batches are padded to)."""
    gpu_memory: GpuMemory | None
    """Memory of the engine's GPU. None: the engine uses a CPU."""
