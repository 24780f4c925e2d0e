"""The state of the engine and its queue at one moment, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model_store.device import GpuMemory


@dataclass(frozen=True, slots=True)
class EngineStats:
    healthy: bool
    """False: the engine failed on every recent batch, and only a new process helps."""
    stalled: bool
    """Whether the current batch takes much longer than predicted. It ends with that batch."""
    queued: int
    """Number of items in the queue."""
    in_flight: int
    """Number of batches that were dispatched to the engine and have not ended."""
    busy_seconds: float
    """Total time in which the engine had work, in seconds."""
    size_limit: int
    """Current maximum batch size. Lower than the setting after the device ran out of memory."""
    margin: float
    """Learned safety margin, as a share of the predicted duration of a batch."""
    expected: Mapping[str, float]
    """Bucket -> learned duration of a batch, in seconds."""
    gpu_memory: GpuMemory | None
    """Memory of the engine's GPU. None on a CPU."""
