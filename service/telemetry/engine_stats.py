"""What is true of the engine and its queue at one moment, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model_store.device import GpuMemory


@dataclass(frozen=True, slots=True)
class EngineStats:
    healthy: bool
    """False: only a new process helps."""
    stalled: bool
    """True: the engine has made no progress on a batch for long; until that batch ends."""
    queued: int
    """Items that wait."""
    in_flight: int
    """Batches in the engine's hands."""
    busy_seconds: float
    """How long the engine has had work, in all."""
    size_limit: int
    """The largest batch at the moment; less than set where memory ran out."""
    margin: float
    """Share of a predicted time that is kept in reserve, as learned so far."""
    expected: Mapping[str, float]
    """Bucket -> seconds that a batch is expected to take, as learned so far."""
    gpu_memory: GpuMemory | None
    """Of the engine's GPU, if it has one."""
